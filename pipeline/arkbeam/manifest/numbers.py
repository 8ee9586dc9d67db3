"""JSON numbers that a 64-bit integer or a double can't hold, NaN and Infinity.

The fast parser rounds integers of more than 64 bits and long fractions to doubles, and rejects what is not finite. Here
such lines and cells are read again, exactly.
"""

import json
import re
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cached_property
from typing import Any

import orjson

# Of the numbers with 15 digits, no two have the same double. With the point they have 16 characters.
_SHORT_CHARS = 16
_LONG_RUN = b"0" * _SHORT_CHARS
_TINY = b"e-000"
# The exact value of a double has at most 767 digits, and at most 1,074 of them follow the point.
_EXPANSION_CHARS_MAX = 1_100
_WIDE = Context(prec=2 * _EXPANSION_CHARS_MAX)
_INT_DIGITS_MAX = 4_000  # Python's int() takes time that grows with the square of the digits
_SEARCHES_MAX = 100  # parsing the lines exactly takes about as long as so many searches
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_NUMBERS = (int, float)
_NESTED = (dict, list)
_SHAPES = bytes.maketrans(b"0123456789.E", b"00000000000e")


class ExactNumber(float):
    """A JSON number that is not a 64-bit integer, nor written as a double is. As a float it is rounded."""

    text: str
    """The number as it was written."""

    @classmethod
    def of(cls, text: str) -> "ExactNumber":
        """Return the number that a JSON literal writes."""
        number = cls(text)
        number.text = text
        return number

    @property
    def whole(self) -> int | None:
        """The integer that it is written as; None for a fraction, an exponent, or thousands of digits."""
        is_whole = len(self.text) <= _INT_DIGITS_MAX and self.text.lstrip("-").isdecimal()
        return int(self.text) if is_whole else None

    @property
    def is_double(self) -> bool:
        """True if it has no digits but those of its double's exact value."""
        return self.whole is None and not _carries_more(self.text)


class NotFinite(float):
    """NaN, Infinity or -Infinity in a JSON line, where JSON allows none of them."""


def loads_with_nan(line: bytes) -> Any:
    """Parse a line that may hold NaN, Infinity, and numbers above a double's range. Raise ValueError if it is not JSON."""
    return _decode(_WITH_NAN, line)


def loads_exactly(line: bytes) -> Any:
    """Parse JSON; numbers that 64-bit integers and doubles can't hold become ExactNumbers. Raise ValueError."""
    return _decode(_EXACT, line)


def _decode(decoder: json.JSONDecoder, line: bytes) -> Any:
    text = line.decode()
    try:
        value = decoder.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for a lone surrogate
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _parse_float(text: str) -> float:
    return ExactNumber.of(text) if _is_infinite(text) else float(text)


def _parse_float_exactly(text: str) -> float:
    value = float(text)
    is_zero = not text.lower().partition("e")[0].strip("-0.")
    if is_zero or (
        len(text) <= _EXPANSION_CHARS_MAX and not _is_infinite(text) and Decimal(text) == Decimal(repr(value))
    ):
        return value
    return ExactNumber.of(text)


def _parse_int(text: str) -> int | ExactNumber:
    if len(text) <= 20:
        value = int(text)
        if _INT64_MIN <= value <= _UINT64_MAX:
            return value
    return ExactNumber.of(text)


def _is_infinite(text: str) -> bool:
    return float(text) in (float("inf"), float("-inf"))


def _carries_more(text: str) -> bool:
    """True if a number is not the exact value of its double, rounded to as many digits as it has."""
    value = float(text)
    if value == 0 or _is_infinite(text) or len(text) > _EXPANSION_CHARS_MAX:
        return True
    number = Decimal(text)
    unit = Decimal((0, (1,), int(number.as_tuple().exponent)))
    return Decimal(value).quantize(unit, ROUND_HALF_EVEN, _WIDE) != number


_WITH_NAN = json.JSONDecoder(parse_float=_parse_float, parse_int=_parse_int, parse_constant=NotFinite)
_EXACT = json.JSONDecoder(parse_float=_parse_float_exactly, parse_int=_parse_int, parse_constant=NotFinite)


