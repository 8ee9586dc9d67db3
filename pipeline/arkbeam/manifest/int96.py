"""Timestamps of Parquet's old type INT96, which holds any year and nanoseconds.

Arrow reads it as nanoseconds in 64 bits, in which years before 1677 and after 2262 wrap around, or as microseconds,
which drops digits. Read both ways, the values are known exactly.
"""

from typing import Any

import pyarrow as pa

from arkbeam.manifest.texts import text_array

_WRAP = 2**64


def join_int96(batch: pa.RecordBatch, coarse: pa.RecordBatch) -> pa.RecordBatch:
    """Replace the INT96 columns of a batch in nanoseconds, given the same columns in microseconds, where they wrap."""
    for name in coarse.schema.names:
        exact = _join(batch.column(name), coarse.column(name))
        batch = batch.set_column(batch.schema.names.index(name), name, exact)
    return batch


def _join(fine: "pa.Array[Any]", coarse: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return nanoseconds if all values fit; else microseconds if they are exact; else text."""
    try:
        coarse.cast(fine.type)
    except pa.ArrowInvalid:
        return _unwrap(fine, coarse) if pa.types.is_timestamp(fine.type) else coarse
    return fine


def _unwrap(fine: "pa.Array[Any]", coarse: "pa.Array[Any]") -> "pa.Array[Any]":
    nanoseconds = [
        None if low is None else high * 1000 + (low - high * 1000) % _WRAP
        for low, high in zip(fine.cast(pa.int64()).to_pylist(), coarse.cast(pa.int64()).to_pylist(), strict=True)
    ]
    if all(one is None or one % 1000 == 0 for one in nanoseconds):
        return coarse
    seconds = pa.array([None if one is None else one // 10**9 for one in nanoseconds], pa.timestamp("s"))
    texts = zip(text_array(seconds).to_pylist(), nanoseconds, strict=True)
    return pa.array([None if one is None else f"{text}.{one % 10**9:09}" for text, one in texts], pa.string())
