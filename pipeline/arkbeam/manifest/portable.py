"""Types of kept columns that common Parquet readers have, and the casts to them, which change no value.

A manifest in Parquet may have types that make whole files unreadable for some readers: float16, UUIDs and decimals of more
than 38 digits for Spark, fixed-size lists for ClickHouse before 26, UUIDs for Hugging Face datasets. Many engines have no
unsigned integers. Of fixed-size bytes, fastparquet drops zeros at the end.
"""

from collections.abc import Callable, Container
from typing import Any

import pyarrow as pa

from arkbeam.manifest.texts import text_array

_DECIMAL_DIGITS_MAX = 38
_MICROSECONDS = "us"
_TEXT = pa.string()


def portable_type(kind: pa.DataType, *, nanoseconds: bool = True) -> pa.DataType:
    """Return the nearest type that common readers have and that holds each value of `kind`, also inside nested types.

    Unsigned integers become the next larger signed ones, and uint64 a decimal of 20 digits. float16 becomes float32, a
    fixed-size list a list, a UUID its text, a decimal of more than 38 digits its text, times in seconds or milliseconds
    times in microseconds. Views become plain text and bytes, fixed-size bytes become bytes, and other extension types the
    type in which they are stored. Without `nanoseconds`, timestamps in nanoseconds become microseconds.
    """
    for test, target in _PORTABLE:
        if test(kind):
            return target(kind)
    if _is_nanoseconds(kind):
        return kind if nanoseconds else pa.timestamp(_MICROSECONDS, kind.tz)

    def inner(field: "pa.Field[Any]") -> "pa.Field[Any]":
        return field.with_type(portable_type(field.type, nanoseconds=nanoseconds))

    if pa.types.is_struct(kind):
        return pa.struct([inner(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(inner(kind.key_field).type, inner(kind.item_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(inner(kind.value_field))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field))
    if pa.types.is_dictionary(kind):
        value = portable_type(kind.value_type, nanoseconds=nanoseconds)
        return kind if value.equals(kind.value_type) else value
    return kind


def publish_kept(kept: pa.StructType, nanoseconds: Container[str]) -> pa.StructType:
    """Return the type in which the struct of kept columns is published.

    `nanoseconds` are the columns with timestamps that only nanoseconds can hold. Other timestamps in nanoseconds become
    microseconds, because Spark can't read a file with nanoseconds, and pandas writes them for everything.
    """
    fields = [kept.field(index) for index in range(kept.num_fields)]
    return pa.struct(
        [field.with_type(portable_type(field.type, nanoseconds=field.name in nanoseconds)) for field in fields]
    )


def find_nanoseconds(kept: pa.StructArray) -> set[str]:
    """Return the kept columns with a timestamp that is not a whole number of microseconds, also inside nested types."""
    names = [kept.type.field(index).name for index in range(kept.type.num_fields)]
    return {name for index, name in enumerate(names) if _needs_nanoseconds(kept.field(index))}


def _needs_nanoseconds(column: "pa.Array[Any]") -> bool:
    kind = column.type
    if pa.types.is_struct(kind):
        return any(_needs_nanoseconds(column.field(index)) for index in range(kind.num_fields))
    if pa.types.is_nested(kind):
        return _needs_nanoseconds(column.values if pa.types.is_map(kind) else column.flatten())
    if pa.types.is_dictionary(kind):
        return _needs_nanoseconds(column.dictionary)
    if not _is_nanoseconds(kind):
        return False
    try:
        column.cast(pa.timestamp(_MICROSECONDS, kind.tz))
    except pa.ArrowInvalid:
        return True
    return False


def _is_nanoseconds(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) and kind.unit == "ns")


def _portable_extension(kind: pa.BaseExtensionType) -> pa.DataType:
    return _TEXT if _is_uuid(kind) else portable_type(kind.storage_type)


def _is_uuid(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.uuid"


_PORTABLE: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], pa.DataType]]] = [
    (pa.types.is_uint8, lambda _: pa.int16()),
    (pa.types.is_uint16, lambda _: pa.int32()),
    (pa.types.is_uint32, lambda _: pa.int64()),
    (pa.types.is_uint64, lambda _: pa.decimal128(20, 0)),
    (pa.types.is_float16, lambda _: pa.float32()),
    (pa.types.is_time32, lambda _: pa.time64(_MICROSECONDS)),
    (lambda kind: pa.types.is_decimal(kind) and kind.precision > _DECIMAL_DIGITS_MAX, lambda _: _TEXT),
    (pa.types.is_decimal256, lambda kind: pa.decimal128(kind.precision, kind.scale)),
    (pa.types.is_string_view, lambda _: _TEXT),
    (pa.types.is_binary_view, lambda _: pa.binary()),
    (pa.types.is_fixed_size_binary, lambda _: pa.binary()),
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _portable_extension),
]


def to_portable(column: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    """Cast a column to the type that `portable_type` or `publish_kept` returned for it. No value is changed."""
    kind = column.type
    if kind.equals(target):
        return column
    if isinstance(kind, pa.BaseExtensionType):
        return text_array(column).cast(target) if _is_uuid(kind) else to_portable(column.storage, target)
    if pa.types.is_struct(kind):
        children = [to_portable(column.field(index), target.field(index).type) for index in range(kind.num_fields)]
        mask = column.is_null() if column.null_count else None  # the entries of a map may not have a mask
        return pa.StructArray.from_arrays(children, fields=list(target), mask=mask)
    if pa.types.is_fixed_size_list(kind):
        return to_portable(column.cast(pa.list_(kind.value_field)), target)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        child = to_portable(column.values, target.field(0).type)
        return pa.Array.from_buffers(target, len(column), column.buffers()[:2], offset=column.offset, children=[child])
    if pa.types.is_decimal(kind) and target.equals(_TEXT):
        return text_array(column).cast(target)
    return column.cast(target)
