"""The faster way to read a row that has one text and no other input."""

from typing import Any

import pytest
from arkbeam.manifest.options import ColumnMap, ManifestOptions
from arkbeam.manifest.rows import RowParser
from hypothesis import given
from hypothesis import strategies as st

from tests.manifest.test_overrides import CORPUS, asking

_NAMES = ["id", "custom_id", "text", "image", "input", "body", "sparse", "other"]
_VALUES = st.sampled_from(
    [
        None,
        "",
        " ",
        "a",
        "x" * 1_030,
        "\ud800",
        1,
        ["a"],
        "[]",
        '{"input": 1}',
        {"input": [{"type": "text", "text": "b"}]},
    ]
)
_ROWS = st.dictionaries(st.sampled_from(_NAMES), _VALUES)
_COLUMNS = st.sampled_from(
    [
        ColumnMap(),
        ColumnMap(id="custom_id"),
        ColumnMap(id="text"),
        ColumnMap(text="other"),
        ColumnMap(text=("text", "other")),
        ColumnMap(text=("text", "text")),
        ColumnMap(text="text", image="image"),
        ColumnMap(text="text", image="text"),
        ColumnMap(text="text", input="text"),
        ColumnMap(text="body", input="input"),
        ColumnMap(image="image"),
        ColumnMap(text="text", sparse="sparse"),
    ]
)


@given(_ROWS, _COLUMNS, st.sampled_from([None, "i", CORPUS]), st.booleans())
def test_the_faster_way_gives_the_same(
    row: dict[str, Any], columns: ColumnMap, instructions: Any, sparse: bool
) -> None:
    """`parse_text` gives nothing, or what `parse` gives: the id, and the request for the text."""
    options = ManifestOptions("x", columns=columns, line_bytes_max=1_029)
    parser = RowParser(options, asking(instructions=instructions, sparse=sparse).model, "/")
    found = parser.parse_text(row)
    assert found is None or (found[0], parser.text_request(found[1])) == parser.parse(row)


@pytest.mark.parametrize(
    "row",
    [{"text": "a"}, {"id": "r", "text": "a", "image": None}, {"custom_id": None, "text": "天", "body": "kept", "k": 1}],
)
def test_rows_of_plain_text_take_the_faster_way(row: dict[str, Any]) -> None:
    """Null cells, columns that are only kept, and a body that is not an object do not make a row another one."""
    assert RowParser(ManifestOptions("x"), asking().model, "/").parse_text(row) == (row.get("id"), row["text"])
