"""Manifests in other encodings than UTF-8: read if the config names the encoding, and named if it does not."""

import gzip
import json

import pytest
from arkbeam.base.errors import ManifestError
from arkbeam.manifest.text import TextSource, find_wide_encoding, guess_encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.manifest.tables import read_rows

CHINESE = 'id,text\r\n1,"你好, 世界"\r\n2,再见|\\\r\n'
CELLS = [{"id": "1", "text": "你好, 世界"}, {"id": "2", "text": "再见|\\"}]
WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ["gb18030", "GBK", "big5", "hz", *WIDE])
@pytest.mark.parametrize("key", ["csv", "manifest", "packed"])
def test_csv_in_the_encoding_that_the_config_names(encoding: str, key: str) -> None:
    """manifest.encoding holds for all text files, and manifest.csv.encoding takes precedence in CSV."""
    text = CHINESE.replace("再见", "再會").replace("世界", "天") if encoding == "big5" else CHINESE
    text = text.replace("你好", "天好") if encoding == "big5" else text
    data = text.encode(encoding)
    if key == "csv":
        found = read_rows(data, csv={"encoding": encoding}, encoding="cp1252")
    elif key == "manifest":
        found = read_rows(data, encoding=encoding)
    else:
        found = read_rows(gzip.compress(data), "m.csv.gz", encoding=encoding)
    if encoding == "big5":
        assert found.good == [{"id": "1", "text": "天好, 天"}, {"id": "2", "text": "再會|\\"}]
    else:
        assert found.good == CELLS


