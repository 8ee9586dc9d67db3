"""The demo, as a new user runs it."""

import base64
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs" / "demo"
INSTRUCTIONS = "Instruction:Compress the text into one word.\nQuery:"
BAD_ROWS = 5
MIME = {".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
NOTE_KEYS = {
    *("rows", "published", "failed", "owned", "duplicates", "requests_paid", "requests_sent", "refused", "retries"),
    *("tokens", "cost_cny", "elapsed_s", "quota", "files", "config"),
}


def demo_arguments(place: Any) -> list[str]:
    """Return the arguments of a run with the demo's config, and with this test's emulator, store and output."""
    settings = {"api.base_url": place.url, "store.uri": str(place.store), "output.uri": str(place.output)}
    return [
        "run",
        "configs/demo.yaml",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]


def read_manifests() -> dict[tuple[str, int], dict[str, Any]]:
    """Return the readable rows of the demo by manifest and row number."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate((DEMO / "manifest.jsonl").read_text("utf-8").splitlines()):
        if '"bad-json"' not in line:
            rows[str(DEMO / "manifest.jsonl"), number] = json.loads(line)
    with (DEMO / "more.csv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            rows[str(DEMO / "more.csv"), number] = {name: value for name, value in row.items() if value}
    return rows


def parts_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the content that is sent for a row of the demo."""
    parts = [("text", row["text"])] if row.get("text") else []
    for kind in ("image", "video"):
        if row.get(kind):
            file = DEMO / row[kind]
            data = base64.b64encode(file.read_bytes()).decode()
            parts.append((kind, f"data:{MIME[file.suffix]};base64,{data}"))
    return parts


def test_the_demo(
    place: Any, emulator: Any, start_cold: Any, call: Callable[..., Any], assert_bill: Any, assert_vectors: Any
) -> None:
    """The demo exits with 0 and its rows and tokens add up; a second run sends nothing and publishes the same rows."""
    ended = start_cold(*demo_arguments(place)).wait()
    assert ended.code == 0, ended.err
    note, stats = place.note, emulator.stats
    assert note.keys() >= NOTE_KEYS
    assert note["rows"] == note["published"] + note["failed"] == len(read_manifests()) + 1
    assert note["failed"] == BAD_ROWS
    assert note["requests_sent"] == note["requests_paid"] == stats["received"] == note["published"] - note["duplicates"]
    assert note["tokens"] == stats["tokens"]
    assert note["duplicates"] > 0
    assert_bill(place, stats)
    first, failures, source = place.read("embeddings"), place.read("failures"), read_manifests()
    assert_vectors(first, lambda row: parts_of(source[row["manifest"], row["row"]]), instructions=INSTRUCTIONS)
    check_rows(first, source)
    check_files(place)
    assert len(set(failures["code"].to_pylist())) == failures.num_rows == BAD_ROWS
    assert {name.partition("-")[0] for name in failures["id"].to_pylist() if ":" not in name} == {"bad"}

    ended = call(*demo_arguments(place))
    assert ended.code == 0, ended.err
    assert emulator.stats["received"] == stats["received"]
    assert place.note["requests_sent"] == place.note["requests_paid"] == 0
    assert place.note["owned"] == place.note["published"] == note["published"]
    assert place.read("embeddings").sort_by("id").equals(first.sort_by("id"))
    check_files(place)
    assert place.leftovers == []


def check_rows(table: pa.Table, source: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Check that each row has the id and kept columns of its manifest, and a sparse vector only if it has no media."""
    kept = {name: table.schema.field(name).type for name in ("title", "lang", "tags")}
    assert all(pa.types.is_string(kept[name]) or pa.types.is_large_string(kept[name]) for name in ("title", "lang"))
    assert kept["tags"].value_type == pa.string()
    for row in table.select(["id", "manifest", "row", "title", "lang", "tags", "sparse"]).to_pylist():
        original = source[row["manifest"], row["row"]]
        assert (row["id"], row["title"], row["lang"]) == (original["id"], original["title"], original["lang"])
        assert row["tags"] == original.get("tags")
        only_text = "image" not in original and "video" not in original
        assert (row["sparse"] is not None) == only_text
    assert set(table["model"].to_pylist()) == {"doubao-embedding-vision-251215-stand-in"}


def check_files(place: Any) -> None:
    """Check that `run.json` has all files with the right size, hash and number of rows."""
    for file in place.note["files"]:
        path = place.output / file["path"]
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file["rows"] == pq.read_metadata(path).num_rows
    assert {file["path"] for file in place.note["files"]} == {
        str(path.relative_to(place.output)) for path in place.output.rglob("*.parquet")
    }
