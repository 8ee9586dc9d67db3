"""In every format, each manifest row becomes one published row with its own vector, or one failure row."""

import csv
import gzip
import json
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from arkbeam.base.errors import ManifestError
from arkbeam.beam import publish
from arkbeam.stages.publish import parts
from arkbeam.stages.publish.cuts import cut_rows, find_marks
from PIL import Image


def make_texts(name: str, count: int) -> list[str]:
    """Return texts; every third one is in all manifests, and four are twice in this one."""
    own = [f"{name} 第 {number} 行" if number % 3 else f"shared row {number}" for number in range(count)]
    return [*own, *own[:4]]


def write_all_formats(folder: Path, count: int) -> dict[str, list[str]]:
    """Write one manifest of each format; return the texts of each, in row order. None has ids."""
    texts = {
        name: make_texts(name, count)
        for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.csv", "e.tsv", "f.parquet")
    }
    for name, rows in texts.items():
        path = folder / "in" / name
        path.parent.mkdir(exist_ok=True)
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows).encode()
        if name.endswith(".jsonl"):
            path.write_bytes(lines)
        elif name.endswith(".gz"):
            path.write_bytes(gzip.compress(lines))
        elif name.endswith(".zst"):
            path.write_bytes(zstandard.compress(lines))
        elif name.endswith(".parquet"):
            pq.write_table(pa.table({"text": rows}), path, row_group_size=7)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",")
                writer.writerows([["text"], *([text] for text in rows)])
    return texts


@pytest.mark.parametrize(
    "settings",
    [{}, {"manifest.shard_bytes_max": 300, "store.flush_rows": 5, "limits.requests_in_flight": 3}],
    ids=["whole", "many-shards"],
)
def test_every_format(place: Any, emulator: Any, assert_vectors: Any, settings: dict[str, Any]) -> None:
    """Rows of six formats are published with their own vectors, row numbers and default ids; no text is bought twice."""
    texts = write_all_formats(place.folder, 40)
    note = place.run({"manifest.uris": [str(place.folder / "in" / "*")], **settings})
    table = place.read("embeddings")
    assert note["rows"] == note["published"] == table.num_rows == sum(map(len, texts.values()))
    distinct = {text for rows in texts.values() for text in rows}
    assert note["requests_sent"] == note["distinct"] == len(distinct) == emulator.stats["paid"]
    assert note["duplicates"] == note["rows"] - len(distinct)
    expected = {
        f"{name}:{number}": (str(place.folder / "in" / name), number)
        for name, rows in texts.items()
        for number in range(len(rows))
    }
    rows = table.select(["id", "manifest", "row"]).to_pylist()
    assert {row["id"]: (row["manifest"], row["row"]) for row in rows} == expected
    assert_vectors(table, lambda row: [("text", texts[Path(row["manifest"]).name][row["row"]])])


def test_same_names_in_two_folders(place: Any) -> None:
    """Default ids contain the folders in which the manifests differ."""
    for day in (1, 2):
        folder = place.folder / f"day={day}"
        folder.mkdir()
        (folder / "part-0.jsonl").write_text(f'{{"text": "of day {day}"}}\n')
    place.run({"manifest.uris": [str(place.folder / "*" / "part-0.jsonl")]})
    assert sorted(place.read("embeddings")["id"].to_pylist()) == ["day=1/part-0.jsonl:0", "day=2/part-0.jsonl:0"]


