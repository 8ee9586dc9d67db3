"""The manifest section of the config."""

import pytest
from arkbeam.manifest.options import ColumnMap, ManifestOptions
from pydantic import TypeAdapter


def test_one_name_or_a_list() -> None:
    """A single name may be given where a list is allowed."""
    assert ColumnMap(text="a", image=["b", "c"]) == ColumnMap(text=("a",), image=("b", "c"))  # type: ignore[arg-type]
    assert ManifestOptions("a.jsonl", keep="x") == ManifestOptions(("a.jsonl",), keep=("x",))


def test_the_options_are_read_from_a_config() -> None:
    """Pydantic builds the options from YAML values, including the nested map."""
    read = TypeAdapter(ManifestOptions).validate_python
    given = {"uris": ["a.jsonl", "b/*"], "columns": {"text": "caption", "image": ["i1", "i2"]}, "keep": "tag"}
    expected = ManifestOptions(("a.jsonl", "b/*"), ColumnMap(text=("caption",), image=("i1", "i2")), ("tag",))
    assert read(given) == expected
    with pytest.raises(ValueError, match="format"):
        read({"uris": "a", "format": "xml"})
