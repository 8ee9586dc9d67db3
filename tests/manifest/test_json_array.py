"""JSON files that are one array, and files that are no JSON Lines."""

import gzip
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from arkbeam.base.errors import ManifestError
from arkbeam.manifest.json_array import iter_elements
from arkbeam.manifest.lines import LongLine
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.manifest.tables import read_rows

ROWS = [
    {"id": "1", "text": 'a,]} "x" \\'},
    {"id": "2", "text": "天", "m": {"k": [1, {"z": "]"}]}},
    {"id": "3", "text": "c"},
]


class _Pieces:
    """A source that returns a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size, self._at = data, size, 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        self._at += self._size
        return self._data[self._at - self._size : self._at]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf\r\n "])
@pytest.mark.parametrize("name", ["m.json", "m.json.gz", "m.jsonl"])
@pytest.mark.parametrize("shard_bytes", [2**30, 20])
def test_an_array_is_read_as_rows(indent: int | None, mark: bytes, name: str, shard_bytes: int) -> None:
    """Each element is a row, numbered from 0 on; the file is not cut into shards. `manifest.format: json` says the same."""
    data = mark + json.dumps(ROWS, ensure_ascii=False, indent=indent).encode() + b"\n"
    options: dict[str, Any] = {"format": "json"} if name == "m.jsonl" else {}
    found = read_rows(gzip.compress(data) if name.endswith("gz") else data, name, shard_bytes, **options)
    assert [(row.number, row.cells) for row in found.rows] == list(enumerate(ROWS))


def test_a_json_file_of_lines_stays_what_it_is() -> None:
    """Its rows are lines, also if they are cut into shards, and its blank lines count."""
    data = "\n".join([json.dumps(ROWS[0]), "", json.dumps(ROWS[2])])
    for shard_bytes in (2**30, 10):
        found = read_rows(data, "m.json", shard_bytes)
        assert [(row.number, row.cells) for row in found.rows] == [(0, ROWS[0]), (2, ROWS[2])]


def test_bad_elements_are_failures() -> None:
    """Each costs one row; its neighbours are read. A comma may follow the last element."""
    elements = [
        '{"text": "a"}',
        "null",
        "[1]",
        '"s"',
        '{"text": oops}',
        "",
        '{"text": "b"} {"text": "c"}',
        '{"text": "d"}',
    ]
    found = read_rows(f"[{','.join(elements)} , ]", "m.json")
    codes = ["not_an_object"] * 3 + ["bad_json"] * 3
    assert (found.bad, found.good) == (list(enumerate(codes, 1)), [{"text": "a"}, {"text": "d"}])
    assert read_rows(" [ ] ", "m.json").rows == []
    long = read_rows('[{"text": "a"}, {"text": "' + "x" * 99 + '"}, {"text": "b"}]', "m.json", line_bytes_max=50)
    assert (long.bad, long.good) == ([(1, "line_too_long")], [{"text": "a"}, {"text": "b"}])


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ('[{"text": "a"}, {"text": "b"}', "m.json", "array without end"),
        ('[{"text": "a"}, {"text": "b}]', "m.json", "array without end"),
        ('[{"text": "a"}]\n{"text": "b"}', "m.json", "something follows its end"),
        ('[{"text": "a"}}]', "m.json", "something follows its end"),
        ('{\n  "text": "a",\n  "id": "b"\n}\n', "m.json", "object over several lines"),
        ('{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "m.jsonl", "object over several lines"),
        ('[\n  {"text": "a"}\n]\n', "m.jsonl", "manifest.format: json"),
        ('[{"text": "a"},\n{"text": "b"}]\n', "m.jsonl", "manifest.format: json"),
        ('[ {"text": "' + "x" * 70_000 + '"}, {"text": "b"}]', "m.jsonl", "manifest.format: json"),
    ],
)
def test_files_of_which_rows_could_be_missing_stop_the_run(text: str, name: str, says: str) -> None:
    """An array that does not end, and values over several lines in a file of lines, are errors of the whole file."""
    with pytest.raises(ManifestError, match=says):
        read_rows(text, name)


def test_many_line_ends_behind_a_bracket_take_no_time() -> None:
    """The check of the first lines takes time in proportion to them."""
    started = time.process_time()
    found = read_rows("{" + "\n" * 65_000 + '{"text": "a"}\n', "m.jsonl")
    assert (found.bad, len(found.good)) == ([(0, "bad_json")], 1)
    assert time.process_time() - started < 2


def test_a_line_of_json_lines_may_be_wrong() -> None:
    """A first line that is a list is one failure, as before."""
    found = read_rows('[{"text": "a"}]\n{"text": "b"}\n', "m.jsonl")
    assert (found.bad, found.good) == ([(0, "not_an_object")], [{"text": "b"}])
    assert "manifest.format: json" in found.rows[0].message


def test_json_lines_that_end_with_carriage_returns() -> None:
    """A file without any line feed is read, and not cut into shards. Elsewhere a carriage return is a blank."""
    data = '{"text": "a"}\r\r{"text": "b"}\r'
    for shard_bytes in (2**30, 5):
        found = read_rows(data, "m.jsonl", shard_bytes)
        assert [(row.number, row.cells["text"]) for row in found.rows] == [(0, "a"), (2, "b")]
    assert read_rows('{"text":\r"a"}\n{"text": "b"}\n', "m.jsonl").good == [{"text": "a"}, {"text": "b"}]


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\,[]{}\n天 '), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_json, max_size=5), st.integers(1, 9), st.booleans(), st.sampled_from([None, 1]))
def test_elements_are_cut_wherever_a_block_ends(
    values: list[Any], size: int, escapes: bool, indent: int | None
) -> None:
    """The elements are those that a JSON parser finds."""
    data = json.dumps(values, ensure_ascii=escapes, indent=indent).encode()
    found = list(iter_elements(_Pieces(data, size), "m.json", 10**6))
    assert not any(isinstance(element, LongLine) for element in found)
    assert [json.loads(element) for element in found if isinstance(element, bytes)] == values


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from('{}[]",\\:1 a\n'), max_size=40))
def test_no_array_is_cut_with_an_unknown_error(text: str) -> None:
    """Whatever follows the first bracket gives rows or a ManifestError, and no other exception."""
    with suppress(ManifestError):
        read_rows("[" + text, "m.json")
