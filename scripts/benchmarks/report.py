"""Seconds, memory and bytes of the report of a large output."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from arkbeam.base import schema
from arkbeam.stages.publish.layout import vector_rows, writer_options
from arkbeam.stages.spec import PART_ROWS

from scripts.benchmarks.runs import run_child
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.children import arkbeam_command

TARGET_S, TARGET_BYTES = 60.0, 5_000_000
_RUN = "20260101T000000-aaaaaaaa-11111111"
_STARTED_S = 1_767_225_600
_PARTS = 8  # different ones; the others are links to them
_GROUPS = 40
_REQUESTS_A_SECOND = 250


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of rows, and of values of each vector."""

    rows: int
    dimensions: int


SIZES = {
    Size.FULL: (Sizes(200_000, 2048), Sizes(1_000_000, 2048)),
    Size.QUICK: (Sizes(50_000, 1024),),
    Size.TINY: (Sizes(500, 64),),
}


def measure(bench: Bench) -> list[Figure]:
    """Time, memory and size of `arkbeam report` for outputs of 200,000 and 1,000,000 rows."""
    figures = []
    for number, sizes in enumerate(SIZES[bench.size]):
        output = bench.folder / f"out-{number}"
        write_output(output, sizes)
        bench.say(f"output of {sizes.rows:,} rows written")
        ended = run_child(arkbeam_command("report", str(output)), bench.folder)
        size = (output / "report.html").stat().st_size
        bench.say(f"report: {ended.wall_s:.1f} s")
        name = f"{sizes.rows:,} x {sizes.dimensions:,}"
        details = f"{ended.cpu_s:.1f} s of CPU, {ended.peak_bytes / 1e6:,.0f} MB"
        figures += [
            Figure(
                "report",
                f"{name}: time",
                f"{ended.wall_s:.1f} s",
                f"≤ {TARGET_S:.0f} s",
                at_most(ended.wall_s, TARGET_S),
                details,
            ),
            Figure(
                "report",
                f"{name}: size",
                f"{size / 1e6:.2f} MB",
                f"≤ {TARGET_BYTES / 1e6:.0f} MB",
                at_most(size, TARGET_BYTES),
            ),
        ]
    return figures


def write_output(output: Path, sizes: Sizes) -> None:
    """Write an output as a run leaves it. Its parts repeat: reading them takes the same time as if they did not."""
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(_GROUPS, sizes.dimensions)).astype(np.float32)
    files = []
    for folder in ("embeddings", "usage", "failures"):
        (output / folder).mkdir(parents=True)
    for number, start in enumerate(range(0, sizes.rows, PART_ROWS)):
        rows = min(PART_ROWS, sizes.rows - start)
        tables = {}
        if number < _PARTS or rows < PART_ROWS:
            tables = {
                "embeddings": _make_vectors(chance, centres, start, rows),
                "usage": _make_usage(chance, start, rows),
            }
        for folder in ("embeddings", "usage"):
            path = output / folder / f"part-{number:05d}.parquet"
            if tables:
                _write(path, tables[folder], sizes.dimensions)
            else:
                os.link(path.with_name(f"part-{number % _PARTS:05d}.parquet"), path)
            files.append(
                {
                    "path": f"{folder}/{path.name}",
                    "rows": rows,
                    "bytes": path.stat().st_size,
                    "sha256": f"{number:064x}",
                }
            )
    (output / "run.json").write_bytes(orjson.dumps(_make_note(sizes.rows) | {"files": files}))
    (output / "_SUCCESS").touch()


def _write(path: Path, table: pa.Table, dimensions: int) -> None:
    options = writer_options(table.schema, schema.Layout.PORTABLE)
    pq.write_table(table, path, row_group_size=vector_rows(dimensions), **options)


