"""The index of a store gives the same answer as reading every segment, whatever index files there are."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pytest
import s3fs
from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, remove_files
from arkbeam.store import entries, lookup
from arkbeam.store.entries import read_entries
from arkbeam.store.index import write_entries
from arkbeam.store.layout import hash_content, index_folder, list_parquet, segments_folder
from arkbeam.store.lookup import StoreIndex, open_store_index
from arkbeam.store.multi import multi_table, write_multi
from arkbeam.store.segments import segment_table, write_segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.s3 import S3
from tests.store.conftest import DIMENSIONS, RUN, FilledStore, fingerprint, index_rows, rejected_rows

NUMBERS = st.lists(st.integers(0, 30), max_size=6)
FILES = st.lists(st.tuples(st.sampled_from(["a", "b", None, "rejected"]), NUMBERS), max_size=6)
DAMAGES = st.lists(st.sampled_from(["flip", "cut", "empty", "other", "remove", None, None]), min_size=4, max_size=4)


def _find_all(store: FilledStore, model: str | None = None) -> tuple[set[Any], set[Any]]:
    """Look up all fingerprints as Plan does."""
    everything = pa.array([fingerprint(number) for number in range(31)], schema.FINGERPRINT)
    found = open_store_index(store.uri).complete(store.uri).find(everything, model)
    return index_rows(found.index), rejected_rows(found.rejected)


def _damage(uri: str, how: str | None) -> None:
    path = Path(uri)
    data = path.read_bytes()
    match how:
        case "flip":
            path.write_bytes(data[:50] + bytes([data[50] ^ 4]) + data[51:])
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "other":  # the right hash, but not an index file
            path.with_name(f"{path.name[:16]}-{hash_content(b'other')}.parquet").write_bytes(b"other")
            path.unlink()
        case "remove":
            path.unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    files=FILES,
    covers=st.lists(st.sets(st.integers(0, 5), max_size=6), max_size=4),
    damages=DAMAGES,
    gone=st.sets(st.integers(0, 5)),
)
def test_the_index_changes_nothing(
    make_store: Callable[[], FilledStore],
    files: list[tuple[str | None, list[int]]],
    covers: list[set[int]],
    damages: list[str | None],
    gone: set[int],
) -> None:
    """Index files that overlap, are damaged, or cover segments that were removed or written again: the answer is the same."""
    store = make_store()
    uris = [
        store.reject(numbers) if kind == "rejected" else store.write(numbers or [0], kind) for kind, numbers in files
    ]
    indexes = [store.cover([uris[number] for number in sorted(cover) if number < len(uris)]) for cover in covers]
    for uri, how in zip(indexes, damages, strict=False):
        _damage(uri, how)
    for number in gone:
        if number < len(uris):
            path = Path(uris[number])
            data = path.read_bytes()
            path.unlink()
            if number % 2:  # the same file, written again: another version
                path.write_bytes(data)
                os.utime(path, ns=(number, number))
    for model in (None, "a"):
        assert _find_all(store, model) == (store.owned(model), store.rejected())


def test_covered_files_are_not_opened(make_store: Callable[[], FilledStore], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only segments and event files that no index file covers are read, each once."""
    store = make_store()
    old = [store.write([1, 2]), store.write([3]), store.reject([4])]
    store.cover(old)
    new = [store.write([5]), store.reject([6])]
    read: list[str] = []
    read_whole = entries.read_whole  # type: ignore[attr-defined]

    def counted(uri: str) -> bytes:
        read.append(uri)
        return read_whole(uri)

    monkeypatch.setattr(entries, "read_whole", counted)
    index = open_store_index(store.uri)
    assert read == []
    assert sorted(one.uri for one in index.uncovered) == sorted(new)
    index = index.complete(store.uri)
    assert sorted(read) == sorted(new)
    assert index.uncovered == ()


def test_a_segment_that_changed_is_read_again(
    make_store: Callable[[], FilledStore], caplog: pytest.LogCaptureFixture
) -> None:
    """A covered segment that is cut, or changed and as long as before, is verified again, and set aside."""
    store = make_store()
    uris = [store.write([number]) for number in range(3)]
    store.cover(uris)
    Path(uris[0]).write_bytes(Path(uris[0]).read_bytes()[:-1])
    data = Path(uris[1]).read_bytes()
    Path(uris[1]).write_bytes(data[:90] + bytes([data[90] ^ 1]) + data[91:])
    with caplog.at_level(logging.WARNING):
        assert {row[0] for row in _find_all(store)[0]} == {fingerprint(2)}
    assert caplog.text.count("damaged and set aside") == 2
    assert list_parquet(segments_folder(store.uri)) == uris[2:]


