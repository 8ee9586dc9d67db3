"""Which values a kept column holds, and the one type that holds all of them exactly.

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

TEXT = pa.large_string()
# An object that is used as a map would otherwise become a struct with one field per key.
_JSON_LEAVES_MAX = 256
_DEPTH_MAX = 100
_EXACT_IN_DOUBLE = 2**53
_INT64_MAX, _UINT64_MAX = 2**63 - 1, 2**64 - 1
_DIGITS_MAX = 38
_LARGEST_DECIMAL = pa.decimal128(_DIGITS_MAX, 0)
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds, from coarse to fine
_NO_TYPE = pa.null()
"""Stands, among the types of a Kind, for values that no type holds."""
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
# The smallest float that holds all integers of so many bits. For 64 bits, the values decide.
_FLOATS = {8: pa.float16(), 16: pa.float32(), 32: pa.float64(), 64: pa.float64()}

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
        floats = not self.types.isdisjoint((pa.float64(), _NO_TYPE))
        return floats or any(child.may_be_rounded for _, child in self.children)


_ELEMENT, _KEY, _VALUE, _FIELD = "[]", "<", ">", "."
NO_ROWS = Kind()
_NULLS = Kind(is_uniform=False)
_ANYTHING = Kind(frozenset({_NO_TYPE}))


def merge(left: Kind, right: Kind) -> Kind:
    """Return the Kind of two columns' values together. JSON with too many fields, or nested too deeply, becomes text."""
    if NO_ROWS in (left, right):
        return right if left == NO_ROWS else left
    both = _merge(left, right)
    if not _has_shape(left, right):
        both = _relax(both)
    too_large = both.inferred and (_count_leaves(both) > _JSON_LEAVES_MAX or _depth(both) > _DEPTH_MAX)
    return _ANYTHING if too_large or _NO_TYPE in both.types else both


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
    return _ANYTHING if kind is None or _count_leaves(kind) > _JSON_LEAVES_MAX or _NO_TYPE in kind.types else kind


_JSON_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    list: pa.list_(_NO_TYPE),
    dict: pa.struct([]),
}
STRINGS = Kind(frozenset({pa.string()}))


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
        children[_ELEMENT] = list(chain.from_iterable(cell for cell in cells if type(cell) is list))
    if dict in found and not _gather_fields((cell for cell in cells if type(cell) is dict), children):
        return None
    known = _of_children(children, depth + 1)
    bounds = (min(integers), max(integers)) if integers else None
    return None if known is None else Kind(types, bounds=bounds, children=known, inferred=bool(known))


def _is_decimal(number: int | None) -> TypeGuard[int]:
    return number is not None and abs(number) < 10**_DIGITS_MAX


