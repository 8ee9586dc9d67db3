"""Columns that are copied from the manifest to the output: one struct column, with one type for all shards in the end.

Parquet columns, and JSON columns whose cells in a chunk are strings, booleans, integers or floats only, are staged in
these types. All other JSON is staged as JSON, so that no cell changes before the type of the whole column is known.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from arkbeam.manifest.common_type import TEXT, common_type
from arkbeam.manifest.kinds import NO_ROWS, STRINGS, Kind, kind_of_array, kind_of_values, merge
from arkbeam.manifest.numbers import ExactNumber, NumberRestorer
from arkbeam.manifest.texts import text_array
from arkbeam.manifest.widening import JSON_TEXT, plain_type, widen

_TEXT_OR_NULL = {str, type(None)}
_PLAIN: Mapping[type, pa.DataType] = {bool: pa.bool_(), float: pa.float64()}


class JsonText(pa.ExtensionType):  # type: ignore[misc]
    """Cells as JSON, until the type of their column is known. Used in staged rows only."""

    def __init__(self) -> None:
        super().__init__(TEXT, JSON_TEXT)

    def __arrow_ext_serialize__(self) -> bytes:
        """Return nothing: the type has no parameters."""
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "JsonText":
        """Return the type."""
        return cls()


_JSON = JsonText()
pa.register_extension_type(_JSON)


@dataclass(frozen=True, slots=True)
class Kept:
    """The kept columns of some rows."""

    columns: pa.StructArray
    kinds: Mapping[str, Kind]
    not_finite: int = 0
    """Number of cells, or values in nested cells, that are NaN or Infinity in JSON: they are null."""


def build_kept(names: Sequence[str], cells: Sequence[Sequence[Any]], lines: Sequence[Any]) -> Kept:
    """Build the columns from Python values, one sequence of cells per name.

    `lines` has the JSON of each row as bytes; numbers are read from it again if the fast parser may have rounded them.
    """
    restorer = NumberRestorer(lines)
    staged = [_stage(name, column, restorer) for name, column in zip(names, cells, strict=True)]
    kinds = dict(zip(names, (kind for _, kind, _ in staged), strict=True))
    return Kept(_to_struct(names, [array for array, _, _ in staged]), kinds, sum(nulls for _, _, nulls in staged))


def take_kept(columns: pa.RecordBatch, indices: Sequence[int]) -> Kept:
    """Build the columns from some rows of columns that already have types."""
    plain = [widen(column, plain_type(column.type)) for column in columns.columns]
    positions = pa.array(indices, pa.int64())
    arrays = [column.take(positions) for column in plain]
    names = columns.schema.names
    return Kept(_to_struct(names, arrays), dict(zip(names, map(kind_of_array, arrays), strict=True)))


def _to_struct(names: Sequence[str], arrays: "Sequence[pa.Array[Any]]") -> pa.StructArray:
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.StructArray.from_arrays(list(arrays), fields=fields)


def _stage(name: str, cells: Sequence[Any], restorer: NumberRestorer) -> "tuple[pa.Array[Any], Kind, int]":
    """Return the cells in a type that keeps each of them, their Kind, and the number of values that are not finite."""
    found = set(map(type, cells))
    if found == {str} or found == _TEXT_OR_NULL:
        return pa.array(cells, pa.string()), STRINGS, 0
    kind = kind_of_values(cells, found)
    if kind.may_be_rounded:
        exact = restorer.restore(name, cells)
        if exact is not cells:
            cells, found = exact, set(map(type, exact))
            kind = kind_of_values(cells, found)
    target = _plain_type(found, kind)
    if target is not None:
        return pa.array(cells, target), kind, 0
    writer = JsonWriter()
    texts = [None if cell is None else writer.write(cell) for cell in cells]
    storage = pa.array([None if text == "null" else text for text in texts], TEXT)
    return pa.ExtensionArray.from_storage(_JSON, storage), kind, writer.not_finite


def _plain_type(found: set[type], kind: Kind) -> pa.DataType | None:
    """Return the type of cells that all are of one plain Python type; None for others."""
    plain = found - {type(None)}
    if len(plain) != 1:
        return None if plain else pa.null()
    if int in plain:
        low, high = kind.bounds or (0, 0)
        return pa.int64() if high < 2**63 else pa.uint64() if low >= 0 else None
    return _PLAIN.get(plain.pop())


class JsonWriter:
    """Writes cells as JSON with the exact numbers, and counts the values that are not finite: they become null."""

    def __init__(self) -> None:
        self.not_finite = 0

    def write(self, cell: Any) -> str:
        """Return the JSON. Raise orjson.JSONEncodeError for a cell of more than 254 levels."""
        return orjson.dumps(cell, default=self._write_number).decode()

    def _write_number(self, value: Any) -> orjson.Fragment | None:
        if type(value) is ExactNumber:
            return orjson.Fragment(value.text)
        self.not_finite += 1
        return None


def merge_kinds(left: Mapping[str, Kind], right: Mapping[str, Kind]) -> dict[str, Kind]:
    """Merge the Kinds of each column; columns keep the order in which they first appear."""
    return {**left} | {name: merge(left.get(name, NO_ROWS), kind) for name, kind in right.items()}


def type_of_kept(kinds: Mapping[str, Kind]) -> pa.StructType:
    """Return one type for the kept columns of all shards. A column without values is text."""
    return pa.struct([pa.field(name, common_type(kind)) for name, kind in kinds.items()])


def cast_kept(array: pa.StructArray, target: pa.StructType) -> pa.StructArray:
    """Cast staged columns to the type of all shards; a column that is not among them becomes null."""
    if not target.num_fields:
        return pa.nulls(len(array), target)
    places = {array.type.field(index).name: index for index in range(array.type.num_fields)}
    fields = [target.field(index) for index in range(target.num_fields)]
    arrays = [
        _settle(array.field(places[field.name]), field.type)
        if field.name in places
        else pa.nulls(len(array), field.type)
        for field in fields
    ]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def _settle(column: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    if column.type == target:
        return column
    if column.type == _JSON:
        return _parse(column.storage, target)
    return text_array(column) if target == TEXT else widen(column, target)


def _parse(texts: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    """Turn staged JSON into the values of a type. In text, strings have no quotes, and all else is its JSON."""
    cells = texts.to_pylist()
    if target == TEXT:
        return pa.array([orjson.loads(cell) if cell and cell[0] == '"' else cell for cell in cells], TEXT)
    # Python's parser is slow, but reads integers of any size, which are decimals here.
    load = json.loads if "decimal" in str(target) else orjson.loads
    return pa.array([None if cell is None else load(cell) for cell in cells], target)


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
