"""Read the ENTRIES of segments and event files: each file whole, in one call, and compared with the hash in its name."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, exists
from arkbeam.base.parallel import in_parallel
from arkbeam.base.redaction import redact
from arkbeam.base.uris import reads_in_flight, storage_errors
from arkbeam.store.events import REJECTED_COLUMNS, EventKind
from arkbeam.store.index import Entries, Source
from arkbeam.store.integrity import is_whole, set_aside
from arkbeam.store.listing import is_event_file, source_name
from arkbeam.store.multi import is_multi_damaged
from arkbeam.store.segments import INDEX_COLUMNS, is_damaged, read_parquet, read_whole

LARGE_BYTES = 16 * 1024 * 1024
LARGE_IN_FLIGHT = 2  # 256 MB in memory, with segments of 128 MB
_log = logging.getLogger(__name__)


def read_entries(store_uri: str, files: Sequence[Listed]) -> Iterator[Entries]:
    """Read segments and event files, many at once.

    A damaged file is set aside, with a warning: it has no entries, and its vectors are bought again. Raise StoreError if
    the storage fails.
    """
    for some, in_flight in by_size(store_uri, files):
        for file, found in zip(some, in_parallel(partial(_try_to_read, store_uri), some, in_flight), strict=True):
            entries = _read_again(store_uri, file, found) if isinstance(found, StoreError) else found
            if entries is not None:
                yield entries


def by_size(store_uri: str, files: Sequence[Listed]) -> Iterator[tuple[list[Listed], int]]:
    """Yield the large files, then the others, each with the number of files to hold in memory at once."""
    yield [file for file in files if file.size > LARGE_BYTES], LARGE_IN_FLIGHT
    yield [file for file in files if file.size <= LARGE_BYTES], reads_in_flight(store_uri)


def read_file(store_uri: str, file: Listed) -> Entries:
    """Read a segment or an event file. Raise StoreError if it can't be read, or if it or its `multi/` file is damaged."""
    data = read_whole(file.uri)
    with storage_errors("read", file.uri):
        columns = read_parquet(data, _columns_of(file.uri))
        table = rejection_entries(columns) if is_event_file(source_name(file.uri)) else vector_entries(columns)
    if is_multi_damaged(store_uri, file.uri, columns.schema.metadata or {}):
        raise StoreError(f"the per-token vectors of {redact(file.uri)} are damaged or missing")
    return Entries(Source(source_name(file.uri), file.version, table.num_rows), table)


def vector_entries(segment: pa.Table) -> pa.Table:
    """Build the ENTRIES of a segment from its INDEX_COLUMNS."""
    count = segment.num_rows
    columns = [segment["fingerprint"], np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32), segment["model"]]
    nothing = pa.nulls(count, pa.string())
    return pa.table([*columns, nothing, nothing], schema=schema.ENTRIES)


def rejection_entries(events: pa.Table) -> pa.Table:
    """Build the ENTRIES of an event file from its REJECTED_COLUMNS: those of the permanent rejections."""
    at = np.flatnonzero(pc.equal(events["kind"], EventKind.REJECTED.value).to_numpy())
    some = events.take(pa.array(at))
    count = len(at)
    columns = [some["fingerprint"], np.zeros(count, np.uint32), at.astype(np.uint32), pa.nulls(count, pa.string())]
    return pa.table([*columns, some["code"], some["message"]], schema=schema.ENTRIES)


def _columns_of(uri: str) -> Sequence[str]:
    return REJECTED_COLUMNS if is_event_file(source_name(uri)) else INDEX_COLUMNS


def _try_to_read(store_uri: str, file: Listed) -> Entries | StoreError:
    try:
        return read_file(store_uri, file)
    except StoreError as error:
        return error


def _read_again(store_uri: str, file: Listed, error: StoreError) -> Entries | None:
    """Read a file for the second time. Return None if it has been removed, or is damaged and set aside here."""
    if not exists(file.uri):
        return None
    if not is_damaged(file.uri, _columns_of(file.uri)) and is_whole(store_uri, file.uri):
        return read_file(store_uri, file)  # the storage failed: the vectors of this file must not be bought again
    _log.warning("damaged and set aside as %s: %s", set_aside(store_uri, file.uri), error)
    return None
