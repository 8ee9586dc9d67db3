"""Reading shards: every format, every form of a row, and every way in which a row can be wrong."""

import base64
import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from arkbeam.ark.models import VERSIONS, ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base import schema
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Modality, Part, Request, ServiceKind
from arkbeam.manifest.options import ColumnMap, CsvOptions, ManifestOptions, ReadContext
from arkbeam.manifest.read import ShardChunk, read_shard
from arkbeam.manifest.shards import Shard, cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from arkbeam.manifest.text import BOM, find_wide_encoding
from arkbeam.media import MediaOptions
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

TEXT, IMAGE, VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO


def _context(version: str = "251215", media: MediaOptions | None = None, **asked: Any) -> ReadContext:
    """A run that asks a model of this version for these options."""
    model = ModelSpec(ModelOptions("doubao-embedding-vision-251215", **asked), VERSIONS[version])
    return ReadContext(ServiceKind.ARK, model, media or MediaOptions())


CONTEXT = _context(dimensions=2048)


def _text(value: str) -> Request:
    return Request((Part(TEXT, value),))


def _chunks(
    uri: str | Path, context: ReadContext = CONTEXT, shard_bytes: int = 2**30, **options: Any
) -> list[ShardChunk]:
    """Read all shards of a manifest."""
    chosen = ManifestOptions(str(uri), **options)
    return [
        chunk
        for shard in cut_shards(list_manifests(chosen), shard_bytes)
        for chunk in read_shard(shard, chosen, context)
    ]


