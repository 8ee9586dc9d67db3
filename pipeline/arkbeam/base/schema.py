"""Every Arrow schema of the pipeline. Column names and types are the contract with readers of the files.

What is published (`failures/`, `usage/`, `embeddings/`, `multi/`) has only types that all common readers have: no
unsigned integers, no float16, no fixed-size lists, which ClickHouse before 26 can't read, and no fixed-size bytes, of which
fastparquet drops zeros at the end.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import pyarrow as pa

FINGERPRINT_BYTES = 16
FINGERPRINT = pa.binary(FINGERPRINT_BYTES)
MEDIA_CHANGES = pa.list_(pa.string())
SPARSE = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
PUBLISHED_SPARSE = pa.struct([("indices", pa.list_(pa.int64())), ("values", pa.list_(pa.float32()))])
VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
ROW = pa.field("row", pa.int64(), nullable=False)
PUBLISHED_FINGERPRINT = pa.field("fingerprint", pa.binary(), nullable=False)


class Layout(StrEnum):
    """How the published files are encoded. Both layouts have the same columns, types and values."""

    PORTABLE = "portable"
    COMPACT = "compact"


USAGE_FIELDS = [
    pa.field("prompt_tokens", pa.int64()),
    pa.field("total_tokens", pa.int64()),
    pa.field("text_tokens", pa.int64()),
    pa.field("image_tokens", pa.int64()),
]

# One row per readable manifest row. `shard` and `ordinal` locate its staged row; the tokens are estimates.
KEYS = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
        pa.field("text_tokens", pa.uint32(), nullable=False),
        pa.field("image_tokens", pa.uint32(), nullable=False),
    ]
)

# Staged rows. `row`: number of the physical line or record, counted from the first one of the shard. `id`: null if the
# manifest has none. `request`: JSON (`manifest.staging`). `media_changes`: how its images are changed before they are
# sent. `original`: the row as it was read, with a bounded length. The kept columns follow in one struct column, `kept`.
STAGED = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("request", pa.large_binary(), nullable=False),
        pa.field("media_changes", MEDIA_CHANGES),
        pa.field("original", pa.large_string()),
    ]
)

# Rows that could not be read. `row` is counted as in STAGED.
UNREADABLE = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("original", pa.large_string()),
    ]
)

# The index of the store: the segment, and the row in it, of the vector of a fingerprint.
INDEX = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("segment", pa.uint64(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
    ]
)

# The rows of an index file: one for each vector, and for each permanent rejection, in the segments and event files that
# it covers. `source` is the number of that file in the list in the file's metadata (`store.index`), `row` the row in it.
# `model` is that of a vector; `code` and `message` are those of a rejection, and null for a vector.
ENTRIES = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("source", pa.uint32(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
    ]
)

# Fingerprints without a vector and the reason: rejected by the service, or failed in this run.
REJECTED = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

# Published rows: where the vector is and where the staged row is. `cut_key`: the last 8 bytes of the fingerprint, by which
# the rows are cut into parts (`stages.publish.cuts`).
REFS = pa.schema(
    [
        pa.field("segment", pa.uint64(), nullable=False),
        pa.field("segment_row", pa.uint32(), nullable=False),
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
        pa.field("cut_key", pa.uint64(), nullable=False),
    ]
)

# Staged rows without a vector and the reason.
FAILED = pa.schema(
    [
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

CREATED = pa.field("created", pa.timestamp("s", tz="UTC"))

# One paid attempt. The store keeps these columns with the vector or, if there is no usable vector, in an event.
_ATTEMPT = [
    pa.field("request_id", pa.string()),
    pa.field("client_request_id", pa.string(), nullable=False),
    pa.field("model", pa.string()),
    CREATED,
    *USAGE_FIELDS,
    pa.field("attempts", pa.uint16(), nullable=False),
    pa.field("latency_ms", pa.float32()),
]

# A paid attempt without a usable vector, or a request that the service rejected permanently (`paid` false).
EVENTS = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("paid", pa.bool_(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        *_ATTEMPT,
    ]
)

# The events of an output that compaction has gathered, and what its vectors cost (kind `ok`). `run`: the run that sent it.
GATHERED_EVENTS = EVENTS.append(pa.field("run", pa.string(), nullable=False))

# Results of media inspection. `key`: hash of the URI; `version`: the version of the file that was inspected; `facts`:
# the results as JSON.
MEDIA = pa.schema(
    [
        pa.field("key", pa.binary(16), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("facts", pa.string(), nullable=False),
    ]
)

FAILURES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
        ROW,
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("original", pa.large_string()),
    ]
)

USAGE = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("client_request_id", pa.string(), nullable=False),
        PUBLISHED_FINGERPRINT,
        pa.field("model", pa.string()),
        CREATED,
        *USAGE_FIELDS,
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("latency_ms", pa.float32()),
        pa.field("cost_cny", pa.float64()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
    ]
)


def dense_type(dimensions: int) -> pa.DataType:
    """Return the type of a dense column: a fixed-size list of `dimensions` float32 values, none of them null."""
    return pa.list_(pa.field("element", pa.float32(), nullable=False), dimensions)


def segment_schema(dimensions: int) -> pa.Schema:
    """Return the schema of a store segment: vectors as received, with the usage of each."""
    return pa.schema(
        [
            pa.field("fingerprint", FINGERPRINT, nullable=False),
            pa.field("dense", dense_type(dimensions), nullable=False),
            pa.field("sparse", SPARSE),
            pa.field("norm", pa.float32(), nullable=False),
            *_ATTEMPT,
        ]
    )


def embeddings_schema(kept: pa.StructType) -> pa.Schema:
    """Return the schema of the published vectors: our columns, then those kept from the manifest.

    Of both, columns with fields inside come last: fastparquet mixes up the statistics of the columns behind them.
    """
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
        ROW,
        pa.field("dense", VECTOR, nullable=False),
        pa.field("sparse", PUBLISHED_SPARSE),
        pa.field("norm", pa.float32(), nullable=False),
        pa.field("model", pa.string()),
        pa.field("request_id", pa.string()),
        *USAGE_FIELDS,
        PUBLISHED_FINGERPRINT,
        pa.field("media_changes", MEDIA_CHANGES),
        *kept,
    ]
    return pa.schema(sorted(fields, key=lambda field: _has_fields(field.type)))


def _has_fields(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return True
    return pa.types.is_nested(kind) and any(_has_fields(kind.field(index).type) for index in range(kind.num_fields))


OWN_COLUMNS = tuple(embeddings_schema(pa.struct([])).names)
"""The columns of `embeddings/` that are not kept from the manifest."""


def multi_schema(dimensions: int) -> pa.Schema:
    """Return the schema of per-token vectors in the store: one float16 vector for each token of a request."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dimensions)
    return pa.schema(
        [
            pa.field("fingerprint", FINGERPRINT, nullable=False),
            pa.field("multi", pa.list_(pa.field("element", vector, nullable=False))),
        ]
    )


