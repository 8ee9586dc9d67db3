"""Kept columns: each value ends in the output unchanged, in one type, however files are cut into chunks and shards."""

import datetime
import io
import json
import math
import pickle
import time
from collections.abc import Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from arkbeam.manifest.common_type import common_type
from arkbeam.manifest.jsonl_rows import read_jsonl
from arkbeam.manifest.kept import Kept, build_kept, cast_kept, merge_kinds, take_kept, type_of_kept
from arkbeam.manifest.kinds import NO_ROWS, Kind, merge
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.widening import plain_type, widen
from hypothesis import given, settings
from hypothesis import strategies as st

Chunk: TypeAlias = Sequence[str] | pa.Array
"""Cells as JSON, or with a type as in Parquet."""


def _read_json(cells: Sequence[str], name: str = "x") -> Kept:
    lines = [f"{{{json.dumps(name)}: {cell}}}".encode() for cell in cells]
    (batch,) = read_jsonl(iter(lines), ManifestOptions("m.jsonl"))
    rows: list[Any] = batch.rows
    return build_kept([name], [[row[name] for row in rows]], lines)


def _read(chunk: Chunk) -> Kept:
    if isinstance(chunk, pa.Array):
        return take_kept(pa.RecordBatch.from_arrays([chunk], names=["x"]), range(len(chunk)))
    return _read_json(chunk)