def _type_of_number(number: ExactNumber) -> pa.DataType:
    if _is_decimal(number.whole):
        return pa.int64()
    return pa.float64() if number.is_double else _NO_TYPE


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
            values = children.get(_FIELD + name)
            if values is not None:
                values.append(value)
            elif len(children) < _JSON_LEAVES_MAX:
                children[_FIELD + name] = [value]
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
                (_FIELD + field.name, _child(column, field.nullable))
                for field, column in zip(fields, columns, strict=True)
            ]
            kind = pa.struct([])
    elif pa.types.is_map(kind):
        low, high = (array.offsets[0].as_py(), array.offsets[-1].as_py()) if len(array) else (0, 0)
        children = [
            (_KEY, _child(array.keys.slice(low, high - low), False)),
            (_VALUE, _child(array.items.slice(low, high - low), kind.item_field.nullable)),
        ]
        kind = pa.map_(pa.string(), _NO_TYPE, kind.keys_sorted)
    elif is_list(kind):
        children = [(_ELEMENT, _child(array.flatten(), kind.value_field.nullable))]
        kind = _with_element(kind, pa.field(kind.value_field.name, _NO_TYPE))
    elif has_values and pa.types.is_integer(kind):
        bounds = _bounds(array)
    elif has_values and (pa.types.is_timestamp(kind) or pa.types.is_duration(kind)):
        unit, numbers = _UNITS[kind.unit], array.cast(pa.int64())
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
    coarser = [step for step in _UNITS.values() if step > unit and not (numbers % (step // unit)).any()]
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


def _with_element(kind: pa.DataType, element: "pa.Field[Any]") -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(element, kind.list_size)
    return pa.large_list(element) if pa.types.is_large_list(kind) else pa.list_(element)


def common_type(kind: Kind) -> pa.DataType:
    """Return the type that holds all values exactly: text if there is no other, or if there are no values."""
    return _common(kind) or TEXT


def _common(kind: Kind) -> pa.DataType | None:
    """Return None if only text holds all values, or all values of a child."""
    types = kind.types or kind.declared
    if len(types) > 1:
        types = frozenset(map(_without_extension, types))
    if not types:
        return TEXT
    if _NO_TYPE in types:
        return None
    for test, unify in _FAMILIES:
        if all(map(test, types)):
            return unify(types, kind)
    return next(iter(types)) if len(types) == 1 else None


def _without_extension(kind: pa.DataType) -> pa.DataType:
    if not isinstance(kind, pa.BaseExtensionType) or kind.extension_name == "arrow.uuid":
        return kind
    if kind.extension_name == "arrow.bool8":
        return pa.bool_()
    return _NO_TYPE if pa.types.is_nested(kind.storage_type) else kind.storage_type


def _unify_lists(types: Types, kind: Kind) -> pa.DataType | None:
    child = dict(kind.children)[_ELEMENT]
    element = _common(child)
    if element is None:
        return None
    first = next(iter(types))
    if len(types) > 1 or not kind.is_uniform:  # Arrow can't read fixed-size lists with nulls from Parquet
        large = any(map(pa.types.is_large_list, types))
        first = pa.large_list(_NO_TYPE) if large else pa.list_(_NO_TYPE)
    return _with_element(first, pa.field(first.value_field.name, element, child.nullable))


def _unify_structs(types: Types, kind: Kind) -> pa.DataType | None:
    """Return a struct with the fields of all; None if there is none, since Parquet can't store a struct without fields."""
    if any(one.num_fields for one in types):  # its field names are not distinct
        return next(iter(types)) if len(types) == 1 else None
    fields = []
    for name, child in kind.children:
        if name.startswith(_FIELD):
            field = _common(child)
            if field is None:
                return None
            fields.append(pa.field(name.removeprefix(_FIELD), field, child.nullable))
    return pa.struct(fields) if fields else None


def _unify_maps(types: Types, kind: Kind) -> pa.DataType | None:
    children = dict(kind.children)
    key, value = _common(children[_KEY]), _common(children[_VALUE])
    if key is None or value is None:
        return None
    sorted_ = all(kind.keys_sorted for kind in types)
    return pa.map_(key, pa.field("value", value, children[_VALUE].nullable), sorted_)


def _unify_integers(types: Types, kind: Kind) -> pa.DataType:
    low, high = kind.bounds or (0, 0)
    if low < -_INT64_MAX - 1 or high > _UINT64_MAX or (low < 0 and high > _INT64_MAX):
        return _LARGEST_DECIMAL
    if high > _INT64_MAX:
        return pa.uint64()
    signed = [one.bit_width for one in types if pa.types.is_signed_integer(one)]
    unsigned = [one.bit_width for one in types if pa.types.is_unsigned_integer(one)]
    if not signed:
        return _UNSIGNED[max(unsigned)]
    return _SIGNED[min(64, max([*signed, *(2 * bits for bits in unsigned)]))]


def _unify_numbers(types: Types, kind: Kind) -> pa.DataType | None:
    """Return a float type for floats, and for integers if all of them are exact in it."""
    bits = [one.bit_width for one in types if pa.types.is_integer(one)]
    low, high = kind.bounds or (0, 0)
    if bits and max(-low, high) > _EXACT_IN_DOUBLE:
        return None
    wanted = [_FLOATS[max(bits)]] if bits else []
    return max([*wanted, *filter(pa.types.is_floating, types)], key=lambda one: one.bit_width)


def _unify_decimals(types: Types, kind: Kind) -> pa.DataType | None:
    """Return a decimal type for decimals and integers. The values of integers count only if their types do not fit."""
    if len(types) == 1:
        return next(iter(types))
    decimals = [one for one in types if pa.types.is_decimal(one)]
    bits = [one.bit_width for one in types if pa.types.is_integer(one)]
    scale = max(one.scale for one in decimals)
    whole = max(one.precision - one.scale for one in decimals)
    digits = max(len(str(abs(end))) for end in kind.bounds or (0, 0)) if bits else 0
    by_type = max(_DIGITS[max(bits)], digits) if bits else 0
    precision = max(whole, by_type) + scale
    if precision > _DIGITS_MAX:
        precision = max(whole, digits) + scale
    if precision <= _DIGITS_MAX:
        return pa.decimal128(precision, scale)
    return pa.decimal256(precision, scale) if precision <= 76 else None


def _unify_bytes(types: Types, _: Kind) -> pa.DataType:
    """Return text for text alone, else binary: bytes hold text, too."""
    if len(types) == 1:
        return next(iter(types))
    if all(map(is_text, types)):
        return TEXT
    large = any(pa.types.is_large_binary(one) or pa.types.is_large_string(one) for one in types)
    return pa.large_binary() if large else pa.binary()


def _unify_times(types: Types, _: Kind) -> pa.DataType:
    unit = _finest(types)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _unify_timestamps(types: Types, kind: Kind) -> pa.DataType | None:
    zones = {one.tz for one in types}
    unit = _exact_unit(types, kind)
    return pa.timestamp(unit, zones.pop()) if len(zones) == 1 and unit is not None else None


def _unify_durations(types: Types, kind: Kind) -> pa.DataType | None:
    unit = _exact_unit(types, kind)
    return None if unit is None else pa.duration(unit)


def _unify_dates(types: Types, _: Kind) -> pa.DataType:
    return next(iter(types)) if len(types) == 1 else pa.date32()


def _finest(types: Types) -> str:
    return max((str(one.unit) for one in types), key=list(_UNITS).index)


def _exact_unit(types: Types, kind: Kind) -> str | None:
    """Return the finest unit of the types; if values do not fit 64 bits in it, a coarser one that holds all exactly."""
    finest = _finest(types)
    if len(types) == 1:
        return finest
    low, high = kind.bounds or (0, 0)
    for unit, step in reversed(_UNITS.items()):
        fits = low >= -_INT64_MAX * step and high <= _INT64_MAX * step
        if fits and (unit == finest or _UNITS[finest] < step <= (kind.grain or 0)):
            return unit
    return None


def is_text(kind: pa.DataType) -> bool:
    """True if a column of this type holds strings, in any of Arrow's layouts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: pa.DataType) -> bool:
    """True if a column of this type holds bytes, in any of Arrow's layouts."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


_FAMILIES = (
    (is_list, _unify_lists),
    (pa.types.is_struct, _unify_structs),
    (pa.types.is_map, _unify_maps),
    (pa.types.is_integer, _unify_integers),
    (lambda one: pa.types.is_integer(one) or pa.types.is_floating(one), _unify_numbers),
    (lambda one: pa.types.is_integer(one) or pa.types.is_decimal(one), _unify_decimals),
    (lambda one: is_text(one) or is_binary(one), _unify_bytes),
    (pa.types.is_time, _unify_times),
    (pa.types.is_timestamp, _unify_timestamps),
    (pa.types.is_duration, _unify_durations),
    (pa.types.is_date, _unify_dates),
)
