"""The plain text of values of any Arrow type: what a kept column holds if its values have no type in common.

| value | text |
|---|---|
| number, boolean | as in JSON; `NaN`, `Infinity`; decimals with all digits of their scale |
| date, time, timestamp | ISO 8601: `2024-01-01`, `12:30:00.5`, `2024-01-01T12:30:00+08:00` in the column's time zone |
| duration | ISO 8601, in seconds: `PT86400S` |
| bytes | hex |
| UUID | with hyphens |
| list, struct, map | JSON; values that JSON lacks are strings in it; lists of pairs if names or keys are repeated |
"""

import json
import uuid
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.manifest.common_type import TEXT, is_binary, is_text
from arkbeam.manifest.kinds import is_list

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = date(1970, 1, 1).toordinal()
_DAY_S = 86_400


def text_array(array: "pa.Array[Any]") -> "pa.Array[Any]":
    """Return the text of each value; nulls stay null."""
    kind = array.type
    if is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return array.cast(TEXT)
    values = json_values(array)
    return pa.array([value if value is None or type(value) is str else dump_json(value) for value in values], TEXT)


def dump_json(value: Any) -> str:
    """Return a value as compact JSON."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # nested more deeply than orjson writes
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_values(array: "pa.Array[Any]") -> list[Any]:
    """Return the values as JSON has them: values of types that JSON lacks become their text."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _extension_values(array)
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        columns = [json_values(array.field(index)) for index in range(kind.num_fields)]
        pairs = (zip(names, row, strict=True) for row in zip(*columns, strict=True))
        rows: list[Any] = [dict(row) if len(set(names)) == len(names) else list(row) for row in pairs]
        return _mask(rows if names else [{} for _ in range(len(array))], array)
    if pa.types.is_map(kind):
        return _map_values(array)
    if is_list(kind):
        lengths = pc.list_value_length(array).fill_null(0).to_pylist()
        return _mask(_cut(json_values(array.flatten()), lengths), array)
    if pa.types.is_floating(kind):
        return _float_values(array)
    for test, read in _SCALARS:
        if test(kind):
            return read(array)
    return list(array.to_pylist())  # null, text, integers, booleans


