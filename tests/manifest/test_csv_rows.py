"""CSV and TSV files as people and programs write them: quotes, headers, delimiters and line ends."""

import csv
import io
import json
import re
import time
from typing import Any

import pytest
from arkbeam.base.errors import ManifestError
from arkbeam.manifest.options import ColumnMap
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.manifest.tables import Row, read_rows

LINE_END = re.compile(r"\r\n|\r|\n")


def _rows(*texts: str) -> list[dict[str, str]]:
    return [{"id": str(number), "text": text} for number, text in enumerate(texts)]


# Stray quotes


@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
@pytest.mark.parametrize("every", [1_000, 100, 7])
def test_a_stray_quote_costs_no_line_but_its_own(name: str, every: int) -> None:
    """A TSV has no quotes, so that all rows are read; in a CSV, the line with the quote fails, and all others are read."""
    delimiter = "\t" if name == "m.tsv" else ","
    texts = ['"6 inch nail' if number % every == 3 else f"word number {number}" for number in range(1_000)]
    lines = [f"{number}{delimiter}{text}\n" for number, text in enumerate(texts)]
    found = read_rows(f"id{delimiter}text\n" + "".join(lines), name)
    stray = [] if name == "m.tsv" else [number for number in range(1_000) if number % every == 3]
    assert found.bad == [(number, "bad_record") for number in stray]
    assert found.good == [row for number, row in enumerate(_rows(*texts)) if number not in stray]
    assert [row.original for row in found.rows if row.code] == [lines[number] for number in stray]


@pytest.mark.parametrize(
    "lines",
    [
        ['3,"6 inch', "4,nail", "5,wood", '6,foot"', "7,b"],
        ['a,"one', 'b,two"', "c,three"],
        ['apple,"one', 'pear,two"', "plum,three"],
        ['r9,"one', "r10,nail", 'r11,two"'],
        ['8f14e45f,"one', 'c9f0f895,two"'],
        ['83920193,"one', "11920555,nail", '7392019,two"'],
        ['2024-05-01,"one', '2024-05-02,two"'],
        ['id-7,"one', 'id-31,two"', "id-8,x"],
    ],
)
def test_two_stray_quotes_do_not_hide_the_lines_between(lines: list[str]) -> None:
    """They look like the quotes of one long cell, but lines in it look like records."""
    found = read_rows("id,text\n" + "\n".join(lines))
    assert found.bad == [(0, "bad_record")]
    assert [",".join(row.values()) for row in found.good] == lines[1:]
    assert "manifest.csv.inner_records" in found.rows[0].message
    joined = read_rows("id,text\n" + "\n".join(lines), csv={"inner_records": True}).good[0]["text"]
    assert joined == "\n".join(lines).partition('"')[2].partition('"')[0]


@pytest.mark.parametrize(
    "lines",
    [
        ['1,"6 inch,5', "2,b,6", '3,c",7', "4,d,8"],
        ['1,"6 inch', "2,b,6", '3,c",7', "4,d,8"],
        ['1,"6 inch,5', "2,b,6", '3,c",7,x', "4,d,8"],
    ],
)
def test_stray_quotes_are_found_in_any_column(lines: list[str]) -> None:
    """A quote may open in the middle of a record, in one that is too short, or join lines to a record of another size."""
    found = read_rows("id,text,n\n" + "\n".join(lines))
    assert {row.number for row in found.rows if row.code} == ({0, 2} if ",x" in lines[2] else {0})
    assert [row["id"] for row in found.good] == (["2", "4"] if ",x" in lines[2] else ["2", "3", "4"])


@pytest.mark.parametrize(
    "text",
    [
        "Dear Anna,\nthank you, and\n8 apples, please",
        "Hello, world\nHello, again",
        "We paid 1,000\ndollars",
        "We paid\n1,000 dollars\n2,000 more",
        "x = [1,2]\ny = f(a,b)\nz,w = 1",
        "name,age\nAnna,31\nBob,42",
        "Table\n1,2\n3,4",
        '{\n  "a": 1,\n  "b": 2\n}',
        "2024-01-01 10:00:00,123 INFO start\n2024-01-01 10:00:01,456 INFO stop",
        "尊敬的客户,您好\n感谢,再见",
        "\n\n,\n",
        "\nx,y",
        'say ""\n"x",\n1,"',
        "\n".join(f"line {number}, and more" for number in range(900)),
        "a\u2028b\x85c\x0bd\x0ce\x1cf\0g",
        "a\rb\r\nc",
    ],
)
@pytest.mark.parametrize("row_id", ["7", "1043", "r12", "0f9e8d7c6b5a", "Anna Lee"])
def test_texts_of_several_lines_are_read(text: str, row_id: str) -> None:
    """Letters, lists, code, tables and logs in a quoted cell do not look like records of the file."""
    rows = [{"id": row_id, "text": text, "n": "5"}, {"id": "8", "text": "next", "n": "6"}]
    for names in (["id", "text"], ["text", "id"], ["id", "text", "n"], ["text", "id", "n"], ["n", "text", "id"]):
        stream = io.StringIO()
        writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        assert read_rows(stream.getvalue()).good == [{name: row[name] for name in names} for row in rows]


