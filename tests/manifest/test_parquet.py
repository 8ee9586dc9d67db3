"""Parquet files as other tools write them: encodings, types of ids and texts, names of columns, and damage."""

import base64
import json
import struct
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
from arkbeam.ark.models import VERSIONS, ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure, Modality, ServiceKind
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import ShardChunk, read_shard
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from arkbeam.media import MediaOptions
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parents[1] / "data"
MODEL = ModelSpec(ModelOptions("doubao-embedding-vision-251215", dimensions=2048), VERSIONS["251215"])
CONTEXT = ReadContext(ServiceKind.ARK, MODEL, MediaOptions())
DELTA_ENCODINGS = ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
SMALL_GROUP_BYTES = 16 * 1024 * 1024  # a larger row group is read in steps
Cells = dict[str, Any]


def read_chunks(path: Path, context: ReadContext = CONTEXT, **options: Any) -> Iterator[ShardChunk]:
    """Read all shards of a manifest."""
    chosen = ManifestOptions(str(path), **options)
    for shard in cut_shards(list_manifests(chosen), 2**30):
        yield from read_shard(shard, chosen, context)


def read_rows(path: Path, context: ReadContext = CONTEXT, **options: Any) -> list[tuple[str | None, list[str]]]:
    """Return the id and the values of the parts of each row; no row may be bad."""
    rows: list[tuple[str | None, list[str]]] = []
    for chunk in read_chunks(path, context, **options):
        assert chunk.unreadable.to_pylist() == []
        requests = [request_from_json(data).request for data in chunk.staged["request"].to_pylist()]
        values = [[part.value for part in request.parts] for request in requests]
        rows += zip(chunk.staged["id"].to_pylist(), values, strict=True)
    return rows


def read_bad(path: Path, context: ReadContext = CONTEXT, **options: Any) -> list[Cells]:
    """Return the bad rows; no row may be good."""
    chunks = list(read_chunks(path, context, **options))
    assert sum(chunk.staged.num_rows for chunk in chunks) == 0
    return [row for chunk in chunks for row in chunk.unreadable.to_pylist()]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a Parquet file."""

    def run(columns: pa.Table | Cells, **options: Any) -> Path:
        path = tmp_path / "m.parquet"
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
        return path

    return run


# Encodings


@pytest.mark.parametrize("encoding", DELTA_ENCODINGS)
@pytest.mark.parametrize("group_rows", [2_000, 5_000])
def test_delta_encodings_are_read(encoding: str, group_rows: int, write: Callable[..., Path]) -> None:
    """Texts, ids and kept lists in the encodings that Arrow can't read as dictionaries are read, beside dictionaries."""
    count = 5_000
    columns = {
        "id": [f"id-{number}" for number in range(count)],
        "text": [f"text {number}" for number in range(count)],
        "tags": [[f"tag {number}", "shared"] for number in range(count)],
        "custom_id": ["the same"] * count,
    }
    encodings = dict.fromkeys(("id", "text", "tags.list.element"), encoding)
    path = write(columns, use_dictionary=["custom_id"], column_encoding=encodings, row_group_size=group_rows)
    assert read_rows(path) == [(f"id-{number}", [f"text {number}"]) for number in range(count)]
    kept = [row for chunk in read_chunks(path, keep=("tags",)) for row in chunk.staged["kept"].to_pylist()]
    assert [row["tags"] for row in kept] == columns["tags"]


def test_an_encoding_that_changes_within_a_row_group(tmp_path: Path) -> None:
    """Spark's writer (version 2) goes on with DELTA_BYTE_ARRAY when its dictionary is full: no row is lost or repeated."""
    path = tmp_path / "m.parquet"
    path.write_bytes((DATA / "spark-3.5-v2.parquet").read_bytes())
    expected = [f"text {number % 50}" if number < 5_000 else f"text number {number}" for number in range(6_000)]
    assert [parts for _, parts in read_rows(path)] == [[text] for text in expected]


_pools: list[pa.MemoryPool] = []  # arrays may live longer than the block, and need the pool that they came from


