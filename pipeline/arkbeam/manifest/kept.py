"""Columns that are copied from the manifest to the output: one struct column, with one type for all shards in the end.

Parquet columns have types of their own; types of JSON values are inferred per chunk. If the types of a column can't be
unified, the column becomes text: strings stay as they are, other values become their JSON.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

# An object that is used as a map would otherwise become a struct with one field per key.
_LEAVES_MAX = 256
_TEXT = pa.large_string()


def build_kept(names: Sequence[str], cells: Sequence[Sequence[Any]]) -> pa.StructArray:
    """Build the struct column from Python values, one sequence of cells per name; types are inferred."""
    return _to_struct(names, [_infer(column) for column in cells])


def take_kept(columns: pa.RecordBatch, indices: Sequence[int]) -> pa.StructArray:
    """Build the struct column from some rows of columns that already have types."""
    taken = columns.take(pa.array(indices, pa.int64()))
    return _to_struct(columns.schema.names, taken.columns)


def _to_struct(names: Sequence[str], arrays: "Sequence[pa.Array[Any]]") -> pa.StructArray:
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.StructArray.from_arrays(list(arrays), fields=fields)


def _infer(cells: Sequence[Any]) -> "pa.Array[Any]":
    try:
        array: pa.Array[Any] = pa.array(cells)
    except (pa.ArrowException, OverflowError):
        return pa.array(map(_to_text, cells), _TEXT)
    if _count_leaves(array.type) > _LEAVES_MAX or _holds(array.type, _is_empty_struct):
        return pa.array(map(_to_text, cells), _TEXT)
    return array


class _NoValue:
    """The type of NO_VALUE, which equals only itself."""

    def __repr__(self) -> str:
        return "no value"


NO_VALUE = _NoValue()
"""What `to_python` returns for a cell that Python can't represent, such as a date after the year 9999."""


def to_python(column: "pa.Array[Any]") -> list[Any]:
    """Return the cells of a column as Python values."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell_to_python(column, index) for index in range(len(column))]
    return values


def _cell_to_python(column: "pa.Array[Any]", index: int) -> Any:
    try:
        return column[index].as_py()
    except (ValueError, OverflowError):
        return NO_VALUE


def _to_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, default=_to_json_value, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # nested too deeply for a JSON writer, or text with lone surrogates
        return ascii(value)


def _to_json_value(value: Any) -> Any:
    """Write Parquet values that JSON does not have: decimals, dates and durations as text, bytes in hex."""
    return value.hex() if isinstance(value, bytes) else str(value)


def unify_kept(kinds: Sequence[pa.StructType | pa.Schema]) -> pa.StructType:
    """Return one type for the kept columns of all shards; columns and fields keep the order in which they first appear.

    Null unifies with any type, integers widen to larger integers or to float, text to large text, and structs take the
    fields of both. Types that do not unify without loss become text. A column that holds only nulls becomes text too.
    """
    columns: dict[str, pa.DataType] = {}
    for kind in kinds:
        for index in range(len(kind) if isinstance(kind, pa.Schema) else kind.num_fields):
            column = kind.field(index)
            columns[column.name] = _unify(columns.get(column.name, pa.null()), column.type)
    return pa.struct([pa.field(name, _replace_nulls(kind)) for name, kind in columns.items()])


def _unify(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    if left.equals(right) or pa.types.is_null(right):
        return left
    if pa.types.is_null(left):
        return right
    if _holds(left, _is_lossy) or _holds(right, _is_lossy):
        return _TEXT
    schemas = [pa.schema([pa.field("x", kind)]) for kind in (left, right)]
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return _TEXT
    return _TEXT if _count_leaves(unified) > _LEAVES_MAX else unified


def _replace_nulls(kind: pa.DataType) -> pa.DataType:
    """Replace Arrow's null type by text, since few Parquet readers support it."""
    if pa.types.is_null(kind):
        return _TEXT
    if pa.types.is_struct(kind):
        return pa.struct([child.with_type(_replace_nulls(child.type)) for child in _children(kind)])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_replace_nulls(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_replace_nulls(kind.value_type)))
    return kind


def cast_kept(array: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    """Cast a shard's kept columns to the type that `unify_kept` returned; a column that the shard lacks becomes null."""
    if not kind.num_fields:
        return pa.nulls(len(array), kind)
    arrays: list[pa.Array[Any]] = []
    for index in range(kind.num_fields):
        target = kind.field(index)
        if array.type.get_field_index(target.name) < 0:
            arrays.append(pa.nulls(len(array), target.type))
        else:
            arrays.append(_cast(pc.struct_field(array, [target.name]), target.type))
    return pa.StructArray.from_arrays(arrays, fields=list(_children(kind)))


def _cast(column: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    if column.type.equals(target):
        return column
    if is_text(target) and not (is_text(column.type) or pa.types.is_null(column.type)):
        return pa.array(map(_to_text, to_python(column)), target)
    # safe=False: an integer above 2^53 may lose its last digits when its column widens to float.
    return column.cast(target, safe=False)


def is_text(kind: pa.DataType) -> bool:
    """True if a column of this type holds strings, in any of Arrow's layouts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_empty_struct(kind: pa.DataType) -> bool:
    """True for a struct without fields, which Parquet can't store."""
    return bool(pa.types.is_struct(kind) and kind.num_fields == 0)


def _is_lossy(kind: pa.DataType) -> bool:
    """True for types that Arrow would widen to a type that can't hold all of their values."""
    return bool(pa.types.is_uint64(kind) or pa.types.is_decimal(kind) or pa.types.is_temporal(kind))


def _holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    return test(kind) or any(_holds(child.type, test) for child in _children(kind))


def _count_leaves(kind: pa.DataType) -> int:
    return sum(_count_leaves(child.type) for child in _children(kind)) or 1


def _children(kind: pa.DataType) -> "list[pa.Field[Any]]":
    return [kind.field(index) for index in range(kind.num_fields)] if pa.types.is_nested(kind) else []
