"""The manifest section of the config."""

from typing import Any

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.manifest.options import ColumnMap, CsvOptions, ManifestOptions
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


def test_the_options_of_csv_files_are_read_from_a_config() -> None:
    """The nested section takes characters, names of columns and an encoding."""
    read = TypeAdapter(ManifestOptions).validate_python
    given = {"uris": "a", "csv": {"delimiter": "\\t", "quote": "", "escape": "\\", "header": ["id", "text"]}}
    assert read(given).csv == CsvOptions("\t", "", "\\", ("id", "text"))
    assert read({"uris": "a", "csv": {"header": True}}).csv == CsvOptions()
    assert read({"uris": "a", "csv": {"header": "text"}}).csv.header == ("text",)
    options = ManifestOptions("a", encoding="gbk", csv=CsvOptions(encoding="latin 1"))
    assert options.encoding_of("csv") == ("latin 1", "manifest.csv.encoding")
    assert options.encoding_of("jsonl") == ("gbk", "manifest.encoding")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delimiter": "||"}, r"manifest\.csv\.delimiter: must be one character"),
        ({"delimiter": ""}, r"manifest\.csv\.delimiter: must be one character"),
        ({"delimiter": "\n"}, r"manifest\.csv\.delimiter: must be one character"),
        ({"quote": '""'}, r"manifest\.csv\.quote: must be one character"),
        ({"escape": "\\\\"}, r"manifest\.csv\.escape: must be one character"),
        ({"delimiter": ";", "quote": ";"}, "must be different"),
        ({"delimiter": '"'}, "must be different"),
        ({"quote": ","}, "must be different"),
        ({"quote": "\t"}, "must be different"),
        ({"delimiter": "\\", "escape": "\\"}, "must be different"),
        ({"escape": '"'}, r"manifest\.csv\.escape: must not be the quote"),
        ({"header": False}, r"manifest\.csv\.header: must be true"),
        ({"header": []}, r"manifest\.csv\.header: must be true"),
        ({"lines_max": 0}, r"manifest\.csv\.lines_max"),
        ({"encoding": "utf-9"}, r"manifest\.csv\.encoding: Python has no text encoding 'utf-9'"),
        ({"encoding": "base64"}, r"manifest\.csv\.encoding"),
        ({"encoding": "undefined"}, r"manifest\.csv\.encoding"),
        ({"encoding": "idna"}, r"manifest\.csv\.encoding"),
    ],
)
def test_csv_options_without_a_meaning(options: dict[str, Any], says: str) -> None:
    """The error names the key."""
    with pytest.raises(ConfigError, match=says):
        TypeAdapter(ManifestOptions).validate_python({"uris": "a", "csv": options})
    with pytest.raises(ConfigError, match=r"manifest\.encoding"):
        ManifestOptions("a", encoding="nope")