@pytest.mark.parametrize("encoding", ["gb18030", *WIDE])
@pytest.mark.parametrize("name", ["m.jsonl", "m.json"])
@pytest.mark.parametrize("shard_bytes", [40, 2**30])
def test_json_in_the_encoding_that_the_config_names(encoding: str, name: str, shard_bytes: int) -> None:
    """Lines and arrays are read, and such a file is not cut into shards, since a cut could split a character."""
    rows = [{"text": f"第{number}行"} for number in range(50)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "[" + ",\n".join(lines) + "]" if name == "m.json" else "\n".join(lines)
    assert read_rows(text.encode(encoding), name, encoding=encoding, shard_bytes=shard_bytes).good == rows


def test_shift_jis_and_western_text() -> None:
    """The second byte of a character may be the code of a backslash or a bar, and is not taken for one."""
    text = "id|text\n1|ソ表十\n2|'能|'\n"
    found = read_rows(text.encode("shift_jis"), csv={"encoding": "shift_jis", "delimiter": "|", "quote": "'"})
    assert [row["text"] for row in found.good] == ["ソ表十", "能|"]
    western = read_rows("id,text,Prix (€)\n1,été,3\n".encode("cp1252"), csv={"encoding": "cp1252"})
    assert western.good == [{"id": "1", "text": "été", "Prix (€)": "3"}]


def test_what_can_not_be_decoded_is_a_failure_of_its_row() -> None:
    """The failure names the setting; the next line is read. This holds for each encoding, also for the wrong one."""
    for data, encoding in ((b"0,\x81\n1,b\n", "gb18030"), (b"0,\xc3\xa9\n1,b\n", "ascii")):
        found = read_rows(b"id,text\n" + data, csv={"encoding": encoding})
        assert (found.bad, found.good) == ([(0, "bad_text")], [{"id": "1", "text": "b"}])
        assert f"{encoding} (manifest.csv.encoding)" in found.rows[0].message
    found = read_rows(b'{"text":"\x81"}\n{"text":"b"}\n', "m.jsonl", encoding="gb18030")
    assert (found.bad, found.good) == ([(0, "bad_text")], [{"text": "b"}])
    assert "gb18030 (manifest.encoding)" in found.rows[0].message
    found = read_rows(b'{"text":"' + "你好".encode("gb18030") + b'"}\n', "m.jsonl")
    assert found.bad == [(0, "bad_text")]
    assert "set manifest.encoding to its encoding (it is probably gb18030)" in found.rows[0].message
    odd = read_rows("id,text\n1,a\n2,b".encode("utf-16-le") + b"\0", csv={"encoding": "utf-16"})
    assert (odd.good, odd.bad) == ([{"id": "1", "text": "a"}], [(1, "bad_text")])


@pytest.mark.parametrize(
    ("text", "encoding", "says"),
    [
        ("id,text,Prix (€)\n1,a,3\n", "cp1252", r"'id,text,Prix \(€\)' is not valid UTF-8.*probably cp1252"),
        ("id,text,Größe\n1,a,3\n", "cp1252", "'id,text,Größe' is not valid UTF-8.*probably cp1252"),
        ("编号,text,价格\n1,a,3\n", "gb18030", "'编号,text,价格' is not valid UTF-8.*probably gb18030"),
        ("編號,內容,價格\n1,a,3\n", "big5", "probably big5"),
        ("番号,本文,カテゴリ\n1,a,3\n", "shift_jis", "probably shift_jis"),
        ("id,text,カテゴリ\n1,a,3\n", "shift_jis", "probably shift_jis"),
        ("номер,текст,цена\n1,a,3\n", "cp1251", "such as gb18030"),
        ("id,text\n1,你好\n", "utf-16", "byte order mark of UTF-16; set manifest.csv.encoding: utf-16"),
        ("id,text\n1,你好\n", "utf-16-le", "zero bytes; set manifest.csv.encoding: utf-16-le"),
        ("id,text\n1,你好\n", "utf-16-be", "zero bytes; set manifest.csv.encoding: utf-16-be"),
        ("id,text\n1,你好\n", "utf-32", "byte order mark of UTF-32; set manifest.csv.encoding: utf-32"),
        ("编号,文本\n1,你好\n", "utf-16-le", "probably utf-16-le"),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz"])
def test_a_header_in_another_encoding_stops_the_run(text: str, encoding: str, says: str, name: str) -> None:
    """The message names the header, its likely encoding and the setting, although no used column is concerned."""
    data = text.encode(encoding)
    with pytest.raises(ManifestError, match=says) as caught:
        read_rows(gzip.compress(data) if name.endswith("gz") else data, name)
    assert caught.value.exit_code == 2
    assert "manifest.csv.encoding" in str(caught.value)


@pytest.mark.parametrize("encoding", WIDE)
def test_json_lines_in_utf16_stop_the_run(encoding: str) -> None:
    """Such a file has no line that could be read, so the error names its encoding instead of failing each row."""
    data = '{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n'.encode(encoding)
    with pytest.raises(ManifestError, match=f"set manifest.encoding: {encoding}"):
        read_rows(data, "m.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_file_that_is_not_in_utf16_stops_the_run(encoding: str, name: str) -> None:
    """Read as UTF-16, UTF-8 is one line of Chinese characters: a header without rows. So the error is of the whole file."""
    data = b"id,text\n1,a\n" if name == "m.csv" else b'{"text": "a"}\n'
    with pytest.raises(ManifestError, match=f"is not in {encoding} "):
        read_rows(data, name, encoding=encoding)
    assert read_rows(b"", name, encoding=encoding).rows == []


def test_a_mark_of_utf8_takes_precedence() -> None:
    """A glob may match files of both kinds; the mark says which file is UTF-8."""
    data = b"\xef\xbb\xbf" + CHINESE.encode()
    assert read_rows(data, csv={"encoding": "gb18030"}).good == CELLS
    assert read_rows(data, csv={"encoding": "utf-8-sig"}).good == CELLS
    assert read_rows(data[3:], csv={"encoding": "UTF8"}).good == CELLS


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["gb18030", *WIDE]), st.integers(1, 7), st.booleans())
def test_text_is_decoded_in_pieces_of_any_size(text: str, encoding: str, size: int, peeks: bool) -> None:
    """The result does not depend on where blocks end or on whether the start was looked at."""
    text = "id," + text.encode("utf-8", "ignore").decode()
    data = text.encode(encoding)
    at = 0

    def read(_: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    source = TextSource(read, encoding)
    assert not peeks or source.peek().removeprefix(b"\xef\xbb\xbf") == text.encode()
    found = b"".join(iter(lambda: source.read(5), b""))
    assert found.decode().removeprefix("\ufeff") == text


@pytest.mark.parametrize("text", ["id,text\n", '{"id": 1}\n', "编号,文本\n", "a\0b\n", "\0\0\0\0", "\0", "", "a\n\0"])
def test_utf8_is_not_taken_for_another_encoding(text: str) -> None:
    """Zero bytes show UTF-16 only where it has them."""
    assert find_wide_encoding(text.encode()) is None


def test_guesses_look_at_the_place_that_is_wrong() -> None:
    """A long text is judged by its first bytes above 0x7f; text that is mostly UTF-8 is not taken for something else."""
    assert guess_encoding(b"a" * 10**6 + "été".encode("cp1252")) == "cp1252"
    assert guess_encoding(b"a" * 10**6 + "你好".encode("gb18030") * 10**6) == "gb18030"
    assert guess_encoding("été".encode() + b"\xff") is None
    assert guess_encoding("你好".encode()[:-1]) is None