@contextmanager
def arrow_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the most bytes that Arrow had at a time inside the block."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    _pools.append(pool)
    pa.set_memory_pool(pool)
    try:
        yield lambda: int(pool.max_memory() or 0)
    finally:
        pa.set_memory_pool(before)


def test_texts_with_shared_prefixes_stay_small_in_memory(write: Callable[..., Path]) -> None:
    """A few kB of DELTA_BYTE_ARRAY that stand for 200 MB of text are read in chunks of about 8 MB."""
    path = write({"text": pa.array(["x" * 2_000_000]).take(pa.array([0] * 100))}, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}, compression="zstd")  # fmt: skip
    assert path.stat().st_size < 10_000
    rows = 0
    with arrow_peak() as peak:
        for chunk in read_chunks(path):
            rows += chunk.staged.num_rows
            assert chunk.staged["request"].nbytes < 20_000_000
        assert peak() < 100_000_000
    assert rows == 100


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_large_row_group_is_read_in_parts(use_dictionary: bool, write: Callable[..., Path]) -> None:
    """Of a row group of 25 MB, all rows are read, in their order, while Arrow holds a part of it."""
    texts = [f"{number} {'long text ' * 60}" for number in range(40_000)]
    path = write({"text": texts}, use_dictionary=use_dictionary, data_page_size=100_000)
    assert pq.read_metadata(path).num_row_groups == 1
    read: list[str] = []
    with arrow_peak() as peak:
        for chunk in read_chunks(path):
            read += [request_from_json(data).request.parts[0].value for data in chunk.staged["request"].to_pylist()]
            assert chunk.rows <= 4_096
        assert peak() < 25_000_000
    assert read == texts


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=5), st.just("x" * 300)), max_size=60),
    st.sampled_from(["PLAIN", "RLE_DICTIONARY", *DELTA_ENCODINGS]),
    st.integers(1, 60),
    st.booleans(),
)
def test_any_texts_in_any_encoding(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str | None], encoding: str, group_rows: int, large: bool
) -> None:
    """Every way of reading returns the values of the file, whatever their encoding and row groups."""
    path = tmp_path_factory.mktemp("texts") / "m.parquet"
    coding: Cells = {"use_dictionary": True} if encoding == "RLE_DICTIONARY" else {"use_dictionary": False, "column_encoding": {"t": encoding}}  # fmt: skip
    table = pa.table({"t": pa.array(texts, pa.string()), "text": pa.array(["a"] * len(texts), pa.string())})
    pq.write_table(table.select(["t"]) if encoding != "RLE_DICTIONARY" else table, path, row_group_size=group_rows, **coding)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr("arkbeam.manifest.parquet_groups._SMALL_GROUP_BYTES", -1)
        chunks = list(read_chunks(path, columns=ColumnMap(text="t"), keep=("t",)))
    good = [row["kept"]["t"] for chunk in chunks for row in chunk.staged.to_pylist()]
    assert good == [text for text in texts if text is not None and text.strip()]
    assert sum(chunk.rows for chunk in chunks) == len(texts)


# Damage


def varint(number: int) -> bytes:
    """Encode a number as in Parquet's footer (zigzag)."""
    number, out = number << 1, b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def count_rows(path: Path) -> int | str:
    """Return the number of rows, or the message of the error."""
    try:
        return sum(chunk.rows for chunk in read_chunks(path))
    except ManifestError as error:
        return str(error)


def test_a_footer_that_declares_other_numbers_of_rows(write: Callable[..., Path]) -> None:
    """If one of the footer's numbers of rows or values is wrong, all rows are read or the run stops."""
    count = 7_777
    path = write({"text": [f"text {number % 100}" for number in range(count)], "id": list(range(count))})
    data = path.read_bytes()
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    places = [at for at in range(footer, len(data)) if data.startswith(varint(count), at)]
    outcomes: list[int | str] = []
    for at in places:
        for declared in (count - 100, count + 100):
            path.write_bytes(data[:at] + varint(declared) + data[at + 2 :])
            outcomes.append(count_rows(path))
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {count}
    assert len([outcome for outcome in outcomes if "the footer declares" in str(outcome)]) == 3


