"""Inputs with nothing in them, or nothing to do: still a whole output that readers can open."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

OUTPUT_COLUMNS = ["id", "manifest", "row", "dense", "sparse", "norm", "model", "request_id"]


def assert_whole(place: Any) -> None:
    """The output is complete, and each of its folders has a file with the schema."""
    assert (place.output / "_SUCCESS").exists()
    assert place.read("embeddings").column_names[:8] == OUTPUT_COLUMNS
    assert place.read("failures").column_names == ["id", "manifest", "row", "code", "message", "original"]
    assert "total_tokens" in place.read("usage").column_names
    assert place.leftovers == []


@pytest.mark.parametrize("lines", ["\n\n  \n", "\ufeff"])
def test_blank_lines_alone(place: Any, lines: str) -> None:
    """A manifest of blank lines has no rows, and its output none."""
    (place.folder / "rows.jsonl").write_text(lines, "utf-8")
    note = place.run()
    assert (note["rows"], note["published"], note["failed"], note["requests_sent"]) == (0, 0, 0, 0)
    assert_whole(place)
    assert place.read("embeddings").num_rows == 0


def test_parquet_without_rows(place: Any) -> None:
    """A Parquet manifest of no rows, and a CSV that is its header alone, have none either."""
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), place.folder / "rows.parquet")
    (place.folder / "rows.csv").write_text("id,text\n")
    note = place.run({"manifest.uris": [str(place.folder / "rows.*")], "manifest.keep": []})
    assert note["rows"] == 0
    assert_whole(place)


def test_an_empty_file(place: Any, call: Any, emulator: Any) -> None:
    """A file of no bytes is no row beside others; alone it is refused, since it is more likely a mistake."""
    place.write_rows([])
    assert call(*place.arguments("run")).code == 2
    place.write_rows([{"text": "one"}], "more.jsonl")
    note = place.run({"manifest.uris": [str(place.folder / "*.jsonl")]})
    assert note["rows"] == note["published"] == 1


def test_all_rows_broken(place: Any, emulator: Any) -> None:
    """When no row can be read all are failure rows, and nothing is sent."""
    place.write_rows(["{", "[]", '{"id": "c"}'])
    note = place.run()
    assert (note["rows"], note["published"], note["failed"]) == (3, 0, 3)
    assert place.read("failures")["row"].to_pylist() == [0, 1, 2]
    assert emulator.stats["received"] == 0
    assert_whole(place)


def test_no_failures(place: Any) -> None:
    """An output without failures has a `failures/` that can be read; and one with none after one with some, too."""
    place.write_rows([{"text": "one"}, "broken"])
    place.run()
    place.write_rows([{"text": "one"}])
    place.run()
    assert_whole(place)
    assert place.read("failures").num_rows == 0


def test_all_rows_owned(place: Any, emulator: Any) -> None:
    """When everything is owned nothing is sent, also to a service that is not there any more."""
    place.write_texts(5)
    place.run()
    note = place.run()
    assert (note["owned"], note["published"], note["requests_sent"], emulator.stats["received"]) == (5, 5, 0, 5)
    assert note["quota"]["binding"] is None
    assert_whole(place)
