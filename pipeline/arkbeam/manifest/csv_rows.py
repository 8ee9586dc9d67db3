"""Rows of CSV and TSV: records under a header."""

import csv
from collections.abc import Iterator

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RawRow, RowBatch, is_utf8, too_long
from arkbeam.manifest.lines import LongLine
from arkbeam.manifest.options import ManifestOptions


def read_csv(
    lines: Iterator[bytes | LongLine], uri: str, delimiter: str, options: ManifestOptions
) -> Iterator[RowBatch]:
    """Yield the records behind the header, which names the columns; all cells are strings.

    A quoted cell may hold line ends. A record that breaks the rules of quoting is a bad row, and reading goes on with the
    next line. Raises ManifestError when there is no use in going on: the header can't be read or names a column twice.
    """
    # The limit is the process's, with no other way to set it; 131,072 characters by default are too few for our texts.
    csv.field_size_limit(max(csv.field_size_limit(), options.line_bytes_max))
    feed = _Feed(lines, options.line_bytes_max)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _read_header(uri, reader)
    batch = RowBatch()
    while header:
        feed.start_record()
        try:
            cells = next(reader)
        except StopIteration:
            break
        except (csv.Error, _RecordTooLong) as error:
            batch.add(_bad_record(error, feed, options), feed.text, feed.length)
        else:
            row = _name_cells(header, cells)
            batch.add(row, feed.text if isinstance(row, Failure) else None, feed.length)
        if batch.is_full:
            yield batch
            batch = RowBatch()
    if batch.rows:
        yield batch


def _read_header(uri: str, reader: Iterator[list[str]]) -> list[str]:
    """Return the column names; none for a file without lines. Rows are counted from the record behind the header."""
    try:
        header = next((cells for cells in reader if cells), [])
    except (csv.Error, _RecordTooLong) as error:
        raise ManifestError(f"manifest {redact(uri)}: its header can't be read: {error}") from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ManifestError(f"manifest {redact(uri)}: its header names {repeated[0]!r} twice")
    return header


def _bad_record(error: Exception, feed: "_Feed", options: ManifestOptions) -> Failure:
    if isinstance(error, _RecordTooLong):
        return too_long(feed.length, options)
    return Failure("bad_record", f"the record can't be split into cells: {error}")


def _name_cells(header: list[str], cells: list[str]) -> RawRow:
    if not cells:
        return None
    if len(cells) != len(header):
        return Failure("bad_record", f"the record has {len(cells)} cells, the header {len(header)}")
    if not is_utf8("".join(cells)):
        return Failure("bad_text", "the record is not UTF-8")
    return dict(zip(header, cells, strict=True))


class _RecordTooLong(Exception):
    """A CSV record grew beyond the limit; it stays in this module."""


class _Feed:
    """Physical lines for the csv module, which asks for more while a quote is open; the sum of a record is bounded."""

    def __init__(self, lines: Iterator[bytes | LongLine], record_bytes_max: int) -> None:
        self._lines = lines
        self._record_bytes_max = record_bytes_max
        self.length = 0
        self.text = ""

    def start_record(self) -> None:
        """Begin to count anew."""
        self.length = 0
        self.text = ""

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        long = isinstance(line, LongLine)
        self.length += line.length if isinstance(line, LongLine) else len(line) + 1
        text = (line.head if isinstance(line, LongLine) else line).decode("utf-8", "surrogateescape") + "\n"
        if not self.text:
            self.text = text
        if long or self.length > self._record_bytes_max:
            raise _RecordTooLong(
                f"the record, or one with a quote that is never closed, has {self.length} bytes or more"
            )
        return text
