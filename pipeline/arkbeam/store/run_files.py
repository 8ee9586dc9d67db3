"""The files of a run, below `<store>/runs/<run>/`. They are removed when the run ends, `result.json` when it was read.

If the store is remote and all stages run in one process, a local folder (`store.scratch`) takes the place of the store.

    rows/<shard>/<ordinal>.parquet  staged rows, from this ordinal on
    unreadable/<shard>/<n>.parquet  rows that could not be read
    buyers/<shard>.parquet          KEYS of the rows whose requests are sent; one row group is one block
    blocks/                         attempts at blocks, and marks of processes (`engine.attempts`)
    budget/<process>                what a process has drawn from a shared budget (`quota.draws`)
    counts/<process>.json           what a process has done so far (`stages.embed.counts`)
    shards.json, lists.json         lists that grow with the input (`stages.inputs`)
    progress/<process>.json         what a process of several has done, for the progress display (`stages.meter`)
    running.json                    what `arkbeam status`, `wait` and `stop` need to know of the run (`app.run_note`)
    plan.json, stop.json, result.json
    error.json                      why a process can't work for the run (`stages.presence`)
    second-<shard>-<block>.json     an empty note: the session that begins with this block has begun its second pass

A stage that runs again writes the same files again, so repeating it changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import writing
from arkbeam.base.uris import is_local, join, open_filesystem, storage_errors
from arkbeam.store.layout import SUFFIX, list_parquet, run_folder

RUNNING = "running"
"""Name of the note that the folder of a run has from its start until its removal."""


def rows_folder(store_uri: str, run: str, shard: int) -> str:
    """Return the folder of a shard's staged rows."""
    return join(run_folder(store_uri, run), "rows", f"{shard:06d}")


def unreadable_folder(store_uri: str, run: str, shard: int) -> str:
    """Return the folder of a shard's unreadable rows; it is empty if there are none."""
    return join(run_folder(store_uri, run), "unreadable", f"{shard:06d}")


def buyers_uri(store_uri: str, run: str, shard: int) -> str:
    """Return the URI of a shard's buyers: the KEYS of those rows whose requests are sent."""
    return join(run_folder(store_uri, run), "buyers", f"{shard:06d}{SUFFIX}")


def note_name(name: str) -> str:
    """Return the name of the file of a JSON note, such as `plan`, `stop` or `result`."""
    return f"{name}.json"


def note_uri(store_uri: str, run: str, name: str) -> str:
    """Return the URI of a JSON note of a run."""
    return join(run_folder(store_uri, run), note_name(name))


def write_tables(uri: str, tables: Iterable[pa.Table], wanted: pa.Schema) -> None:
    """Write tables to one file, each as one row group; only one table is in memory at a time."""
    with open_writer(uri, wanted) as write:
        for table in tables:
            write(table)


@contextmanager
def open_writer(uri: str, wanted: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends a table to a file as one row group. The file appears, complete, after the block.

    On the local disk, where bytes are cheap, the codec is the one that takes the least time.
    """
    codec = {"compression": "snappy", "compression_level": None} if is_local(uri) else {}
    options = schema.parquet_options(wanted) | {"use_dictionary": False, "write_statistics": False} | codec
    with writing(uri, durable=False) as path, pq.ParquetWriter(path, wanted, **options) as writer:
        yield lambda table: writer.write_table(table, row_group_size=max(1, table.num_rows))


@dataclass(slots=True)
class PieceWriter:
    """Appends tables to files (pieces) in a folder. A new piece, named by its first row, begins when the schema changes."""

    folder: str
    rows: int = 0
    _schema: pa.Schema | None = None
    _open: ExitStack = field(default_factory=ExitStack)
    _write: Callable[[pa.Table], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)  # passes an error to the open file, which is then discarded

    def write(self, table: pa.Table) -> None:
        """Append a table; a table without rows is ignored."""
        if table.num_rows == 0:
            return
        if self._write is None or table.schema != self._schema:
            self._open.close()
            uri = join(self.folder, f"{self.rows:010d}{SUFFIX}")
            self._write = self._open.enter_context(open_writer(uri, table.schema))
            self._schema = table.schema
        self._write(table)
        self.rows += table.num_rows


@contextmanager
def open_run_file(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a run to read single row groups; page checksums are verified."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri), filesystem.open(path, "rb") as file:
        yield pq.ParquetFile(file, page_checksum_verification=True)


def read_block(uri: str, block: int) -> pa.Table:
    """Read one row group."""
    with open_run_file(uri) as file:
        return file.read_row_group(block, use_threads=False)


def read_tables(folder: str) -> Iterator[pa.Table]:
    """Yield the row groups of all pieces in a folder, one at a time."""
    for uri in list_parquet(folder):
        with open_run_file(uri) as file:
            for group in range(file.metadata.num_row_groups):
                yield file.read_row_group(group, use_threads=False)


def read_rows_at(
    store_uri: str, run: str, shard: int, ordinals: npt.NDArray[np.uint32], columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield a shard's staged rows with the given ascending ordinals: one table per row group that has any of them."""
    pieces = list_parquet(rows_folder(store_uri, run, shard))
    firsts = [int(uri.rpartition("/")[2].removesuffix(SUFFIX)) for uri in pieces]
    if len(ordinals) and not pieces:
        raise StoreError(
            f"{rows_folder(store_uri, run, shard)} has no files: the staged rows were removed during the run"
        )
    bounds = np.searchsorted(ordinals, [*firsts, 2**32][1:])
    low = 0
    for uri, first, high in zip(pieces, firsts, bounds.tolist(), strict=True):
        if high > low:
            yield from _read_piece(uri, ordinals[low:high].astype(np.int64) - first, columns)
        low = high


def _read_piece(uri: str, positions: npt.NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
    with open_run_file(uri) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        ends = np.cumsum(groups)
        for group in np.unique(np.searchsorted(ends, positions, side="right")).tolist():
            start = int(ends[group]) - groups[group]
            low, high = np.searchsorted(positions, [start, ends[group]])
            yield take_rows(file.read_row_group(group, columns=names, use_threads=False), positions[low:high] - start)


def take_rows(table: pa.Table, rows: npt.NDArray[np.integer]) -> pa.Table:
    """Return rows by position; the table itself, without a copy, for all rows in order."""
    if len(rows) == table.num_rows and (rows == np.arange(len(rows))).all():
        return table
    return table.take(pa.array(rows))
