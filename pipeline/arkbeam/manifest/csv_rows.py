"""Rows of CSV and TSV files: records below a header.

Each line of a file is part of exactly one row: of a record, of a failure, or of a blank row. If the quotes of a record
are wrong, its first line alone becomes a failure, and the lines below are read as records of their own. So a stray quote
costs one line.
"""

import csv
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from itertools import chain, islice

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RawRow, RowBatch, is_utf8, too_long
from arkbeam.manifest.csv_dialect import Dialect, explain_quotes, hides_record, is_quoted_cell, opens_quote
from arkbeam.manifest.csv_header import (
    Header,
    check_dialect,
    check_first_record,
    find_separator,
    name_columns,
    skip_blanks,
)
from arkbeam.manifest.lines import LongLine
from arkbeam.manifest.options import Format, ManifestOptions
from arkbeam.manifest.text import explain_bad_text, show_line

# Lines of bad records are read again. So that this takes time in proportion to the file, whatever its quotes are, lines
# that are read again may be this many times as many as the others, and this many more. A record above these limits may
# have a few lines only.
_AGAIN_RATIO = 20
_AGAIN_MAX = 200_000
_FEW_LINES = 20
# So many blank lines in a quoted cell are recognised in a TSV for which the config does not say that it has quotes.
_BLANK_LINES_MAX = 100
_BEHIND_LONE_CR = re.compile(r"(?<=\r)(?!\n|$)")


def read_csv(
    lines: Iterator[bytes | LongLine],
    end: str,
    uri: str,
    kind: Format,
    options: ManifestOptions,
    used: Collection[str],
    note_header: Callable[[list[str]], None],
) -> Iterator[RowBatch]:
    """Yield the records that follow the header, which names the columns; all cells are strings.

    `lines` are the physical lines of the file, and `end` is what each of them has lost at its end. `used` are the
    columns that the run reads. The columns are given to `note_header` first. A quoted cell may contain line ends. Cells
    without a column are allowed at the end of a record if they are empty. Raise ManifestError if the header can't be
    read, names a used column more than once, or shows that the file has another delimiter or encoding.
    """
    # The csv module has one limit for the whole process; its default of 131,072 characters is too low for our texts.
    csv.field_size_limit(max(csv.field_size_limit(), options.line_bytes_max))
    feed = _Feed(lines, end, Dialect.choose(options.csv, tsv=kind == "tsv"), options)
    header = _read_header(feed, uri, kind, options, used)
    if header is None:
        return
    note_header(header.names)
    feed.header = header
    doubts = _Doubts(feed) if feed.dialect.doubts_quotes else None
    names, width = header.names, len(header.names)
    encoding = options.encoding_of(kind)
    batch = RowBatch()
    for cells in feed.read_records():
        row: RawRow
        if type(cells) is list and len(cells) == width and feed.is_text:
            row = dict(zip(names, cells, strict=True))
        else:
            row = _make_row(cells, header, feed, encoding)
        if doubts is not None:
            row = doubts.check(batch, row)
        batch.add(row, feed.text if type(row) is Failure else None, feed.length)
        if batch.is_full:
            rest = RowBatch() if doubts is None else doubts.take(batch)
            yield batch
            batch = rest
    if batch.rows:
        yield batch


def _read_header(
    feed: "_Feed", uri: str, kind: Format, options: ManifestOptions, used: Collection[str]
) -> Header | None:
    """Return the columns; None for a file without lines. Row 0 is the record after the header."""
    ids = ("id", "custom_id") if options.columns.id is None else (options.columns.id,)
    feed.skip_separator(takes_it=options.csv.delimiter is None)
    named = options.csv.header
    if not isinstance(named, bool):
        check_first_record(uri, feed.peek(), named, feed.dialect)
        return name_columns(uri, named, used, ids)
    cells = next((cells for cells in feed.read_records() if cells), None)
    if cells is None:
        return None
    if isinstance(cells, Failure):
        raise ManifestError(
            f"manifest {redact(uri)}: can't read the header, which is the first line that is not blank: {cells.message}"
        )
    line = feed.text
    if not feed.is_text:
        what = f"the header {show_line(line)}"
        raise ManifestError(f"manifest {redact(uri)}: {explain_bad_text(what, line, *options.encoding_of(kind))}")
    feed.dialect = skip_blanks(line, cells, used, feed.dialect)
    cells = feed.dialect.split(line) or cells
    check_dialect(uri, line, cells, used, feed.dialect)
    return name_columns(uri, cells, used, ids)


