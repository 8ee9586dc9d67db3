"""Index files: where the vector of each fingerprint is, for many segments at once, so that a run need not open these.

    <store>/index/<id>-<hash>.parquet

An index file has ENTRIES, sorted by fingerprint, and in its metadata the list of its sources: the segments and event
files that it covers, each with name, version and number of entries. A source was read whole and found undamaged before
it was covered, or its writer has covered it. An index file is written once and never changed.

Index files are a cache. An entry counts only while its source is in the store with the same name and version. If index
files are missing, damaged or out of date, the sources are read again.
"""

import base64
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, fetch_file, put_file, temporary_folder
from arkbeam.base.redaction import redact
from arkbeam.base.uris import join, storage_errors
from arkbeam.store.layout import hash_file, hash_in_name, index_folder, segment_id, segment_name

GROUP_ROWS = 8192
_GROUPS_KEPT = 8  # decoded row groups that are kept for each open file: about 2.5 MB
_GROUPS_SEARCHED = 32  # row groups that are searched at once
_SOURCES = b"arkbeam.sources"
ENTRIES_READ = schema.ENTRIES.set(3, pa.field("model", pa.dictionary(pa.int32(), pa.string())))
"""The schema of entries in memory: there are few models, which take little memory so."""
_OPTIONS = schema.parquet_options(schema.ENTRIES) | {
    "write_statistics": ["fingerprint"],
    "column_encoding": {"source": "BYTE_STREAM_SPLIT", "row": "BYTE_STREAM_SPLIT"},
    "store_schema": False,  # it would repeat the list of sources
}


@dataclass(frozen=True, slots=True)
class Source:
    """A segment or an event file that an index file covers. `rows`: the entries that it has in the index file."""

    name: str
    """See `listing.source_name`."""
    version: str
    """See `listing.list_sources`."""
    rows: int


@dataclass(frozen=True, slots=True)
class Entries:
    """The ENTRIES of one source. Their `source` is not set: it depends on the index file."""

    source: Source
    table: pa.Table


