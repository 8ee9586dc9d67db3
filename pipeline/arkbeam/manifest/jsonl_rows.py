"""Rows of JSON Lines files: one JSON object per line."""

from collections.abc import Collection, Iterator
from typing import Any

import orjson

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RawRow, RowBatch, describe_type, too_long
from arkbeam.manifest.lines import LongLine
from arkbeam.manifest.numbers import loads_with_nan
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.text import explain_bad_text


def read_jsonl(
    lines: Iterator[bytes | LongLine], options: ManifestOptions, wanted: Collection[int] | None = None
) -> Iterator[RowBatch]:
    """Yield one entry per line; a blank line is None, and so is a line whose number is not in `wanted`."""
    batch = RowBatch()
    for number, line in enumerate(lines):
        if wanted is not None and number not in wanted:
            batch.add(None, None, 0)
        elif isinstance(line, LongLine):
            batch.add(too_long(line.length, options), line.head, len(line.head))
        else:
            batch.add(_parse_object(line, options), line, len(line))
        if batch.is_full:
            yield batch
            batch = RowBatch()
    if batch.rows:
        yield batch


def _parse_object(line: bytes, options: ManifestOptions) -> RawRow:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not line or line.isspace():
            return None
        value = _parse_with_nan(line)
        return _explain(line, error, options) if value is None else value
    if type(value) is dict:
        return value
    hint = "; if the file is one array, set manifest.format: json" if type(value) is list else ""
    return Failure("not_an_object", f"the line holds {describe_type(value)}; expected a JSON object{hint}")


def _parse_with_nan(line: bytes) -> dict[str, Any] | None:
    """Return the object of a line that is JSON but for NaN, Infinity and numbers above a double's range, else None."""
    try:
        value = loads_with_nan(line)
    except ValueError:
        return None
    return value if type(value) is dict else None


def blame_json(line: bytes, failure: Failure) -> Failure:
    """Return the failure of a row: `bad_json` if its line has NaN or Infinity, which is not JSON."""
    if b"NaN" in line or b"Infinity" in line:
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError:
            return Failure("bad_json", f"the line is not valid JSON, since it has NaN or Infinity; {failure.message}")
    return failure


def _explain(line: bytes, error: ValueError, options: ManifestOptions) -> Failure:
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        text = line.decode("utf-8", "surrogateescape")
        reason = explain_bad_text("the line", text, options.encoding, "manifest.encoding")
        return Failure("bad_text", f"{reason}; the first bad byte is at offset {fault.start}")
    if "surrogate" in str(error):
        return Failure(
            "bad_text", "the line holds a lone surrogate (\\ud800 to \\udfff without its pair), which is not valid text"
        )
    return Failure("bad_json", f"the line is not valid JSON: {redact(str(error), 200)}")