def _stage(kept: Kept) -> pa.StructArray:
    """Write staged columns to a file and read them, as a run does."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"kept": kept.columns}), stream)
    return pq.read_table(stream)["kept"].combine_chunks()


def publish(*chunks: Chunk) -> pa.Array:
    """Return the published column of some chunks."""
    kinds: dict[str, Kind] = {}
    staged = []
    for chunk in chunks:
        kept = _read(chunk)
        kinds = merge_kinds(kinds, kept.kinds)
        staged.append(_stage(kept))
    target = type_of_kept(kinds)
    columns = [cast_kept(array, target).field(0) for array in staged]
    for column in columns:
        column.validate(full=True)
    pq.write_table(pa.table({"x": pa.chunked_array(columns)}), io.BytesIO())
    return pa.concat_arrays(columns)


_L = pa.large_string()
_DIGITS_30 = "123456789012345678901234567890"


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "null", "3"], pa.int64(), [1, None, 3]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (['"a"', "null"], pa.string(), ["a", None]),
        (["true"], pa.bool_(), [True]),
        (["null", "null"], _L, [None, None]),
        (['"null"', "null"], pa.string(), ["null", None]),
        (["1", '"a"', "null"], _L, ["1", "a", None]),
        (["1", '"1"', "true", "1.5"], _L, ["1", "1", "true", "1.5"]),
        (["true", "1"], _L, ["true", "1"]),
        (["-0.0", "1"], pa.float64(), [-0.0, 1.0]),
        (["-0.0", '"a"'], _L, ["-0.0", "a"]),
        (["9007199254740993", "0.5"], _L, ["9007199254740993", "0.5"]),
        (["9007199254740992", "0.1"], pa.float64(), [2.0**53, 0.1]),
        (["1", "18446744073709551615"], pa.uint64(), [1, 2**64 - 1]),
        (["-1", "18446744073709551615"], pa.decimal128(38, 0), [Decimal(-1), Decimal(2**64 - 1)]),
        ([_DIGITS_30, "1"], pa.decimal128(38, 0), [Decimal(_DIGITS_30), Decimal(1)]),
        ([f"-{_DIGITS_30}"], pa.decimal128(38, 0), [Decimal(f"-{_DIGITS_30}")]),
        ([_DIGITS_30, "1.5"], _L, [_DIGITS_30, "1.5"]),
        (["1" * 40, "2"], _L, ["1" * 40, "2"]),
        (["1" * 5_000], _L, ["1" * 5_000]),
        (["1e400", "1.5"], _L, ["1e400", "1.5"]),
        (["1e-400"], _L, ["1e-400"]),
        (["0.30000000000000001"], _L, ["0.30000000000000001"]),
        (["0.1000000000000000055511151231257827"], pa.float64(), [0.1]),
        (["0.10000000000000001"], pa.float64(), [0.1]),
        (["12.50", "1E2", "1e-7"], pa.float64(), [12.5, 100.0, 1e-7]),
        (["NaN", "2.5", "-Infinity"], pa.float64(), [None, 2.5, None]),
        (["NaN", '"a"'], pa.string(), [None, "a"]),
        (["[1, NaN]", "[2.5]"], pa.list_(pa.float64()), [[1.0, None], [2.5]]),
        (["[1, 2]", "[0.5]"], pa.list_(pa.float64()), [[1.0, 2.0], [0.5]]),
        (["[9007199254740993]", "[0.5]"], _L, ["[9007199254740993]", "[0.5]"]),
        ([f"[{_DIGITS_30}]", "[1]"], pa.list_(pa.decimal128(38, 0)), [[Decimal(_DIGITS_30)], [Decimal(1)]]),
        (['{"a": 0.30000000000000001}'], _L, ['{"a":0.30000000000000001}']),
        (["[]", "null"], pa.list_(_L), [[], None]),
        (["{}", '{"a": 1}'], pa.struct([("a", pa.int64())]), [{"a": None}, {"a": 1}]),
        (["{}"], _L, ["{}"]),
        (['{"a": [{}]}'], _L, ['{"a":[{}]}']),
        (['{"a": 1}', '{"a": "蓝"}'], _L, ['{"a":1}', '{"a":"蓝"}']),
        (['{"a": 1}', "7", '"s"', "[1]"], _L, ['{"a":1}', "7", "s", "[1]"]),
        (
            ['{"b": 1}', '{"a": "x"}'],
            pa.struct([("b", pa.int64()), ("a", pa.string())]),
            [{"b": 1, "a": None}, {"b": None, "a": "x"}],
        ),
        (["[" * 99 + "]" * 99 + " "], None, None),
        (["[" * 200 + "]" * 200], _L, ["[" * 200 + "]" * 200]),
        (["{" + ",".join(f'"k{n}":{n}' for n in range(257)) + "}"], _L, None),
    ],
)
def test_json_values_are_published_as_they_are(cells: list[str], kind: pa.DataType | None, values: Any) -> None:
    """In one chunk, and with each cell in a chunk of its own, the type is the same and holds each value exactly."""
    whole = publish(cells)
    assert kind is None or whole.type == kind
    if values is not None:
        assert whole.to_pylist() == values
        assert list(map(str, whole.to_pylist())) == list(map(str, values))  # -0.0 and 0.0, 1 and True are equal
    apart = publish(*([cell] for cell in cells))
    assert apart.type == whole.type
    assert apart.equals(whole)


_D = Decimal


def _at(unit: str, *values: int | None, tz: str | None = None) -> pa.Array:
    return pa.array(values, pa.timestamp(unit, tz))


def _uuid(number: int) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), pa.array([number.to_bytes(16)], pa.binary(16)))


_YEAR_9999 = 253_402_300_799  # its last second
_NS = 1_714_566_600_123_456_789


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([_at("ns", _NS), _at("us", 5)], _at("ns", _NS, 5_000)),
        ([_at("ns", _NS), _at("us", _YEAR_9999 * 10**6)], ["2024-05-01T12:30:00.123456789", "9999-12-31T23:59:59"]),
        ([_at("ns", 7_000), _at("us", _YEAR_9999 * 10**6)], _at("us", 7, _YEAR_9999 * 10**6)),
        ([_at("us", 5, tz="UTC"), _at("ms", 5, tz="UTC")], _at("us", 5, 5_000, tz="UTC")),
        ([_at("us", 0, tz="UTC"), _at("us", 0)], ["1970-01-01T00:00:00+00:00", "1970-01-01T00:00:00"]),
        (
            [_at("ms", 0, tz="UTC"), _at("ms", 5, tz="Asia/Shanghai")],
            ["1970-01-01T00:00:00+00:00", "1970-01-01T08:00:00.005+08:00"],
        ),
        (
            [_at("ms", 10**14, -(10**14)), ['"x"']],
            ["5138-11-16T09:46:40", "-1199-02-15T14:13:20", "x"],
        ),
        ([_at("ms", 253_402_300_800_000), ['"x"']], ["10000-01-01T00:00:00", "x"]),
        ([pa.array([19723], pa.date32()), ['"2024-01-02"']], ["2024-01-01", "2024-01-02"]),
        ([pa.array([10**7, -(10**6)], pa.date32()), ["1"]], ["29349-01-26", "-768-02-04", "1"]),
        ([pa.array([0], pa.date32()), _at("us", 0)], ["1970-01-01", "1970-01-01T00:00:00"]),
        (
            [pa.array([1], pa.time64("ns")), pa.array([3_600_000], pa.time32("ms"))],
            pa.array([1, 3_600 * 10**9], pa.time64("ns")),
        ),
        ([pa.array([1], pa.time64("ns")), ["1"]], ["00:00:00.000000001", "1"]),
        ([pa.array([5], pa.duration("us")), pa.array([5], pa.duration("ns"))], pa.array([5_000, 5], pa.duration("ns"))),
        ([pa.array([86_400_000, -1_500], pa.duration("ms")), ['"x"']], ["PT86400S", "-PT1.500S", "x"]),
        (
            [pa.array([_D("1.50")], pa.decimal128(5, 2)), pa.array([_D("12.7500")], pa.decimal128(10, 4))],
            pa.array([_D("1.5000"), _D("12.7500")], pa.decimal128(10, 4)),
        ),
        ([pa.array([_D("1.50")], pa.decimal128(5, 2)), ["7"]], pa.array([_D("1.50"), _D("7.00")], pa.decimal128(22, 2))),
        (
            [pa.array([_D("1.5")], pa.decimal128(38, 37)), pa.array([7], pa.int64())],
            pa.array([_D("1.5"), _D(7)], pa.decimal128(38, 37)),
        ),
        (
            [pa.array([_D(1)], pa.decimal128(38, 0)), pa.array([_D("0.5")], pa.decimal128(38, 30))],
            pa.array([_D(1), _D("0.5")], pa.decimal256(68, 30)),
        ),
        ([pa.array([_D(1)], pa.decimal256(76, 0)), pa.array([_D("0.5")], pa.decimal128(2, 1))], ["1", "0.5"]),
        ([pa.array([_D("1.50")], pa.decimal128(5, 2)), ["7.5"]], ["1.50", "7.5"]),
        ([pa.array([_D("1E-9")], pa.decimal128(9, 9)), ['"x"']], ["0.000000001", "x"]),
        ([_uuid(5), _uuid(6)], pa.concat_arrays([_uuid(5), _uuid(6)])),
        ([_uuid(5), ['"abc"']], ["00000000-0000-0000-0000-000000000005", "abc"]),
        ([pa.array([b"\x01\xff"]), ["1"]], ["01ff", "1"]),
        ([pa.array([b"\xff"]), ['"蓝"']], pa.array([b"\xff", "蓝".encode()])),
        ([pa.array([b"ab"], pa.binary(2)), pa.array([b"abc"])], pa.array([b"ab", b"abc"])),
        ([pa.array([0.1], pa.float32()), ['"a"']], ["0.1", "a"]),
        ([pa.array([0.1], pa.float32()), pa.array([0.1])], pa.array([0.10000000149011612, 0.1])),
        ([pa.array([0.5], pa.float16()), pa.array([2], pa.int8())], pa.array([0.5, 2.0], pa.float16())),
        ([pa.array([0.5], pa.float32()), pa.array([2], pa.int16())], pa.array([0.5, 2.0], pa.float32())),
        ([pa.array([2**53 + 1]), pa.array([1.0])], ["9007199254740993", "1.0"]),
        ([pa.array([math.nan, math.inf, -math.inf]), ['"a"']], ["NaN", "Infinity", "-Infinity", "a"]),
        ([pa.array([1], pa.uint64()), pa.array([-1])], pa.array([1, -1])),
        (
            [pa.array([2**64 - 1], pa.uint64()), pa.array([-1], pa.int8())],
            pa.array([_D(2**64 - 1), _D(-1)], pa.decimal128(38, 0)),
        ),
        ([pa.array([1], pa.uint32()), pa.array([-1], pa.int8())], pa.array([1, -1])),
        ([pa.array([1], pa.int32()), pa.array([2], pa.int16())], pa.array([1, 2], pa.int32())),
        ([pa.array([True]), ["1"]], ["true", "1"]),
        ([pa.array([None], pa.int64()), ['"a"']], pa.array([None, "a"])),
        ([pa.array([], pa.int64()), ["true"]], pa.array([True])),
        ([pa.array([None], pa.float64()), [str(2**60)]], pa.array([None, 2**60])),
        ([pa.array([[1], None], pa.list_view(pa.int8()))], pa.array([[1], None], pa.list_(pa.int8()))),
        (
            [pa.array([["a"], None, ["b", None]], pa.list_view(pa.dictionary(pa.int8(), pa.string())))],
            pa.array([["a"], None, ["b", None]], pa.list_(pa.string())),
        ),
        (
            [pa.array([["a"], None], pa.large_list_view(pa.string())), ['["b"]']],
            pa.array([["a"], None, ["b"]], pa.large_list(pa.string())),
        ),
        ([pa.array([[1, 2]], pa.list_(pa.int8(), 2)), ["[0.5]"]], pa.array([[1.0, 2.0], [0.5]])),
        ([pa.array([[1, 2]], pa.list_(pa.int8(), 2)), ["null"]], pa.array([[1, 2], None], pa.list_(pa.int8()))),
        (
            [
                pa.array([[1, None]], pa.list_(pa.dictionary(pa.int8(), pa.int64()), 2)),
                pa.array([[3, 4]], pa.list_(pa.int64(), 2)),
            ],
            pa.array([[1, None], [3, 4]], pa.list_(pa.int64(), 2)),
        ),
        (
            [pa.array([[("a", 1)], None], pa.map_("string", "int8")), pa.array([[("b", 0.5)]], pa.map_("string", "double"))],
            pa.array([[("a", 1.0)], None, [("b", 0.5)]], pa.map_("string", "double")),
        ),
        ([pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_("string", "int8")), ["1"]], ['{"a":1}', '[["a",1],["a",2]]', "1"]),
        ([pa.array(["a", "b"]).dictionary_encode(), ["1"]], ["a", "b", "1"]),
        ([pc.run_end_encode(pa.array(["a", "a", None]))], pa.array(["a", "a", None])),
        ([pa.array(["a"], pa.string_view()), pa.array(["b"])], pa.array(["a", "b"])),
        ([pa.array(["a"], _L), ['"b"']], ["a", "b"]),
        ([pa.array(["a"]), pa.array([1])], ["a", "1"]),
        (
            [pa.array([{"a": 1, "t": datetime.datetime(2024, 1, 1), "b": b"\xff", "f": math.nan}]), ["1"]],  # noqa: DTZ001
            ['{"a":1,"t":"2024-01-01T00:00:00","b":"ff","f":"NaN"}', "1"],
        ),
        (
            [pa.array([{"a": 1}, None], pa.struct([pa.field("a", pa.int8(), nullable=False)])), ['{"b": "x"}']],
            pa.array(
                [{"a": 1, "b": None}, None, {"a": None, "b": "x"}], pa.struct([("a", pa.int8()), ("b", pa.string())])
            ),
        ),
        (
            [pa.array([{"t": 5}], pa.struct([("t", pa.timestamp("ns"))])), pa.array([{"t": 5}], pa.struct([("t", pa.timestamp("us"))]))],
            pa.array([{"t": 5}, {"t": 5_000}], pa.struct([("t", pa.timestamp("ns"))])),
        ),
        ([pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0], pa.int8())), ["true"]], pa.array([True, False, True])),
        ([pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a":1}'])), ['"x"']], pa.array(['{"a":1}', "x"])),
        (
            [pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "t", "v"), pa.array([7], pa.int32())), ["8"]],
            pa.array([7, 8]),
        ),
        ([pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "t", "v"), pa.array([7], pa.int32())), ['"x"']], ["7", "x"]),
        (
            [pa.ExtensionArray.from_storage(pa.opaque(pa.list_(pa.int8()), "t", "v"), pa.array([[7]], pa.list_(pa.int8()))), ["8"]],
            ["[7]", "8"],
        ),
        ([pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())), ['"x"']], ["true", "x"]),
        ([pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), ["3"]], ['[["a",1],["a",2]]', "3"]),
    ],
)  # fmt: skip
def test_types_that_differ_are_widened_or_become_text(chunks: list[Chunk], expected: Any) -> None:
    """Two files give one type that holds all values exactly; if there is none, the text of each value."""
    wanted = expected if isinstance(expected, pa.Array) else pa.array(expected, _L)
    found = publish(*chunks)
    assert found.type == wanted.type
    assert found.equals(wanted)
    assert publish(*reversed(chunks)).type == found.type or pa.types.is_struct(found.type)


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.string(), _L, pa.binary(), pa.binary(3), pa.bool_(),
        pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.timestamp("us", "Asia/Shanghai"), pa.duration("ns"),
        pa.decimal128(38, 10), pa.decimal256(60, 2), pa.uuid(), pa.json_(), pa.list_(pa.float32(), 2), pa.large_list(pa.string()),
        pa.list_(pa.field("element", pa.int32(), nullable=False)), pa.map_(pa.string(), pa.int32()),
        pa.struct([pa.field("a", pa.int32(), nullable=False), pa.field("b", pa.list_(pa.timestamp("ns")))]),
    ],
    ids=str,
)  # fmt: skip
def test_a_type_that_all_files_share_is_kept(kind: pa.DataType) -> None:
    """The type stays what it is, nested nullability included, also if some chunks have nulls or no rows."""
    chunks = [pa.nulls(2, kind), pa.array([], kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)]
    kinds = merge_kinds(_read(chunks[0]).kinds, _read(pa.nulls(0, kind)).kinds)
    assert type_of_kept(kinds).field("x").type == kind
    assert pa.nulls(1, kind).type == type_of_kept(merge_kinds({"x": NO_ROWS}, kinds)).field("x").type


def test_a_column_that_a_shard_lacks_is_null_there() -> None:
    """Columns keep the order in which they first appear, and are in the schema even without any value."""
    kinds = merge_kinds({"gone": NO_ROWS, "x": NO_ROWS}, {"y": _read(["1"]).kinds["x"], **_read(["1"]).kinds})
    target = type_of_kept(kinds)
    assert target == pa.struct([("gone", _L), ("x", pa.int64()), ("y", pa.int64())])
    assert cast_kept(_stage(_read(["1"])), target).to_pylist() == [{"gone": None, "x": 1, "y": None}]


def test_no_kept_columns_are_a_struct_of_none() -> None:
    """The length is right even without a column."""
    kind = type_of_kept({})
    assert kind.num_fields == 0
    assert len(cast_kept(pa.nulls(3, kind), kind)) == 3


def test_values_that_are_not_finite_are_counted() -> None:
    """Each NaN or Infinity counts, also in lists and objects; a number beyond a double's range is not one of them."""
    kept = _read(["NaN", "Infinity", "1", "[1, NaN, -Infinity]", '{"a": NaN}', "1e999", "null"])
    assert kept.not_finite == 5
    assert _stage(kept).field(0).storage.to_pylist() == [
        None, None, "1", "[1,null,null]", '{"a":null}', "1e999", None,
    ]  # fmt: skip


