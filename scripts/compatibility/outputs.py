"""Outputs that have every kind of column, made by the emulator, and the values that a reader must find in them."""

import datetime
import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from arkbeam.app.config import parse_config
from arkbeam.app.job import run_job
from arkbeam.app.prepare import prepare_job
from arkbeam.base import schema
from arkbeam.base.schema import Layout
from arkbeam.stages.publish.layout import vector_rows, writer_options
from arkbeam.stages.spec import PART_ROWS

from scripts.children import ROOT
from scripts.compatibility.read import plain

MODEL = "doubao-embedding-vision-251215"
DIMENSIONS = 1024
FOLDERS = ("embeddings", "multi", "failures", "usage")
_TEXTS = ["black-glazed tea bowl", "黑釉茶碗 — größer", "?!", "a bowl with\nline breaks", "🏺 vase"]
_IMAGE = ROOT / "configs" / "demo" / "images" / "ring-blue-yellow.jpg"
_UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
_Decimal = decimal.Decimal


def _column(kind: pa.DataType, *values: Any) -> "pa.Array[Any]":
    """Return five values and a null: the given ones, repeated."""
    return pa.array([*(values * 5)[:5], None], kind)


def kept_columns() -> "dict[str, pa.Array[Any]]":
    """Return a column of six rows for each type of kept columns that every reader must be able to read."""
    date = datetime.date(2026, 2, 28)
    numbers = pa.list_(pa.field("element", pa.float32()), 2)
    nested = pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))])
    return {
        "int8": _column(pa.int8(), -128, 127),
        "uint8": _column(pa.uint8(), 255, 0),
        "uint16": _column(pa.uint16(), 65_535, 0),
        "uint32": _column(pa.uint32(), 2**32 - 1, 0),
        "uint64": _column(pa.uint64(), 2**64 - 1, 0),
        "int64": pa.array([2**63 - 1, -(2**63), 2**53 + 1, 0, 1, -1]),  # without nulls, for which pandas takes float
        "float16": _column(pa.float16(), np.float16(1.5), np.float16(-65504)),
        "float32": _column(pa.float32(), 1.1, float("-inf")),
        "float64": _column(pa.float64(), 1.1, -0.0),
        "bool": _column(pa.bool_(), True, False),
        "words": _column(pa.string(), "ü", "中文 🏺", ""),
        "large_words": _column(pa.large_string(), "x" * 100_000, '"quoted"\n'),
        "category": _column(pa.string(), "red", "blue").dictionary_encode(),
        "bytes": _column(pa.binary(), b"\x00\xff", b""),
        "four_bytes": _column(pa.binary(4), b"\xff\x00\xff\x00"),
        "uuid": _column(pa.uuid(), uuid.UUID(int=1).bytes, uuid.UUID(int=2**128 - 1).bytes),
        "date": _column(pa.date32(), date, datetime.date(1970, 1, 1)),
        "timestamp_ms": _column(pa.timestamp("ms"), 1, 1_772_236_799_999),
        "timestamp_us_utc": _column(pa.timestamp("us", "UTC"), 1, 1_772_236_799_999_999),
        "timestamp_us_shanghai": _column(pa.timestamp("us", "Asia/Shanghai"), 1, 1_772_236_799_999_999),
        "timestamp_of_pandas": _column(pa.timestamp("ns"), 1_000, 1_772_236_799_999_999_000),
        "decimal_5_2": _column(pa.decimal128(5, 2), _Decimal("1.50"), _Decimal("-999.99")),
        "decimal_38_9": _column(pa.decimal128(38, 9), _Decimal("12345678901234567890123456789.123456789")),
        "decimal_50": _column(pa.decimal256(50, 1), _Decimal("1234567890123456789012345678901234567890.5")),
        "texts": _column(pa.list_(pa.string()), ["a", None, "中"], []),
        "large_list": _column(pa.large_list(pa.uint32()), [2**32 - 1], []),
        "two_numbers": pa.array([[1.5, number] for number in range(6)], numbers),  # pyarrow can't read a null list
        "nested": _column(nested, {"a": 1, "b": ["x"]}, {"a": None, "b": []}),
        "nested_list": _column(pa.list_(nested), [{"a": 1, "b": ["x"]}], []),
        "größe in cm": _column(pa.float64(), 1.5),
    }


