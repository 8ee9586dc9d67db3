"""Kept columns: their types within a chunk, and one type for all shards."""

import datetime
import decimal
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.manifest.kept import build_kept, cast_kept, unify_kept
from hypothesis import given, settings
from hypothesis import strategies as st


def _kept(*cells: Any) -> pa.StructArray:
    return build_kept(["x"], [list(cells)])


def _type(*cells: Any) -> pa.DataType:
    return _kept(*cells).type.field("x").type


def _values(array: pa.StructArray) -> list[Any]:
    return [row["x"] for row in array.to_pylist()]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, None, 3], pa.int64()),
        ([1, 2.5], pa.float64()),
        (["a", None], pa.string()),
        ([True], pa.bool_()),
        (
            [{"a": [1], "b": {"c": "x"}}],
            pa.struct([("a", pa.list_(pa.int64())), ("b", pa.struct([("c", pa.string())]))]),
        ),
        ([None, None], pa.null()),
    ],
)
def test_types_are_inferred(cells: list[Any], kind: pa.DataType) -> None:
    """JSON values keep their type, also when nested, and are read back equal."""
    assert _type(*cells) == kind
    assert _values(_kept(*cells)) == cells


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        ([1, "a", None], ["1", "a", None]),
        ([{"a": 1}, {"a": "蓝"}], ['{"a":1}', '{"a":"蓝"}']),
        ([{}], ["{}"]),
        ([{"a": [{}]}], ['{"a":[{}]}']),
        ([2**64 - 1, -1], ["18446744073709551615", "-1"]),
        ([2**53 + 1, 0.5], ["9007199254740993", "0.5"]),
    ],
)
def test_values_that_share_no_type_become_text(cells: list[Any], texts: list[str | None]) -> None:
    """Strings stay as they are, other values become their JSON; so do values that Parquet can't store."""
    assert _values(_kept(*cells)) == texts


def test_objects_used_as_maps_do_not_make_a_column_of_each_key() -> None:
    """A struct has at most 256 fields."""
    assert pa.types.is_large_string(_type(*({f"key{index}": index} for index in range(257))))
    assert pa.types.is_struct(_type(*({f"key{index}": index} for index in range(256))))


_I, _F, _S, _L = pa.int64(), pa.float64(), pa.string(), pa.large_string()


@pytest.mark.parametrize(
    ("left", "right", "unified"),
    [
        (_I, _I, _I),
        (pa.null(), _I, _I),
        (_I, _F, _F),
        (pa.int32(), _I, _I),
        (_I, _S, _L),
        (pa.bool_(), _I, _L),
        (_S, _L, _L),
        (pa.null(), pa.null(), _L),
        (pa.list_(pa.null()), pa.list_(pa.null()), pa.list_(_L)),
        (pa.list_(pa.null()), pa.list_(_I), pa.list_(_I)),
        (pa.list_(_I), pa.list_(_F), pa.list_(_F)),
        (pa.list_(_I), _I, _L),
        (pa.struct([("a", _I)]), pa.struct([("b", _S)]), pa.struct([("a", _I), ("b", _S)])),
        (pa.struct([("a", _I)]), pa.struct([("a", _S)]), _L),
        (pa.uint64(), _I, _L),
        (pa.decimal128(5, 2), _I, _L),
        (pa.timestamp("us"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.timestamp("us"), pa.date32(), _L),
    ],
)
def test_types_of_shards_are_brought_together(left: pa.DataType, right: pa.DataType, unified: pa.DataType) -> None:
    """Nulls unify with anything, numbers widen, structs merge; types that don't unify without loss become text."""
    kinds = [pa.struct([("x", kind)]) for kind in (left, right)]
    assert unify_kept(kinds) == pa.struct([("x", unified)])
    assert unify_kept([pa.schema(list(kind)) for kind in kinds]) == pa.struct([("x", unified)])


def test_a_column_that_a_shard_lacks_is_null_there() -> None:
    """Columns keep the order in which they first appear."""
    kind = unify_kept([pa.struct([("x", _I)]), pa.struct([("y", _S), ("x", _I)])])
    assert kind == pa.struct([("x", _I), ("y", _S)])
    assert cast_kept(_kept(1), kind).to_pylist() == [{"x": 1, "y": None}]


def test_no_kept_columns_are_a_struct_of_none() -> None:
    """The length is right even without a column."""
    kind = unify_kept([])
    assert kind.num_fields == 0
    assert len(cast_kept(pa.nulls(3, kind), kind)) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (decimal.Decimal("1.50"), '"1.50"'),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (b"\x01\xff", '"01ff"'),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (1.5, "1.5"),
    ],
)
def test_what_becomes_text_is_json(value: Any, text: str) -> None:
    """Values of any Parquet type can be written as text, so that a type conflict never fails a run."""
    assert _values(cast_kept(_kept(value), pa.struct([("x", _L)]))) == [text]


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.lists(_json, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_json_of_any_shards_ends_in_one_table(shards: list[list[Any]]) -> None:
    """Whatever shards hold: their columns get one type, no row is lost, nulls stay null, and Parquet can write it."""
    arrays = [build_kept(["x"], [cells]) for cells in shards]
    kind = unify_kept([array.type for array in arrays])
    cast = [cast_kept(array, kind) for array in arrays]
    assert all(array.type == kind for array in cast)
    for cells, array in zip(shards, cast, strict=True):
        assert [value is None for value in _values(array)] == [value is None for value in cells]
    table = pa.table({"kept": pa.chunked_array(cast)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    assert pq.read_table(stream).num_rows == sum(map(len, shards))