def test_a_type_of_ours_in_a_file_is_plain_text() -> None:
    """A Parquet file may claim to hold the type of staged JSON: its texts are texts, and are not parsed."""
    staged = _read(["1", '"a"']).columns.field(0)
    assert plain_type(pa.list_(staged.type)) == pa.list_(_L)
    assert publish(staged).equals(pa.array(["1", '"a"'], _L))
    assert widen(staged, _L).to_pylist() == ["1", '"a"']


@pytest.mark.parametrize(
    "name", ["a.b", "", " ", '"', "\\", "蓝", "🎈", "a\nb", "price: 1", "x" * 500, "id)", "[x]", "é"]
)
def test_any_name_of_a_column(name: str) -> None:
    """Numbers are found in the line by the column's name, whatever characters it has and however it is escaped."""
    for ascii_only in (True, False):
        for cell in ("0.30000000000000001", _DIGITS_30, '[{"z":0.30000000000000001}]'):
            key = json.dumps(name, ensure_ascii=ascii_only)
            for before in ("", f'"other": {{{key}: 0.3}}, '):
                line = f"{{{before}{key} :{cell} }}".encode()
                found = build_kept([name], [[orjson.loads(line)[name]]], [line])
                array = cast_kept(_stage(found), type_of_kept(found.kinds)).field(0)
                assert array.cast(_L).to_pylist() == [cell]


