"""Rows as they stand in a file, a batch at a time, in one shape for all formats."""

from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.options import ManifestOptions

BATCH_ROWS_MAX = 4_096
BATCH_BYTES_MAX = 8 * 1024 * 1024
_ORIGINAL_CHARS_MAX = 65_536

RawRow = dict[str, Any] | Failure | None
"""Cells by column name, why they can't be read, or None for a blank line."""


@dataclass(slots=True)
class RowBatch:
    """Consecutive physical rows of a shard."""

    rows: list[RawRow] = field(default_factory=list)
    originals: list[bytes | str | None] = field(default_factory=list)
    """Each row as it was read, whole or cut; None: make it of the cells."""
    kept: pa.RecordBatch | None = None
    """The kept columns of these rows with their own types; None: they are cells of the rows."""
    size_bytes: int = 0
    ids: dict[int, str] | None = None
    """Ids as published of rows that are tried again, by position; None: rows have their own."""

    def add(self, row: RawRow, original: bytes | str | None, size_bytes: int) -> None:
        """Append one physical row."""
        self.rows.append(row)
        self.originals.append(original)
        self.size_bytes += size_bytes

    @property
    def is_full(self) -> bool:
        """Whether the bounds of a batch are reached."""
        return len(self.rows) >= BATCH_ROWS_MAX or self.size_bytes >= BATCH_BYTES_MAX


def too_long(length: int, options: ManifestOptions) -> Failure:
    """The failure of a line or record above the limit."""
    return Failure("line_too_long", f"{length} bytes; manifest.line_bytes_max is {options.line_bytes_max}")


def quote_row(batch: RowBatch, position: int) -> str | None:
    """Return a row as it was read, or its cells as JSON: cut, and without secrets in URLs."""
    original = batch.originals[position]
    if original is None:
        row = batch.rows[position]
        if type(row) is not dict:
            return None
        original = orjson.dumps(row, default=str)
    if type(original) is bytes:
        text = original[:_ORIGINAL_CHARS_MAX].decode("utf-8", "replace")
    else:
        text = str(original)[:_ORIGINAL_CHARS_MAX].encode("utf-8", "replace").decode()
    return redact(text, _ORIGINAL_CHARS_MAX) if "://" in text else text


def is_utf8(text: str) -> bool:
    """Whether a string can be written as UTF-8: it holds no lone surrogate, nor a byte that could not be decoded."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