def _make_row(cells: list[str] | Failure, header: Header, feed: "_Feed", encoding: tuple[str, str]) -> RawRow:
    if isinstance(cells, Failure):
        return cells
    if not cells:
        return None
    if not header.fits(cells):
        found = f"the record has {len(cells)} cells; the header names {len(header.names)} columns"
        return Failure("bad_record", found + explain_quotes(feed.text, feed.dialect))
    if not feed.is_text:
        return Failure("bad_text", explain_bad_text("the record", feed.text, *encoding))
    return dict(zip(header.names, cells, strict=False))


class _Feed:
    """Gives physical lines to the csv module, which reads on while a quote is open, and takes back those of bad records."""

    def __init__(self, lines: Iterator[bytes | LongLine], end: str, dialect: Dialect, options: ManifestOptions) -> None:
        self.dialect = dialect
        self.header: Header | None = None
        self.record: list[str] = []
        """The lines of the last record; of a bad record only the first."""
        self.length = 0
        """Bytes of the last record."""
        self.is_text = True
        """False: the last record holds bytes that can't be decoded, as lone surrogates."""
        self._lines = lines
        self._ahead: deque[str | bytes | LongLine] = deque()
        self._end = end
        self._options = options
        self._reader = dialect.read(())
        self._again = 0
        """Lines that were read again, less what the lines before the reader's first one allow."""

    @property
    def text(self) -> str:
        """The last record as it was read."""
        return "".join(self.record)

    def read_records(self) -> Iterator[list[str] | Failure]:
        """Yield the cells of each record; an empty list for a blank line, a Failure for a line with wrong quotes."""
        while True:
            self._forget()
            try:
                self._reader = self.dialect.read(self._give())
                for cells in self._reader:
                    if len(self.record) > 1 and self._hides_record(cells):
                        yield self._give_up(
                            "a later line of the record looks like a record of its own, so a quote or escape in this line"
                            " is probably a stray one: double or remove it; if the text is right, set"
                            " manifest.csv.inner_records: true"
                        )
                        break
                    yield cells
                    self._forget()
                else:
                    return
            except _LineTooLong as error:
                yield too_long(error.length, self._options)
            except (csv.Error, _QuoteOpen) as error:
                if not self._split_at_cr():
                    yield self._give_up(_explain(error))

    def peek(self) -> str:
        """Return the next line without reading it; an empty string at the end."""
        if not self._ahead:
            self._ahead.extend(islice(self._lines, 1))
        line = self._ahead[0] if self._ahead else b""
        if isinstance(line, LongLine):
            line = line.head
        return line if isinstance(line, str) else _decode(line) + self._end

    def skip_separator(self, *, takes_it: bool) -> None:
        """Skip a first line such as `sep=;`, and take its delimiter if `takes_it`."""
        delimiter = find_separator(self.peek())
        if delimiter is None:
            return
        self._ahead.clear()
        if takes_it and delimiter not in (self.dialect.quote, self.dialect.escape):
            self.dialect = replace(self.dialect, delimiter=delimiter)

    def _forget(self) -> None:
        self.record.clear()
        self.length = 0
        self.is_text = True

    def _give(self) -> Iterator[str]:
        """Yield the next lines. Raise _QuoteOpen if a record has too many, _LineTooLong if its first one is too long."""
        record, end = self.record, self._end
        for line in chain(self._take_ahead(), self._lines):
            if type(line) is bytes:
                try:
                    text = line.decode() + end
                except UnicodeDecodeError:
                    text = _decode(line) + end
                    self.is_text = False
                self.length += len(line) + 1
            elif isinstance(line, LongLine):
                if record:
                    self._ahead.appendleft(line)
                    raise _QuoteOpen("the next line is too long")
                record.append(_decode(line.head) + end)
                self.length = line.length
                raise _LineTooLong(line.length)
            else:  # a line that was given back
                text = str(line)
                self.is_text = self.is_text and is_utf8(text)
                self.length += len(text.encode("utf-8", "surrogateescape"))
            if record and (limit := self._find_limit()):
                self._ahead.appendleft(text)
                raise _QuoteOpen(f"the record would have more than {limit}")
            record.append(text)
            yield text

    def _take_ahead(self) -> Iterator[str | bytes | LongLine]:
        while self._ahead:
            yield self._ahead.popleft()

    def _find_limit(self) -> str | None:
        """Return the limit that the record exceeds with the line that was read last."""
        bytes_max, lines_max, lines = self._options.line_bytes_max, self._options.csv.lines_max, len(self.record)
        if self.length > bytes_max:
            return f"{bytes_max} bytes (manifest.line_bytes_max)"
        if lines >= lines_max:
            return f"{lines_max} lines (manifest.csv.lines_max)"
        if lines >= _FEW_LINES and self._count_again() > _AGAIN_MAX:
            return f"{lines} lines, which is the limit after many long records with wrong quotes"
        return None

    def _count_again(self) -> int:
        return max(0, self._again - _AGAIN_RATIO * (self._reader.line_num - len(self.record)))

    def _hides_record(self, cells: list[str]) -> bool:
        header = self.header
        if header is None or self._options.csv.inner_records:
            return False
        return hides_record(self.record, len(header.names), header.key, self.dialect, fits=header.fits(cells))

    def _give_up(self, reason: str) -> Failure:
        """Return the failure for the first line of a bad record; the other lines are read again."""
        first, *rest = self.record
        self._again = self._count_again() + len(rest)
        self._ahead.extendleft(reversed(rest))
        self.record[:] = [first]
        self.length = len(first.encode("utf-8", "surrogateescape"))
        return Failure(
            "bad_record", f"the record can't be split into cells: {reason}{explain_quotes(first, self.dialect)}"
        )

    def _split_at_cr(self) -> bool:
        """Give back a line as several if it has carriage returns alone in it, and all its pieces are whole records.

        Otherwise a carriage return in a text without quotes would cut the text in two.
        """
        pieces = _BEHIND_LONE_CR.split(self.record[0]) if len(self.record) == 1 else []
        width = len(self.header.names) if self.header is not None else 0
        if len(pieces) < 2 or width < 2 or any(len(self.dialect.split(piece) or ()) != width for piece in pieces):
            return False
        self._ahead.extendleft(reversed(pieces))
        return True


