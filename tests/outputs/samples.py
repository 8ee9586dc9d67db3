"""Outputs for tests: Parquet files and a `run.json` as a run writes them, without a run."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from arkbeam.base import schema
from arkbeam.outputs.published import Published
from arkbeam.stages.publish.layout import writer_options

RUN = "20260101T000000-aaaaaaaa-11111111"
STARTED_S = 1_767_225_600


def embeddings_table(vectors: np.ndarray, **columns: Any) -> pa.Table:
    """Return a table of `embeddings/`; columns replace the defaults, or are kept columns."""
    rows = len(vectors)
    kept = {name: pa.array(values) for name, values in columns.items() if name not in _default_columns(vectors)}
    wanted = schema.embeddings_schema(pa.struct([(name, values.type) for name, values in kept.items()]))
    values = _default_columns(vectors) | columns | kept
    table = pa.table([pa.array(values[name], wanted.field(name).type) for name in wanted.names], schema=wanted)
    assert table.num_rows == rows
    return table


def _default_columns(vectors: np.ndarray) -> dict[str, Any]:
    rows = len(vectors)
    return {
        "id": [f"id-{at}" for at in range(rows)],
        "manifest": ["/in/rows.jsonl"] * rows,
        "row": list(range(rows)),
        "dense": list(vectors),
        "sparse": [None] * rows,
        "norm": np.linalg.norm(vectors, axis=1).astype(np.float32),
        "model": ["model"] * rows,
        "request_id": [f"request-{at}" for at in range(rows)],
        "prompt_tokens": [10] * rows,
        "total_tokens": [10] * rows,
        "text_tokens": [10] * rows,
        "image_tokens": [at % 3 for at in range(rows)],
        "fingerprint": [hashlib.md5(str(at).encode(), usedforsecurity=False).digest() for at in range(rows)],
        "media_changes": [None] * rows,
    }


def usage_table(
    seconds: Sequence[float | None], latencies_ms: Sequence[float | None], run: str = RUN, **columns: Any
) -> pa.Table:
    """Return a table of `usage/` with an attempt for each time, in seconds since the start of the run."""
    rows = len(seconds)
    values = {
        "request_id": [f"request-{at}" for at in range(rows)],
        "client_request_id": [f"client-{at}" for at in range(rows)],
        "fingerprint": [bytes([at % 256] * 16) for at in range(rows)],
        "model": ["model"] * rows,
        "created": [None if second is None else STARTED_S + int(second) for second in seconds],
        **{name: [10] * rows for name in ("prompt_tokens", "total_tokens", "text_tokens", "image_tokens")},
        "attempts": [1] * rows,
        "latency_ms": list(latencies_ms),
        "cost_cny": [0.00001] * rows,
        "outcome": ["ok"] * rows,
        "run": [run] * rows,
    } | columns
    return pa.table(
        [pa.array(values[name], schema.USAGE.field(name).type) for name in schema.USAGE.names], schema=schema.USAGE
    )


def failures_table(codes: Sequence[str], **columns: Any) -> pa.Table:
    """Return a table of `failures/` with a row for each code."""
    rows = len(codes)
    values = {
        "id": [f"bad-{at}" for at in range(rows)],
        "manifest": ["/in/rows.jsonl"] * rows,
        "row": list(range(rows)),
        "code": list(codes),
        "message": [f"message {at}" for at in range(rows)],
        "original": ["{}"] * rows,
    } | columns
    return pa.table(values, schema=schema.FAILURES)


def write_output(folder: Path, tables: Mapping[str, Sequence[pa.Table]], **changes: Any) -> Published:
    """Write the parts of each folder, `run.json` and `_SUCCESS`; `changes` replace keys of `run.json`."""
    folder.mkdir()
    files, rows = [], {"embeddings": 0, "failures": 0, "usage": 0}
    for name, parts in tables.items():
        (folder / name).mkdir()
        for number, table in enumerate(parts):
            path = folder / name / f"part-{number:05d}.parquet"
            options = writer_options(table.schema, schema.Layout.PORTABLE)
            pq.write_table(table, path, row_group_size=256, **options)
            rows[name] += table.num_rows
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = {
                "path": f"{name}/{path.name}",
                "rows": table.num_rows,
                "bytes": path.stat().st_size,
                "sha256": digest,
            }
            files.append(entry)
    note = _make_note(rows) | {"files": files} | changes
    (folder / "run.json").write_bytes(orjson.dumps(note))
    (folder / "_SUCCESS").touch()
    return Published.of(str(folder), note)


def _make_note(rows: Mapping[str, int]) -> dict[str, Any]:
    """Return the keys of `run.json` that a run of version 0.1.0 wrote, without the files."""
    published, failed, paid = rows["embeddings"], rows["failures"], rows["usage"]
    tokens = {"prompt": 10 * paid, "total": 10 * paid, "text": 6 * paid, "image": 4 * paid}
    return {
        "run": RUN,
        "started": "2026-01-01T00:00:00Z",
        "elapsed_s": 61.5,
        "service": "ark",
        "rows": published + failed,
        "published": published,
        "failed": failed,
        "distinct": published,
        "duplicates": 0,
        "owned": 0,
        "requests_sent": paid,
        "requests_paid": paid,
        "refused": 0,
        "retries": 0,
        "tokens": tokens,
        "cost_cny": 0.01,
        "all_runs": {"requests_paid": paid, "paid_twice": 0, "tokens": tokens, "cost_cny": 0.02},
        "quota": {"rpm": 600, "tpm": 1_000_000, "utilisation": 0.5, "binding": "rpm" if paid else None},
        "prices": {"text_cny_per_million": 0.7, "image_cny_per_million": 1.8},
        "stopped": None,
        "config": {"model": {"name": "model"}},
    }
