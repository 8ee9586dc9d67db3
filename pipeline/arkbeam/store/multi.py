"""Per-token vectors, in files beside the segments: row k of `multi/<run>/<segment>` belongs to row k of the segment.

They are in files of their own because a request has one vector per token: in the segments they would make every read of
dense vectors slow.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import read_bytes, read_if_exists, write_bytes
from arkbeam.base.redaction import redact
from arkbeam.base.uris import join, storage_errors
from arkbeam.store.layout import hash_content, multi_folder, run_of, segment_id, segment_name
from arkbeam.store.segments import Bought, parquet_bytes, read_metadata

_HASH = b"multi_hash"


def multi_table(bought: Sequence[Bought], dimensions: int) -> pa.Table:
    """Build the MULTI rows of a segment: per reply a float16 matrix [tokens, dimensions], or null if it has none."""
    present = [item.reply.multi for item in bought]
    lengths = [0 if multi is None else len(multi) for multi in present]
    flat = [multi.reshape(-1) for multi in present if multi is not None]
    values = np.concatenate(flat) if flat else np.empty(0, np.float16)
    wanted = schema.multi_schema(dimensions)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(values, pa.float16()), type=wanted.field("multi").type.value_type
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array([multi is None for multi in present], pa.bool_())
    multi = pa.ListArray.from_arrays(pa.array(offsets), vectors, type=wanted.field("multi").type, mask=mask)
    fingerprints = pa.array([item.attempt.fingerprint for item in bought], schema.FINGERPRINT)
    return pa.table([fingerprints, multi], schema=wanted)


def write_multi(store_uri: str, run: str, segment: int, table: pa.Table) -> dict[bytes, bytes]:
    """Write the per-token vectors of a segment. Call this before the segment is written, so that no segment lacks them.

    Return the metadata that the segment must have: the hash of this file.
    """
    data = parquet_bytes(table)
    write_bytes(join(multi_folder(store_uri, run), segment_name(segment)), data)
    return {_HASH: hash_content(data).encode()}


def read_multi(store_uri: str, segment_uri: str) -> pa.Table:
    """Read the MULTI rows of a segment. Raise StoreError if they are damaged or missing."""
    uri = _uri(store_uri, segment_uri)
    data = read_bytes(uri)
    if _is_other(data, read_metadata(segment_uri)):
        raise StoreError(f"{redact(uri)} is damaged: its bytes differ from those that were written")
    with storage_errors("read", uri):
        return pq.read_table(pa.BufferReader(data), use_threads=False, page_checksum_verification=True)


def is_multi_damaged(store_uri: str, segment_uri: str, metadata: Mapping[bytes, bytes] | None = None) -> bool:
    """True if the per-token vectors of an undamaged segment are damaged or missing.

    `metadata` is that of the segment, if the caller has it. Raise StoreError if the storage fails, since the vectors
    may then be undamaged.
    """
    metadata = read_metadata(segment_uri) if metadata is None else metadata
    if _HASH not in metadata:
        return False
    data = read_if_exists(_uri(store_uri, segment_uri))
    return data is None or _is_other(data, metadata)


def _is_other(data: bytes, metadata: Mapping[bytes, bytes]) -> bool:
    """True if a segment's metadata has a hash that differs from that of the bytes."""
    return metadata.get(_HASH, b"") not in (b"", hash_content(data).encode())


def _uri(store_uri: str, segment_uri: str) -> str:
    return join(multi_folder(store_uri, run_of(segment_uri)), segment_name(segment_id(segment_uri)))