def test_files_with_odd_names_are_published_and_tried_again(place: Any) -> None:
    """Rows of such files have the file's exact name, and those that failed are found by it."""
    names = ["a?1.jsonl", "a?2.jsonl", "b::c.jsonl", "two\nlines.jsonl", "end.jsonl ", "100%25#.jsonl", "[1]*.jsonl"]
    for name in names:
        rows = [{"text": f"good {name}"}, {"image": "none.png"}]
        (place.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    place.run({"manifest.uris": [str(place.folder / "*.jsonl*")], "limits.failures_allowed": 100})
    for table in ("embeddings", "failures"):
        assert sorted(place.read(table)["manifest"].to_pylist()) == sorted(str(place.folder / name) for name in names)
    assert sorted(place.read("embeddings")["id"].to_pylist()) == sorted(f"{name}:0" for name in names)
    Image.new("RGB", (20, 20)).save(place.folder / "none.png")
    again = place.folder / "again"
    place.run({"manifest.uris": [str(place.output / "failures")], "output.uri": str(again)})
    assert sorted(place.read_from(again, "embeddings")["id"].to_pylist()) == sorted(f"{name}:1" for name in names)


def test_a_pattern_that_takes_in_output_or_store_stops_the_run(place: Any) -> None:
    """The first run already says so, before anything is read; a narrower pattern, or another place, is fine."""
    place.write_texts(1)
    for key, uris in (("output.uri", "**/*.parquet"), ("store.uri", "**/store/**"), ("output.uri", "o*/*.json")):
        with pytest.raises(ManifestError, match=rf"also matches the files that this run writes .*\({key}\)"):
            place.prepare({"manifest.uris": [str(place.folder / uris)], "manifest.format": "jsonl"})
    assert place.prepare({"manifest.uris": [str(place.folder / "**/*.jsonl")]}).shards


def test_a_file_with_two_names_is_read_once_and_noted(place: Any) -> None:
    """The note names both, since rows of the second name are not published."""
    place.write_texts(3)
    (place.folder / "latest.jsonl").symlink_to("rows.jsonl")
    job = place.prepare({"manifest.uris": [str(place.folder / "*.jsonl")]})
    assert [shard.label for shard in job.shards] == ["rows.jsonl"]
    (note,) = (note for note in job.notes if "read once" in note)
    assert "latest.jsonl" in note
    assert "rows.jsonl" in note


def test_kept_columns_of_parquet(place: Any) -> None:
    """Nested, decimal, binary and list columns of a Parquet manifest are published unchanged, each value with its own row."""
    count = 30
    source = pa.table(
        {
            "key": pa.array(range(count), pa.int64()),
            "caption": [f"caption {number % 20}" for number in range(count)],
            "price": pa.array([Decimal(number) / 4 for number in range(count)], pa.decimal128(10, 2)),
            "raw": pa.array([bytes([number]) for number in range(count)]),
            "tags": pa.array([[f"t{number}", None] if number % 5 else None for number in range(count)]),
            "box": pa.array([{"x": number, "in": {"y": [number, -number]}} for number in range(count)]),
        }
    )
    pq.write_table(source, place.folder / "rows.parquet", row_group_size=9)
    place.run(
        {
            "manifest.uris": [str(place.folder / "rows.parquet")],
            "manifest.columns": {"id": "key", "text": "caption"},
            "manifest.keep": ["price", "raw", "tags", "box"],
            "manifest.shard_bytes_max": 1,
        }
    )
    table = place.read("embeddings").sort_by("row")
    assert table["id"].to_pylist() == [str(number) for number in range(count)]
    for name in ("price", "raw", "tags", "box"):
        assert table.schema.field(name).type == source.schema.field(name).type
        assert table[name].to_pylist() == source[name].to_pylist()


def test_rows_of_every_kind(place: Any, emulator: Any) -> None:
    """Good, duplicate, broken and empty rows are published or failed under their own row number; blank lines are not rows."""
    place.write_rows(
        [
            {"id": "a", "text": "one"},
            "",
            "{broken",
            {"id": "b", "text": "one"},
            {"id": "c", "text": ""},
            {"id": "d", "input": [{"type": "text", "text": "two"}]},
            {"custom_id": "e", "body": {"input": [{"type": "text", "text": "three"}]}},
            "[1]",
            '{"id": "f", "text": "bad \\ud800 text"}',
        ]
    )
    note = place.run()
    good, bad = place.read("embeddings").sort_by("row"), place.read("failures").sort_by("row")
    assert list(zip(good["row"].to_pylist(), good["id"].to_pylist(), strict=True)) == [
        (0, "a"),
        (3, "b"),
        (5, "d"),
        (6, "e"),
    ]
    assert bad["row"].to_pylist() == [2, 4, 7, 8]
    assert (note["rows"], note["published"], note["failed"]) == (8, 4, 4)
    assert bad["original"].to_pylist()[0] == "{broken"
    assert bad["manifest"].to_pylist() == [str(place.folder / "rows.jsonl")] * 4
    assert emulator.stats["received"] == 3


def test_changed_manifest(place: Any, emulator: Any, assert_vectors: Any) -> None:
    """After rows were added, removed and changed, a run buys only the new texts and publishes the present rows."""
    place.write_rows([{"id": str(number), "text": f"text {number}"} for number in range(20)])
    place.run()
    place.write_rows([{"id": str(number), "text": f"text {29 - number}"} for number in range(15)])
    note = place.run()
    assert emulator.stats["received"] == 30
    assert (note["owned"], note["requests_sent"], note["published"]) == (5, 10, 15)
    table = place.read("embeddings")
    assert_vectors(table, lambda row: [("text", f"text {29 - int(row['id'])}")])
    assert note["all_runs"]["requests_paid"] == place.read("usage").num_rows == 30


def test_two_outputs_of_one_store(place: Any, emulator: Any) -> None:
    """A second output of the same rows buys nothing, and its `usage/` is empty."""
    place.write_texts(12)
    place.run()
    place.settings["output.uri"] = str(place.folder / "other")
    note = place.run()
    assert (note["published"], note["requests_sent"], emulator.stats["received"]) == (12, 0, 12)
    assert pq.read_table(place.folder / "other" / "usage").num_rows == 0


def test_more_rows_than_one_part(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in several part files are published once each; parts of an earlier, larger output are removed."""
    monkeypatch.setattr(parts, "find_marks", partial(find_marks, every=4))
    monkeypatch.setattr(publish, "cut_rows", partial(cut_rows, part_rows=40))
    place.write_texts(150)
    settings = {"store.flush_rows": 20}
    place.run(settings)
    assert len(list((place.output / "embeddings").iterdir())) > 2
    assert sorted(place.read("embeddings")["row"].to_pylist()) == list(range(150))
    place.write_texts(10)
    place.run(settings)
    assert sorted(place.read("embeddings")["row"].to_pylist()) == list(range(10))
    assert {str(path.relative_to(place.output)) for path in place.output.rglob("*.parquet")} == {
        file["path"] for file in place.note["files"]
    }