def _make_vectors(chance: np.random.Generator, centres: np.ndarray, start: int, rows: int) -> pa.Table:
    """Return rows of `embeddings/`; the values are exact in bfloat16, as those of the service are."""
    dimensions = centres.shape[1]
    values = centres[chance.integers(0, _GROUPS, rows)] + chance.normal(size=(rows, dimensions), scale=0.8)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    exact = (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    offsets = np.arange(0, (rows + 1) * dimensions, dimensions, dtype=np.int32)
    indices = chance.integers(0, 30_000, rows * 12).reshape(rows, 12)
    sparse = pa.StructArray.from_arrays(
        [
            pa.ListArray.from_arrays(
                np.arange(0, rows * 12 + 1, 12, dtype=np.int32), pa.array(np.sort(indices).ravel())
            ),
            pa.ListArray.from_arrays(
                np.arange(0, rows * 12 + 1, 12, dtype=np.int32), pa.array(np.ones(rows * 12, np.float32))
            ),
        ],
        ["indices", "values"],
    )
    wanted = schema.embeddings_schema(pa.struct([("title", pa.string())]))
    tokens = pa.array(chance.integers(10, 500, rows))
    columns = {
        "id": pa.array([f"row-{start + at}" for at in range(rows)]),
        "manifest": pa.array(["/in/rows.jsonl"] * rows),
        "row": pa.array(np.arange(start, start + rows)),
        "dense": pa.ListArray.from_arrays(pa.array(offsets), pa.array(exact.ravel())).cast(schema.VECTOR),
        "sparse": sparse.cast(schema.PUBLISHED_SPARSE),
        "norm": pa.array(np.linalg.norm(exact, axis=1)),
        "model": pa.array(["model"] * rows),
        "request_id": pa.array([f"request-{start + at}" for at in range(rows)]),
        **dict.fromkeys(("prompt_tokens", "total_tokens", "text_tokens"), tokens),
        "image_tokens": pa.array(chance.integers(0, 2, rows) * 900),
        "fingerprint": pa.array([chance.bytes(16) for _ in range(rows)], pa.binary()),
        "media_changes": pa.nulls(rows, schema.MEDIA_CHANGES),
        "title": pa.array([f"title of row {start + at}" for at in range(rows)]),
    }
    return pa.table([columns[name].cast(wanted.field(name).type) for name in wanted.names], schema=wanted)


def _make_usage(chance: np.random.Generator, start: int, rows: int) -> pa.Table:
    tokens = pa.array(chance.integers(10, 500, rows))
    columns = {
        "request_id": pa.array([f"request-{start + at}" for at in range(rows)]),
        "client_request_id": pa.array([f"client-{start + at}" for at in range(rows)]),
        "fingerprint": pa.array([chance.bytes(16) for _ in range(rows)], pa.binary()),
        "model": pa.array(["model"] * rows),
        "created": pa.array(_STARTED_S + np.arange(start, start + rows) // _REQUESTS_A_SECOND),
        **dict.fromkeys(("prompt_tokens", "total_tokens", "text_tokens"), tokens),
        "image_tokens": pa.array(chance.integers(0, 2, rows) * 900),
        "attempts": pa.array(1 + (chance.random(rows) < 0.02)),
        "latency_ms": pa.array(chance.lognormal(5.5, 0.5, rows)),
        "cost_cny": pa.array(chance.random(rows) * 1e-4),
        "outcome": pa.array(["ok"] * rows),
        "run": pa.array([_RUN] * rows),
    }
    return pa.table(
        [columns[name].cast(schema.USAGE.field(name).type) for name in schema.USAGE.names], schema=schema.USAGE
    )


def _make_note(rows: int) -> dict[str, object]:
    tokens = {"prompt": 300 * rows, "total": 300 * rows, "text": 250 * rows, "image": 50 * rows}
    a_minute = 60 * _REQUESTS_A_SECOND
    minutes = [
        {"minute": at, "minutes": 1, "seconds": 60, "requests": a_minute, "refused": at % 7, "tokens": 300 * a_minute}
        for at in range(max(1, rows // a_minute))
    ]
    return {
        "run": _RUN,
        "started": "2026-01-01T00:00:00Z",
        "elapsed_s": rows / _REQUESTS_A_SECOND,
        "service": "stand-in",
        **dict.fromkeys(("rows", "published", "distinct", "requests_sent", "requests_paid"), rows),
        **dict.fromkeys(("failed", "duplicates", "owned", "refused", "retries"), 0),
        "tokens": tokens,
        "cost_cny": rows * 1e-4,
        "all_runs": {"requests_paid": rows, "paid_twice": 0, "tokens": tokens, "cost_cny": rows * 1e-4},
        "quota": {"rpm": 15_000, "tpm": 6_000_000, "utilisation": 0.98, "binding": "rpm", "minutes": minutes},
        "prices": {"text_cny_per_million": 0.7, "image_cny_per_million": 1.8},
        "stopped": None,
        "config": {"model": {"name": "model"}},
    }