def prefixes(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint64]:
    """Return the first 8 bytes of each fingerprint as a number that sorts as the fingerprints do."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if len(array) == 0:
        return np.empty(0, np.uint64)
    halves = np.frombuffer(array.buffers()[1], ">u8").reshape(-1, 2)
    return halves[array.offset : array.offset + len(array), 0].astype(np.uint64)


def write_entries(store_uri: str, file_id: int, parts: Sequence[Entries]) -> str:
    """Write an index file that covers the sources of the given parts; return its URI. Raise StoreError."""
    return write_index(store_uri, file_id, [part.source for part in parts], [_sorted_entries(parts)])


def open_entries(parts: Sequence[Entries]) -> "IndexFile":
    """Return what `write_entries` would write as an open index file that is not in the store."""
    with temporary_folder() as folder:
        local = folder / "index"
        _write_local(local, [part.source for part in parts], [_sorted_entries(parts)])
        return IndexFile("", local.stat().st_size, pa.OSFile(str(local)))


def write_index(store_uri: str, file_id: int, sources: Sequence[Source], tables: Iterable[pa.Table]) -> str:
    """Write an index file from ENTRIES_READ that are sorted over all tables; return its URI. Raise StoreError.

    Only one table is in memory at a time.
    """
    with temporary_folder() as folder:
        local = folder / "index"
        _write_local(local, sources, tables)
        uri = join(index_folder(store_uri), segment_name(file_id, hash_file(local)))
        put_file(local, uri)
    return uri


def sort_entries(table: pa.Table) -> pa.Table:
    """Sort entries by fingerprint; equal ones keep their order."""
    return table.take(pc.sort_indices(table["fingerprint"].combine_chunks()))


def open_index_file(listed: Listed) -> "IndexFile | None":
    """Open an index file, after a comparison with the hash in its name; None if it has been removed.

    Raise StoreError if the file can't be read, DamagedIndex if it is damaged.
    """
    # The open file can still be read after it is removed from the folder, or from the store by another run.
    with temporary_folder() as folder, storage_errors("read", listed.uri):
        path = fetch_file(listed.uri, folder)
        if path is None:
            return None
        try:
            file, found = pa.OSFile(str(path)), hash_file(path)
        except FileNotFoundError:
            return None
        if found != hash_in_name(listed.uri):
            raise DamagedIndex(f"{redact(listed.uri)} is damaged: its bytes differ from those that were written")
        try:
            return IndexFile(listed.uri, listed.size, file)
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise DamagedIndex(f"{redact(listed.uri)} is not an index file: {error}") from None


class DamagedIndex(StoreError):
    """An index file is damaged. It is of no use, and can be removed."""


class IndexFile:
    """An open index file. It is safe to use from several threads."""

    def __init__(self, uri: str, size: int, file: pa.NativeFile) -> None:
        self.uri, self.size = uri, size
        self._reader = pq.ParquetFile(file, read_dictionary=["model"], page_checksum_verification=True)
        metadata = self._reader.metadata
        self.rows: int = metadata.num_rows
        self.sources = _decode(metadata.metadata[_SOURCES])
        self.segments = np.array([segment_id(source.name) for source in self.sources], np.uint64)
        """The id in the name of each source."""
        bounds = [metadata.row_group(number).column(0).statistics for number in range(metadata.num_row_groups)]
        self._lows = np.array([int.from_bytes(one.min[:8]) for one in bounds], np.uint64)
        self._highs = np.array([int.from_bytes(one.max[:8]) for one in bounds], np.uint64)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, wanted: npt.NDArray[np.uint64], counts: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
        """Yield the entries whose fingerprints have one of the `wanted` prefixes, which are sorted.

        Only row groups that can have one are read. `counts` says of each source whether its entries count.
        """
        starts, ends = np.searchsorted(wanted, self._lows, "left"), np.searchsorted(wanted, self._highs, "right")
        groups = np.flatnonzero(ends > starts)
        for some in np.split(groups, range(_GROUPS_SEARCHED, len(groups), _GROUPS_SEARCHED)):
            if len(some):
                table = self._read(some)
                found = prefixes(table["fingerprint"])
                keys = wanted[starts[some[0]] : ends[some[-1]]]
                at = np.searchsorted(keys, found).clip(max=len(keys) - 1)
                yield _take(table, keys[at] == found, counts)

    def read_between(self, low: int, high: int, counts: npt.NDArray[np.bool_]) -> pa.Table:
        """Return the entries from prefix `low` to prefix `high`, both included, of the sources that count."""
        bounds = np.array([low, high], np.uint64)
        first, end = np.searchsorted(self._highs, bounds[0], "left"), np.searchsorted(self._lows, bounds[1], "right")
        table = self._read(np.arange(first, end))
        found = prefixes(table["fingerprint"])
        return _take(table, (found >= bounds[0]) & (found <= bounds[1]), counts)

    def _read(self, groups: npt.NDArray[np.int64]) -> pa.Table:
        return pa.concat_tables([ENTRIES_READ.empty_table(), *map(self._read_group, groups.tolist())]).combine_chunks()

    def _read_group(self, number: int) -> pa.Table:
        with self._lock, storage_errors("read", self.uri):
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            table = self._reader.read_row_group(number, use_threads=False).replace_schema_metadata()
            self._kept[number] = table
            if len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
            return table


def _take(table: pa.Table, chosen: npt.NDArray[np.bool_], counts: npt.NDArray[np.bool_]) -> pa.Table:
    """Return the chosen entries of the sources that count."""
    return table.take(pa.array(np.flatnonzero(chosen & counts[table["source"].to_numpy()])))


def _sorted_entries(parts: Sequence[Entries]) -> pa.Table:
    numbers = np.repeat(np.arange(len(parts), dtype=np.uint32), [part.table.num_rows for part in parts])
    table = schema.concat([part.table for part in parts], schema.ENTRIES)
    table = table.set_column(1, schema.ENTRIES.field("source"), pa.array(numbers))
    return sort_entries(table.cast(ENTRIES_READ))


def _write_local(path: Path, sources: Sequence[Source], tables: Iterable[pa.Table]) -> None:
    with storage_errors("write", str(path)), pq.ParquetWriter(path, ENTRIES_READ, **_OPTIONS) as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table, row_group_size=GROUP_ROWS)
        writer.add_key_value_metadata({_SOURCES: _encode(sources)})


def _encode(sources: Sequence[Source]) -> str:
    """Encode the list of sources: they may be tens of thousands, with similar names."""
    table = pa.table(
        {
            "name": pa.array([source.name for source in sources], pa.string()),
            "version": pa.array([source.version for source in sources], pa.string()),
            "rows": pa.array([source.rows for source in sources], pa.uint32()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _decode(text: bytes) -> tuple[Source, ...]:
    with pa.ipc.open_stream(base64.b64decode(text)) as reader:
        columns = reader.read_all().to_pydict()
    return tuple(map(Source, columns["name"], columns["version"], columns["rows"]))
