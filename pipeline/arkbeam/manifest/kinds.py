"""What is known about the values of a kept column.

A Kind describes the values of a column in one chunk. The Kinds of all chunks and shards are merged, and `common_type`
turns the result into a type. `merge` is associative and commutative, up to the order of fields, so the type does not
depend on where chunks and shards were cut.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.manifest.numbers import ExactNumber

DIGITS_MAX = 38
"""The digits of the largest decimal that most readers know."""
# An object that is used as a map would otherwise become a struct with one field per key.
_JSON_LEAVES_MAX = 256
_DEPTH_MAX = 100
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds, from coarse to fine
NO_TYPE = pa.null()
"""Stands, among the types of a Kind, for values that no type holds."""

Types = frozenset[pa.DataType]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the values of a column, or of a child of a nested column, are.

    A nested type is listed without its children: as a list of nulls, or a struct without fields.
    """

    types: Types = frozenset()
    """The types of the values. JSON integers are int64, also those beyond it."""
    declared: Types = frozenset()
    """The types that files give the column. They count only if no file has a value."""
    bounds: tuple[int, int] | None = None
    """The least and the greatest integer; of timestamps and durations, in nanoseconds."""
    grain: int | None = None
    """All timestamps and durations are multiples of this unit, in nanoseconds."""
    children: "tuple[tuple[str, Kind], ...]" = ()
    """By role and name, as in `.name` for a field; in the order in which they first appear."""
    nullable: bool = True
    is_uniform: bool = True
    """False if files differ in the type of the column, or lack it, so that it may have nulls anywhere."""
    inferred: bool = False
    """True if some of the values are JSON, whose objects may have any number of keys."""

    @property
    def may_be_rounded(self) -> bool:
        """True if some of the values, also nested ones, may be floats."""
        floats = not self.types.isdisjoint((pa.float64(), NO_TYPE))
        return floats or any(child.may_be_rounded for _, child in self.children)


ELEMENT, KEY, VALUE, FIELD = "[]", "<", ">", "."
"""The roles of children. The name of a field follows its role."""
NO_ROWS = Kind()
"""Merged with another Kind, it changes nothing."""
_NULLS = Kind(is_uniform=False)
_ANYTHING = Kind(frozenset({NO_TYPE}))


def merge(left: Kind, right: Kind) -> Kind:
    """Return the Kind of two columns' values together. JSON with too many fields, or nested too deeply, becomes text."""
    if NO_ROWS in (left, right):
        return right if left == NO_ROWS else left
    both = _merge(left, right)
    if not _has_shape(left, right):
        both = _relax(both)
    too_large = both.inferred and (_count_leaves(both) > _JSON_LEAVES_MAX or _depth(both) > _DEPTH_MAX)
    return _ANYTHING if too_large or NO_TYPE in both.types else both


def _merge(left: Kind, right: Kind) -> Kind:
    if left == right:
        return left
    children = dict(left.children)
    for name, child in right.children:
        children[name] = _merge(children[name], child) if name in children else child
    bounds = left.bounds or right.bounds
    if left.bounds and right.bounds:
        bounds = min(left.bounds[0], right.bounds[0]), max(left.bounds[1], right.bounds[1])
    return Kind(
        left.types | right.types,
        left.declared | right.declared,
        bounds,
        min((kind.grain for kind in (left, right) if kind.grain is not None), default=None),
        tuple(children.items()),
        left.nullable or right.nullable,
        left.is_uniform and right.is_uniform,
        left.inferred or right.inferred,
    )


def _has_shape(left: Kind, right: Kind) -> bool:
    """True if two columns are declared with the same type."""
    if left.declared != right.declared or left.nullable != right.nullable or len(left.children) != len(right.children):
        return False
    return all(
        one[0] == other[0] and _has_shape(one[1], other[1])
        for one, other in zip(left.children, right.children, strict=True)
    )


def _relax(kind: Kind) -> Kind:
    children = tuple((name, _relax(child)) for name, child in kind.children)
    return replace(kind, children=children, nullable=True, is_uniform=False)


def _count_leaves(kind: Kind) -> int:
    return sum(_count_leaves(child) for _, child in kind.children) or 1


def _depth(kind: Kind) -> int:
    return 1 + max((_depth(child) for _, child in kind.children), default=0)


def kind_of_values(cells: Sequence[Any], found: set[type]) -> Kind:
    """Return the Kind of JSON values, given their Python types."""
    if found <= {type(None)}:
        return _NULLS if cells else NO_ROWS
    kind = _of_values(cells, found, 0)
    return _ANYTHING if kind is None or _count_leaves(kind) > _JSON_LEAVES_MAX or NO_TYPE in kind.types else kind


_JSON_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    list: pa.list_(NO_TYPE),
    dict: pa.struct([]),
}
STRINGS = Kind(frozenset({pa.string()}))
"""The Kind of JSON strings."""