def test_rows_are_counted_even_if_no_column_is_read(write: Callable[..., Path]) -> None:
    """A file that declares more rows than it has stops the run, also if it has none of the columns that are read."""
    count = 7_777
    path = write({"other": list(range(count))})
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    for at in range(footer, len(data)):
        if data.startswith(varint(count), at):
            data[at : at + 2] = varint(count + 100)
    path.write_bytes(data)
    assert "the footer declares 7877" in str(count_rows(path))


def test_columns_that_are_shorter_than_the_footer_says(write: Callable[..., Path]) -> None:
    """A file whose row group and footer declare more rows than its pages hold stops the run, and names both numbers."""
    count, declared = 7_777, 7_877
    path = write({"text": [f"text {number % 100}" for number in range(count)]})
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    for at in range(footer, len(data)):
        if data.startswith(varint(count), at):
            data[at : at + 2] = varint(declared)
    path.write_bytes(data)
    assert pq.read_metadata(path).num_rows == declared
    with pytest.raises(ManifestError, match=f"row group 0 has {count} rows, but the footer declares {declared}"):
        list(read_chunks(path))


class OpenKeys(encryption.KmsClient):  # type: ignore[misc]
    """Keeps keys as they are."""

    def wrap_key(self, key: bytes, _: str) -> bytes:
        """Return the key."""
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _: str) -> bytes:
        """Return the key."""
        return base64.b64decode(wrapped)


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_an_encrypted_file_is_called_encrypted(plaintext_footer: bool, tmp_path: Path) -> None:
    """A file of which the footer or a column is encrypted stops the run with words about it."""
    chosen = encryption.EncryptionConfiguration("key", column_keys={"key": ["text"]}, plaintext_footer=plaintext_footer)
    factory = encryption.CryptoFactory(lambda _: OpenKeys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), chosen)
    table = pa.table({"text": ["a"]})
    with pq.ParquetWriter(tmp_path / "m.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    assert "it is encrypted, which is not supported" in str(count_rows(tmp_path / "m.parquet"))


# Names of columns


def test_a_repeated_name_matters_only_if_it_is_read(write: Callable[..., Path]) -> None:
    """Two columns of one name stop the run, with its name, if they are mapped, kept or read by default."""
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "title"])
    path = write(table)
    for options in ({}, {"columns": ColumnMap(text="text")}, {"columns": ColumnMap(text="title"), "keep": ("text",)}):
        with pytest.raises(ManifestError, match="2 columns with the name 'text'"):
            list(read_chunks(path, **options))
    assert read_rows(path, columns=ColumnMap(text="title")) == [(None, ["c"])]


def test_names_with_dots_and_cases(write: Callable[..., Path]) -> None:
    """A column is found by its exact name, also if the name is empty, has dots, or differs from another in case."""
    path = write({"a.b": ["1"], "": ["2"], "a": pa.array([{"b": "3"}]), "Text": ["4"], "text": ["5"], "TEXT": ["6"]})
    for name, value in {"a.b": "1", "": "2", "Text": "4", "text": "5", "TEXT": "6"}.items():
        assert read_rows(path, columns=ColumnMap(text=name)) == [(None, [value])]
    (chunk,) = read_chunks(path, keep=("a", "a.b", ""))
    assert chunk.staged["kept"].to_pylist() == [{"a": {"b": "3"}, "a.b": "1", "": "2"}]


# Ids and texts

UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (pa.array([Decimal(1), Decimal("12345678901234567890")], pa.decimal128(38, 0)), ["1", "12345678901234567890"]),
        (pa.array([Decimal("1" * 60)], pa.decimal256(70, 0)), ["1" * 60]),
        (pa.array([Decimal("1.50"), Decimal("2.00")], pa.decimal128(10, 2)), ["1.50", "2"]),
        (pa.array([Decimal("0.0000000001")], pa.decimal128(12, 10)), ["0.0000000001"]),
        (pa.array([1.0, -0.0, 2.5, 2.0**53 - 1]), ["1", "0", "2.5", "9007199254740991"]),
        (pa.array([1.0, 0.5], pa.float32()), ["1", "0.5"]),
        (pa.array(np.array([1, 1.5], np.float16)), ["1", "1.5"]),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID.bytes], pa.binary(16))), [str(UUID)]),
        (pa.array([b"abc", "天".encode()]), ["abc", "天"]),
        (pa.array([b"abc"], pa.large_binary()), ["abc"]),
        (pa.array([b"abc"], pa.binary_view()), ["abc"]),
        (pa.array([b"abc"], pa.binary(3)), ["abc"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
        (pa.array([date(2024, 1, 2)]), ["2024-01-02"]),
        (pa.array([datetime(2024, 1, 2, 3, 4, 5)]), ["2024-01-02T03:04:05"]),  # noqa: DTZ001 - without a zone
        (pa.array([time(3, 4)]), ["03:04:00"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([None, ""], pa.binary()), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_ids_are_their_text(cells: Any, ids: list[str | None], write: Callable[..., Path]) -> None:
    """Ids of every type that has one exact text are this text; numbers have no needless fraction."""
    path = write({"id": cells, "text": ["t"] * len(cells)})
    assert [row_id for row_id, _ in read_rows(path)] == ids


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (pa.array([True]), "a boolean: True"),
        (pa.array([{"a": 1}]), "an object"),
        (pa.array([[1]]), "a list"),
        (pa.array([float("nan")]), "a number: nan"),
        (pa.array([1e300]), "a number: 1e\\+300"),
        (pa.array([b"\xff\xfe\xfd"]), "bytes that are not text: <3 bytes, blake2b [0-9a-f]{32}>"),
        (pa.array([1], pa.duration("s")), "a timedelta"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_what_is_no_id(cell: Any, says: str, write: Callable[..., Path]) -> None:
    """A value without one exact text is a bad id, and the message says what it is."""
    (bad,) = read_bad(write({"id": cell, "text": ["t"]}))
    assert bad["code"] == "bad_id"
    with pytest.raises(AssertionError, match=f"found {says}"):
        raise AssertionError(bad["message"])


def test_numbers_of_rows_are_ids() -> None:
    """Floats of JSON are ids without a needless fraction, and decimals of negative scale, which Parquet lacks, are too."""
    parser = RowParser(ManifestOptions("x"), MODEL, "/")
    assert parser.parse({"id": 1.0, "text": "t"})[0] == "1"
    assert parser.parse({"id": Decimal("12E+3"), "text": "t"})[0] == "12000"
    assert isinstance(parser.parse({"id": Decimal("NaN"), "text": "t"})[1], Failure)


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["a b", "黑釉"]),
        pa.array(["a b", "黑釉"], pa.large_string()),
        pa.array(["a b", "黑釉"], pa.string_view()),
        pa.array([b"a b", "黑釉".encode()]),
        pa.array([b"a b", "黑釉".encode()], pa.large_binary()),
        pa.array([b"a b", "黑釉".encode()], pa.binary_view()),
        pa.array(["a b", "黑釉"]).dictionary_encode(),
        pa.array([b"a b", "黑釉".encode()]).dictionary_encode(),
        pa.array([["a b"], ["黑釉"]], pa.list_view(pa.string())),
        pa.array([[b"a b"], ["黑釉".encode()]], pa.list_view(pa.binary())),
        pa.array([[b"a b", None], ["黑釉".encode()]]),
    ],
    ids=lambda cells: str(cells.type),
)
def test_texts_of_every_type_are_texts(cells: Any, write: Callable[..., Path]) -> None:
    """Strings, UTF-8 bytes, dictionaries, and lists of them are sent as the same texts."""
    assert [parts for _, parts in read_rows(write({"text": cells}))] == [["a b"], ["黑釉"]]


def test_enums_are_texts(tmp_path: Path) -> None:
    """A column that Parquet calls ENUM, which Arrow reads as bytes, is text; the original row shows it as text."""
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"text": pa.array(["HELLO"])}, schema=pa.schema([pa.field("text", pa.string(), nullable=False)])), path, use_dictionary=False, store_schema=False)  # fmt: skip
    data = path.read_bytes()
    # The text's converted type UTF8 (0) becomes ENUM (4), and its logical type STRING (field 1) becomes ENUM (field 4).
    as_string, as_enum = b"\x25\x00\x4c\x1c", b"\x25\x08\x4c\x4c"
    assert data.count(as_string) == 1
    path.write_bytes(data.replace(as_string, as_enum))
    assert pq.read_schema(path).field("text").type == pa.binary()
    assert read_rows(path) == [(None, ["HELLO"])]
    (chunk,) = read_chunks(path)
    assert json.loads(chunk.staged["original"][0].as_py()) == {"text": "HELLO"}