def _read(
    uri: str | Path, *args: Any, **options: Any
) -> tuple[list[tuple[int, str | None, Request]], list[tuple[int, str]]]:
    """Return (row, id, request) of the good rows and (row, code) of the bad ones, rows counted from the file's start."""
    good: list[tuple[int, str | None, Request]] = []
    bad: list[tuple[int, str]] = []
    base = 0
    for chunk in _chunks(uri, *args, **options):
        assert chunk.staged.num_rows + chunk.unreadable.num_rows <= chunk.rows
        assert chunk.keys["fingerprint"].to_pylist() == chunk.staged["fingerprint"].to_pylist()
        for row in chunk.staged.to_pylist():
            good.append((base + row["row"], row["id"], request_from_json(row["request"]).request))
        for row in chunk.unreadable.to_pylist():
            bad.append((base + row["row"], row["code"]))
    return good, bad


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSONL file of dicts and raw lines."""

    def write(*rows: dict[str, Any] | bytes) -> Path:
        path = tmp_path / "m.jsonl"
        path.write_bytes(
            b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
        )
        return path

    return write


# Forms of a row


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"text": "蓝"}, [(TEXT, "蓝")]),
        ({"text": " kept as it is \n"}, [(TEXT, " kept as it is \n")]),
        ({"text": ["a", None, "b", ""], "image": ["https://h/1", "https://h/2"], "video": "https://h/v.mp4"},
         [(TEXT, "a"), (TEXT, "b"), (IMAGE, "https://h/1"), (IMAGE, "https://h/2"), (VIDEO, "https://h/v.mp4")]),
        ({"image": " https://h/1 ", "text": "  "}, [(IMAGE, "https://h/1")]),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://h/1"}}, {"type": "text", "text": "b"},
                    {"type": "video_url", "video_url": {"url": "https://h/v.mp4"}}, {"type": "text", "text": "a"}]},
         [(IMAGE, "https://h/1"), (TEXT, "b"), (VIDEO, "https://h/v.mp4"), (TEXT, "a")]),
        ({"input": '[{"type": "text", "text": "a"}]'}, [(TEXT, "a")]),
        ({"input": [{"type": "text", "text": "a", "image_url": None}]}, [(TEXT, "a")]),
        ({"body": {"input": [{"type": "text", "text": "a"}]}, "method": "POST", "url": "/v1"}, [(TEXT, "a")]),
        ({"text": "a", "body": "of an article"}, [(TEXT, "a")]),
    ],
)  # fmt: skip
def test_the_forms_of_a_row(row: dict[str, Any], parts: list[tuple[Modality, str]], lines: Callable[..., Path]) -> None:
    """Mapped cells give text, image, video, in this order; an input list keeps its order; a body is a whole request."""
    assert _read(lines(row)) == ([(0, None, Request(tuple(Part(*part) for part in parts)))], [])


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({}, "no_input"),
        ({"text": " \t"}, "no_input"),
        ({"text": [], "image": ""}, "no_input"),
        ({"input": []}, "no_input"),
        ({"body": {"model": CONTEXT.model.name}}, "bad_field"),
        ({"text": 3}, "bad_text"),
        ({"text": {"a": 1}}, "bad_text"),
        ({"text": [["a"]]}, "bad_text"),
        ({"image": True}, "bad_text"),
        ({"input": "text"}, "bad_field"),
        ({"input": "[oops"}, "bad_json"),
        ({"input": {"type": "text", "text": "a"}}, "bad_field"),
        ({"input": ["a"]}, "bad_part"),
        ({"input": [{"text": "a"}]}, "bad_part"),
        ({"input": [{"type": "audio_url", "audio_url": {"url": "a"}}]}, "bad_part"),
        ({"input": [{"type": ["text"], "text": "a"}]}, "bad_part"),
        ({"input": [{"type": "text", "text": " "}]}, "bad_part"),
        ({"input": [{"type": "text", "text": "a", "lang": "en"}]}, "bad_part"),
        ({"input": [{"type": "image_url", "image_url": "https://h/1"}]}, "bad_part"),
        ({"input": [{"type": "image_url", "image_url": {}}]}, "bad_part"),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://h/1", "detail": "low"}}]}, "bad_part"),
        ({"input": [{"type": "image_url", "image_url": {"url": "https://h/1", "fps": 1}}]}, "bad_part"),
        ({"input": [{"type": "video_url", "video_url": {"url": "https://h/v.mp4", "fps": 6}}]}, "bad_part"),
        ({"input": [{"type": "video_url", "video_url": {"url": "https://h/v.mp4", "frames": 6}}]}, "bad_part"),
        ({"input": [{"type": "video_url", "video_url": {"fps": 1}}]}, "bad_part"),
        ({"text": "a", "input": [{"type": "text", "text": "a"}]}, "bad_field"),
        ({"text": "a", "body": {"input": [{"type": "text", "text": "a"}]}}, "bad_field"),
        ({"text": ["a"] * 257}, "too_many_parts"),
        ({"id": True, "text": "a"}, "bad_id"),
        ({"id": ["a"], "text": "a"}, "bad_id"),
        ({"id": 1e300, "text": "a"}, "bad_id"),
        ({"id": "x" * 1_025, "text": "a"}, "bad_id"),
        ({"id": math.nan, "text": "a"}, "bad_json"),
        ({"id": "a", "text": math.inf}, "bad_json"),
        ({"id": "a", "input": [{"type": "text", "text": -math.inf}]}, "bad_json"),
    ],
)
def test_rows_that_ask_for_nothing_that_can_be_sent(row: dict[str, Any], code: str, lines: Callable[..., Path]) -> None:
    """Each fault has its own code, and the rows around it are read."""
    assert _read(lines({"text": "before"}, row, {"text": "after"})) == (
        [(0, None, _text("before")), (2, None, _text("after"))],
        [(1, code)],
    )


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        ({}, _text("a")),
        ({"model": CONTEXT.model.name, "dimensions": 2048, "encoding_format": "base64"}, _text("a")),
        ({"multi_embedding": {"type": "disabled"}}, _text("a")),
        ({"instructions": ""}, Request(_text("a").parts, "")),
        ({"model": None, "dimensions": None, "encoding_format": None, "instructions": None}, _text("a")),
        ({"instructions": "Query:"}, Request(_text("a").parts, "Query:")),
        ({"sparse_embedding": {"type": "enabled"}}, Request(_text("a").parts, sparse=True)),
        ({"sparse_embedding": {"type": "disabled"}}, _text("a")),
    ],
)
def test_a_body_may_override_what_belongs_to_a_row(
    body: dict[str, Any], request_: Request, lines: Callable[..., Path]
) -> None:
    """A row may set instructions and sparse; fields of the run must equal the run's."""
    body = {"input": [{"type": "text", "text": "a"}]} | body
    assert _read(lines({"custom_id": "r1", "body": body})) == ([(0, "r1", request_)], [])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"model": "other"}, "body.model"),
        ({"dimensions": 1024}, "body.dimensions"),
        ({"dimensions": 2048.0}, "body.dimensions"),
        ({"dimensions": "2048"}, "body.dimensions"),
        ({"encoding_format": "hex"}, "body.encoding_format"),
        ({"encoding_format": "float"}, "body.encoding_format"),
        ({"encoding_format": ["base64"]}, "body.encoding_format"),
        ({"multi_embedding": {"type": "enabled"}}, "body.multi_embedding"),
        ({"multi_embedding": {}}, "body.multi_embedding"),
        ({"user": "me"}, "body.user"),
        ({"instructions": 3}, "body.instructions"),
        ({"sparse_embedding": True}, "body.sparse_embedding"),
        ({"sparse_embedding": {"type": "on"}}, "body.sparse_embedding"),
        ({"sparse_embedding": {}}, "body.sparse_embedding"),
        ({"sparse_embedding": {"type": "enabled", "top": 5}}, "body.sparse_embedding"),
    ],
)
def test_a_body_that_is_not_this_runs_is_a_failure(body: dict[str, Any], says: str, lines: Callable[..., Path]) -> None:
    """The message names the field."""
    (chunk,) = _chunks(lines({"custom_id": "r1", "body": {"input": [{"type": "text", "text": "a"}]} | body}))
    (failure,) = chunk.unreadable.to_pylist()
    assert (failure["code"], failure["id"]) == ("bad_field", "r1")
    assert says in failure["message"]