def test_a_name_that_is_found_in_a_text_only() -> None:
    """A value behind what only looks like the column's name is not taken for the column's."""
    line = rb'{"z": ["x",":5"], "\u002c": 0.30000000000000001}'
    found = build_kept([","], [[orjson.loads(line)[","]]], [line])
    assert found.columns.field(0).storage.to_pylist() == ["0.30000000000000001"]


def test_thousands_of_columns_take_time_in_proportion() -> None:
    """One row with 6,000 kept columns takes well under a second; time that grows with the square took half a minute."""
    names = [f"c{number}" for number in range(6_000)]
    started = time.process_time()
    kept = build_kept(names, [[number] for number in range(6_000)], [b"{}"])
    found = cast_kept(kept.columns, type_of_kept(merge_kinds(kept.kinds, kept.kinds)))
    assert time.process_time() - started < 5
    assert found.to_pylist() == [{name: number for number, name in enumerate(names)}]


def test_thousands_of_columns_of_floats_take_time_in_proportion() -> None:
    """Lines are not searched once for each column, and no digit is lost, also beside a cell that is nested very deeply."""
    digits = "0.30000000000000001"
    names = [f"c{number}" for number in range(3_000)]
    fields = "".join(f', "{name}": {digits}' for name in names)
    lines = [f'{{"x": {cell}{fields}}}'.encode() for cell in ["1"] * 19 + ["[" * 1_000 + "]" * 1_000]]
    rows = [orjson.loads(line) for line in lines]
    started = time.process_time()
    found = build_kept(names, [[row[name] for row in rows] for name in names], lines)
    assert time.process_time() - started < 6
    for column in found.columns.flatten():
        assert column.storage.to_pylist() == [digits] * len(rows)


