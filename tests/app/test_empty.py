"""Empty inputs, or inputs without work, still give a complete output that can be read."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

OUTPUT_COLUMNS = ["id", "manifest", "row", "dense", "norm", "model", "request_id", "prompt_tokens"]


def assert_complete(place: Any) -> None:
    """Check that the output is complete, and that each of its folders has a file with the schema."""
    assert (place.output / "_SUCCESS").exists()
    assert place.read("embeddings").column_names[:8] == OUTPUT_COLUMNS
    assert place.read("failures").column_names == ["id", "manifest", "row", "code", "message", "original"]
    assert "total_tokens" in place.read("usage").column_names
    assert place.leftovers == []


EMPTY = {"rows.jsonl": "\ufeff\n\n  \n", "rows.csv": "id,text\n", "rows.tsv": "\n", "rows.parquet": None}
ALLOWED = {"limits.rows_min": 0}


def write(path: Path, text: str | None) -> Path:
    """Write a text, or for None a Parquet file without rows."""
    if text is None:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("files", [{"rows.jsonl": ""}, EMPTY])
def test_manifests_without_rows(place: Any, files: dict[str, str | None]) -> None:
    """With `limits.rows_min: 0`, manifests without rows give a complete output without rows."""
    uris = [str(write(place.folder / name, text)) for name, text in files.items()]
    note = place.run({"manifest.uris": uris, **ALLOWED})
    assert (note["rows"], note["published"], note["failed"], note["requests_sent"]) == (0, 0, 0, 0)
    assert_complete(place)
    assert place.read("embeddings").num_rows == 0


def test_an_output_is_not_replaced_by_an_empty_one(place: Any, call: Any) -> None:
    """If the manifests have lost all rows, `run` and `plan` exit with 2, and each file of the output is as it was."""
    place.write_texts(2)
    uris = {"manifest.uris": [str(place.folder / "rows.*")]}
    place.run(uris)
    before = files_of(place.output)
    for name, text in EMPTY.items():
        write(place.folder / name, text)
    for command in ("run", "plan"):
        ended = call(*place.arguments(command, uris))
        assert ended.code == 2
        assert "0 rows in all, fewer than limits.rows_min (1)" in ended.err
        assert files_of(place.output) == before
        assert place.leftovers == []
    assert place.run(uris | ALLOWED)["rows"] == 0
    assert_complete(place)


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return the files below a folder with their content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_file_beside_others(place: Any) -> None:
    """An empty file beside other manifests has no rows, and is no error."""
    place.write_rows([])
    place.write_rows([{"text": "one"}], "more.jsonl")
    note = place.run({"manifest.uris": [str(place.folder / "*.jsonl")]})
    assert note["rows"] == note["published"] == 1


def test_a_manifest_that_shrank(place: Any, call: Any) -> None:
    """Less than half of the rows of the output's last run is a warning, on stderr and in `run.json`. It stops nothing."""
    place.write_texts(5)
    assert place.run()["notes"] == []
    place.write_texts(2)
    words = "the manifests have 2 rows; in the last run of this output they had 5"
    for command in ("plan", "run"):
        ended = call(*place.arguments(command))
        assert ended.code == 0
        assert f"warning: {words}" in ended.err
    (note,) = place.note["notes"]
    assert (note["level"], note["message"]) == ("warning", words)
    assert note["details"] == {"rows": 2, "rows_before": 5}
    assert call(*place.arguments("plan")).err.count("warning") == 0  # compared with the run before, of 2 rows


def test_what_a_manifest_is_not_compared_with(place: Any, caplog: pytest.LogCaptureFixture) -> None:
    """There is no warning if the last run read other URIs, if the output is not complete, or if `run.json` can't be read."""
    place.write_texts(5)
    place.run()
    other = place.write_rows([{"text": "one"}], "other.jsonl")
    place.write_texts(1)
    assert place.prepare().spec.rows_before == 5
    assert place.prepare({"manifest.uris": [str(other)]}).spec.rows_before is None
    note = (place.output / "run.json").read_bytes()
    for damaged in (b"{", b"[]", b'{"rows": 5}', note.replace(b'"rows": 5', b'"rows": null')):
        (place.output / "run.json").write_bytes(damaged)
        assert place.prepare().spec.rows_before is None
        assert "is not compared" in caplog.text
        caplog.clear()
    (place.output / "run.json").write_bytes(note)
    (place.output / "_SUCCESS").unlink()
    assert place.prepare().spec.rows_before is None
    assert caplog.text == ""


def test_all_rows_broken(place: Any, emulator: Any) -> None:
    """If no row can be read, all are failure rows, and nothing is sent."""
    place.write_rows(["{", "[]", '{"id": "c"}'])
    note = place.run()
    assert (note["rows"], note["published"], note["failed"]) == (3, 0, 3)
    assert place.read("failures")["row"].to_pylist() == [0, 1, 2]
    assert emulator.stats["received"] == 0
    assert_complete(place)


def test_no_failures(place: Any) -> None:
    """`failures/` can be read if there are no failures, also if the earlier output had some."""
    place.write_rows([{"text": "one"}, "broken"])
    place.run()
    place.write_rows([{"text": "one"}])
    place.run()
    assert_complete(place)
    assert place.read("failures").num_rows == 0


def test_all_rows_owned(place: Any, emulator: Any) -> None:
    """If all rows are owned, nothing is sent."""
    place.write_texts(5)
    place.run()
    note = place.run()
    assert (note["owned"], note["published"], note["requests_sent"], emulator.stats["received"]) == (5, 5, 0, 5)
    assert note["quota"]["binding"] is None
    assert_complete(place)
