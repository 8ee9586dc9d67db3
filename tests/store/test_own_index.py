"""A process covers what it writes, so that the next run reads none of it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from arkbeam.base import faults
from arkbeam.base.faults import Injector
from arkbeam.store.entries import rejection_entries, vector_entries
from arkbeam.store.events import REJECTED_COLUMNS
from arkbeam.store.layout import index_folder, list_parquet
from arkbeam.store.lookup import open_store_index
from arkbeam.store.own_index import OwnIndex
from arkbeam.store.segments import INDEX_COLUMNS, read_columns

from tests.store.conftest import RUN, FilledStore
from tests.store.test_index_merge import check_answers


def _add(own: OwnIndex, store: FilledStore, numbers: range) -> None:
    segment, events = store.write(numbers), store.reject(numbers)
    own.add(segment, vector_entries(read_columns(segment, INDEX_COLUMNS)))
    own.add(events, rejection_entries(read_columns(events, REJECTED_COLUMNS)))


def test_what_is_written_is_covered(make_store: Callable[[], FilledStore]) -> None:
    """One index file covers all segments and event files so far, with the entries that a reader of them would find."""
    store = make_store()
    own = OwnIndex(store.uri, RUN)
    own.flush(store.file_ids)
    assert list_parquet(index_folder(store.uri)) == []
    for first in (0, 10):
        _add(own, store, range(first, first + 10))
    own.flush(store.file_ids, rows_min=41)
    assert list_parquet(index_folder(store.uri)) == []
    own.flush(store.file_ids, rows_min=40)
    own.flush(store.file_ids)
    index = open_store_index(store.uri)
    assert (len(index.covering), index.uncovered) == (1, ())
    check_answers(store, index)


def test_a_file_that_is_not_listed_is_not_covered(make_store: Callable[[], FilledStore]) -> None:
    """A file that the storage does not list has no version; it is left to the next run."""
    store = make_store()
    own = OwnIndex(store.uri, RUN)
    _add(own, store, range(3))
    own.add(
        f"{store.uri}/segments/{RUN}/00000000000000ff-0.parquet",
        vector_entries(read_columns(store.write([1]), INDEX_COLUMNS)),
    )
    own.flush(store.file_ids)
    index = open_store_index(store.uri)
    assert [len(covering.file.sources) for covering in index.covering] == [2]
    check_answers(store, index)


def test_an_index_that_cannot_be_written_costs_only_time(
    make_store: Callable[[], FilledStore], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the disk is full, there is a warning, and the next run reads the files."""
    store = make_store()
    own = OwnIndex(store.uri, RUN)
    _add(own, store, range(3))
    monkeypatch.setattr(faults, "hit", Injector.parse("file.commit@*/index/*:enospc:1+").hit)
    with caplog.at_level(logging.WARNING):
        own.flush(store.file_ids)
    assert "No space left" in caplog.text
    assert not list(Path(store.uri).glob("index/*"))
    assert len(open_store_index(store.uri).uncovered) == 2
