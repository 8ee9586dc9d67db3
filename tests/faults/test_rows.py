"""Promise 6: a bad row becomes one failure row; with `failures/` as the manifest, only these rows are tried again."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

ROWS = 40


def picture(shade: int) -> bytes:
    """Make a small PNG."""
    data = io.BytesIO()
    Image.new("RGB", (32, 24), (shade % 256, 10, 200)).save(data, "PNG")
    return data.getvalue()


def half_bad(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return rows of which every second one fails: the service rejects the text, or the picture does not exist."""
    (folder / "pictures").mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number in range(ROWS):
        row: dict[str, Any] = {"id": f"{name}-{number}", "title": f"title {number}", "text": f"row {number} of {name}"}
        if number % 4 == 1:
            row["text"] += " poison"
        elif number % 4 == 3:
            row["image"] = f"pictures/{number}.png"
        rows.append(row)
    return rows


def add_pictures(folder: Path) -> None:
    """Create the missing pictures."""
    for number in range(3, ROWS, 4):
        (folder / "pictures" / f"{number}.png").write_bytes(picture(number))


def ids(table: pa.Table) -> list[str]:
    """Return the ids of a table, sorted."""
    return sorted(table["id"].to_pylist())


def write_as(rows: list[dict[str, Any]], folder: Path, name: str) -> None:
    """Write rows as a manifest, in the format of its name."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([{"image": None, **row} for row in rows]), path, row_group_size=30)
    elif name.endswith((".csv", ".tsv")):
        names = list({column: None for row in rows for column in row})
        sep = "\t" if name.endswith(".tsv") else ","
        records = [names, *([str(row.get(column, "")) for column in names] for row in rows)]
        path.write_text("".join(sep.join(record) + "\n" for record in records))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.compress(lines))
    else:
        path.write_bytes(lines)


FORMATS = ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.csv", "e.tsv", "f.parquet")
ALL = ROWS * len(FORMATS)


def test_half_the_manifest_is_broken(make_emulator: Any, make_place: Any) -> None:
    """Half of the rows are published. A run on the failures tries only these, and sends no rejected request again.

    There is a manifest of each format; a failed row is found again by its manifest and row number.
    """
    emulator = make_emulator(poison="poison")
    place = make_place(emulator.url)
    for name in FORMATS:
        write_as(half_bad(place.folder, name), place.folder, name)
    place.settings = {
        "manifest.uris": [str(place.folder / name) for name in FORMATS],
        "manifest.keep": ["title"],
        "manifest.shard_bytes_max": 1024,
    }
    note = place.run()
    assert (note["published"], note["failed"]) == (ALL // 2, ALL // 2)
    failures = place.read("failures")
    sent = emulator.stats["received"]
    assert sent == ALL // 2 + ALL // 4  # rejected texts were sent once; rows without their picture were not sent

    add_pictures(place.folder)
    again: dict[str, Any] = {"manifest.uris": [f"{place.folder}/out/failures"], "output.uri": f"{place.folder}/again"}
    assert place.plan(again).rows == ALL // 2
    note = place.run(again)
    assert (note["rows"], note["published"], note["failed"]) == (ALL // 2, ALL // 4, ALL // 4)
    assert emulator.stats["received"] == sent + ALL // 4
    published = pq.read_table(place.folder / "again" / "embeddings")
    assert ids(published) == sorted(f"{name}-{number}" for name in FORMATS for number in range(3, ROWS, 4))
    for row in published.to_pylist():
        name, _, number = row["id"].rpartition("-")
        assert (row["row"], row["title"]) == (int(number), f"title {number}")
        assert row["manifest"] == str(place.folder / name)
    left = pq.read_table(place.folder / "again" / "failures")
    assert set(left["code"].to_pylist()) == {"SensitiveContentDetected"}
    kept = failures.filter(pc.is_in(failures["id"], left["id"].combine_chunks()))
    order = [("manifest", "ascending"), ("row", "ascending")]
    assert left.sort_by(order).to_pylist() == kept.sort_by(order).to_pylist()

    third: dict[str, Any] = {
        "manifest.uris": [f"{place.folder}/again/failures/*.parquet"],
        "output.uri": str(place.folder / "third"),
    }
    third["limits.rows_rejected_first_max"] = ALL  # otherwise the run stops when its first rows are all rejected
    assert place.run(third, retry_failed=True)["failed"] == ALL // 4
    assert emulator.stats["received"] == sent + ALL // 2
    assert place.leftovers == []


def test_what_is_not_as_it_was(place: Any) -> None:
    """Changed rows, removed rows and rows of a removed manifest stay failures, each with its own code and the original text."""
    lines = [json.dumps({"id": f"id-{number}", "image": f"{number}.png"}) for number in range(4)]
    place.write_rows([*lines, "{bad"])
    (place.folder / "other.jsonl").write_text(lines[0] + "\n")
    place.settings = {"manifest.uris": [f"{place.folder}/*.jsonl"]}
    assert place.run()["failed"] == 6
    before = {(row["manifest"], row["row"]): row for row in place.read("failures").to_pylist()}
    for number in range(4):
        (place.folder / f"{number}.png").write_bytes(picture(number))
    (place.folder / "other.jsonl").unlink()
    place.write_rows([lines[0], "", json.dumps({"id": "id-2", "image": "3.png"})])
    again = {"manifest.uris": [str(place.folder / "out" / "failures")], "output.uri": str(place.folder / "again")}
    note = place.run(again)
    assert (note["published"], note["failed"]) == (1, 5)
    rows, other = str(place.folder / "rows.jsonl"), str(place.folder / "other.jsonl")
    failures = {
        (row["manifest"], row["row"]): row for row in pq.read_table(place.folder / "again" / "failures").to_pylist()
    }
    assert {key: row["code"] for key, row in failures.items()} == {
        (rows, 1): "row_missing",
        (rows, 2): "row_changed",
        (rows, 3): "row_missing",
        (rows, 4): "row_missing",
        (other, 0): "manifest_missing",
    }
    for key, row in failures.items():
        assert (row["id"], row["original"]) == (before[key]["id"], before[key]["original"])

    (place.folder / "other.jsonl").write_text(lines[0] + "\n")
    place.write_rows([*lines, "{bad"])
    again = {"manifest.uris": [str(place.folder / "again" / "failures")], "output.uri": str(place.folder / "third")}
    note = place.run(again)
    assert (note["published"], note["failed"], note["requests_sent"]) == (4, 1, 3)


def test_a_long_row_is_fetched_whole(place: Any) -> None:
    """`failures/` holds the start of a long row; the next run reads the whole row from the manifest."""
    text = "word " * 40_000
    place.write_rows([{"image": "a.png", "text": text}])
    assert place.run()["failed"] == 1
    (place.folder / "a.png").write_bytes(picture(1))
    (row,) = place.read("failures").to_pylist()
    assert len(row["original"]) == 65_536
    again = {"manifest.uris": [str(place.folder / "out" / "failures")], "output.uri": str(place.folder / "again")}
    assert place.run(again)["published"] == 1
    (published,) = pq.read_table(place.folder / "again" / "embeddings").to_pylist()
    assert published["id"] == row["id"] == "rows.jsonl:0"
    assert published["text_tokens"] > 40_000


def test_an_object_store(make_emulator: Any, make_place: Any, short_lease: None) -> None:
    """Manifests, media and failures in an object store are found again by their URIs."""
    store = fsspec.filesystem("memory")
    place = make_place(make_emulator().url)
    store.pipe_file("/bucket/in/rows.jsonl", b'{"image": "a.png"}\n{"text": "good"}\n{"image": "b.png"}\n')
    place.settings = {
        "manifest.uris": ["memory://bucket/in/rows.jsonl"],
        "store.uri": "memory://bucket/store",
        "output.uri": "memory://bucket/out",
    }
    assert place.run()["failed"] == 2
    store.pipe_file("/bucket/in/b.png", picture(1))
    note = place.run({"manifest.uris": ["memory://bucket/out/failures"], "output.uri": "memory://bucket/again"})
    assert (note["rows"], note["published"], note["failed"]) == (2, 1, 1)
    (path,) = store.glob("/bucket/again/embeddings/*.parquet")
    (row,) = pq.read_table(io.BytesIO(store.cat_file(path))).to_pylist()
    assert (row["manifest"], row["row"], row["id"]) == ("memory:///bucket/in/rows.jsonl", 2, "rows.jsonl:2")
    store.rm("/bucket", recursive=True)


def test_a_copy_of_some_failures(place: Any, tmp_path: Path) -> None:
    """Any table with the columns of `failures/` can be retried: for example some of the rows, in another order, from a query."""
    place.write_rows([{"id": f"id-{number}", "image": f"{number}.png"} for number in range(6)])
    place.run()
    table = place.read("failures")
    names = ["row", "manifest", "original", "message", "code", "id"]
    some = table.take([4, 1, 1]).select(names)
    some = some.cast(pa.schema([pa.field(n, pa.int64() if n == "row" else pa.string()) for n in names]))
    pq.write_table(some, tmp_path / "some.parquet")
    for number in range(6):
        (place.folder / f"{number}.png").write_bytes(picture(number))
    note = place.run({"manifest.uris": [str(tmp_path / "some.parquet")]})
    assert (note["rows"], note["published"]) == (2, 2)
    assert ids(place.read("embeddings")) == ["id-1", "id-4"]


def fail_one(place: Any) -> None:
    """Run a manifest of one row that fails."""
    place.write_rows([{"id": "a", "image": "no.png"}])
    place.run()


def test_failures_are_not_retried_into_their_own_output(place: Any, call: Callable[..., Any]) -> None:
    """A run on the `failures/` of its own output exits with 2, since it would replace them; the output is unchanged."""
    fail_one(place)
    ended = call(*place.arguments("run", {"manifest.uris": [str(place.output / "failures")]}))
    assert ended.code == 2
    assert "another output.uri" in ended.err
    assert place.read("failures").num_rows == 1
    assert (place.output / "_SUCCESS").exists()


def test_failures_beside_manifests_are_refused(place: Any, call: Callable[..., Any]) -> None:
    """A run on failures and manifests together exits with 2, since rows would be read twice."""
    fail_one(place)
    uris = [str(place.output / "failures"), str(place.folder / "rows.jsonl")]
    ended = call(*place.arguments("run", {"manifest.uris": uris, "output.uri": str(place.folder / "again")}))
    assert ended.code == 2
    assert "one kind or the other" in ended.err


def test_no_failures_are_nothing_to_do(place: Any) -> None:
    """An empty `failures/` is a manifest without rows."""
    place.write_texts(2)
    place.run()
    again = {"manifest.uris": [str(place.output / "failures")], "output.uri": str(place.folder / "again")}
    note = place.run(again)
    assert (note["rows"], note["published"], note["failed"]) == (0, 0, 0)


@pytest.mark.parametrize(
    "named",
    [
        "{outside}/secret.jsonl",
        "{inside}/../outside/secret.jsonl",
        "{inside}/link.jsonl",
        "http://127.0.0.1:9/x.jsonl",
        "memory://x/y.jsonl",
        "s3://bucket/x.jsonl::file:///x.jsonl",
    ],
)
def test_failures_can_have_nothing_read_outside_the_roots(
    named: str, place: Any, tmp_path: Path, call: Callable[..., Any]
) -> None:
    """If a table names a file, link or host outside `manifest.roots`, the run exits with 2 and names this key."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.jsonl").write_text('{"id": "a", "text": "secret"}\n')
    (inside / "link.jsonl").symlink_to(outside / "secret.jsonl")
    manifest = named.format(inside=inside, outside=outside)
    row = {"id": "a", "manifest": manifest, "row": 0, "code": "x", "message": "x", "original": "x"}
    pq.write_table(pa.Table.from_pylist([row]), inside / "forged.parquet")
    ended = call(
        *place.arguments("run", {"manifest.uris": [str(inside / "forged.parquet")], "manifest.roots": [str(inside)]})
    )
    assert ended.code == 2, ended
    assert "manifest.roots" in ended.err
    assert not place.output.exists()


