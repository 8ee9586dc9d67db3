"""Types of kept columns: each value is the same in the type that all readers have."""

import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.manifest.portable import find_nanoseconds, portable_type, publish_kept, to_portable
from hypothesis import given
from hypothesis import strategies as st

_UUIDS = [uuid.UUID(int=1), None, uuid.UUID(int=2**128 - 1)]
_LONG = Decimal("1234567890123456789012345678901234567890.5")
_NUMBERS = pa.list_(pa.uint32())

CASES: list[tuple[pa.DataType, pa.DataType, list[Any]]] = [
    (pa.uint8(), pa.int16(), [255, None, 0]),
    (pa.uint16(), pa.int32(), [65_535, None, 0]),
    (pa.uint32(), pa.int64(), [2**32 - 1, None, 0]),
    (pa.uint64(), pa.decimal128(20, 0), [2**64 - 1, None, 0]),
    (pa.float16(), pa.float32(), [np.float16(1.5), None, np.float16(-65_504)]),
    (pa.time32("s"), pa.time64("us"), [datetime.time(23, 59, 59), None]),
    (pa.decimal256(38, 30), pa.decimal128(38, 30), [Decimal("1e-30"), None]),
    (pa.binary(4), pa.binary(), [b"a\x00b\x00", None]),
    (pa.string_view(), pa.string(), ["中", None]),
    (pa.list_(pa.uint64()), pa.list_(pa.decimal128(20, 0)), [[2**64 - 1, None], None, []]),
    (pa.large_list(pa.uint8()), pa.large_list(pa.int16()), [[1], None, []]),
    (pa.list_(pa.float32(), 2), pa.list_(pa.float32()), [[1.5, None], None, [2.5, 3.5]]),
    (pa.list_(pa.list_(pa.float16(), 2)), pa.list_(pa.list_(pa.float32())), [[[1.5, 2.5]], None, []]),
    (
        pa.struct([("a", pa.uint32()), ("b", _NUMBERS)]),
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.int64()))]),
        [{"a": 1, "b": [2]}, None, {"a": None, "b": None}],
    ),
    (pa.map_(pa.uint8(), pa.uint64()), pa.map_(pa.int16(), pa.decimal128(20, 0)), [[(1, 2), (3, None)], None, []]),
]
SAME = [
    pa.int8(), pa.string(), pa.large_string(), pa.bool_(), pa.float64(), pa.decimal128(38, 2), pa.time64("ns"), pa.date32(),
    pa.duration("us"), pa.timestamp("ns", "UTC"), pa.list_(pa.string()), pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.list_(pa.int64()))]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "target", "values"), CASES, ids=lambda one: str(one) if isinstance(one, pa.DataType) else ""
)
def test_no_value_changes(kind: pa.DataType, target: pa.DataType, values: list[Any]) -> None:
    """The values of a type that some readers lack are the same in the next larger one, also in slices of a column."""
    column = pa.array(values, kind)
    assert portable_type(kind).equals(target)
    for part in (column, column.slice(1), column.slice(0, 1), column.slice(0, 0)):
        cast = to_portable(part, target)
        cast.validate(full=True)
        assert cast.type.equals(target)
        assert cast.to_pylist() == part.to_pylist()


@pytest.mark.parametrize("kind", SAME, ids=str)
def test_types_that_readers_have_stay(kind: pa.DataType) -> None:
    """A type that readers have is published as it is, and its column is not copied."""
    column = pa.nulls(3, kind)
    assert portable_type(kind).equals(kind)
    assert to_portable(column, kind) is column


@pytest.mark.parametrize("nested", [False, True])
def test_what_no_other_type_holds_becomes_text(nested: bool) -> None:
    """UUIDs and decimals of more than 38 digits become their text, without exponents; null stays null."""
    for kind, values, texts in (
        (pa.uuid(), [one and one.bytes for one in _UUIDS], [one and str(one) for one in _UUIDS]),
        (pa.decimal256(50, 1), [_LONG, None], [str(_LONG), None]),
        (pa.decimal256(76, 72), [Decimal("1e-70"), None], [f"{Decimal('1e-70'):.72f}", None]),
    ):
        column = pa.array(values, kind)
        if nested:
            column = pa.ListArray.from_arrays([0, len(values), len(values)], column)
        target = portable_type(column.type)
        assert to_portable(column, target).to_pylist() == ([texts, []] if nested else texts)


@given(st.lists(st.none() | st.integers(0, 2**64 - 1)))
def test_uint64_keeps_every_digit(values: list[int | None]) -> None:
    """Every unsigned integer of 64 bits is the same as a decimal."""
    column = to_portable(pa.array(values, pa.uint64()), pa.decimal128(20, 0))
    assert [None if one is None else int(one) for one in column.to_pylist()] == values


@given(
    st.lists(
        st.lists(st.none() | st.integers(-(2**62), 2**62).map(lambda one: one // 10**3 * 10**3) | st.integers(0, 9)),
        max_size=4,
    )
)
def test_nanoseconds_stay_where_a_value_needs_them(chunks: list[list[int | None]]) -> None:
    """A timestamp column in ns becomes one in µs if all values of all chunks are whole µs; no value changes in either case."""
    kind = pa.struct([("t", pa.timestamp("ns", "UTC")), ("other", pa.int64())])
    columns = [
        pa.StructArray.from_arrays(
            [pa.array(one, pa.int64()).cast(kind[0].type), pa.nulls(len(one), pa.int64())], fields=list(kind)
        )
        for one in chunks
    ]
    needed = set().union(*map(find_nanoseconds, columns))
    exact = all(value is None or value % 1000 == 0 for one in chunks for value in one)
    assert needed == (set() if exact else {"t"})
    published = publish_kept(kind, needed)
    assert published.equals(pa.struct([("t", pa.timestamp("us" if exact else "ns", "UTC")), kind[1]]))
    for one, column in zip(chunks, columns, strict=True):
        cast = to_portable(column.field(0), published[0].type).cast(pa.int64()).to_pylist()
        assert cast == [value if value is None or not exact else value // 1000 for value in one]


@pytest.mark.parametrize("value", [1_000, 1_001])
@pytest.mark.parametrize(
    "make",
    [pa.list_, lambda kind: pa.struct([("t", kind)]), lambda kind: pa.map_(pa.string(), kind)],
)
def test_nanoseconds_are_found_inside_other_types(make: Callable[[pa.DataType], pa.DataType], value: int) -> None:
    """The same holds for timestamps inside lists, structs and maps."""
    kind, count = make(pa.timestamp("ns")), make(pa.int64())
    inner: Any = {"t": value} if pa.types.is_struct(kind) else [("k", value)] if pa.types.is_map(kind) else [value]
    column = pa.array([inner, None], count).cast(kind)
    kept = pa.StructArray.from_arrays([column], ["x"])
    needed = find_nanoseconds(kept)
    assert needed == ({"x"} if value % 1000 else set())
    (field,) = publish_kept(kept.type, needed)
    assert field.type.equals(make(pa.timestamp("ns" if needed else "us")))
    assert to_portable(column, field.type).cast(kind).equals(column)