def test_stray_quotes_in_a_file_without_ids() -> None:
    """Two lines with all columns are needed then, because text may have one."""
    found = read_rows('text,price\n"6 inch nail,5\nwood,6\nbolt or nut,7\nfoot",8\n')
    assert (found.bad, [row["price"] for row in found.good]) == ([(0, "bad_record")], ["6", "7", "8"])
    code = 'title,text\nlist,"import x\nf(a,b)"\n'
    assert read_rows(code).good == [{"title": "list", "text": "import x\nf(a,b)"}]


def test_a_text_of_more_lines_than_allowed_is_reported() -> None:
    """The failure names the limit, and the lines behind the quote are read as records; with a higher limit it is a text."""
    data = 'id,text\n1,"a\n' + "b\n" * 30 + '"\n2,c\n'
    found = read_rows(data, csv={"lines_max": 30})
    assert "manifest.csv.lines_max" in found.rows[0].message
    assert found.bad == [(number, "bad_record") for number in range(32)]
    assert found.good == [{"id": "2", "text": "c"}]
    assert read_rows(data, csv={"lines_max": 32}).good[0]["text"] == "a\n" + "b\n" * 30


def test_an_open_quote_holds_no_more_than_a_record_may_have() -> None:
    """The limit of bytes ends a record as well; a line that is too long is a failure of its own."""
    data = 'id,text\n1,"open\n' + "2,b\n" * 30 + f"3,{'c' * 200}\n4,d\n"
    found = read_rows(data, line_bytes_max=100, csv={"inner_records": True})
    assert found.bad == [(0, "bad_record"), (31, "line_too_long")]
    assert "manifest.line_bytes_max" in found.rows[0].message
    assert len(found.good) == 31


def test_quotes_that_open_in_every_line_take_time_in_proportion() -> None:
    """Each line closes one cell and opens the next, so that each is the first of thousands: no line is read that often."""
    lines = 12_000
    started = time.process_time()
    found = read_rows("id,text\n" + 'x","y\n' * lines + "7,a\n")
    assert time.process_time() - started < 5
    assert found.bad == [(number, "bad_record") for number in range(lines)]
    assert found.good == [{"id": "7", "text": "a"}]


def test_a_long_record_is_read_after_many_bad_ones() -> None:
    """The limit for files in which too many lines were read again ends as soon as enough lines were read once."""
    long = "a\n" * 3_000
    data = "id,text\n" + 'x","y\n' * 4_000 + "7,a\n" * 12_000 + f'8,"{long}"\n'
    assert read_rows(data).good[-1] == {"id": "8", "text": long}


def test_blanks_behind_a_quote_and_quotes_in_a_cell() -> None:
    """A quote within a cell is a character; one that is followed by a blank is wrong. Messages are not the csv module's."""
    found = read_rows('id,text\n0,6" x 4" nail\n1,"a" \n2,"a" ,b\n3,say ""hi""\n4,"end')
    assert found.good == [{"id": "0", "text": '6" x 4" nail'}, {"id": "3", "text": 'say ""hi""'}]
    assert found.bad == [(1, "bad_record"), (2, "bad_record"), (4, "bad_record")]
    assert "before the end of the file" in found.rows[4].message
    assert not any("expected after" in row.message for row in found.rows)


# Other quotes and escapes


def test_backslashes_before_quotes_need_a_setting() -> None:
    """Without it each such row fails and says so; with it, only backslashes that escape something are removed."""
    data = 'id,text\n0,"say \\"hi\\" now"\n1,"ends \\""\n2,plain\n3,C:\\new\\dir\n4,"a\\\\b"\n5,"a, \\"b\\", \\d+"\n'
    found = read_rows(data)
    assert found.bad == [(0, "bad_record"), (1, "bad_record"), (5, "bad_record")]
    assert all("manifest.csv.escape: '\\'" in row.message for row in found.rows if row.code)
    expected = _rows('say "hi" now', 'ends "', "plain", "C:\\new\\dir", "a\\b", 'a, "b", \\d+')
    assert read_rows(data, csv={"escape": "\\"}).good == expected
    named = read_rows("id,te\\xt,text\n0,a,b\n", csv={"escape": "\\"})
    assert named.good == [{"id": "0", "te\\xt": "a", "text": "b"}]


