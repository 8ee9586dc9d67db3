"""Index files: entries are found as they were written, and a damaged file is never read."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base import schema
from arkbeam.base.files import Listed, list_versions
from arkbeam.store import index as index_module
from arkbeam.store.entries import vector_entries
from arkbeam.store.index import (
    DamagedIndex,
    Entries,
    IndexFile,
    Source,
    open_entries,
    open_index_file,
    prefixes,
    write_entries,
)
from arkbeam.store.layout import index_folder, segment_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import FilledStore, fingerprint

COUNTS_ALL = np.ones(1, np.bool_)


def _entries(numbers: list[int], segment: int = 7) -> Entries:
    names = pa.array([fingerprint(number) for number in numbers], schema.FINGERPRINT)
    table = vector_entries(pa.table({"fingerprint": names, "model": ["m"] * len(numbers)}))
    return Entries(Source(f"segments/run/{segment_name(segment)}", "v1", len(numbers)), table)


def _found(file: IndexFile, numbers: list[int], counts: np.ndarray = COUNTS_ALL) -> list[tuple[bytes, int]]:
    wanted = np.unique(prefixes(pa.array([fingerprint(number) for number in numbers], schema.FINGERPRINT)))
    rows = [row for table in file.find(wanted, counts) for row in table.to_pylist()]
    return sorted((row["fingerprint"], row["row"]) for row in rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.lists(st.integers(0, 60), max_size=50), wanted=st.lists(st.integers(0, 80), max_size=20))
def test_fingerprints_are_found(monkeypatch: pytest.MonkeyPatch, held: list[int], wanted: list[int]) -> None:
    """Exactly the entries of the wanted fingerprints are found, also several of one, in row groups of any size."""
    monkeypatch.setattr(index_module, "GROUP_ROWS", 3)
    monkeypatch.setattr(index_module, "_GROUPS_SEARCHED", 2)
    file = open_entries([_entries(held)])
    expected = sorted((fingerprint(number), row) for row, number in enumerate(held) if number in wanted)
    assert _found(file, wanted) == expected
    assert _found(file, wanted, np.zeros(1, np.bool_)) == []


def test_only_the_row_groups_that_can_have_them_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look up two fingerprints, two of a hundred row groups are read; a group that was just read is not read again."""
    monkeypatch.setattr(index_module, "GROUP_ROWS", 10)
    file = open_entries([_entries(list(range(1000)))])
    read: list[int] = []
    read_group = file._reader.read_row_group

    def counted(number: int, **options: bool) -> pa.Table:
        read.append(number)
        return read_group(number, **options)

    monkeypatch.setattr(file._reader, "read_row_group", counted)
    for _ in range(2):
        assert len(_found(file, [3, 500])) == 2
        assert len(read) == 2


def test_the_file_can_be_read_with_other_tools(make_store: Callable[[], FilledStore]) -> None:
    """It is a Parquet file of ENTRIES, sorted by fingerprint, of about 20 bytes an entry."""
    store = make_store()
    numbers = list(range(20_000))
    uri = write_entries(store.uri, 1, [_entries(numbers[:9_000], 1), _entries(numbers[9_000:], 2)])
    table = pq.read_table(uri)
    assert table.schema.remove_metadata() == schema.ENTRIES
    names = table["fingerprint"].to_pylist()
    assert names == sorted(fingerprint(number) for number in numbers)
    assert {(row["source"], row["row"]) for row in table.select(["source", "row"]).to_pylist()} == {
        (number // 9_000 if number < 9_000 else 1, number % 9_000 if number < 9_000 else number - 9_000)
        for number in numbers
    }
    assert Path(uri).stat().st_size < 22 * len(numbers)


def test_sources_are_kept(make_store: Callable[[], FilledStore]) -> None:
    """The list of sources is read back with names, versions and numbers of entries; a file may have no entries."""
    store = make_store()
    write_entries(store.uri, 1, [_entries([1, 2], 5), _entries([], 9)])
    (listed,) = list_versions(index_folder(store.uri))
    file = open_index_file(listed)
    assert file is not None
    assert file.sources == (
        Source("segments/run/0000000000000005.parquet", "v1", 2),
        Source("segments/run/0000000000000009.parquet", "v1", 0),
    )
    assert file.segments.tolist() == [5, 9]
    assert (file.uri, file.rows) == (listed.uri, 2)


def test_damage_is_found(make_store: Callable[[], FilledStore]) -> None:
    """Any flipped bit and any cut is found when the file is opened; so is a file of another kind."""
    store = make_store()
    uri = write_entries(store.uri, 1, [_entries(list(range(100)))])
    path, whole = Path(uri), Path(uri).read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DamagedIndex, match="damaged"):
            open_index_file(Listed(uri, len(whole), "v"))
    path.write_bytes(whole[:-9])
    with pytest.raises(DamagedIndex):
        open_index_file(Listed(uri, len(whole), "v"))
    segment = store.write([1])
    with pytest.raises(DamagedIndex, match="is not an index file"):
        open_index_file(Listed(segment, 1, "v"))


def test_an_open_file_outlives_its_name(make_store: Callable[[], FilledStore]) -> None:
    """If another run removes a file, one that is open can still be read, and one that is not is reported as missing."""
    store = make_store()
    uri = write_entries(store.uri, 1, [_entries([1, 2, 3])])
    (listed,) = list_versions(index_folder(store.uri))
    file = open_index_file(listed)
    Path(uri).unlink()
    assert file is not None
    assert _found(file, [2]) == [(fingerprint(2), 1)]
    assert open_index_file(listed) is None
