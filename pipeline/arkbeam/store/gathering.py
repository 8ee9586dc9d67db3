"""Gather the rows of many small files into few large ones: what compaction writes, before it is in the store.

A gathered segment has the rows of the segments that it replaces, unchanged, of any run and output. What they cost is
gathered by output, as events of kind `ok`, so that `usage/` reads only the costs of its own output.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import storage_errors
from arkbeam.store.entries import by_size
from arkbeam.store.events import EventKind
from arkbeam.store.layout import hash_in_name, is_gathered, key_of_run, run_of
from arkbeam.store.listing import source_name
from arkbeam.store.segments import INDEX_COLUMNS, read_parquet, read_whole

BYTES_MAX = 128 * 1024 * 1024
ROWS_MAX = 65_536
GROUP_ROWS = 4_096
_GROUP_BYTES = 16 * 1024 * 1024  # of float32 vectors, as in a row group that is published
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gathered:
    """A gathered segment in a local file."""

    path: Path
    old: tuple[str, ...]
    """The names of the segments that it replaces."""
    index: pa.Table
    """Its INDEX_COLUMNS."""
    events: dict[str, pa.Table]
    """GATHERED_EVENTS by key of the output: what its rows cost, without those of segments that were gathered before."""
    full: bool
    """True if one more segment would have made it too large."""


def gather_segments(
    store_uri: str, files: Sequence[Listed], folder: Path, is_over: Callable[[], bool]
) -> Iterator[Gathered]:
    """Read segments, and write gathered ones to a local folder; only what one of them gathers is in memory or on disk.

    Segments with different columns or dimensions are not mixed. A segment that is damaged, has been removed or can't be
    read is left out with a warning. When `is_over` returns true, no more segments are read. Raise StoreError if the local
    disk fails.
    """
    open_ones: dict[str, _Builder] = {}
    paths = (folder / str(number) for number in count())
    for file, data in _read_files(store_uri, files, is_over):
        with storage_errors("read", file.uri):
            reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            wanted = reader.schema_arrow.remove_metadata()
            if not {"dense", *_COST_COLUMNS} <= set(wanted.names) or b"multi_hash" in (
                reader.schema_arrow.metadata or {}
            ):
                continue
            builder = open_ones.get(str(wanted))
            if builder is not None and not builder.has_room(file.size, reader.metadata.num_rows):
                yield builder.close(full=True)
                builder = None
            if builder is None:
                builder = open_ones[str(wanted)] = _Builder(next(paths), wanted)
            groups = range(reader.metadata.num_row_groups)
            builder.add(file, (reader.read_row_group(group, use_threads=False) for group in groups))
    for builder in open_ones.values():
        yield builder.close(full=False)


def gather_events(store_uri: str, files: Sequence[Listed]) -> tuple[tuple[str, ...], pa.Table]:
    """Read the event files of one output; return the names of those that could be read, and their GATHERED_EVENTS."""
    old, tables = [], []
    for file, data in _read_files(store_uri, files, lambda: False):
        run = run_of(file.uri)
        wanted = schema.GATHERED_EVENTS if is_gathered(run) else schema.EVENTS
        with storage_errors("read", file.uri):
            table = read_parquet(data, wanted.names).replace_schema_metadata()
        tables.append(table if is_gathered(run) else table.append_column("run", pa.repeat(run, table.num_rows)))
        old.append(source_name(file.uri))
    return tuple(old), schema.concat([table.cast(schema.GATHERED_EVENTS) for table in tables], schema.GATHERED_EVENTS)


def cost_events(segment: pa.Table, run: str) -> pa.Table:
    """Return what the rows of a segment cost, as GATHERED_EVENTS."""
    same = {"kind": EventKind.BOUGHT.value, "paid": True, "code": "", "message": "", "run": run}
    columns = {name: pa.repeat(value, segment.num_rows) for name, value in same.items()}
    names = schema.GATHERED_EVENTS.names
    table = pa.table([columns[name] if name in columns else segment[name] for name in names], names=names)
    return table.cast(schema.GATHERED_EVENTS)


_COST_COLUMNS = [name for name in schema.EVENTS.names if name not in ("kind", "paid", "code", "message")]


def _read_files(store_uri: str, files: Sequence[Listed], is_over: Callable[[], bool]) -> Iterator[tuple[Listed, bytes]]:
    """Yield the files that can be read, with their bytes."""
    for some, in_flight in by_size(store_uri, files):
        for file, data in zip(some, in_parallel(_try_to_read, some, in_flight), strict=True):
            if is_over():
                return
            if data is not None:
                yield file, data


def _try_to_read(file: Listed) -> bytes | None:
    """Return the bytes of a file; None, with a warning, if it is damaged or can't be read."""
    try:
        data = read_whole(file.uri)
        if not hash_in_name(file.uri):  # an earlier version wrote it: only decoding it shows damage
            with storage_errors("read", file.uri):
                pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        return data
    except StoreError as error:
        _log.warning("a file is left out of the compaction: %s", error)
        return None


@dataclass(slots=True)
class _Builder:
    """Writes one gathered segment to a local file, in row groups of about _GROUP_BYTES and at most GROUP_ROWS."""

    path: Path
    wanted: pa.Schema
    _old: list[str] = field(default_factory=list)
    _bytes: int = 0
    _rows: int = 0
    _pending: list[pa.Table] = field(default_factory=list)
    _index: list[pa.Table] = field(default_factory=list)
    _events: dict[str, list[pa.Table]] = field(default_factory=dict)
    _group_rows: int = field(init=False)
    _writer: pq.ParquetWriter = field(init=False)

    def __post_init__(self) -> None:
        dimensions = self.wanted.field("dense").type.list_size
        self._group_rows = min(GROUP_ROWS, max(1, _GROUP_BYTES // (4 * dimensions)))
        self._writer = pq.ParquetWriter(self.path, self.wanted, **schema.parquet_options(self.wanted))

    def has_room(self, size: int, rows: int) -> bool:
        """True if a segment of this many bytes and rows may be added."""
        return self._bytes + size <= BYTES_MAX and self._rows + rows <= ROWS_MAX

    def add(self, file: Listed, tables: Iterator[pa.Table]) -> None:
        """Add all rows of a segment."""
        run = run_of(file.uri)
        for table in tables:
            bare = table.replace_schema_metadata()
            self._index.append(bare.select(INDEX_COLUMNS))
            key = None if is_gathered(run) else key_of_run(run)
            if key is not None:
                self._events.setdefault(key, []).append(cost_events(bare, run))
            self._pending.append(bare)
            self._rows += bare.num_rows
            if sum(one.num_rows for one in self._pending) >= self._group_rows:
                self._write(self._group_rows)
        self._old.append(source_name(file.uri))
        self._bytes += file.size

    def close(self, *, full: bool) -> Gathered:
        """Write the remaining rows, and return what was gathered."""
        self._write(1)
        self._writer.close()
        index = schema.concat(self._index, self._index[0].schema)
        events = {key: schema.concat(tables, schema.GATHERED_EVENTS) for key, tables in self._events.items()}
        return Gathered(self.path, tuple(self._old), index, events, full)

    def _write(self, rows_min: int) -> None:
        """Write whole row groups as long as there are at least `rows_min` rows."""
        table = schema.concat(self._pending, self.wanted)
        start = 0
        while table.num_rows - start >= rows_min:
            self._writer.write_table(table.slice(start, self._group_rows), row_group_size=self._group_rows)
            start += self._group_rows
        self._pending = [table.slice(start)] if start < table.num_rows else []
