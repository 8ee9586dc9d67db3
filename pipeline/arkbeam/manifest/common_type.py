"""The one type that holds all values of a column exactly; text if there is no other."""

import pyarrow as pa

from arkbeam.manifest.kinds import (
    DIGITS_MAX,
    ELEMENT,
    FIELD,
    KEY,
    NO_TYPE,
    UNITS,
    VALUE,
    Kind,
    Types,
    is_list,
    with_element,
)

TEXT = pa.large_string()
_EXACT_IN_DOUBLE = 2**53
_INT64_MAX, _UINT64_MAX = 2**63 - 1, 2**64 - 1
_LARGEST_DECIMAL = pa.decimal128(DIGITS_MAX, 0)
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
# The smallest float that holds all integers of so many bits. For 64 bits, the values decide.
_FLOATS = {8: pa.float16(), 16: pa.float32(), 32: pa.float64(), 64: pa.float64()}


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
    if NO_TYPE in types:
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
    return NO_TYPE if pa.types.is_nested(kind.storage_type) else kind.storage_type


def _unify_lists(types: Types, kind: Kind) -> pa.DataType | None:
    child = dict(kind.children)[ELEMENT]
    element = _common(child)
    if element is None:
        return None
    first = next(iter(types))
    if len(types) > 1 or not kind.is_uniform:  # Arrow can't read fixed-size lists with nulls from Parquet
        large = any(map(pa.types.is_large_list, types))
        first = pa.large_list(NO_TYPE) if large else pa.list_(NO_TYPE)
    return with_element(first, pa.field(first.value_field.name, element, child.nullable))


def _unify_structs(types: Types, kind: Kind) -> pa.DataType | None:
    """Return a struct with the fields of all; None if there is none, since Parquet can't store a struct without fields."""
    if any(one.num_fields for one in types):  # its field names are not distinct
        return next(iter(types)) if len(types) == 1 else None
    fields = []
    for name, child in kind.children:
        if name.startswith(FIELD):
            field = _common(child)
            if field is None:
                return None
            fields.append(pa.field(name.removeprefix(FIELD), field, child.nullable))
    return pa.struct(fields) if fields else None


def _unify_maps(types: Types, kind: Kind) -> pa.DataType | None:
    children = dict(kind.children)
    key, value = _common(children[KEY]), _common(children[VALUE])
    if key is None or value is None:
        return None
    sorted_ = all(kind.keys_sorted for kind in types)
    return pa.map_(key, pa.field("value", value, children[VALUE].nullable), sorted_)


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
    if precision > DIGITS_MAX:
        precision = max(whole, digits) + scale
    if precision <= DIGITS_MAX:
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
    return max((str(one.unit) for one in types), key=list(UNITS).index)


def _exact_unit(types: Types, kind: Kind) -> str | None:
    """Return the finest unit of the types; if values do not fit 64 bits in it, a coarser one that holds all exactly."""
    finest = _finest(types)
    if len(types) == 1:
        return finest
    low, high = kind.bounds or (0, 0)
    for unit, step in reversed(UNITS.items()):
        fits = low >= -_INT64_MAX * step and high <= _INT64_MAX * step
        if fits and (unit == finest or UNITS[finest] < step <= (kind.grain or 0)):
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