def test_sparse_is_asked_for_on_rows_of_text_alone(lines: Callable[..., Path]) -> None:
    """The API allows it for one or several texts, without media."""
    context = _context(instructions="I", sparse=True)
    path = lines({"text": "a"}, {"text": ["a", "b"]}, {"text": "a", "image": "https://h/1"})
    good, _ = _read(path, context)
    assert [(request.sparse, request.instructions) for _, _, request in good] == [
        (True, "I"),
        (True, "I"),
        (False, "I"),
    ]


def test_what_the_model_can_not_do_is_a_failure(lines: Callable[..., Path]) -> None:
    """Rows are checked against the model's capabilities before anything is sent."""
    context = _context("250328")
    path = lines({"video": "https://h/v.mp4"}, {"text": ["a", "b"]}, {"text": "a", "image": "https://h/1"})
    assert _read(path, context)[1] == [(0, "video_unsupported"), (1, "too_many_parts")]


@pytest.mark.parametrize(
    ("row", "row_id"),
    [
        ({"id": "a"}, "a"),
        ({"id": 7}, "7"),
        ({"id": 2**64 - 1}, "18446744073709551615"),
        ({"id": 1.5}, "1.5"),
        ({"custom_id": "c"}, "c"),
        ({"id": None, "custom_id": "c"}, "c"),
        ({"id": "", "custom_id": "c"}, "c"),
        ({"id": " \t", "custom_id": 7}, "7"),
        ({"id": "a", "custom_id": "c"}, "a"),
        ({"id": ""}, None),
        ({"id": " ", "custom_id": ""}, None),
        ({}, None),
    ],
)
def test_ids_are_text(row: dict[str, Any], row_id: str | None, lines: Callable[..., Path]) -> None:
    """Numbers become text; a row without an id gets one when it is published."""
    assert _read(lines(row | {"text": "a"}))[0] == [(0, row_id, _text("a"))]


def test_a_mapped_id_alone_counts(lines: Callable[..., Path], tmp_path: Path) -> None:
    """If `columns.id` is set, an empty id is not replaced by another column. Without it, an empty CSV cell is."""
    path = lines({"id": "", "custom_id": "c", "text": "a"})
    assert _read(path, columns=ColumnMap(id="id"))[0] == [(0, None, _text("a"))]
    table = tmp_path / "rows.csv"
    table.write_text("id,custom_id,text\n,c,a\n")
    assert _read(table)[0] == [(0, "c", _text("a"))]


def test_columns_can_be_mapped(lines: Callable[..., Path]) -> None:
    """With a mapping, only the mapped columns are read, in the order of the mapping."""
    columns = ColumnMap(id="key", text=("title", "caption"), image="pic")
    path = lines({"key": 1, "caption": "c", "title": "t", "pic": "https://h/1", "text": "not this", "id": "nor this"})
    parts = (Part(TEXT, "t"), Part(TEXT, "c"), Part(IMAGE, "https://h/1"))
    assert _read(path, columns=columns) == ([(0, "1", Request(parts))], [])
    assert _read(lines({"text": "a", "body": {}}), columns=ColumnMap(text="other"))[1] == [(0, "no_input")]


# Lines


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{oops", "bad_json"),
        (b'{"text": "a"} {"text": "b"}', "bad_json"),
        (b'{"text": NaN}', "bad_json"),
        (b"[" * 3_000 + b"]" * 3_000, "bad_json"),
        (b'{"text": "\\ud800"}', "bad_text"),
        (b'{"text": "\\udc00\\ud800"}', "bad_text"),
        (b'{"text": "\xed\xa0\x80"}', "bad_text"),
        (b'{"text": "\xff"}', "bad_text"),
        (b'["text"]', "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
        (b"12", "not_an_object"),
    ],
)
def test_lines_that_are_no_object(line: bytes, code: str, lines: Callable[..., Path]) -> None:
    """A bad line is one failure row; the next is read."""
    assert _read(lines(line, {"text": "a"})) == ([(1, None, _text("a"))], [(0, code)])


def test_lines_of_any_depth_are_read_or_failures(lines: Callable[..., Path]) -> None:
    """At each depth of nesting, a line that only the slow parser reads gives a row or a failure, and no exception."""
    deep = [f'{{"text": "\\u0041", "n": NaN, "x": {"[" * depth}{"]" * depth}}}' for depth in range(700, 1_000)]
    good, bad = _read(lines(*(line.encode() for line in deep)))
    assert len(good) + len(bad) == 300
    assert {code for _, code in bad} <= {"bad_json"}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", None])
