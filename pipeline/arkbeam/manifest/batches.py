"""Rows as they were read from a file, in batches that look the same for all formats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.cells import Binary
from arkbeam.manifest.numbers import ExactNumber, NotFinite
from arkbeam.manifest.options import ManifestOptions

BATCH_ROWS_MAX = 4_096
BATCH_BYTES_MAX = 8 * 1024 * 1024
_ORIGINAL_CHARS_MAX = 65_536
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    ExactNumber: "a number",
    NotFinite: "NaN or Infinity, which JSON does not have",
    type(None): "null",
    Binary: "bytes that are not text",
}

RawRow = dict[str, Any] | Failure | None
"""Cells by column name; a Failure if the row can't be read; None for a blank line."""


@dataclass(slots=True)
class RowBatch:
    """Consecutive physical rows of a shard."""

    rows: list[RawRow] = field(default_factory=list)
    originals: list[bytes | str | None] = field(default_factory=list)
    """Each row as it was read, whole or cut off; None: it is rebuilt from the cells."""
    kept: pa.RecordBatch | None = None
    """The kept columns of these rows in the types of the file; None: the kept values are among the cells of `rows`."""
    size_bytes: int = 0
    ids: dict[int, str] | None = None
    """Published ids by position, for rows that a failure table names; None: each row has its own id."""

    def add(self, row: RawRow, original: bytes | str | None, size_bytes: int) -> None:
        """Append one physical row."""
        self.rows.append(row)
        self.originals.append(original)
        self.size_bytes += size_bytes

    @property
    def is_full(self) -> bool:
        """True if the batch has reached its limit of rows or bytes."""
        return len(self.rows) >= BATCH_ROWS_MAX or self.size_bytes >= BATCH_BYTES_MAX


def too_long(length: int, options: ManifestOptions) -> Failure:
    """Return the failure for a row of `length` bytes, which is above the limit."""
    limit = options.line_bytes_max
    return Failure(
        "line_too_long",
        f"the row has {length} bytes; at most {limit} are allowed: shorten it, or raise manifest.line_bytes_max",
    )


def quote_row(batch: RowBatch, position: int) -> str | None:
    """Return a row as it was read, or its cells as JSON; None if it has neither.

    The text is cut to 65,536 characters, and secrets in URLs are masked.
    """
    original = _original(batch, position)
    return None if original is None else _quote(original)


def quote_rows(batch: RowBatch, positions: Sequence[int]) -> pa.Array:
    """Return what `quote_row` returns for each of these rows, as `large_string`. Most lines are copied as they are."""
    originals = [_original(batch, position) for position in positions]
    quoted = [row if row is None or _is_quoted_as_is(row) else _quote(row) for row in originals]
    try:
        return pa.array(quoted, pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:  # a line that is not valid UTF-8
        return pa.array([None if row is None else _quote(row) for row in originals], pa.large_string())


def _original(batch: RowBatch, position: int) -> bytes | str | None:
    original, row = batch.originals[position], batch.rows[position]
    return orjson.dumps(row, default=str) if original is None and type(row) is dict else original


def _is_quoted_as_is(row: bytes | str) -> bool:
    """True if `_quote` returns the text of a line unchanged, as far as it is valid UTF-8. The first tests are the fastest."""
    return (
        type(row) is bytes
        and len(row) <= _ORIGINAL_CHARS_MAX
        and (b"/" not in row or (b"://" not in row and b":\\/\\/" not in row))
    )


def _quote(row: bytes | str) -> str:
    if isinstance(row, bytes):
        return mask_row(row[:_ORIGINAL_CHARS_MAX].decode("utf-8", "replace"))
    return mask_row(row[:_ORIGINAL_CHARS_MAX].encode("utf-8", "replace").decode())


def mask_row(text: str) -> str:
    """Mask the secrets in the URLs of a row, if it has any. Masking a row again, by the rules of today, changes nothing."""
    has_url = "/" in text and ("://" in text or ":\\/\\/" in text)  # the first test is the fastest
    return redact(text, _ORIGINAL_CHARS_MAX) if has_url else text


def describe_type(value: object) -> str:
    """Return the JSON type of a value for a message, such as "a list"; types that JSON lacks have their Python name."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def is_utf8(text: str) -> bool:
    """True if a string can be written as UTF-8: it holds neither a lone surrogate nor a byte that failed to decode."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
