"""Index files stay few, and merging them loses nothing, wherever it is interrupted and whoever merges at the same time."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.base import faults, schema
from arkbeam.base.faults import Injector
from arkbeam.base.files import read_bytes
from arkbeam.store import index as index_module
from arkbeam.store import index_merge
from arkbeam.store.index_merge import choose_merge, tidy_index
from arkbeam.store.layout import index_folder, list_parquet
from arkbeam.store.lookup import StoreIndex, open_store_index
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import FilledStore, fingerprint, index_rows, rejected_rows


@dataclass(frozen=True, slots=True)
class _File:
    """As much of an index file as the choice of files needs."""

    rows: int


@dataclass(frozen=True, slots=True)
class _Covering:
    """As much of a `Covering`: `rows` entries count."""

    file: _File
    rows: int
    counts: Any


def _covering(rows: int, of: int | None = None) -> Any:
    return _Covering(_File(rows if of is None else of), rows, np.ones(1, np.bool_))


@pytest.mark.parametrize("rows_of_a_run", [1, 1_000, 20_000, 300_000])
def test_a_thousand_runs_leave_few_files(rows_of_a_run: int) -> None:
    """After each of 1,000 runs there are at most 20 index files, and in all an entry was written at most 12 times."""
    files: list[int] = []
    written = most = 0
    for _ in range(1_000):
        files.append(rows_of_a_run)
        chosen = choose_merge([_covering(rows) for rows in files])
        if chosen:
            merged = sum(files[number] for number in chosen)
            files = [rows for number, rows in enumerate(files) if number not in chosen] + [merged]
            written += merged
        most = max(most, len(files))
    assert sum(files) == 1_000 * rows_of_a_run
    assert most <= 20
    if rows_of_a_run > 1:
        assert written <= 12 * sum(files)


@given(st.lists(st.integers(0, 50_000_000), max_size=60))
def test_after_a_merge_nothing_more_is_to_merge(rows: list[int]) -> None:
    """Whatever files there are, one merge leaves few of them in each tier."""
    chosen = choose_merge([_covering(one) for one in rows])
    left = [one for number, one in enumerate(rows) if number not in chosen]
    if chosen:
        assert len(chosen) > 1
        left.append(sum(rows[number] for number in chosen))
    assert choose_merge([_covering(one) for one in left]) == []


def test_a_file_that_is_mostly_stale_is_written_again() -> None:
    """If more than half of its entries no longer count, a file is replaced by one without these."""
    assert choose_merge([_covering(40, of=100), _covering(60, of=100)]) == [0]


def _tidy(store: FilledStore) -> StoreIndex:
    tidy_index(store.uri, open_store_index(store.uri), next(store.file_ids))
    return open_store_index(store.uri)


def check_answers(store: FilledStore, index: StoreIndex) -> None:
    """Check that the answer is what reading every file gives."""
    everything = pa.array([fingerprint(number) for number in range(200)], schema.FINGERPRINT)
    found = index.complete(store.uri).find(everything)
    assert index_rows(found.index) == store.owned()
    assert rejected_rows(found.rejected) == store.rejected()


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge from three files on, in several ranges, with small row groups."""
    monkeypatch.setattr(index_merge, "SMALL_FILES_MAX", 2)
    monkeypatch.setattr(index_merge, "_MERGED_ROWS", 7)
    monkeypatch.setattr(index_module, "GROUP_ROWS", 4)


def _fill(store: FilledStore, files: int = 4) -> list[str]:
    """Write segments and event files, some with equal fingerprints, each pair with an index file; return their URIs."""
    uris = []
    for number in range(files):
        pair = [store.write(range(number * 7, number * 7 + 10), "ab"[number % 2]), store.reject([100 + number])]
        store.cover(pair)
        uris += pair
    return uris


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_merge_keeps_every_entry(make_store: Callable[[], FilledStore], small_files: None, seed: int) -> None:
    """One sorted file has the entries of all that are merged, without those of files that were removed from the store."""
    store, source = make_store(), random.Random(seed)
    uris = _fill(store, source.randrange(4, 7))
    for uri in source.sample(uris, 2):
        Path(uri).unlink()
    index = _tidy(store)
    (covering,) = index.covering
    assert covering.counts.all()
    assert index.uncovered == ()
    assert covering.file.rows == len(store.owned()) + len(store.rejected())
    check_answers(store, index)