def restore_numbers(name: str, cells: Sequence[Any], lines: Sequence[Any]) -> Sequence[Any]:
    """Replace numbers that the fast parser rounded by ExactNumbers.

    Args:
        name: the column's name, which is a key in each line.
        cells: the column's cells as the fast parser read them.
        lines: the JSON of each row as bytes; rows without it are left as they are.

    Returns: `cells` itself if no number can have been rounded.
    """
    keys = sorted({re.escape(json.dumps(name, ensure_ascii=ascii)) for ascii in (False, True)})
    start = re.compile((keys[0] if len(keys) == 1 else f"(?:{keys[0]}|{keys[1]})") + r"\s*:\s*")
    found = set(map(type, cells))
    suspects = _suspect_floats(cells, lines, start) if float in found else []
    if not found.isdisjoint(_NESTED):
        suspects += _suspect_objects(name, cells, lines)
    if not suspects:
        return cells
    restored = list(cells)
    for index in suspects:
        if type(lines[index]) is bytes:
            restored[index] = _read_again(name, cells[index], lines[index], start)
    return restored


class NumberRestorer:
    """Does the work of `restore_numbers` for many columns of the same rows, in time that is linear in the columns.

    `restore_numbers` searches all lines for each column. After a number of columns, the lines are parsed once instead.
    """

    def __init__(self, lines: Sequence[Any]) -> None:
        self._lines = lines
        self._searches = 0

    def restore(self, name: str, cells: Sequence[Any]) -> Sequence[Any]:
        """Replace numbers that the fast parser rounded by ExactNumbers, as `restore_numbers` does."""
        self._searches += 1
        if self._searches <= _SEARCHES_MAX:
            return restore_numbers(name, cells, self._lines)
        return [
            self._restore_cell(name, cell, index) if isinstance(cell, float | list | dict) else cell
            for index, cell in enumerate(cells)
        ]

    def _restore_cell(self, name: str, cell: Any, index: int) -> Any:
        row = self._rows[index]
        return restore_numbers(name, [cell], [self._lines[index]])[0] if row is None else row[name]

    @cached_property
    def _rows(self) -> list[dict[str, Any] | None]:
        return [_load_row(line) if type(line) is bytes else None for line in self._lines]


def _load_row(line: bytes) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = loads_exactly(line)
    except ValueError:  # nested more deeply than this parser can go
        return None
    return row


def _suspect_floats(cells: Sequence[Any], lines: Sequence[Any], start: re.Pattern[str]) -> list[int]:
    """Return the places of floats that are not certainly written as doubles. All lines are searched at once: it is fast."""
    numbers = [cell for cell in cells if type(cell) in _NUMBERS]
    literals = []
    if set(map(type, lines)) == {bytes}:
        literals = re.findall(start.pattern.encode() + rb"([-+.\deE]+)", b"\n".join(lines))
    if literals == orjson.dumps(numbers)[1:-1].split(b","):
        return []
    places = [index for index, cell in enumerate(cells) if type(cell) in _NUMBERS]
    if len(literals) != len(numbers):  # the key is also in nested objects, or has escapes
        return places
    return [
        place
        for place, literal, number in zip(places, literals, numbers, strict=True)
        if not _is_double(literal, number)
    ]


def _is_double(literal: bytes, value: float) -> bool:
    """True if a literal is certainly written as a double."""
    if len(literal) <= _SHORT_CHARS and b"." in literal and b"e" not in literal and b"E" not in literal:
        return True
    return literal == repr(value).encode()


def _suspect_objects(name: str, cells: Sequence[Any], lines: Sequence[Any]) -> list[int]:
    """Return the places of lists and objects in which a number may have been rounded."""
    return [
        index
        for index, (cell, line) in enumerate(zip(cells, lines, strict=True))
        if type(cell) in _NESTED and type(line) is bytes and _may_be_long(line) and not _is_as_written(name, cell, line)
    ]


def _read_again(name: str, cell: Any, line: bytes, start: re.Pattern[str]) -> Any:
    text = line.decode()
    values = [match.end() for match in start.finditer(text)]
    try:
        if len(values) == 1:
            value = _EXACT.raw_decode(text, values[0])[0]
            if value == cell:  # an ExactNumber equals the number to which it is rounded
                return value
        return loads_exactly(line)[name]  # the key is also in a nested object, or has escapes
    except (ValueError, RecursionError):  # another cell is nested more deeply than this parser can go
        return cell


def _may_be_long(line: bytes) -> bool:
    """True if a number of the line may have more digits than a double, or be too small for one."""
    shape = line.translate(_SHAPES)
    return _LONG_RUN in shape or _TINY in shape


def _is_as_written(name: str, cell: Any, line: bytes) -> bool:
    """True if the line has the key once, and its value as a JSON writer writes it, so that no number has lost digits."""
    try:
        compact = orjson.dumps({name: cell})[1:-1]
    except TypeError:  # it holds ExactNumbers
        return False
    as_written = compact in line or compact.replace(b":", b": ").replace(b",", b", ") in line
    return as_written and line.count(orjson.dumps(name)) == 1