def test_escaped_line_ends_and_delimiters() -> None:
    """As MySQL writes them, without quotes. A backslash at the end of a path does not hide the next line."""
    data = "0\ta\\\nb\n1\tc\\\td\n2\te\\\\\n3\tC:\\\n4\tf\n5\tg\n"
    found = read_rows(data, "m.tsv", csv={"escape": "\\", "header": ("id", "text")})
    assert found.good == [*_rows("a\nb", "c\td", "e\\"), {"id": "4", "text": "f"}, {"id": "5", "text": "g"}]
    assert found.bad == [(3, "bad_record")]


def test_a_tsv_that_was_written_with_quotes_is_not_read_without_them_in_silence() -> None:
    """Doubled quotes, and line ends in quotes, show a writer of quotes. Other quotes are characters of the text."""
    data = 'id\ttext\n0\t"say ""hi"""\n1\t"two\nlines"\n3\tfive" x\n4\t"open\n5\t"a" b "c"\n'
    found = read_rows(data, "m.tsv")
    assert found.bad == [(0, "bad_record"), (1, "bad_record"), (2, "bad_record")]
    assert all("manifest.csv.quote: '\"'" in row.message for row in found.rows[:3])
    assert [row["text"] for row in found.good] == ['five" x', '"open', '"a" b "c"']
    assert read_rows(data, "m.tsv", csv={"quote": ""}).good[0]["text"] == '"say ""hi"""'
    quoted = read_rows(data.replace('"open', "open").replace('"a" b "c"', "c"), "m.tsv", csv={"quote": '"'})
    assert [row["text"] for row in quoted.good] == ['say "hi"', "two\nlines", 'five" x', "open", "c"]
    with pytest.raises(ManifestError, match=r"manifest\.csv\.quote"):
        read_rows('"id"\t"text"\n"1"\t"a"\n', "m.tsv")


def test_a_row_of_a_tsv_that_fails_later_is_not_in_an_earlier_batch() -> None:
    """The last row of a full batch waits for the next line, which may show that it was only half of a record."""
    data = "id\ttext\n" + "1\ta\n" * 4_095 + '2\t"two\nlines"\n'
    assert read_rows(data, "m.tsv").bad == [(4_095, "bad_record"), (4_096, "bad_record")]
    for blanks in (1, 2, 100):
        text = data.replace("two\n", "two\n" + "\n" * blanks)
        found = read_rows(text.replace("1\ta\n", "", 50), "m.tsv")
        assert found.bad == [(4_045, "bad_record"), (4_046 + blanks, "bad_record")]
        assert (found.blank, len(found.good)) == (blanks, 4_045)
    far = read_rows('id\ttext\n2\t"two\n' + "\n" * 10_000 + 'lines"\n', "m.tsv")
    assert (far.blank, len(far.good), far.bad) == (10_000, 1, [(10_001, "bad_record")])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"quote": "'"}, "0,'a, b'"),
        ({"delimiter": ";"}, '0;"a, b"'),
        ({"delimiter": "|"}, "0|a, b"),
        ({"delimiter": "\x01"}, "0\x01a, b"),
        ({"delimiter": "\\t"}, "0\ta, b"),
        ({"delimiter": "、"}, "0、a, b"),
    ],
)
def test_other_delimiters_and_quotes(options: dict[str, Any], line: str) -> None:
    """Any one character may separate or quote cells."""
    header = line.replace("0", "id").replace("'a, b'", "text").replace('"a, b"', "text").replace("a, b", "text")
    assert read_rows(f"{header}\n{line}\n", csv=options).good == _rows("a, b")


# Every line counts

