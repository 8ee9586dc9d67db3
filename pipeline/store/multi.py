"""Vectors of tokens, in files beside the segments: row k of `multi/<run>/<segment>` belongs to row k of the segment.

Apart, because one request has a vector for each token: kept with the dense ones they would make every read of those slow.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.files import join, write_bytes
from pipeline.store.layout import run_of, segment_name
from pipeline.store.segments import Bought, parquet_bytes, read_columns


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


def write_multi(store_uri: str, run: str, segment: int, table: pa.Table) -> None:
    """Write the vectors of tokens of a segment, before the segment itself, so that a segment is never without them."""
    write_bytes(join(store_uri, "multi", run, segment_name(segment)), parquet_bytes(table))


def read_multi(store_uri: str, segment_uri: str) -> pa.Table:
    """Read the MULTI rows of a segment.

    Raises: StoreError when they are damaged or gone.
    """
    name = segment_uri.rpartition("/")[2]
    return read_columns(join(store_uri, "multi", run_of(segment_uri), name), ["fingerprint", "multi"])