def _mask(values: Sequence[Any], array: "pa.Array[Any]") -> list[Any]:
    if not array.null_count:
        return list(values)
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _cut(values: list[Any], lengths: Sequence[int]) -> list[list[Any]]:
    ends = np.cumsum(lengths).tolist() if lengths else []
    return [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _map_values(array: "pa.Array[Any]") -> list[Any]:
    """Return maps as objects; as lists of pairs if their keys are not text, or are repeated."""
    offsets = array.offsets.to_pylist() if len(array) else [0]
    low, high = offsets[0], offsets[-1]
    keys, items = (json_values(child.slice(low, high - low)) for child in (array.keys, array.items))
    found: list[Any] = []
    for start, end in pairwise(offsets):
        pairs = list(zip(keys[start - low : end - low], items[start - low : end - low], strict=True))
        as_object = is_text(array.type.key_type) and len(dict(pairs)) == len(pairs)
        found.append(dict(pairs) if as_object else pairs)
    return _mask(found, array)


def _extension_values(array: "pa.Array[Any]") -> list[Any]:
    values = json_values(array.storage)
    name = array.type.extension_name
    if name == "arrow.uuid":
        return [None if value is None else str(uuid.UUID(hex=value)) for value in values]
    if name == "arrow.bool8":
        return [None if value is None else value != 0 for value in values]
    return values


_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _float_values(array: "pa.Array[Any]") -> list[Any]:
    """Return floats that print with the fewest digits that identify them in their own type; others by name."""
    values = array.to_pylist()
    if not pa.types.is_float64(array.type):
        short = np.float16 if pa.types.is_float16(array.type) else np.float32
        values = [None if value is None else float(str(short(value))) for value in values]
    return [value if value is None or abs(value) < float("inf") else _NAMES[str(value)] for value in values]


def _decimal_values(array: "pa.Array[Any]") -> list[Any]:
    return [None if value is None else f"{value:f}" for value in array.to_pylist()]


def _byte_values(array: "pa.Array[Any]") -> list[Any]:
    return [None if value is None else value.hex() for value in array.to_pylist()]


def _date_values(array: "pa.Array[Any]") -> list[Any]:
    if pa.types.is_date64(array.type):
        milliseconds = array.cast(pa.int64()).to_pylist()
        return [None if value is None else _date_text(value // (_DAY_S * 1000)) for value in milliseconds]
    return [None if value is None else _date_text(value) for value in array.cast(pa.int32()).to_pylist()]


def _date_text(days: int) -> str:
    ordinal = days + _EPOCH
    if 1 <= ordinal <= date.max.toordinal():
        return date.fromordinal(ordinal).isoformat()
    return str(np.datetime64(days, "D"))


def _time_values(array: "pa.Array[Any]") -> list[Any]:
    numbers = array.cast(pa.int32() if pa.types.is_time32(array.type) else pa.int64()).to_pylist()
    return [None if value is None else _time_text(value, _PER_SECOND[array.type.unit]) for value in numbers]


def _time_text(value: int, per_second: int) -> str:
    seconds, rest = divmod(value, per_second)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{_fraction(rest, per_second)}"


def _fraction(rest: int, per_second: int) -> str:
    return f".{rest:0{len(str(per_second)) - 1}}" if rest else ""


def _timestamp_values(array: "pa.Array[Any]") -> list[Any]:
    per_second = _PER_SECOND[array.type.unit]
    instants = array.cast(pa.int64()).to_pylist()
    offsets = _offsets(array, instants) if array.type.tz else [0] * len(instants)
    texts: list[Any] = []
    for instant, offset in zip(instants, offsets, strict=True):
        if instant is None:
            texts.append(None)
            continue
        days, rest = divmod(instant + (offset or 0) * per_second, _DAY_S * per_second)
        zone = "" if not array.type.tz else "Z" if offset is None else _zone_text(offset)
        texts.append(f"{_date_text(days)}T{_time_text(rest, per_second)}{zone}")
    return texts


def _offsets(array: "pa.Array[Any]", instants: Sequence[int | None]) -> list[int | None]:
    """Return the seconds that local time is ahead of UTC at each instant; None if the zone is unknown on this machine."""
    try:
        seconds = pc.divide(pa.array(instants, pa.int64()), _PER_SECOND[array.type.unit])
        whole = seconds.cast(pa.timestamp("s", array.type.tz))
        local = pc.local_timestamp(whole).cast(pa.int64()).to_pylist()
    except pa.ArrowException:
        return [None] * len(instants)
    utc = whole.cast(pa.int64()).to_pylist()
    return [None if one is None else one - other for one, other in zip(local, utc, strict=True)]


def _zone_text(offset: int) -> str:
    minutes = abs(offset) // 60
    rest = f":{abs(offset) % 60:02}" if offset % 60 else ""
    return f"{'-' if offset < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}{rest}"


def _duration_values(array: "pa.Array[Any]") -> list[Any]:
    per_second = _PER_SECOND[array.type.unit]
    texts: list[Any] = []
    for value in array.cast(pa.int64()).to_pylist():
        seconds, rest = (None, 0) if value is None else divmod(abs(value), per_second)
        texts.append(
            None if seconds is None else f"{'-' if value < 0 else ''}PT{seconds}{_fraction(rest, per_second)}S"
        )
    return texts


_SCALARS: Sequence[tuple[Callable[[pa.DataType], bool], Callable[["pa.Array[Any]"], list[Any]]]] = (
    (pa.types.is_decimal, _decimal_values),
    (is_binary, _byte_values),
    (pa.types.is_date, _date_values),
    (pa.types.is_time, _time_values),
    (pa.types.is_timestamp, _timestamp_values),
    (pa.types.is_duration, _duration_values),
)