_PIECES = [
    "a", "1", "12", ",", '"', '""', "\\", "\n", "\n", "\r\n", " ", "天", '\\"', '","', "\t", "x,y",
    "2,b\n", '"c\nd"', '3,"e', '4,f"\n', "\n\n",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), max_size=25),
    st.sampled_from(["m.csv", "m.tsv"]),
    st.sampled_from(["\n", "\r"]),
    st.fixed_dictionaries(
        {
            "quote": st.sampled_from([None, "", '"', "'"]),
            "escape": st.sampled_from([None, "\\"]),
            "lines_max": st.integers(1, 4) | st.just(1_000),
            "inner_records": st.booleans(),
        }
    ),
    st.sampled_from([12, 40, 10**6]),
)
def test_every_line_is_in_one_row(
    pieces: list[str], name: str, end: str, options: dict[str, Any], bytes_max: int
) -> None:
    """The lines of the good rows, the failures and the blank rows are as many as those of the file, whatever it holds."""
    text = "id,text\n" + "".join(pieces)
    if name == "m.tsv":
        text = text.replace(",", "\t")
    if end == "\r":
        text = text.replace("\r\n", "\n").replace("\n", "\r")
    found = read_rows(text, name, csv=options, line_bytes_max=bytes_max)
    assert found.blank + sum(_count_lines(row, end) for row in found.rows) == _lines_in(text, end) - 1


def _lines_in(text: str, end: str) -> int:
    """Count lines that end with a line feed or, in a file that ends its lines with carriage returns, with either."""
    ends = len(LINE_END.findall(text)) if end == "\r" else text.count("\n")
    return ends + (not text.endswith(("\r", "\n")))


def _count_lines(row: Row, end: str) -> int:
    if row.code in ("bad_record", "line_too_long", "bad_text"):
        return _lines_in(row.original, end)
    cells: dict[str, str] = json.loads(row.original)
    return 1 + sum(_lines_in(cell + "x", end) - 1 for cell in cells.values())


