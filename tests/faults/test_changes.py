"""Promise 9: if a manifest or a picture changes during a run, rows are published as they were read, and no row has a wrong vector."""

import gzip
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROWS = 40


def texts(name: str, word: str) -> list[dict[str, str]]:
    """Return the rows of one manifest; `word` says which version of the manifest a text belongs to."""
    return [{"id": f"{name}-{number}", "text": f"{word} {name}-{number}"} for number in range(ROWS)]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows in the format of the file's extension; an existing file is replaced."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=40)
        path.write_bytes(sink.getvalue())
    elif path.suffix == ".csv":
        path.write_text(
            "".join(",".join(record) + "\n" for record in [("id", "text"), *(row.values() for row in rows)])
        )
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(lines)


CHANGES: dict[str, Callable[[Path], None]] = {
    "overwritten": lambda path: write(path, texts(path.name, "another text")),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 3),
    "gone": Path.unlink,
}
NAMES = ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet")


@pytest.mark.parametrize("change", CHANGES)
def test_the_manifest_changes_in_mid_run(
    change: str, make_emulator: Any, make_place: Any, start: Any, assert_vectors: Any
) -> None:
    """Manifests of four formats are overwritten, cut or removed after the first requests: all rows are published as they were read."""
    emulator = make_emulator(latency_ms=300)
    place = make_place(emulator.url)
    paths = [place.folder / name for name in NAMES]
    for path in paths:
        write(path, texts(path.name, "first text"))
    settings = {"limits.requests_in_flight": 32, "manifest.shard_bytes_max": 500}
    running = start(*place.arguments("run", settings | {"manifest.uris": [str(path) for path in paths]}))
    emulator.wait_for("received", 4)
    for path in paths:
        CHANGES[change](path)
    ended = running.wait()
    assert ended.code == 0, ended.err
    table = place.read("embeddings")
    assert sorted(table["id"].to_pylist()) == sorted(row["id"] for name in NAMES for row in texts(name, ""))
    assert_vectors(table, lambda row: [("text", f"first text {row['id']}")])
    assert place.leftovers == []


PICTURES = 300


def draw(seed: int) -> bytes:
    """Make a small picture."""
    data = io.BytesIO()
    Image.frombytes("RGB", (16, 16), random.Random(seed).randbytes(16 * 16 * 3)).save(data, "PNG")
    return data.getvalue()


def test_a_picture_changes_before_it_is_sent(make_emulator: Any, make_place: Any, start: Any) -> None:
    """A picture that was replaced before it is sent becomes a failure row; the next run embeds the new picture."""
    emulator = make_emulator(latency_ms=400)
    place = make_place(emulator.url)
    pictures = [place.folder / f"{number}.png" for number in range(PICTURES)]
    for number, path in enumerate(pictures):
        path.write_bytes(draw(number))
    changed = [draw(number + PICTURES) for number in range(PICTURES)]
    place.write_rows([{"id": path.name, "image": path.name} for path in pictures])
    # Request bodies are made one batch ahead: of 300 pictures, at least a third have not been read again at this point.
    running = start(*place.arguments("run", {"limits.requests_in_flight": 16, "limits.bytes_in_flight": 20_000}))
    emulator.wait_for("received", 1)
    for path, data in reversed(list(zip(pictures, changed, strict=True))):
        path.with_suffix(".new").write_bytes(data)
        os.replace(path.with_suffix(".new"), path)
    last = pictures[-1]
    last.unlink()
    ended = running.wait()
    assert ended.code == 3, ended.err
    failures = {row["id"]: row["code"] for row in place.read("failures").to_pylist()}
    published = place.read("embeddings")["id"].to_pylist()
    assert len(failures) + len(published) == PICTURES
    assert failures[last.name] == "media_missing"
    assert {code for name, code in failures.items() if name != last.name} == {"media_changed"}
    assert emulator.stats["received"] == len(published)

    last.write_bytes(changed[-1])
    again = {"manifest.uris": [str(place.output / "failures")], "output.uri": str(place.folder / "again")}
    note = place.run(again)
    assert (note["rows"], note["published"]) == (len(failures), len(failures))