_long_numbers = st.builds(
    lambda sign, whole, fraction, exponent: f"{sign}{whole}{fraction}{exponent}",
    st.sampled_from(["", "-"]),
    st.integers(0, 10**40).map(str) | st.integers(0, 10**3).map(str),
    st.sampled_from(["", ".0", ".5", ".1", ".30000000000000001", ".1234567890123456789", ".10000000000000001"]),
    st.sampled_from(["", "", "", "e5", "E-7", "e-400", "e400", "e22"]),
)
_scalars = st.one_of(
    st.sampled_from(["null", "true", "false", '"a"', '"1"', "NaN", "-Infinity", "0", "-0.0", "1"]),
    st.integers(-(2**64), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-1e9, 1e9).map("{:.20f}".format),
    _long_numbers,
)
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda cells: f"[{', '.join(cells)}]")
        | st.dictionaries(st.sampled_from("abx"), inner, max_size=3).map(
            lambda fields: "{" + ", ".join(f'"{name}": {cell}' for name, cell in fields.items()) + "}"
        )
    ),
    max_leaves=6,
)


def _same_number(text: str, value: Any) -> bool:
    """True if a published number is the number that JSON wrote: the same decimal, or the double that was written."""
    if not isinstance(value, float):
        return Decimal(text) == Decimal(value)
    digits = Decimal(text)
    return float(text) == value and (
        Decimal(repr(value)) == digits or f"{Decimal(value):.{-int(digits.as_tuple().exponent)}f}" == f"{digits:f}"
    )


