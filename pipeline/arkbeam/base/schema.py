"""Every Arrow schema of the pipeline, declared once. Column names are the contract with those who read the files."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

FINGERPRINT_BYTES = 16
FINGERPRINT = pa.binary(FINGERPRINT_BYTES)
MEDIA_CHANGES = pa.list_(pa.string())
SPARSE = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])

USAGE_FIELDS = [
    pa.field("prompt_tokens", pa.int64()),
    pa.field("total_tokens", pa.int64()),
    pa.field("text_tokens", pa.int64()),
    pa.field("image_tokens", pa.int64()),
]

# One row per readable manifest row. Shard and ordinal say where its staged row is; tokens are estimates.
KEYS = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
        pa.field("text_tokens", pa.uint32(), nullable=False),
        pa.field("image_tokens", pa.uint32(), nullable=False),
    ]
)

# Staged rows: `row` counts physical lines or records from the shard's first; `id` is null where the manifest has none;
# `request` is JSON (`manifest.staging`); `media_changes` tells what is changed about its images; `original` is the row as it was read, bounded. Kept columns follow as `kept`.
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

# Rows that could not be read. `row` counts from the shard's first, as in STAGED.
UNREADABLE = pa.schema(
    [
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("original", pa.large_string()),
    ]
)

# What the store's index says: the segment and the row in it that hold a fingerprint's vector.
INDEX = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("segment", pa.uint64(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
    ]
)

# Fingerprints that have no vector, and why: refused by the service, or not to be had in this run.
REFUSED = pa.schema(
    [
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

# Rows that are published: where the vector is and where the staged row is.
REFS = pa.schema(
    [
        pa.field("segment", pa.uint64(), nullable=False),
        pa.field("segment_row", pa.uint32(), nullable=False),
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
    ]
)

# Staged rows that have no vector, and why.
FAILED = pa.schema(
    [
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("ordinal", pa.uint32(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

CREATED = pa.field("created", pa.timestamp("s", tz="UTC"))

# One attempt that was paid for, as the store keeps it beside a vector or, without one, as an event.
_ATTEMPT = [
    pa.field("request_id", pa.string()),
    pa.field("client_request_id", pa.string(), nullable=False),
    pa.field("model", pa.string()),
    CREATED,
    *USAGE_FIELDS,
    pa.field("attempts", pa.uint16(), nullable=False),
    pa.field("latency_ms", pa.float32()),
]

# A paid attempt without a usable vector, or a request that the service refused for good (`paid` false).
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

# What is known of media by the hash of their URI: the version it holds for, and the facts as JSON (`media.known`).
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
        pa.field("row", pa.uint64(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("original", pa.large_string()),
    ]
)

USAGE = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("client_request_id", pa.string(), nullable=False),
        pa.field("fingerprint", FINGERPRINT, nullable=False),
        pa.field("model", pa.string()),
        CREATED,
        *USAGE_FIELDS,
        pa.field("attempts", pa.uint16(), nullable=False),
        pa.field("latency_ms", pa.float32()),
        pa.field("cost_cny", pa.float64()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
    ]
)


def dense_type(dimensions: int) -> pa.DataType:
    """Return the type of a dense column: as many float32 as the vectors are long, none of them null."""
    return pa.list_(pa.field("element", pa.float32(), nullable=False), dimensions)


def segment_schema(dimensions: int) -> pa.Schema:
    """Return the schema of a store segment: vectors as they were bought, with what each cost."""
    return pa.schema(
        [
            pa.field("fingerprint", FINGERPRINT, nullable=False),
            pa.field("dense", dense_type(dimensions), nullable=False),
            pa.field("sparse", SPARSE),
            pa.field("norm", pa.float32(), nullable=False),
            *_ATTEMPT,
        ]
    )


def embeddings_schema(dimensions: int, kept: pa.StructType) -> pa.Schema:
    """Return the schema of the published vectors; the kept columns of the manifest come last."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("manifest", pa.string(), nullable=False),
            pa.field("row", pa.uint64(), nullable=False),
            pa.field("dense", dense_type(dimensions), nullable=False),
            pa.field("sparse", SPARSE),
            pa.field("norm", pa.float32(), nullable=False),
            pa.field("model", pa.string()),
            pa.field("request_id", pa.string()),
            *USAGE_FIELDS,
            pa.field("fingerprint", FINGERPRINT, nullable=False),
            pa.field("media_changes", MEDIA_CHANGES),
            *kept,
        ]
    )


def multi_schema(dimensions: int) -> pa.Schema:
    """Return the schema of vectors of tokens in the store: one float16 vector for each token of a request."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dimensions)
    return pa.schema(
        [
            pa.field("fingerprint", FINGERPRINT, nullable=False),
            pa.field("multi", pa.list_(pa.field("element", vector, nullable=False))),
        ]
    )


def multi_embeddings_schema(dimensions: int) -> pa.Schema:
    """Return the schema of published vectors of tokens."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("manifest", pa.string(), nullable=False),
            pa.field("row", pa.uint64(), nullable=False),
            *multi_schema(dimensions),
        ]
    )


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return how a table is written to Parquet.

    Vectors are split by byte (`BYTE_STREAM_SPLIT`), since the low bytes of values that came from bfloat16 are zeros and
    the high ones are alike; a dictionary or statistics of them would be waste. Pages carry checksums.
    """
    vectors = {
        "dense": ["dense.list.element"],
        "multi": ["multi.list.element.list.element"],
        "sparse": ["sparse.indices.list.element", "sparse.values.list.element"],
    }
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
    """Put tables of one schema together; none give an empty one."""
    return pa.concat_tables([wanted.empty_table(), *tables]).combine_chunks()
