"""Cast columns to types that hold all of their values exactly. Nested types are rebuilt from their children."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.manifest.kinds import is_list

JSON_TEXT = "arkbeam.json"
"""Name of the type of staged JSON (`kept.JsonText`). A file must not give it to a column of its own."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without dictionaries, runs and views, which Parquet does not store; also in nested types."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.string() if pa.types.is_string_view(kind) else pa.binary()
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type if kind.extension_name == JSON_TEXT else kind
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(index)) for index in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), _plain_field(kind.item_field), kind.keys_sorted)
    return _plain_list(kind) if is_list(kind) else kind


def _plain_list(kind: pa.DataType) -> pa.DataType:
    element = _plain_field(kind.value_field)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(element, kind.list_size)
    large = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
    return pa.large_list(element) if large else pa.list_(element)


def _plain_field(child: "pa.Field[Any]") -> "pa.Field[Any]":
    return pa.field(child.name, plain_type(child.type), child.nullable)


def widen(array: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    """Cast an array to a type that holds its values: one of `plain_type` or `common_type`.

    Fields that a struct lacks become null. Raise pa.ArrowInvalid if a value would change.
    """
    array = _decode(array)
    kind = array.type
    if kind == target:
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), target)
    for test, rebuild in _NESTED:
        if test(kind):
            return rebuild(array, target)
    if isinstance(kind, pa.BaseExtensionType):
        return array.storage.cast(target)
    if pa.types.is_decimal(target) and pa.types.is_integer(kind):
        # Arrow refuses integers whose type may have more digits, even if the values have not.
        return pa.array([None if one is None else Decimal(one) for one in array.to_pylist()], target)
    return array.cast(target)


def _decode(array: "pa.Array[Any]") -> "pa.Array[Any]":
    while True:
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pa.types.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        else:
            return array


def _widen_struct(array: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    fields = [target.field(index) for index in range(target.num_fields)]
    places = {array.type.field(index).name: index for index in range(array.type.num_fields)}
    columns = [
        widen(array.field(places[field.name]), field.type) if field.name in places else pa.nulls(len(array), field.type)
        for field in fields
    ]
    return pa.StructArray.from_arrays(columns, fields=fields, mask=array.is_null())


def _widen_map(array: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    offsets = array.offsets.to_numpy()
    low, high = int(offsets[0]), int(offsets[-1])
    keys = widen(array.keys.slice(low, high - low), target.key_type)
    items = widen(array.items.slice(low, high - low), target.item_type)
    return pa.MapArray.from_arrays(pa.array(offsets - low), keys, items, target, mask=array.is_null())


def _widen_list(array: "pa.Array[Any]", target: pa.DataType) -> "pa.Array[Any]":
    """Rebuild a list from its lengths and elements, which every layout of lists has."""
    if pa.types.is_fixed_size_list(target):
        size = target.list_size
        elements = widen(array.values.slice(array.offset * size, len(array) * size), target.value_type)
        return pa.FixedSizeListArray.from_arrays(elements, type=target, mask=array.is_null())
    elements = widen(array.flatten(), target.value_type)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if pa.types.is_large_list(target):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), elements, type=target, mask=array.is_null())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements, type=target, mask=array.is_null())


_NESTED = ((pa.types.is_struct, _widen_struct), (pa.types.is_map, _widen_map), (is_list, _widen_list))