class _Doubts:
    """Finds rows of a TSV that only a writer of quotes makes, while the config does not say whether cells are quoted."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._open = ""
        """The last row that is not blank, as it was read, if its last cell begins with a quote that is not closed."""
        self._at = 0
        """The place of that row in the batch."""

    def check(self, batch: RowBatch, row: RawRow) -> RawRow:
        """Return the row, or a failure if it has a quoted cell. A row before a bad one fails too if a quote is open."""
        if row is None and len(batch.rows) - self._at <= _BLANK_LINES_MAX:
            return None  # blank lines may be part of a quoted cell
        if self._open and isinstance(row, Failure):
            batch.rows[self._at], batch.originals[self._at] = _quoted("has a line end in quotes"), self._open
        self._open = ""
        if type(row) is dict and '"' in self._feed.text:
            cells = list(row.values())
            if any(map(is_quoted_cell, cells)):
                return _quoted("has a cell in quotes, with doubled quotes in it")
            self._open, self._at = self._feed.text if opens_quote(cells[-1]) else "", len(batch.rows)
        return row

    def take(self, batch: RowBatch) -> RowBatch:
        """Take the last rows out of a batch if one may still become a failure, and return them as the next batch."""
        rest = RowBatch()
        if self._open:
            at, self._at = self._at, 0
            rest = RowBatch(batch.rows[at:], batch.originals[at:], size_bytes=len(self._open))
            del batch.rows[at:], batch.originals[at:]
        return rest


def _quoted(what: str) -> Failure:
    return Failure(
        "bad_record",
        f"the record {what}, but a TSV has no quotes unless the config says so: set manifest.csv.quote: '\"', or to '' if"
        " quotes are characters like any other",
    )


class _LineTooLong(Exception):
    """The first line of a record is longer than the limit. Raised and caught in this module only."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length


class _QuoteOpen(Exception):
    """A quote is not closed within the limits of a record. Raised and caught in this module only."""


def _explain(error: Exception) -> str:
    """Say what is wrong with a record. The csv module has no codes for its errors, and its advice is for programmers."""
    text = str(error)
    if isinstance(error, _QuoteOpen):
        return f"a quote that opens in this line is not closed: {text}"
    if "unexpected end" in text:
        return "a quote that opens in this line is not closed before the end of the file"
    if "new-line" in text:
        return "a carriage return stands outside quotes"
    if "expected after" in text:
        return "a quote is followed by something other than a delimiter or the end of the line"
    return redact(text, 200)


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")