_cell = st.text(st.sampled_from("ab1 ,;\t\"'\\\r\n天\u2028\x85\x0b\0"), max_size=8)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(st.tuples(_cell, _cell, _cell), max_size=6),
    st.sampled_from([",", ";", "\t", "|", "\x01"]),
    st.sampled_from(['"', "'"]),
    st.sampled_from([None, "\\"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_files_that_the_csv_module_writes(
    records: list[tuple[str, ...]],
    delimiter: str,
    quote: str,
    escape: str | None,
    quoting: Any,
    end: str,
    ended: bool,
) -> None:
    """All cells are read as they were given to the writer, and rows are numbered by record."""
    if quoting == csv.QUOTE_MINIMAL:  # some versions of the writer do not quote the other line ends
        records = [tuple(re.sub("[\r\n]", end, cell) for cell in record) for record in records]
    stream = io.StringIO()
    writer = csv.writer(
        stream,
        delimiter=delimiter,
        quotechar=quote,
        escapechar=escape,
        doublequote=escape is None,
        quoting=quoting,
        lineterminator=end,
    )
    writer.writerows([("id", "x", "text"), *(("1" + first, *rest, "t" + last) for first, *rest, last in records)])
    text = stream.getvalue() if ended else stream.getvalue().removesuffix(end)
    options = {"delimiter": delimiter, "quote": quote, "escape": escape, "inner_records": True}
    found = read_rows(text, csv=options)
    assert [list(row.values()) for row in found.good] == [["1" + a, b, "t" + c] for a, b, c in records]
    assert [row.number for row in found.rows] == list(range(len(records)))


# Line ends


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(end: str, last: bool) -> None:
    """Lines may end with LF, CRLF or CR; line ends within quotes stay as they are."""
    text = end.join(["id,text", "0,a", "", '1,"b\nc"', '2,"d\r\ne"', "3,f"]) + end * last
    found = read_rows(text)
    assert [row["text"] for row in found.good] == ["a", "b\nc", "d\r\ne", "f"]
    assert (found.blank, [row.number for row in found.rows]) == (1, [0, 2, 3, 4])


def test_a_carriage_return_in_a_file_of_line_feeds() -> None:
    """It ends a record only if that makes whole records: a text is not cut in two."""
    found = read_rows("id,text\n0,a\rb\n1,c\r2,d\n3,e\n")
    assert [row["text"] for row in found.good] == ["c", "d", "e"]
    assert [(row.number, row.original) for row in found.rows if row.code] == [(0, "0,a\rb\n")]
    assert "carriage return" in found.rows[0].message


# Headers


@pytest.mark.parametrize(
    ("text", "cells"),
    [
        ("id,text,,\n1,hello,,\n", ["1", "hello", "", ""]),
        ("id,text,,\n1,hello\n", ["1", "hello"]),
        ("id,text,,\n1,hello,x,\n", ["1", "hello", "x", ""]),
        ("id,text\n1,hello,,\n", ["1", "hello"]),
        (",id,text\n0,1,hello\n", ["0", "1", "hello"]),
        ("id,text,tag,tag\n1,hello,x,y\n", ["1", "hello", "x", "y"]),
        ("sep=,\nid,text\n1,hello\n", ["1", "hello"]),
        ("\ufeffsep=;\r\nid;text\r\n1;hello\r\n", ["1", "hello"]),
        ('"sep=|"\nid|text\n1|hello\n', ["1", "hello"]),
        ("id, text, tag\n1, hello, x\n", ["1", "hello", "x"]),
        ('id, text, tag\n1, "hello", "x, y"\n', ["1", "hello", "x, y"]),
        ("id ,\ttext\n1,hello\n", ["1", "hello"]),
        ('id,text," tag"\n1,hello, x\n', ["1", "hello", " x"]),
        ('"id","te\nxt",text\n1,x,hello\n', ["1", "x", "hello"]),
        ("\n\r\nid,text\n1,hello\n", ["1", "hello"]),
    ],
)
def test_headers_as_spreadsheets_and_programs_write_them(text: str, cells: list[str]) -> None:
    """Columns without a name, repeated unused names, blanks around names and `sep=` lines do no harm."""
    found = read_rows(text)
    assert [(row.number, list(row.cells.values())) for row in found.rows] == [(0, cells)]
    assert (found.good[0]["id"], found.good[0]["text"]) == ("1", "hello")


def test_names_with_blanks_can_still_be_used() -> None:
    """A name is stripped only if no one asks for it as it is, and blanks of cells are kept then."""
    columns = ColumnMap(text=(" text",))
    assert read_rows("id, text\n1, a\n", columns=columns).good == [{"id": "1", " text": " a"}]
    assert read_rows("id,text, text\n1,a,b\n").good == [{"id": "1", "text": "a", " text": "b"}]


def test_records_of_another_size_than_the_header_are_failures() -> None:
    """Missing cells of named columns, and values without a column, are not guessed."""
    found = read_rows("id,text,n\n0,a\n1,a,2,x\n2,a,3,\n")
    assert (found.bad, len(found.good)) == ([(0, "bad_record"), (1, "bad_record")], 1)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("id,text,text\n1,a,b\n", {}, "'text' more than once"),
        ("id,text,tag,tag\n1,a,b,c\n", {"keep": ("tag",)}, "'tag' more than once"),
        ("id;text;price\n1;hello, world;3,50\n", {}, "'id;text;price'.*probably ';'.*manifest.csv.delimiter: ';'"),
        ("id\ttext\n1\ta\n", {}, r'manifest.csv.delimiter: "\\t"'),
        ("id|text\n1|a\n", {}, "probably '|'"),
        ("id\x01text\n1\x01a\n", {}, r'manifest.csv.delimiter: "\\x01"'),
        ("a;b;c\n1;2;3\n", {}, "probably ';'"),
        ("id,text\n1,a\n", {"csv": {"delimiter": ";"}}, "the delimiter is ';'.*probably ','"),
        ("1;a\n2;b\n", {"csv": {"header": ("id", "text")}}, "'1;a'.*probably ';'"),
        ("id,text\n1,a\n", {"csv": {"header": ("id", "text")}}, "is a header"),
        ('"id,text\n1,a\n', {}, "can't read the header.*not closed"),
    ],
)
def test_headers_that_show_a_wrong_setting_stop_the_run(text: str, options: dict[str, Any], says: str) -> None:
    """The message has the header as it was read, and what to set; nothing is bought."""
    with pytest.raises(ManifestError, match=says) as caught:
        read_rows(text, **options)
    assert caught.value.exit_code == 2


def test_a_file_without_a_header() -> None:
    """The config names the columns, and the first line is row 0."""
    found = read_rows("0,a\n\n2,b\n", csv={"header": ("id", "text")})
    assert [(row.number, row.cells) for row in found.rows] == [
        (0, {"id": "0", "text": "a"}),
        (2, {"id": "2", "text": "b"}),
    ]
    assert read_rows("sep=;\n0;a\n", csv={"header": ("id", "text")}).good == _rows("a")
    assert read_rows("0,a,x\n", csv={"header": ("id", "text", "")}).good == [{"id": "0", "text": "a", "": "x"}]


@pytest.mark.parametrize("data", ["id,text\n", "id,text", "\n\r\n\n", "\ufeff", "sep=;\n"])
def test_files_without_rows(data: str) -> None:
    """A header alone, blank lines or a mark are no rows and no error of the file."""
    assert read_rows(data).rows == []