def _of_values(cells: Sequence[Any], found: set[type], depth: int) -> Kind | None:
    """Return None if the values are nested too deeply, or have too many fields."""
    types = _types_of(frozenset(found))
    integers: Sequence[int] = []
    if int in found:
        integers = cells if found == {int} else [cell for cell in cells if type(cell) is int]
    if ExactNumber in found:
        exact = [cell for cell in cells if type(cell) is ExactNumber]
        types |= set(map(_type_of_number, exact))
        integers = [*integers, *filter(_is_decimal, (number.whole for number in exact))]
    children: dict[str, list[Any]] = {}
    if list in found:
        children[ELEMENT] = list(chain.from_iterable(cell for cell in cells if type(cell) is list))
    if dict in found and not _gather_fields((cell for cell in cells if type(cell) is dict), children):
        return None
    known = _of_children(children, depth + 1)
    bounds = (min(integers), max(integers)) if integers else None
    return None if known is None else Kind(types, bounds=bounds, children=known, inferred=bool(known))


def _is_decimal(number: int | None) -> TypeGuard[int]:
    return number is not None and abs(number) < 10**DIGITS_MAX


def _type_of_number(number: ExactNumber) -> pa.DataType:
    if _is_decimal(number.whole):
        return pa.int64()
    return pa.float64() if number.is_double else NO_TYPE


@lru_cache(maxsize=256)
def _types_of(found: frozenset[type]) -> Types:
    return frozenset(kind for python, kind in _JSON_TYPES.items() if python in found)


def _of_children(children: dict[str, list[Any]], depth: int) -> tuple[tuple[str, Kind], ...] | None:
    if children and depth >= _DEPTH_MAX:
        return None
    known = []
    for name, values in children.items():
        kind = _of_values(values, set(map(type, values)), depth)
        if kind is None:
            return None
        known.append((name, kind))
    return tuple(known)


def _gather_fields(objects: Iterable[dict[str, Any]], children: dict[str, list[Any]]) -> bool:
    """Add the values of each field to `children`; return False if there are too many fields."""
    for one in objects:
        for name, value in one.items():
            values = children.get(FIELD + name)
            if values is not None:
                values.append(value)
            elif len(children) < _JSON_LEAVES_MAX:
                children[FIELD + name] = [value]
            else:
                return False
    return True


def kind_of_array(array: "pa.Array[Any]") -> Kind:
    """Return the Kind of a column that has a type. The type has no dictionaries and no views (`widening.plain_type`)."""
    kind, has_values = array.type, array.null_count < len(array)
    children: list[tuple[str, Kind]] = []
    bounds = grain = None
    if pa.types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        if len({field.name for field in fields}) == len(fields):
            columns = array.flatten() if array.null_count else [array.field(index) for index in range(len(fields))]
            children = [
                (FIELD + field.name, _child(column, field.nullable))
                for field, column in zip(fields, columns, strict=True)
            ]
            kind = pa.struct([])
    elif pa.types.is_map(kind):
        low, high = (array.offsets[0].as_py(), array.offsets[-1].as_py()) if len(array) else (0, 0)
        children = [
            (KEY, _child(array.keys.slice(low, high - low), False)),
            (VALUE, _child(array.items.slice(low, high - low), kind.item_field.nullable)),
        ]
        kind = pa.map_(pa.string(), NO_TYPE, kind.keys_sorted)
    elif is_list(kind):
        children = [(ELEMENT, _child(array.flatten(), kind.value_field.nullable))]
        kind = with_element(kind, pa.field(kind.value_field.name, NO_TYPE))
    elif has_values and pa.types.is_integer(kind):
        bounds = _bounds(array)
    elif has_values and (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)):
        unit, numbers = UNITS[kind.unit], array.cast(pa.int64())
        low, high = _bounds(numbers)
        bounds = low * unit, high * unit
        grain = _grain(numbers.drop_null().to_numpy(), unit)
    if pa.types.is_null(kind):
        return _NULLS if len(array) else NO_ROWS
    declared = frozenset({kind})
    return Kind(declared if has_values else frozenset(), declared, bounds, grain, tuple(children))


def _bounds(array: "pa.Array[Any]") -> tuple[int, int]:
    ends = pc.min_max(array)
    return ends["min"].as_py(), ends["max"].as_py()


def _grain(numbers: npt.NDArray[np.int64], unit: int) -> int:
    """Return the coarsest unit, in nanoseconds, of which all numbers are multiples."""
    coarser = [step for step in UNITS.values() if step > unit and not (numbers % (step // unit)).any()]
    return max(coarser, default=unit)


def _child(array: "pa.Array[Any]", nullable: bool) -> Kind:
    kind = kind_of_array(array)
    return kind if nullable else replace(kind, nullable=False)


def is_list(kind: pa.DataType) -> bool:
    """True for lists in any of Arrow's layouts, but not for maps."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def with_element(kind: pa.DataType, element: "pa.Field[Any]") -> pa.DataType:
    """Return a list type with another element."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(element, kind.list_size)
    return pa.large_list(element) if pa.types.is_large_list(kind) else pa.list_(element)