def test_line_ends_marks_and_blank_lines(bom: bytes, end: bytes, last: bytes | None, tmp_path: Path) -> None:
    """A byte order mark, CRLF and a missing last line end make no difference; blank lines count as rows but are not read."""
    rows = [b'{"text": "\xe5\xa4\xa9"}', b"", b"  \t", b'{"text": "b"}', b"oops", b'{"text": "c"}']
    path = tmp_path / "m.jsonl"
    path.write_bytes(bom + end.join(rows) + (end if last is None else last))
    assert _read(path) == ([(0, None, _text("天")), (3, None, _text("b")), (5, None, _text("c"))], [(4, "bad_json")])
    (chunk,) = _chunks(path)
    assert (chunk.rows, chunk.staged.num_rows, chunk.unreadable.num_rows) == (6, 3, 1)


def test_lines_of_five_megabytes_are_read_and_longer_ones_than_allowed_are_failures(tmp_path: Path) -> None:
    """A line at the limit is read, one byte more is a failure, and memory never holds more than the limit."""
    path = tmp_path / "m.jsonl"
    long = "海" * 1_700_000
    line = json.dumps({"text": long}, ensure_ascii=False).encode()
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n" + line + b" \n" + b'{"text": "b"}')
    good, bad = _read(path, line_bytes_max=len(line))
    assert [(row, len(request.parts[0].value)) for row, _, request in good] == [(0, 1), (1, 1_700_000), (3, 1)]
    assert bad == [(2, "line_too_long")]
    originals = [text for chunk in _chunks(path) for text in chunk.staged["original"].to_pylist()]
    assert max(map(len, originals)) <= 65_536


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.sampled_from(
            [b'{"text":"a"}', b'{"text":"\xe5\xa4\xa9","id":"x"}', b"", b"bad", b"\r", b'{"text":"' + b"y" * 50 + b'"}']
        ),
        min_size=1,
        max_size=12,
    ),
    bom=st.booleans(),
    ended=st.booleans(),
    shard_bytes=st.integers(1, 120),
)
def test_cutting_a_file_changes_no_row(rows: list[bytes], bom: bool, ended: bool, shard_bytes: int) -> None:
    """Wherever the file is cut, each line is read by exactly one shard, with its number in the whole file."""
    data = b"\xef\xbb\xbf" * bom + b"\n".join(rows) + b"\n" * ended
    fsspec.filesystem("memory").pipe_file("/cut/m.jsonl", data or b"\n")
    options = ManifestOptions("memory://cut/m.jsonl", line_bytes_max=40)
    manifests = list_manifests(options)

    def read(bytes_max: int) -> list[tuple[int, str | None, str]]:
        found, base = [], 0
        for shard in cut_shards(manifests, bytes_max):
            rows_seen = ordinal = 0
            for chunk in read_shard(shard, options, CONTEXT):
                assert chunk.keys["ordinal"].to_pylist() == list(range(ordinal, ordinal + chunk.keys.num_rows))
                ordinal += chunk.keys.num_rows
                rows_seen += chunk.rows
                found += [(base + row["row"], row["id"], "") for row in chunk.staged.to_pylist()]
                found += [(base + row["row"], row["id"], row["code"]) for row in chunk.unreadable.to_pylist()]
            base += rows_seen
        return [*sorted(found), (base, None, "rows")]

    whole = read(10**9)
    assert read(shard_bytes) == whole
    expected = len(data.split(b"\n")) - (data.endswith(b"\n") or not data)
    assert whole[-1][0] == max(expected, 1)


_hostile = st.one_of(
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(["id", "custom_id", "text", "image", "video", "input", "body", "keep"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
            | st.sampled_from(["https://h/1", "data:image/png;base64,AA==", "[", "{}", "/etc/passwd", "memory://x", "text"]),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["type", "text", "image_url", "url", "input", "model", "sparse_embedding"]), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ).map(lambda value: json.dumps(value).encode()),
)  # fmt: skip


