"""Empty inputs, or inputs without work, still give a complete output that can be read."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

OUTPUT_COLUMNS = ["id", "manifest", "row", "dense", "sparse", "norm", "model", "request_id"]


def assert_complete(place: Any) -> None:
    """Check that the output is complete, and that each of its folders has a file with the schema."""
    assert (place.output / "_SUCCESS").exists()
    assert place.read("embeddings").column_names[:8] == OUTPUT_COLUMNS
    assert place.read("failures").column_names == ["id", "manifest", "row", "code", "message", "original"]
    assert "total_tokens" in place.read("usage").column_names
    assert place.leftovers == []


@pytest.mark.parametrize("lines", ["\n\n  \n", "\ufeff"])
def test_blank_lines_alone(place: Any, lines: str) -> None:
    """A manifest with only blank lines has no rows, and the output is empty."""
    (place.folder / "rows.jsonl").write_text(lines, "utf-8")
    note = place.run()
    assert (note["rows"], note["published"], note["failed"], note["requests_sent"]) == (0, 0, 0, 0)
    assert_complete(place)
    assert place.read("embeddings").num_rows == 0


def test_parquet_without_rows(place: Any) -> None:
    """A Parquet manifest without rows and a CSV with only a header have no rows."""
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), place.folder / "rows.parquet")
    (place.folder / "rows.csv").write_text("id,text\n")
    note = place.run({"manifest.uris": [str(place.folder / "rows.*")], "manifest.keep": []})
    assert note["rows"] == 0
    assert_complete(place)


def test_an_empty_file(place: Any, call: Any) -> None:
    """An empty file beside other manifests has no rows; if it is the only one, the run exits with 2: it is likely a mistake."""
    place.write_rows([])
    assert call(*place.arguments("run")).code == 2
    place.write_rows([{"text": "one"}], "more.jsonl")
    note = place.run({"manifest.uris": [str(place.folder / "*.jsonl")]})
    assert note["rows"] == note["published"] == 1


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