MULTI_EMBEDDINGS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("manifest", pa.string(), nullable=False),
        ROW,
        PUBLISHED_FINGERPRINT,
        pa.field("multi", pa.list_(pa.field("element", VECTOR, nullable=False))),
    ]
)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options for pyarrow's Parquet writer.

    Vectors use `BYTE_STREAM_SPLIT`, because the low bytes of values that come from bfloat16 are zero and the high bytes
    are similar. They have no dictionary and no statistics, which would only take space. Pages have checksums.
    """
    vectors = {
        "dense": ["dense.list.element"],
        "multi": ["multi.list.element.list.element"],
        "sparse": ["sparse.indices.list.element", "sparse.values.list.element"],
    }
    if "dense" in schema.names:
        del vectors["multi"]  # a column of this name was kept from the manifest
    vector_columns = [path for name, paths in vectors.items() if name in schema.names for path in paths]
    repeated = [name for name in ("manifest", "model", "kind", "code", "outcome", "run") if name in schema.names]
    scalars = [
        field.name
        for field in schema
        if not pa.types.is_nested(field.type) and not pa.types.is_large_binary(field.type)
    ]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": repeated or False,
        "column_encoding": dict.fromkeys(vector_columns, "BYTE_STREAM_SPLIT"),
        "write_statistics": scalars or False,
        "write_page_checksum": True,
        "store_schema": True,
    }


def concat(tables: Iterable[pa.Table], wanted: pa.Schema) -> pa.Table:
    """Concatenate tables of one schema; without tables, return an empty one."""
    return pa.concat_tables([wanted.empty_table(), *tables]).combine_chunks()