def _is_same(cell: str, published: Any, kind: pa.DataType) -> bool:
    """Compare JSON with the published value, by a parser that knows numbers of any length."""
    value = json.loads(cell, parse_int=_Number, parse_float=_Number, parse_constant=lambda _: None)
    if kind == _L and not isinstance(value, str) and isinstance(published, str):
        if isinstance(value, _Number):
            return _same_number(value.text, published)
        published = json.loads(published, parse_int=_Number, parse_float=_Number)
    return _equal(value, published)


class _Number:
    """A number as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text


def _equal(value: Any, published: Any) -> bool:
    if isinstance(value, _Number):
        number = published.text if isinstance(published, _Number) else published
        return not isinstance(number, bool) and _same_number(value.text, number)
    if isinstance(value, list):
        return isinstance(published, list) and len(value) == len(published) and all(map(_equal, value, published))
    if isinstance(value, dict):
        return isinstance(published, dict) and all(_equal(value.get(name), one) for name, one in published.items())
    return type(value) is type(published) and bool(value == published)


@settings(deadline=None, max_examples=150)
@given(st.lists(_json, min_size=1, max_size=8), st.data())
def test_any_json_is_published_exactly_however_it_is_cut(cells: list[str], data: st.DataObject) -> None:
    """Each value equals the JSON that was written, and type and values are the same for all cuts into chunks."""
    whole = publish(cells)
    for cell, value in zip(cells, whole.to_pylist(), strict=True):
        assert _is_same(cell, value, whole.type), (cell, value, whole.type)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(cells) - 1)))) if len(cells) > 1 else []
    bounds = [0, *cuts, len(cells)]
    cut = publish(*(cells[low:high] for low, high in pairwise(bounds)))
    assert cut.type == whole.type
    assert cut.equals(whole)


_REQUIRED = pa.struct([pa.field("a", pa.float64(), nullable=False)])
_arrays = st.sampled_from(
    [
        *(pa.array([0, 127, None], kind) for kind in (pa.int8(), pa.uint32(), pa.int64(), pa.float32(), pa.float64())),
        pa.array([2**63, 2**64 - 1], pa.uint64()), *(pa.array(values) for values in ([-(2**63)], [2**53 + 1], [0.1, math.nan], [True], ["ab"], [b"ab"])),
        *(_at(unit, 0, 2**62) for unit in ("ms", "us", "ns")),
        *(pa.array([0, 86_399, None], kind) for kind in (pa.date32(), pa.time32("s"), pa.duration("s"), pa.duration("ns"))),
        *(pa.array([_D("1.5"), None], kind) for kind in (pa.decimal128(10, 2), pa.decimal128(38, 20), pa.decimal256(70, 3))),
        *(pa.nulls(2, kind) for kind in (pa.null(), pa.int64(), pa.list_(pa.int8()), pa.large_string(), pa.map_("string", "int64"))),
        pa.array([b"ab"], pa.binary(2)), _at("ms", 5, tz="UTC"), _uuid(5), pa.array([], pa.bool_()),
        pa.array([[1], [], None]), pa.array([["a", "b"]], pa.list_(pa.string(), 2)), pa.array([[("a", 1)]], pa.map_("string", "int64")),
        pa.array([{"a": 1}, None]), pa.array([{"a": None}, {"a": None}], pa.struct([("a", pa.int64())])),
        pa.array([{"b": "x", "a": [1]}]), pa.array([{"a": 1.5}], _REQUIRED),
    ]
)  # fmt: skip


_kinds = st.one_of(
    st.lists(_json, max_size=3).map(lambda cells: _read_json(cells).kinds["x"] if cells else NO_ROWS),
    _arrays.map(lambda array: _read(array).kinds["x"]),
)


@settings(deadline=None, max_examples=120)
@given(_kinds, _kinds, _kinds)
def test_kinds_are_merged_in_any_order(a: Kind, b: Kind, c: Kind) -> None:
    """`merge` is associative, and commutative but for the order of fields; a Kind survives the way between processes."""
    assert pickle.loads(pickle.dumps(a)) == a
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, a) == a
    assert common_type(merge(a, NO_ROWS)) == common_type(a)
    left, right = common_type(merge(a, b)), common_type(merge(b, a))
    assert left == right or (pa.types.is_nested(left) and set(str(left)) == set(str(right)))


@settings(deadline=None, max_examples=60)
@given(st.lists(_arrays, min_size=2, max_size=3), st.lists(_json, min_size=1, max_size=2))
def test_any_types_end_in_one_column(arrays: list[pa.Array], cells: list[str]) -> None:
    """Whatever files hold: the column gets one type, no row is lost, nulls stay null, and Parquet can write it."""
    chunks: list[Chunk] = [*arrays, cells]
    found = publish(*chunks)
    nulls = [value for chunk in chunks for value in _read(chunk).columns.field(0).is_null().to_pylist()]
    assert found.is_null().to_pylist() == nulls