def test_a_forged_row_shows_nothing_of_what_was_read(place: Any, emulator: Any, tmp_path: Path) -> None:
    """A forged table, which names rows without their content, causes no request, and `failures/` shows nothing of these rows."""
    place.write_rows([{"id": "a", "text": "the secret"}, "the secret, which is no JSON"])
    rows = [
        {
            "id": f"forged-{number}",
            "manifest": str(place.folder / "rows.jsonl"),
            "row": number,
            "code": "x",
            "message": "x",
        }
        for number in (0, 1, 2**62)
    ]
    table = pa.Table.from_pylist([row | {"original": "{}"} for row in rows])
    pq.write_table(table, tmp_path / "forged.parquet")
    note = place.run({"manifest.uris": [str(tmp_path / "forged.parquet")]})
    assert (note["published"], note["failed"], emulator.stats["received"]) == (0, 3, 0)
    failures = place.read("failures").to_pylist()
    assert [row["code"] for row in failures] == ["row_changed", "row_changed", "row_missing"]
    assert "secret" not in repr(failures)


@pytest.mark.parametrize("column", ["id", "manifest", "row"])
def test_a_table_with_holes_is_refused(column: str, place: Any, tmp_path: Path, call: Callable[..., Any]) -> None:
    """With a null in a required column the run exits with 2."""
    types = {"row": pa.int64()}
    row = {"id": "a", "manifest": str(tmp_path / "rows.jsonl"), "row": 0, "code": "x", "message": "x", "original": None}
    place.write_rows([{"text": "a"}])
    fields = pa.schema([pa.field(name, types.get(name, pa.string())) for name in row])
    pq.write_table(pa.Table.from_pylist([row, row | {column: None}], fields), tmp_path / "holes.parquet")
    ended = call(*place.arguments("run", {"manifest.uris": [str(tmp_path / "holes.parquet")]}))
    assert ended.code == 2, ended