def test_bytes_that_are_no_text(write: Callable[..., Path]) -> None:
    """A text that is not UTF-8 is a failure that shows its size and hash, but nothing of it."""
    secret = b"\xff\xfe" + b"private bytes" * 100
    bad = read_bad(write({"text": pa.array([secret, secret[:2] + b"\x00"])}))
    assert [row["code"] for row in bad] == ["bad_text", "bad_text"]
    assert "column text holds bytes that are not text" in bad[0]["message"]
    assert json.loads(bad[0]["original"])["text"].startswith(f"<{len(secret)} bytes, blake2b ")
    assert "private" not in str(bad)
    assert bad[0]["original"] != bad[1]["original"]


def test_a_value_that_its_type_does_not_allow_is_named(write: Callable[..., Path]) -> None:
    """Parquet does not check values: a time of 24:00 or a number with too many digits fails its row, with the column's name."""
    midnight = pa.array([86_400_000_000, 0], pa.time64("us"))
    digits = b"".join(number.to_bytes(16, "little") for number in (0, 99_999))
    number = pa.Array.from_buffers(pa.decimal128(3), 2, [None, pa.py_buffer(digits)])
    bad = read_bad(write({"text": ["a", "b"], "at": midnight, "size": number}), keep=("at", "size"))
    assert [(row["code"], row["message"]) for row in bad] == [
        ("bad_field", "column at holds a value that its type time64[us] does not allow"),
        ("bad_field", "column size holds a value that its type decimal128(3, 0) does not allow"),
    ]


def test_settings_and_bodies_may_be_bytes(write: Callable[..., Path]) -> None:
    """Bytes are text in columns of settings, and where a column holds JSON."""
    body = json.dumps({"input": [{"type": "text", "text": "a"}]}).encode()
    assert read_rows(write({"body": pa.array([body])})) == [(None, ["a"])]
    path = write({"text": ["a"], "how": pa.array([b"in brief"])})
    (chunk,) = read_chunks(path, columns=ColumnMap(text="text", instructions="how"))
    assert request_from_json(chunk.staged["request"][0].as_py()).request.instructions == "in brief"


@pytest.mark.parametrize("schema_bytes", [b"garbage", b"", base64.b64encode(b"no schema")])
def test_a_damaged_arrow_schema_in_the_footer(schema_bytes: bytes, tmp_path: Path) -> None:
    """The footer's copy of the Arrow schema may be damaged: Parquet's own schema is used, or the run stops."""
    path = tmp_path / "m.parquet"
    table = pa.table({"text": ["a"]}).replace_schema_metadata({b"ARROW:schema": schema_bytes})
    pq.write_table(table, path, store_schema=False)
    assert count_rows(path) == 1 or "m.parquet" in str(count_rows(path))


def test_row_groups_without_rows(tmp_path: Path) -> None:
    """Empty row groups, and files without rows or columns, have no rows."""
    path = tmp_path / "m.parquet"
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for texts in (["a"], [], ["b"], []):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    assert pq.read_metadata(path).num_row_groups == 4
    assert read_rows(path) == [(None, ["a"]), (None, ["b"])]
    for empty in (pa.table({"text": pa.array([], pa.string())}), pa.table({})):
        pq.write_table(empty, path)
        assert read_rows(path) == []


def test_modalities() -> None:
    """The parser says which of its columns hold media."""
    parser = RowParser(ManifestOptions("x", columns=ColumnMap(text="t", image=("i", "j"), video="v")), MODEL, "/")
    assert parser.media_columns == {"i", "j", "v"}
    assert RowParser(ManifestOptions("x"), MODEL, "/").media_columns == {Modality.IMAGE.value, Modality.VIDEO.value}
