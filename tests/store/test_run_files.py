"""The files of a run: rows by ordinal, across pieces and row groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.store.layout import list_parquet
from arkbeam.store.run_files import (
    PieceWriter,
    buyers_uri,
    open_writer,
    read_block,
    read_rows_at,
    read_tables,
    rows_folder,
    take_rows,
    write_tables,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUN, SHARD = "run", 3
_KINDS = [pa.struct([("k", pa.int64())]), pa.struct([("k", pa.string())]), None]


def _staged(start: int, count: int, kind: pa.DataType | None) -> pa.Table:
    columns = {
        "row": pa.array(range(start, start + count), pa.uint64()),
        "fingerprint": pa.array([number.to_bytes(16) for number in range(start, start + count)], schema.FINGERPRINT),
    }
    if kind is not None:
        cell = kind.field(0).type
        columns["kept"] = pa.array([{"k": pa.scalar(n).cast(cell).as_py()} for n in range(start, start + count)], kind)
    return pa.table(columns)


def _write(folder: Path, chunks: list[tuple[int, int]]) -> list[pa.Table]:
    """Stage chunks of (rows, number of the type of their kept columns)."""
    tables, start = [], 0
    with PieceWriter(rows_folder(str(folder), RUN, SHARD)) as writer:
        for count, kind in chunks:
            tables.append(_staged(start, count, _KINDS[kind]))
            writer.write(tables[-1])
            start += count
        assert writer.rows == start
    return tables


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=8), st.data())
def test_rows_are_read_by_ordinal(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, int]], data: Any
) -> None:
    """For pieces and row groups of any size, the rows read are those that a take from all rows gives."""
    folder = tmp_path_factory.mktemp("rows")
    tables = _write(folder, chunks)
    whole = [row for table in tables for row in table.to_pylist()]
    ordinals = sorted(data.draw(st.lists(st.integers(0, len(whole) - 1)))) if whole else []
    columns = ["row", "kept", "nowhere"]
    pieces = list(read_rows_at(str(folder), RUN, SHARD, np.array(ordinals, np.uint32), columns))
    wanted = [{name: value for name, value in whole[number].items() if name in columns} for number in ordinals]
    assert [row for piece in pieces for row in piece.to_pylist()] == wanted
    assert all(piece.num_rows for piece in pieces)


def test_a_piece_ends_where_the_type_of_kept_columns_changes(tmp_path: Path) -> None:
    """Pieces are named by their first row, and each has one schema; empty tables write nothing."""
    _write(tmp_path, [(2, 0), (0, 1), (3, 0), (1, 1), (1, 2)])
    uris = list_parquet(rows_folder(str(tmp_path), RUN, SHARD))
    assert [Path(uri).name for uri in uris] == ["0000000000.parquet", "0000000005.parquet", "0000000006.parquet"]
    assert [pq.read_metadata(uri).num_row_groups for uri in uris] == [2, 1, 1]
    back = [row["row"] for table in read_tables(rows_folder(str(tmp_path), RUN, SHARD)) for row in table.to_pylist()]
    assert back == list(range(7))


def test_a_piece_whose_writer_failed_is_absent(tmp_path: Path) -> None:
    """A shard that can't be read to its end leaves no incomplete piece."""
    folder = rows_folder(str(tmp_path), RUN, SHARD)

    def fail() -> None:
        with PieceWriter(folder) as writer:
            writer.write(_staged(0, 2, None))
            raise StoreError("broken")

    with pytest.raises(StoreError, match="broken"):
        fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_that_is_written_again_replaces_the_first(tmp_path: Path) -> None:
    """A stage that runs again leaves the same files as a single run."""
    uri = str(tmp_path / "x.parquet")
    for count in (5, 2):
        with open_writer(uri, _staged(0, 0, None).schema) as write:
            write(_staged(0, count, None))
    assert pq.read_table(uri).num_rows == 2


def test_a_block_is_a_row_group(tmp_path: Path) -> None:
    """Blocks are written one after the other and read one at a time."""
    uri = buyers_uri(str(tmp_path), RUN, SHARD)
    blocks = [_staged(0, 4, None), _staged(4, 3, None)]
    write_tables(uri, blocks, blocks[0].schema)
    assert [read_block(uri, number).to_pylist() for number in range(2)] == [block.to_pylist() for block in blocks]


def test_rows_that_have_gone_are_an_error(tmp_path: Path) -> None:
    """The error names the folder if it was removed during a run."""
    assert list(read_rows_at(str(tmp_path), RUN, SHARD, np.array([], np.uint32), ["row"])) == []
    with pytest.raises(StoreError, match="rows/000003"):
        list(read_rows_at(str(tmp_path), RUN, SHARD, np.array([1], np.uint32), ["row"]))


def test_a_damaged_piece_is_an_error(tmp_path: Path) -> None:
    """Page checksums are verified in these files too."""
    _write(tmp_path, [(200, 2)])
    (uri,) = list_parquet(rows_folder(str(tmp_path), RUN, SHARD))
    data = bytearray(Path(uri).read_bytes())
    column = pq.read_metadata(uri).row_group(0).column(1)
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    Path(uri).write_bytes(data)
    with pytest.raises(StoreError, match=r"0000000000\.parquet"):
        list(read_rows_at(str(tmp_path), RUN, SHARD, np.arange(200, dtype=np.uint32), ["fingerprint"]))


@given(st.lists(st.integers(0, 9), max_size=12))
def test_rows_are_taken_by_position(rows: list[int]) -> None:
    """In any order, with repeats; all rows in order give the table itself."""
    table = _staged(0, 10, None)
    assert take_rows(table, np.array(rows, np.int64))["row"].to_pylist() == rows
    assert take_rows(table, np.arange(10)) is table