def _opens_value(line: bytes) -> bool:
    """True if a line begins a JSON array or object, and is not one itself: the lines below may be the rest of it."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith((b"[", b"{"))
    return False


@settings(max_examples=300, deadline=None)
@given(st.lists(_hostile, min_size=1, max_size=8).filter(lambda rows: find_wide_encoding(b"\n".join(rows)) is None))
@example([b"["])
@example([b"", b"[{}, ", b"{}]"])
@example([b"{", b'"text": "a"', b"}"])
@example([b"[1", b"{}"])
@example([b"x", b"["])
def test_no_line_raises(rows: list[bytes]) -> None:
    """Whatever a line holds, it is staged, a failure or blank, and all tables can be written.

    Only a file that is one JSON array or object over several lines is an error as a whole: its first line that is not
    blank opens the value and does not close it.
    """
    fsspec.filesystem("memory").pipe_file("/hostile/m.jsonl", b"\n".join(rows) + b"\n")
    lines = [rows[0].removeprefix(BOM), *rows[1:]]
    try:
        chunks = _chunks("memory://hostile/m.jsonl", keep=("keep", "text"))
    except ManifestError as error:
        message = str(error)
        assert "is a JSON array" in message or "a JSON object over several lines" in message
        assert _opens_value(next(text for line in lines if (text := line.strip(b" \t\r"))))
        return
    good, bad = 0, 0
    for chunk in chunks:
        for table in (chunk.staged, chunk.keys, chunk.unreadable):
            table.validate(full=True)
            pq.write_table(table, io.BytesIO())
        good, bad = good + chunk.staged.num_rows, bad + chunk.unreadable.num_rows
        assert chunk.rows == len(rows)
        assert good + bad == len([line for line in lines if line and not line.isspace()])


# Other formats


def _gzip(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


def _zstd(data: bytes) -> bytes:
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


@pytest.mark.parametrize(("ending", "pack"), [("gz", _gzip), ("zst", _zstd)])
def test_packed_lines_are_streamed(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Compressed files, also with several members, hold the same rows."""
    data = b"".join(b'{"text": "%d"}\n' % index for index in range(20_000))
    path = tmp_path / f"m.jsonl.{ending}"
    path.write_bytes(pack(data))
    good, bad = _read(path)
    assert [request.parts[0].value for _, _, request in good] == [str(index) for index in range(20_000)]
    assert [row for row, _, _ in good] != []
    assert bad == []
    assert [chunk.rows for chunk in _chunks(path)] == [4_096] * 4 + [3_616]


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_packed_files_that_are_cut_off_or_damaged_stop_the_run(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Rows that can't be reached are an error, never silently missing."""
    packed = pack(bytes(json.dumps({"text": list(range(9_999))}), "ascii") + b"\n")
    path = tmp_path / f"m.jsonl.{ending}"
    for data in (packed[:-20], b"no such format", packed[:30] + b"\xff" * 30 + packed[60:]):
        path.write_bytes(data)
        with pytest.raises(ManifestError, match=rf"m\.jsonl\.{ending}"):
            _chunks(path)


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_packed_files_that_expand_without_end_stop_the_run(
    ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """The size is limited, and above 64 MiB the ratio; within the limits the same file is read."""
    path = tmp_path / f"m.jsonl.{ending}"
    path.write_bytes(pack(b" " * 70_000_000))
    with pytest.raises(ManifestError, match="expands"):
        _chunks(path)
    with pytest.raises(ManifestError, match="expands"):
        _chunks(path, expanded_bytes_max=1_000_000, expand_ratio_max=10**9)
    assert _read(path, expand_ratio_max=10**9)[1] == [(0, "line_too_long")]


@pytest.mark.parametrize(("name", "delimiter"), [("m.csv", ","), ("m.tsv", "\t"), ("m.csv.gz", ",")])
def test_records_under_a_header(name: str, delimiter: str, tmp_path: Path) -> None:
    """Cells may contain line ends, quotes and Chinese; rows are counted by record, not by line."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows(
        [["id", "text", "image", "tag"], ["1", 'two\r\nlines, "quoted"', "", "x"], [], ["3", "天", "https://h/1", ""]]
    )
    data = b"\xef\xbb\xbf" + stream.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    quoted = CsvOptions(quote='"')
    good, bad = _read(tmp_path / name, csv=quoted)
    assert good == [
        (0, "1", _text('two\r\nlines, "quoted"')),
        (2, "3", Request((Part(TEXT, "天"), Part(IMAGE, "https://h/1")))),
    ]
    assert bad == []
    (chunk,) = _chunks(tmp_path / name, keep=("tag", "missing"), csv=quoted)
    assert chunk.staged["kept"].to_pylist() == [{"tag": "x", "missing": None}, {"tag": "", "missing": None}]
    assert (chunk.rows, chunk.staged.num_rows, chunk.unreadable.num_rows) == (3, 2, 0)
    assert json.loads(chunk.staged["original"][1].as_py()) == {
        "id": "3",
        "text": "天",
        "image": "https://h/1",
        "tag": "",
    }


def test_bad_records_are_failures_and_the_next_line_is_read(tmp_path: Path) -> None:
    """Failures: too few or too many cells, broken quotes, invalid UTF-8, and records above the limit."""
    path = tmp_path / "m.csv"
    records = [
        b"id,text",
        b"1",
        b"2,a,b",
        b'3,"a"b',
        b"4,\xff",
        b"5," + b"x" * 300,
        b'6,"open',
        b"7,read" + b"y" * 180,
        b"8,good",
    ]
    path.write_bytes(b"\n".join(records))
    good, bad = _read(path, line_bytes_max=200)
    codes = ["bad_record", "bad_record", "bad_record", "bad_text", "line_too_long", "bad_record"]
    assert bad == list(enumerate(codes))
    assert good == [(6, "7", _text("read" + "y" * 180)), (7, "8", _text("good"))]
    path.write_bytes(b'id,text\n1,a\n2,"never closed')
    assert _read(path) == ([(0, "1", _text("a"))], [(1, "bad_record")])


@pytest.mark.parametrize(("data", "says"), [(b"id,text,id\n1,a,2\n", "'id' more than once"), (b'"id', "header")])
def test_a_header_that_can_not_be_used_stops_the_run(data: bytes, says: str, tmp_path: Path) -> None:
    """Without column names no row can be read."""
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=says):
        _chunks(tmp_path / "m.csv")


def test_csv_holds_lists_as_json(tmp_path: Path) -> None:
    """An input list in a text cell is parsed."""
    (tmp_path / "m.csv").write_text('id,input\n1,"[{""type"": ""text"", ""text"": ""a""}]"\n')
    assert _read(tmp_path / "m.csv") == ([(0, "1", _text("a"))], [])


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from('a,"\r\n\t天\0'), max_size=60), st.sampled_from(["csv", "tsv"]))
def test_no_record_raises(text: str, ending: str) -> None:
    """Below a valid header, any bytes give rows, failures or blank rows."""
    header = b"text\ta\n" if ending == "tsv" else b"text,a\n"
    fsspec.filesystem("memory").pipe_file(f"/hostile/m.{ending}", header + text.encode())
    for chunk in _chunks(f"memory://hostile/m.{ending}", line_bytes_max=30):
        assert chunk.staged.num_rows + chunk.unreadable.num_rows <= chunk.rows


def test_parquet_keeps_types_and_numbers_rows_by_record(tmp_path: Path) -> None:
    """Lists, structs, dictionaries and numeric ids are read from row groups; kept columns keep their types."""
    kinds = pa.struct([("n", pa.int8()), ("l", pa.list_(pa.float32()))])
    table = pa.table(
        {
            "id": pa.array([1, 2, 3, 4], pa.int64()),
            "text": pa.array(["a", None, "c", ""]).dictionary_encode(),
            "image": pa.array([None, ["https://h/1", "https://h/2"], None, None], pa.list_(pa.string())),
            "meta": pa.array([{"n": 1, "l": [0.5]}, None, {"n": None, "l": None}, None], kinds),
            "when": pa.array([0, 1, 2, 3], pa.timestamp("ms", "UTC")),
            "tag": pa.array(["x", "y", "x", "y"]).dictionary_encode(),
            "other": pa.array([b"\xff"] * 4),
        }
    )
    path = tmp_path / "m.parquet"
    pq.write_table(table, path, row_group_size=3)
    images = Request((Part(IMAGE, "https://h/1"), Part(IMAGE, "https://h/2")))
    assert _read(path) == ([(0, "1", _text("a")), (1, "2", images), (2, "3", _text("c"))], [(3, "no_input")])
    first, second = _chunks(path, keep=("meta", "when", "tag", "missing"))
    assert [first.staged["row"].to_pylist(), second.unreadable["row"].to_pylist()] == [[0, 1, 2], [3]]
    kept = first.staged["kept"].combine_chunks()
    assert kept.type == pa.struct(
        [("meta", kinds), ("when", pa.timestamp("ms", "UTC")), ("tag", pa.string()), ("missing", pa.null())]
    )
    assert [row["meta"] for row in kept.to_pylist()] == [{"n": 1, "l": [0.5]}, None, {"n": None, "l": None}]
    assert [row["tag"] for row in kept.to_pylist()] == ["x", "y", "x"]
    assert json.loads(first.staged["original"][1].as_py()) == {
        "id": 2,
        "text": None,
        "image": ["https://h/1", "https://h/2"],
    }


def test_parquet_rows_of_the_contracts_form(tmp_path: Path) -> None:
    """An input column of structs holds null for fields that an element does not have."""
    rows = [{"input": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://h/1"}}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    expected = Request((Part(TEXT, "a"), Part(IMAGE, "https://h/1")))
    assert _read(tmp_path / "m.parquet") == ([(0, None, expected)], [])


def test_parquet_text_that_is_not_utf8_is_a_failure(tmp_path: Path) -> None:
    """Parquet writers don't check UTF-8: the row is a failure, and its neighbours are read."""
    offsets, data = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc")
    pq.write_table(
        pa.table({"text": pa.StringArray.from_buffers(3, offsets, data), "n": [0, 1, 2]}), tmp_path / "m.parquet"
    )
    assert _read(tmp_path / "m.parquet") == ([(0, None, _text("a")), (2, None, _text("c"))], [(1, "bad_text")])
    (chunk,) = _chunks(tmp_path / "m.parquet", keep=("n",))
    assert chunk.staged["kept"].to_pylist() == [{"n": 0}, {"n": 2}]


def test_parquet_without_any_column_that_matters(tmp_path: Path) -> None:
    """Every row is a failure that names the columns that were looked for."""
    pq.write_table(pa.table({"other": [1, 2]}), tmp_path / "m.parquet")
    assert _read(tmp_path / "m.parquet")[1] == [(0, "no_input"), (1, "no_input")]


def test_a_parquet_file_that_is_damaged_inside_stops_the_run(tmp_path: Path) -> None:
    """The footer may be valid while the pages are damaged."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"text": [f"text {index}" for index in range(9_999)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[100:2_000] = b"\xff" * 1_900
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=r"m\.parquet"):
        _chunks(path)


def test_parquet_chunks_are_bounded_in_bytes(tmp_path: Path) -> None:
    """Large rows come in smaller chunks, also if a dictionary hides their size."""
    text = "x" * 100_000
    pq.write_table(pa.table({"text": [text] * 600}), tmp_path / "m.parquet")
    chunks = _chunks(tmp_path / "m.parquet")
    assert sum(chunk.rows for chunk in chunks) == 600
    assert max(chunk.staged["request"].nbytes for chunk in chunks) < 20_000_000


def test_a_manifest_that_vanishes_stops_the_run(tmp_path: Path) -> None:
    """The error names the shard's file."""
    for format_ in ("jsonl", "csv", "parquet"):
        shard = Shard(0, str(tmp_path / "gone"), "gone", format_, None, 0, 10)
        with pytest.raises(ManifestError, match="gone"):
            list(read_shard(shard, ManifestOptions("x"), CONTEXT))


# What is carried along


def test_tables_have_the_declared_schemas(lines: Callable[..., Path]) -> None:
    """Staged rows, keys and failures have the schemas that `schema` declares, also in empty chunks."""
    for rows in ([{"text": "a"}, b"bad"], [b""], [b"bad"], [{"text": "a"}]):
        (chunk,) = _chunks(lines(*rows))
        assert chunk.staged.schema == schema.STAGED
        assert chunk.keys.schema == schema.KEYS
        assert chunk.unreadable.schema == schema.UNREADABLE
        for table in (chunk.staged, chunk.keys, chunk.unreadable):
            table.validate(full=True)


@pytest.mark.parametrize("cell", ["NaN", "-Infinity", "1e9999", '[NaN, {"a": -1E400}]', "1" * 400])
def test_numbers_that_json_or_doubles_lack_fail_only_rows_that_need_them(cell: str, lines: Callable[..., Path]) -> None:
    """In a field that is not used the row is read; in one that is used the row fails, and the message names NaN."""
    path = lines(
        f'{{"id": "1", "text": "a", "other": {cell}}}'.encode(),
        f'{{"id": "2", "text": {cell}}}'.encode(),
        f'{{"id": "3", "text": "a", "x": {cell}, "y": "\ud800"}}'.encode("utf-8", "surrogatepass"),
        f'{{"id": "4", "text": "\\ud800", "x": {cell}}}'.encode(),
        f'{{"id": "5", "text": "b", "x": {cell}'.encode(),
    )
    (chunk,) = _chunks(path)
    assert chunk.staged["id"].to_pylist() == ["1"]
    assert chunk.unreadable["row"].to_pylist() == [1, 2, 3, 4]
    code = "bad_json" if "N" in cell or "I" in cell else "bad_text"
    assert chunk.unreadable["code"].to_pylist() == [code, "bad_text", "bad_text", "bad_json"]
    assert ("NaN" in chunk.unreadable["message"][0].as_py()) == (code == "bad_json")


@pytest.mark.parametrize(
    ("written", "id_"),
    [
        ("12345678901234567890", "12345678901234567890"),
        ("-123456789012345678901234567890", "-123456789012345678901234567890"),
        ("18446744073709551616", "18446744073709551616"),
        ("9223372036854775807", "9223372036854775807"),
        ("1.50", "1.5"),
        ("0.10000000000000001", "0.1"),
        ("0.30000000000000001", None),
        ("1e21", None),
        ("1e400", None),
    ],
)
@pytest.mark.parametrize("name", ["id", "custom_id", "键"])
def test_ids_that_are_numbers_keep_their_digits(
    written: str, id_: str | None, name: str, lines: Callable[..., Path]
) -> None:
    """An integer of any length is an id as it is written; a number that would be rounded is a failure."""
    path = lines(f'{{"nested": {{"id": 0.5}}, "{name}": {written}, "text": "a"}}'.encode())
    good, bad = _read(path, columns=ColumnMap(id=None if name != "键" else name))
    assert [row_id for _, row_id, _ in good] == ([] if id_ is None else [id_])
    assert [code for _, code in bad] in ([], ["bad_id"], ["bad_json"])
    assert bool(bad) == (id_ is None)


def test_kept_columns_of_json(lines: Callable[..., Path]) -> None:
    """Nested values are staged as JSON, for readable rows only; a cell that is nested too deeply to be written is a failure."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    path = lines({"text": "a", "k": {"n": [1]}}, b"bad", {"text": "b"}, {"text": "c", "k": deep})
    (chunk,) = _chunks(path, keep=("k",))
    assert chunk.staged["kept"].to_pylist() == [{"k": '{"n":[1]}'}, {"k": None}]
    assert chunk.unreadable["code"].to_pylist() == ["bad_json", "bad_field"]
    assert chunk.unreadable["row"].to_pylist() == [1, 3]


def test_originals_show_the_line_without_secrets(lines: Callable[..., Path]) -> None:
    """The original is shown unchanged, except for credentials in URLs."""
    plain = '{"text":  "天  a"}'
    path = lines(plain.encode(), {"image": "https://user:pass@h/1?X-Amz-Signature=secret&id=1"}, b"bad https://u:p@h/")
    (chunk,) = _chunks(path)
    assert chunk.staged["original"][0].as_py() == plain
    for text in (chunk.staged["original"][1].as_py(), chunk.unreadable["original"][0].as_py()):
        assert not {"pass", "secret", "u:p"} & set(text.replace("@", " ").split())
        assert "https://" in text
    assert "pass" not in chunk.staged["original"][1].as_py()
    assert "secret" not in chunk.staged["original"][1].as_py()


def test_estimates_come_with_the_keys(lines: Callable[..., Path]) -> None:
    """Text and image tokens are estimated for planning."""
    (chunk,) = _chunks(lines({"text": "hello"}, {"image": "https://h/1"}))
    assert chunk.keys["image_tokens"].to_pylist() == [0, 1312]
    assert all(tokens > 0 for tokens in chunk.keys["text_tokens"].to_pylist())


# Media


def _picture(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


def test_media_are_looked_at_and_versioned(tmp_path: Path) -> None:
    """Files beside the manifest are staged by absolute path and version; missing and forbidden files are failures."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m/a.png").write_bytes(_picture(280, 28))
    (tmp_path / "secret.png").write_bytes(_picture(30, 30))
    data_uri = "data:image/png;base64," + base64.b64encode(_picture(56, 56)).decode()
    images = ["a.png", "./x/../a.png", "missing.png", "../secret.png", data_uri, "https://h/a.png"]
    path = tmp_path / "m/m.jsonl"
    path.write_text(
        "".join(json.dumps({"id": index, "text": "t", "image": image}) + "\n" for index, image in enumerate(images))
    )
    context = _context(media=MediaOptions(allowed_roots=(str(tmp_path / "m"),)))
    (chunk,) = _chunks(path, context)
    assert chunk.unreadable["code"].to_pylist() == ["media_missing", "media_forbidden"]
    assert chunk.unreadable["id"].to_pylist() == ["2", "3"]
    staged = [request_from_json(data) for data in chunk.staged["request"].to_pylist()]
    status = (tmp_path / "m/a.png").stat()
    assert staged[0].request.parts[1] == Part(IMAGE, str(tmp_path / "m/a.png"))
    assert staged[0].versions == (None, f"{status.st_size}-{status.st_mtime_ns}")
    assert [one.versions[1] for one in staged[2:]] == [None, None]
    assert chunk.keys["image_tokens"].to_pylist() == [10, 10, 4, 1312]
    fingerprints = chunk.keys["fingerprint"].to_pylist()
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_a_changed_picture_is_another_item(tmp_path: Path) -> None:
    """The version of a file is part of the fingerprint."""
    context = _context(media=MediaOptions(allowed_roots=(str(tmp_path),)))
    (tmp_path / "m.jsonl").write_text('{"image": "a.png"}\n')
    prints = []
    for size in (20, 30):
        (tmp_path / "a.png").write_bytes(_picture(size, size))
        prints.append(_chunks(tmp_path / "m.jsonl", context)[0].keys["fingerprint"][0].as_py())
    assert prints[0] != prints[1]


def test_parts_that_are_too_large_together_are_a_failure(tmp_path: Path) -> None:
    """Each medium fits into a request body, but together they don't."""
    picture = _picture(30, 30)
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "m.jsonl").write_text('{"image": "a.png"}\n{"image": ["a.png", "a.png"]}\n')
    media = MediaOptions(allowed_roots=(str(tmp_path),), body_bytes_max=len(picture) * 2)
    assert _read(tmp_path / "m.jsonl", _context(media=media))[1] == [(1, "request_too_large")]


def test_media_beside_a_manifest_in_an_object_store() -> None:
    """Relative paths are resolved in the storage of the manifest."""
    store = fsspec.filesystem("memory")
    store.pipe_file("/media-read/m.jsonl", b'{"image": "pics/a.png"}\n')
    store.pipe_file("/media-read/pics/a.png", _picture(28, 28))
    (chunk,) = _chunks("memory://media-read/m.jsonl")
    staged = request_from_json(chunk.staged["request"][0].as_py())
    assert staged.request.parts == (Part(IMAGE, "memory:///media-read/pics/a.png"),)
    assert staged.versions[0] is not None