def test_per_token_vectors_are_part_of_the_version(make_store: Callable[[], FilledStore], make_bought: Any) -> None:
    """If the file of per-token vectors is damaged or lost, its segment is verified again, and set aside."""
    store = make_store()
    bought = [make_bought(1)]
    for segment in (1, 2):
        metadata = write_multi(store.uri, RUN, segment, multi_table(bought, DIMENSIONS))
        write_segment(store.uri, RUN, segment, segment_table(bought, DIMENSIONS).replace_schema_metadata(metadata))
    store.cover(list_parquet(segments_folder(store.uri)))
    assert open_store_index(store.uri).uncovered == ()
    first, second = (Path(uri) for uri in list_parquet(f"{store.uri}/multi"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    assert len(open_store_index(store.uri).uncovered) == 2
    open_store_index(store.uri).complete(store.uri)
    assert list_parquet(segments_folder(store.uri)) == []


def test_index_files_that_vanish_are_looked_for_again(
    make_store: Callable[[], FilledStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another run merges index files between the listing and the reading, the merged one is found in a second listing."""
    store = make_store()
    uris = [store.write([number]) for number in range(3)]
    small = [store.cover([uri]) for uri in uris]
    open_index_file, merged, lock = lookup.open_index_file, list[str](), Lock()  # type: ignore[attr-defined]

    def open_late(listed: Listed) -> Any:
        with lock:
            if not merged:
                merged.append(store.cover(uris))
                remove_files(small)
        return open_index_file(listed)

    monkeypatch.setattr(lookup, "open_index_file", open_late)
    index = open_store_index(store.uri)
    assert [covering.file.uri for covering in index.covering] == merged
    assert index.uncovered == ()


def test_a_segment_that_is_removed_meanwhile(make_store: Callable[[], FilledStore]) -> None:
    """A segment that another run sets aside, or replaces, between the listing and the reading has no entries."""
    store = make_store()
    first, second = store.write([1]), store.write([2])
    index = open_store_index(store.uri)
    Path(first).unlink()
    found = index.complete(store.uri).find(pa.array([fingerprint(1), fingerprint(2)], schema.FINGERPRINT))
    assert index_rows(found.index) == store.owned()
    assert Path(second).exists()


def test_an_index_that_cannot_be_read_costs_only_time(
    make_store: Callable[[], FilledStore], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the storage fails for an index file, there is a warning, and the segments are read; the file is not called damaged."""
    store = make_store()
    store.cover([store.write([1, 2])])

    def fail(listed: Listed) -> Any:
        raise StoreError(f"cannot read {listed.uri}: TimeoutError")

    monkeypatch.setattr(lookup, "open_index_file", fail)
    with caplog.at_level(logging.WARNING):
        index = open_store_index(store.uri)
        assert _find_all(store)[0] == store.owned()
    assert "TimeoutError" in caplog.text
    assert (len(index.uncovered), index.damaged) == (1, ())
    assert len(list_parquet(index_folder(store.uri))) == 1


def test_a_store_without_anything(make_store: Callable[[], FilledStore]) -> None:
    """An empty store has no entries."""
    store = make_store()
    assert open_store_index(store.uri) == StoreIndex()
    assert _find_all(store) == (set(), set())


def test_calls_on_an_object_store(s3: S3, make_bought: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 uncovered segments take one GET each, several at once; when they are covered, one GET in all."""
    store = FilledStore(s3.uri("store"), make_bought)
    for number in range(30):
        store.write([number])
    store.reject([30])
    calls: Counter[str] = Counter()
    running, most = 0, 0
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal running, most
        calls[method] += 1
        running += 1
        most = max(most, running)
        try:
            return await call(self, method, *arguments, **options)
        finally:
            running -= 1

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    index = open_store_index(store.uri)
    assert len(index.uncovered) == 31
    calls.clear()
    write_entries(store.uri, 99, list(read_entries(store.uri, index.uncovered)))
    assert calls == {"get_object": 31, "put_object": 1}
    assert most > 4
    calls.clear()
    index = open_store_index(store.uri)
    assert index.uncovered == ()
    found = index.find(pa.array([fingerprint(number) for number in range(31)], schema.FINGERPRINT))
    assert (found.index.num_rows, found.rejected.num_rows) == (30, 1)
    assert calls["get_object"] == 1
    assert calls["head_object"] <= 2  # s3fs looks whether folders without files, `multi` and `replaced`, are files
    assert calls.total() <= 10
