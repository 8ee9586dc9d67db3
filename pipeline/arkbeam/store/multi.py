"""Vectors of tokens, in files beside the segments: row k of `multi/<run>/<segment>` belongs to row k of the segment.

Apart, because one request has a vector for each token: kept with the dense ones they would make every read of those slow.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import exists, join, read_bytes, storage_errors, write_bytes
from arkbeam.base.redaction import redact
from arkbeam.store.layout import hash_content, multi_folder, run_of, segment_id, segment_name
from arkbeam.store.segments import Bought, parquet_bytes, read_metadata

_HASH = b"multi_hash"


def multi_table(bought: Sequence[Bought], dimensions: int) -> pa.Table:
    """Build the MULTI rows of a segment; a reply has [tokens, dimensions] float16. Replies without any have null."""
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
    """Write the vectors of tokens of a segment, before the segment itself, so that a segment is never without them.

    Returns what the segment must carry as metadata: the hash of this file.
    """
    data = parquet_bytes(table)
    write_bytes(join(multi_folder(store_uri, run), segment_name(segment)), data)
    return {_HASH: hash_content(data).encode()}


def read_multi(store_uri: str, segment_uri: str) -> pa.Table:
    """Read the MULTI rows of a segment.

    Raises: StoreError when they are damaged or gone.
    """
    uri = _uri(store_uri, segment_uri)
    data = read_bytes(uri)
    if _is_other(data, read_metadata(segment_uri)):
        raise StoreError(f"{redact(uri)} is damaged: its bytes are not those that were written")
    with storage_errors("read", uri):
        return pq.read_table(pa.BufferReader(data), use_threads=False, page_checksum_verification=True)


def is_multi_damaged(store_uri: str, segment_uri: str) -> bool:
    """Tell whether a segment that is whole itself has lost its vectors of tokens.

    Raises: StoreError when the storage does not answer, which says nothing about them.
    """
    metadata = read_metadata(segment_uri)
    if _HASH not in metadata:
        return False
    uri = _uri(store_uri, segment_uri)
    return not exists(uri) or _is_other(read_bytes(uri), metadata)


def _is_other(data: bytes, metadata: Mapping[bytes, bytes]) -> bool:
    """Tell whether bytes are other than a segment's metadata say."""
    return metadata.get(_HASH, b"") not in (b"", hash_content(data).encode())


def _uri(store_uri: str, segment_uri: str) -> str:
    return join(multi_folder(store_uri, run_of(segment_uri)), segment_name(segment_id(segment_uri)))
