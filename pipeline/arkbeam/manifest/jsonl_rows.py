"""Rows of JSON lines: one object a line."""

from collections.abc import Collection, Iterator

import orjson

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RawRow, RowBatch, too_long
from arkbeam.manifest.lines import LongLine
from arkbeam.manifest.options import ManifestOptions


def read_jsonl(
    lines: Iterator[bytes | LongLine], options: ManifestOptions, wanted: Collection[int] | None = None
) -> Iterator[RowBatch]:
    """Yield a row for each line; blank lines are no rows but are counted, and so are those that are not `wanted`."""
    batch = RowBatch()
    for number, line in enumerate(lines):
        if wanted is not None and number not in wanted:
            batch.add(None, None, 0)
        elif isinstance(line, LongLine):
            batch.add(too_long(line.length, options), line.head, len(line.head))
        else:
            batch.add(_parse_object(line), line, len(line))
        if batch.is_full:
            yield batch
            batch = RowBatch()
    if batch.rows:
        yield batch


def _parse_object(line: bytes) -> RawRow:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not line or line.isspace():
            return None
        return _explain(line, error)
    if type(value) is dict:
        return value
    return Failure("not_an_object", f"the line holds a JSON {_json_name(value)}, not an object")


def _explain(line: bytes, error: ValueError) -> Failure:
    try:
        line.decode()
    except UnicodeDecodeError as fault:
        return Failure("bad_text", f"the line is not UTF-8: byte {line[fault.start]:#04x} at {fault.start}")
    if "surrogate" in str(error):
        return Failure("bad_text", "the line holds a lone surrogate, which is no Unicode text")
    return Failure("bad_json", f"the line is not JSON: {redact(str(error), 200)}")


def _json_name(value: object) -> str:
    names = {list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
