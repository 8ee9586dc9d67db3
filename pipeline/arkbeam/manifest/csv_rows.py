"""Rows of CSV and TSV files: records below a header."""

import csv
from collections.abc import Callable, Iterator

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RawRow, RowBatch, is_utf8, too_long
from arkbeam.manifest.lines import LongLine
from arkbeam.manifest.options import ManifestOptions


def read_csv(
    lines: Iterator[bytes | LongLine],
    uri: str,
    delimiter: str,
    options: ManifestOptions,
    note_header: Callable[[list[str]], None],
) -> Iterator[RowBatch]:
    """Yield the records that follow the header, which names the columns; all cells are strings.

    A quoted cell may contain line ends. A record with wrong quoting becomes a failure, and reading continues with the
    next line. The columns are given to `note_header` first. Raise ManifestError if the header can't be read or names a
    column more than once.
    """
    # The csv module has one limit for the whole process; its default of 131,072 characters is too low for our texts.
    csv.field_size_limit(max(csv.field_size_limit(), options.line_bytes_max))
    feed = _Feed(lines, options.line_bytes_max)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header = _read_header(uri, reader)
    note_header(header)
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
    """Return the column names; an empty list for a file without lines. Row 0 is the record after the header."""
    try:
        header = next((cells for cells in reader if cells), [])
    except (csv.Error, _RecordTooLong) as error:
        raise ManifestError(
            f"manifest {redact(uri)}: can't read the header, which is the first line that is not blank: {error}"
        ) from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ManifestError(
            f"manifest {redact(uri)}: the header names column {repeated[0]!r} more than once: rename one of them"
        )
    return header


def _bad_record(error: Exception, feed: "_Feed", options: ManifestOptions) -> Failure:
    if isinstance(error, _RecordTooLong):
        return too_long(feed.length, options)
    return Failure("bad_record", f"the record can't be split into cells: {error}; check its quotes")


def _name_cells(header: list[str], cells: list[str]) -> RawRow:
    if not cells:
        return None
    if len(cells) != len(header):
        return Failure("bad_record", f"the record has {len(cells)} cells; the header names {len(header)} columns")
    if not is_utf8("".join(cells)):
        return Failure("bad_text", "the record is not valid UTF-8: save the file as UTF-8")
    return dict(zip(header, cells, strict=True))


class _RecordTooLong(Exception):
    """A CSV record is longer than the limit. Raised and caught in this module only."""


class _Feed:
    """Gives physical lines to the csv module, which reads on while a quote is open, and limits the bytes of a record."""

    def __init__(self, lines: Iterator[bytes | LongLine], record_bytes_max: int) -> None:
        self._lines = lines
        self._record_bytes_max = record_bytes_max
        self.length = 0
        self.text = ""

    def start_record(self) -> None:
        """Reset the count: the next line starts a record."""
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
            raise _RecordTooLong(f"the record has {self.length} bytes or more; its closing quote may be missing")
        return text
