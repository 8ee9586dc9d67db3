"""Segments: immutable Parquet files of bought vectors, found by fingerprint."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import read_bytes, write_bytes
from arkbeam.base.records import Usage
from arkbeam.base.redaction import redact
from arkbeam.base.replies import Reply
from arkbeam.base.uris import join, open_filesystem, storage_errors
from arkbeam.store.layout import hash_content, hash_in_name, segment_id, segment_name, segments_folder

INDEX_COLUMNS = ("fingerprint", "model")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sending of a request. `attempts` counts how often the request was sent so far, this time included.

    An attempt that is recovered from a journal or a damaged file has 1 attempt and a latency of 0: neither is known.
    """

    fingerprint: bytes
    client_request_id: str
    attempts: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Bought:
    """A usable reply and the attempt that returned it."""

    attempt: Attempt
    reply: Reply


def segment_table(bought: Sequence[Bought], dimensions: int) -> pa.Table:
    """Build the table of a segment. Every dense vector has `dimensions` float32 values, stored bit for bit."""
    values = np.concatenate([item.reply.dense for item in bought])
    dense = pa.FixedSizeListArray.from_arrays(pa.array(values), type=schema.dense_type(dimensions))
    columns = {
        "fingerprint": pa.array([item.attempt.fingerprint for item in bought], schema.FINGERPRINT),
        "dense": dense,
        "sparse": _sparse_array(bought),
        "norm": pa.array([item.reply.norm for item in bought], pa.float32()),
        "request_id": [item.reply.id for item in bought],
        "model": [item.reply.model for item in bought],
        "created": pa.array([item.reply.created for item in bought], schema.CREATED.type),
        **attempt_columns([item.attempt for item in bought]),
        **usage_columns([item.reply.usage for item in bought]),
    }
    wanted = schema.segment_schema(dimensions)
    return pa.table([columns[name] for name in wanted.names], schema=wanted)


def attempt_columns(attempts: Sequence[Attempt]) -> dict[str, pa.Array]:
    """Build the columns of attempts that segments and events share."""
    return {
        "client_request_id": pa.array([attempt.client_request_id for attempt in attempts], pa.string()),
        "attempts": pa.array([attempt.attempts for attempt in attempts], pa.uint16()),
        "latency_ms": pa.array([attempt.latency_ms for attempt in attempts], pa.float32()),
    }


def usage_columns(usages: Sequence[Usage]) -> dict[str, pa.Array]:
    """Build the four token columns."""
    names = [field.name for field in schema.USAGE_FIELDS]
    return {name: pa.array([getattr(usage, name) for usage in usages], pa.int64()) for name in names}


def write_segment(store_uri: str, run: str, segment: int, table: pa.Table) -> str:
    """Write a segment, completely or not at all; return its URI. Raise StoreError if it can't be written."""
    return write_hashed(segments_folder(store_uri, run), segment, table)


def write_hashed(folder: str, segment: int, table: pa.Table) -> str:
    """Write a file whose name contains the hash of its bytes; return its URI."""
    data = parquet_bytes(table)
    uri = join(folder, segment_name(segment, hash_content(data)))
    write_bytes(uri, data)
    return uri


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode a small table as one Parquet file of one row group."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=max(1, table.num_rows), **schema.parquet_options(table.schema))
    return buffer.getvalue()


def read_columns(uri: str, columns: Sequence[str], *, whole: bool = True) -> pa.Table:
    """Read columns of a segment or an event file, verified to be as they were written.

    If `whole` is false, only the pages of these columns are read, and only their checksums are verified. Raise
    StoreError if the file is damaged or can't be read.
    """
    if whole:
        data = read_whole(uri)
        with storage_errors("read", uri):
            return read_parquet(data, columns).replace_schema_metadata()
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri), filesystem.open(path, "rb") as file:
        return _read_parquet(file, columns).replace_schema_metadata()


def read_whole(uri: str) -> bytes:
    """Read a file's bytes. Raise StoreError if they do not have the hash that is in the file's name."""
    data = read_bytes(uri)
    wanted = hash_in_name(uri)
    if wanted and hash_content(data) != wanted:
        raise StoreError(f"{redact(uri)} is damaged: its bytes differ from those that were written")
    return data


def is_damaged(uri: str, columns: Sequence[str] = ()) -> bool:
    """True if a file is damaged: its bytes do not have the hash in its name.

    A file without a hash in its name is damaged if `columns` can't be read from it. Raise StoreError if the storage
    fails, since the file may then be undamaged.
    """
    data = read_bytes(uri)
    wanted = hash_in_name(uri)
    if wanted:
        return hash_content(data) != wanted
    try:
        read_parquet(data, columns)
    except (pa.ArrowException, OSError, ValueError):
        return True
    return False


def read_metadata(uri: str) -> dict[bytes, bytes]:
    """Read the key-value metadata of a segment's schema."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri), filesystem.open(path, "rb") as file:
        return dict(pq.ParquetFile(file).schema_arrow.metadata or {})


def read_parquet(data: bytes, columns: Sequence[str]) -> pa.Table:
    """Read columns of a file's bytes, with its metadata. Raise ValueError, or what pyarrow raises, if they can't be read."""
    return _read_parquet(pa.BufferReader(data), columns)


def _read_parquet(file: BinaryIO | pa.NativeFile, columns: Sequence[str]) -> pa.Table:
    reader = pq.ParquetFile(file, page_checksum_verification=True)
    missing = set(columns) - set(reader.schema_arrow.names)
    if missing:
        raise ValueError(f"the file has no column {min(missing)}")
    return reader.read(columns=list(columns), use_threads=False)


def read_index(uri: str, model: str | None = None) -> pa.Table:
    """Return the INDEX table of a segment's fingerprints; with `model`, only of those with this model or without one."""
    table = read_columns(uri, INDEX_COLUMNS[:1] if model is None else INDEX_COLUMNS, whole=False)
    index = index_table(table.column("fingerprint").combine_chunks(), segment_id(uri))
    return index if model is None else index.filter(pc.equal(table["model"], model).fill_null(fill_value=True))


def index_table(fingerprints: pa.Array, segment: int) -> pa.Table:
    """Build the INDEX rows of a segment from its fingerprint column."""
    count = len(fingerprints)
    columns = [fingerprints, np.full(count, segment, np.uint64), np.arange(count, dtype=np.uint32)]
    return pa.table(columns, schema=schema.INDEX)


def dense_values(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """View a dense column as a matrix [rows, dimensions], without a copy if it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    dimensions = array.type.list_size
    values = array.values.to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[np.float32] = values.reshape(-1, dimensions)[array.offset : array.offset + len(array)]
    return matrix


def _sparse_array(bought: Sequence[Bought]) -> pa.StructArray:
    """Build the sparse column: null if no sparse vector was requested, empty lists if it has no active entry."""
    sparse = [item.reply.sparse for item in bought]
    present = [one for one in sparse if one is not None]
    lengths = np.array([0 if one is None else len(one.indices) for one in sparse], np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    indices = np.concatenate([one.indices for one in present]) if present else np.empty(0, np.uint32)
    values = np.concatenate([one.values for one in present]) if present else np.empty(0, np.float32)
    lists = [pa.ListArray.from_arrays(offsets, pa.array(flat)) for flat in (indices, values)]
    mask = pa.array([one is None for one in sparse], pa.bool_())
    return pa.StructArray.from_arrays(lists, fields=list(schema.SPARSE), mask=mask)