def odd_columns() -> "dict[str, pa.Array[Any]]":
    """Return a column for each type of kept columns that is published as it is although some readers lack it."""
    time = datetime.time(1, 2, 3, 4)
    return {
        "time": _column(pa.time64("us"), time, datetime.time(0)),
        "timestamp_ns": _column(pa.timestamp("ns"), 1, 1_772_236_799_999_999_999),
        "duration": _column(pa.duration("us"), 1, 2_000_000),
        "map": _column(pa.map_(pa.string(), pa.int64()), [("k", 1)], [("k", 1), ("l", None)]),
        "date_of_the_year_1500": _column(pa.date32(), datetime.date(1500, 1, 1)),
    }


def write_manifest(folder: Path) -> Path:
    """Write a Parquet manifest of texts, an image and all kept columns, and one of rows that fail; return the first.

    Nothing is written if they exist: an image with another time of modification would be another image.
    """
    path = folder / "manifest.parquet"
    if path.exists():
        return path
    (folder / "picture.jpg").write_bytes(_IMAGE.read_bytes())
    columns = {
        "id": [f"row {number}" for number in range(6)],
        "text": [*_TEXTS, None],
        "image": [None, None, None, None, None, "picture.jpg"],
    }
    pq.write_table(pa.table(columns | kept_columns() | odd_columns()), path)
    (folder / "failing.jsonl").write_text('{"id": "no picture", "image": "missing.jpg"}\n{broken, "ü 中"\n', "utf-8")
    return path


def make_output(folder: Path, base_url: str, layout: Layout, odd: str = "") -> Path:
    """Make an output with all kept columns, or with one odd column; return its folder.

    Raise the ArkbeamError of the stage that failed.
    """
    manifest, output = write_manifest(folder), folder / f"out-{layout}-{odd}"
    config = {
        "manifest": {
            "uris": [str(manifest), str(folder / "failing.jsonl")],
            "keep": [odd] if odd else list(kept_columns()),
        },
        "model": {
            "name": MODEL,
            "dimensions": DIMENSIONS,
            "instructions": "x",
            "sparse": True,
            "multi_embedding": "zstd",
        },
        "api": {"base_url": base_url},
        "quota": {"rpm": 10**6, "tpm": 10**9},
        "store": {"uri": str(folder / f"store-{layout}")},
        "output": {"uri": str(output), "layout": layout.value},
    }
    run_job(prepare_job(parse_config(config)))
    return output


def write_expected(folder: Path, path: Path) -> None:
    """Read a folder of an output with pyarrow, and write the values of each column as JSON, as `read.plain` gives them."""
    table = pq.read_table(folder)
    expected = {name: _plain_values(table[name].combine_chunks()) for name in table.column_names}
    path.write_text(json.dumps(expected), "utf-8")  # orjson has no integers beyond 64 bits


def _plain_values(column: "pa.Array[Any]") -> list[Any]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        name = "ns" if pa.types.is_timestamp(kind) else "duration"
        counts = column.cast(pa.int64()).to_pylist()
        return [None if count is None else {name: count * _UNITS_NS[kind.unit]} for count in counts]
    values: list[Any] = plain(column.to_pylist())
    return values


def write_vectors(folder: Path, layout: Layout, rows: int, dimensions: int) -> None:
    """Write parts as Publish writes them, of random vectors whose values are exact in bfloat16, as the service's are."""
    folder.mkdir(parents=True)
    wanted = pa.schema([schema.embeddings_schema(pa.struct([])).field(name) for name in ("id", "dense", "norm")])
    count, random = vector_rows(dimensions), np.random.default_rng(0)
    for part, first in enumerate(range(0, rows, PART_ROWS)):
        with pq.ParquetWriter(folder / f"part-{part:05d}.parquet", wanted, **writer_options(wanted, layout)) as writer:
            for start in range(first, min(rows, first + PART_ROWS), count):
                group = min(count, rows - start, first + PART_ROWS - start)
                values = random.standard_normal(group * dimensions, np.float32) / np.float32(dimensions**0.5)
                values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
                offsets = np.arange(group + 1, dtype=np.int32) * dimensions
                dense = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=schema.VECTOR)
                norms = np.linalg.norm(values.reshape(group, dimensions), axis=1).astype(np.float32)
                ids = [f"id-{number}" for number in range(start, start + group)]
                writer.write_table(pa.table([pa.array(ids), dense, pa.array(norms)], schema=wanted))