def test_files_of_no_use_are_removed(make_store: Callable[[], FilledStore]) -> None:
    """A damaged index file, one that others cover, and one whose segments are gone are removed; the others stay."""
    store = make_store()
    first, second, third = (store.write([number]) for number in range(3))
    needed = store.cover([first, second])
    store.cover([first])
    store.cover([third])
    damaged = Path(store.cover([second]))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    Path(third).unlink()
    _tidy(store)
    assert list_parquet(index_folder(store.uri)) == [needed]


POINTS = ["file.write", "file.commit", "file.written"]


@pytest.mark.parametrize("point", POINTS)
def test_a_merge_that_ends_half_way(
    make_store: Callable[[], FilledStore], small_files: None, caplog: Any, point: str
) -> None:
    """If the merge fails before or after its file appears, there is a warning, and nothing must be read again."""
    store = make_store()
    _fill(store)
    index = open_store_index(store.uri)
    with pytest.MonkeyPatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(faults, "hit", Injector.parse(f"{point}@*/index/*:eio:1").hit)
        tidy_index(store.uri, index, next(store.file_ids))
    assert "not merged" in caplog.text
    half = open_store_index(store.uri)
    assert half.uncovered == ()
    check_answers(store, half)
    check_answers(store, _tidy(store))
    assert len(_tidy(store).covering) == 1


@pytest.mark.parametrize("removed", range(5))
def test_a_merge_that_is_killed_while_it_removes(
    make_store: Callable[[], FilledStore], small_files: None, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    """However many of the merged files are removed, the store is covered, and the next run removes the rest."""
    store = make_store()
    _fill(store)
    remove_files = index_merge.remove_files  # type: ignore[attr-defined]
    monkeypatch.setattr(index_merge, "remove_files", lambda uris: remove_files(uris[:removed]))
    assert _tidy(store).uncovered == ()
    monkeypatch.undo()
    index = _tidy(store)
    assert (len(index.covering), index.uncovered) == (1, ())
    check_answers(store, index)


def test_a_rewritten_file_takes_the_place_of_the_stale_one(make_store: Callable[[], FilledStore]) -> None:
    """If a run is killed after it wrote a file again without its stale entries, the new file counts, and the old one goes."""
    store = make_store()
    uris = [store.write(range(number, number + 5)) for number in range(0, 50, 5)]
    store.cover(uris)
    for uri in uris[:6]:
        Path(uri).unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index_merge, "remove_files", lambda _: None)
        _tidy(store)
    index = open_store_index(store.uri)
    assert [covering.rows for covering in index.covering] == [20, 0]
    assert index.covering[0].file.rows == 20
    check_answers(store, index)
    assert [covering.file.rows for covering in _tidy(store).covering] == [20]


@pytest.mark.parametrize("seed", range(6))
def test_two_runs_that_merge_at_once(make_store: Callable[[], FilledStore], small_files: None, seed: int) -> None:
    """Two runs see different files and merge in any order: no error, and at worst some files are read again."""
    store, source = make_store(), random.Random(seed)
    uris = _fill(store)
    first = open_store_index(store.uri)
    store.cover([store.write([150])])
    second = open_store_index(store.uri)
    for index in source.sample([first, second], 2):
        tidy_index(store.uri, index, next(store.file_ids))
    left = open_store_index(store.uri)
    assert left.uncovered == ()
    check_answers(store, left)
    index = _tidy(store)
    assert len(index.covering) <= 2
    check_answers(store, index)
    assert all(read_bytes(uri) for uri in uris)


def test_readers_and_writers_of_the_index_at_once(make_store: Callable[[], FilledStore], small_files: None) -> None:
    """Four threads look up, write and merge in the same store: each answer is complete, and none fails."""
    store, errors = make_store(), list[BaseException]()
    _fill(store)
    ids = count(1_000)
    expected = store.owned()

    def work(seed: int) -> None:
        source = random.Random(seed)
        everything = pa.array([fingerprint(number) for number in range(100)], schema.FINGERPRINT)
        try:
            for _ in range(8):
                index = open_store_index(store.uri)
                assert expected <= index_rows(index.complete(store.uri).find(everything).index)
                tidy_index(store.uri, index, next(ids))
                if source.random() < 0.5:
                    store.cover([store.write([150 + seed])])
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check_answers(store, open_store_index(store.uri))
