"""How the records of a CSV or TSV file are split into cells, and what about a record shows that they are split wrongly.

Nothing here is needed for a record that is well formed and has one line.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arkbeam.manifest.options import CsvOptions

if TYPE_CHECKING:
    from _csv import Reader

_DELIMITERS = ",;\t|\x01:"
# An id of fewer digits is too common at the start of a line to be a sign of a record.
_LONG_NUMBER_DIGITS = 4
_NEAR = 100
_AROUND = "\"' "


@dataclass(frozen=True, slots=True)
class Dialect:
    """The special characters of a file."""

    delimiter: str
    quote: str | None
    escape: str | None = None
    skips_blanks: bool = False
    """True: blanks behind a delimiter do not belong to the cell."""
    doubts_quotes: bool = False
    """True: the file is a TSV and the config does not say whether cells are quoted. Quotes are plain characters, but a
    record that only a writer of quotes would make is a failure."""

    @classmethod
    def choose(cls, options: CsvOptions, *, tsv: bool) -> "Dialect":
        """Return the dialect of a CSV or TSV file as the config has it."""
        quote = options.quote if options.quote is not None else "" if tsv else '"'
        delimiter = options.delimiter or ("\t" if tsv else ",")
        return cls(delimiter, quote or None, options.escape, doubts_quotes=tsv and options.quote is None)

    def read(self, lines: Iterable[str], *, strict: bool = True) -> "Reader":
        """Return the records of some lines; with `strict`, wrong quotes raise `csv.Error`."""
        escapes = self._escapes
        return csv.reader(
            lines if escapes is None else (escapes.sub(_double, line) for line in lines),
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=self.escape,
            skipinitialspace=self.skips_blanks,
            strict=strict,
        )

    def split(self, line: str) -> list[str] | None:
        """Return the cells of a line that is a whole record; None if it is not."""
        try:
            return next(self.read([line]), [])
        except csv.Error:
            return None

    @property
    def _escapes(self) -> re.Pattern[str] | None:
        """A pattern that finds all escape characters; its group 1 is empty for one that stands for itself."""
        if self.escape is None:
            return None
        meant = re.escape("".join({self.delimiter, self.quote or self.escape, self.escape}))
        return re.compile(rf"{re.escape(self.escape)}([{meant}\n]?)")


def _double(escape: re.Match[str]) -> str:
    """Double an escape character that stands for itself, so that the csv module returns it."""
    return escape[0] if escape[1] else escape[0] * 2


def hides_record(lines: Sequence[str], columns: int, key: int | None, dialect: Dialect, *, fits: bool) -> bool:
    """True if later lines of a record look like records of their own, so that stray quotes may have joined them.

    `columns` is the number of columns, and `key` the place of the id, None without one. `fits` is true if the record
    has as many cells as there are columns. A line looks like a record if

    - it can be read alone and has as many cells as there are columns;
    - no cell begins with a blank, as in prose, unless a cell of the first line does;
    - its id is like that of the first line: the same punctuation, with or without digits, about as long; a number of up
      to three digits must be greater by 1 to 100.

    The first line is judged with its open quote taken for a plain character; it is whole if it then has as many cells as
    there are columns, and the quote is not its last character. If that quote opens in the first cell, the last line is
    not judged, because it has all columns in any case.

    One such line is enough if the id has digits and the first line is whole, or if the record does not fit. Otherwise
    the sign is weaker: if the id has digits, two lines are needed; else the first line must be whole, and all later ones
    must look like records, two of them at least if there is no id. Text that was quoted for its line ends rarely has as
    many delimiters in a line as the file has. Files of one column can't be judged.
    """
    if columns < 2 or not _may_hide(lines, columns, key, dialect.delimiter):
        return False
    *before, opened = next(dialect.read(lines[:1], strict=False))
    opened = opened.rstrip("\r\n")
    first = [*before, *opened.split(dialect.delimiter)]
    if key is not None and len(first) <= key:
        return False
    own = None if key is None else first[key].strip()
    blanks = any(cell.startswith(" ") for cell in first)
    later = lines[1:] if before else lines[1:-1]
    found = sum(_is_like(line, own, columns, key, blanks, dialect) for line in later)
    whole = len(first) == columns and opened != ""
    strong = own is not None and _has_digit(own)
    if not fits or (whole and strong):
        return found > 0
    if strong:
        return found > 1
    return whole and not blanks and found > (own is None) and found == sum(map(bool, map(str.strip, later)))


def _may_hide(lines: Sequence[str], columns: int, key: int | None, delimiter: str) -> bool:
    """Return False for most records of several lines without splitting a line into cells."""
    own = lines[0].partition(delimiter)[0].strip(_AROUND)
    return any(
        line.count(delimiter) >= columns - 1
        and (key != 0 or _is_near(own, line.partition(delimiter)[0].strip(_AROUND)))
        for line in lines[1:]
    )


def _is_like(line: str, own: str | None, columns: int, key: int | None, blanks: bool, dialect: Dialect) -> bool:
    if line.count(dialect.delimiter) < columns - 1:
        return False
    cells = dialect.split(line)
    if cells is None or len(cells) != columns or (not blanks and any(cell.startswith(" ") for cell in cells)):
        return False
    return own is None or key is None or _is_near(own, cells[key].strip())


def _has_digit(key: str) -> bool:
    return " " not in key and any(map(str.isdigit, key))


def _is_near(own: str, other: str) -> bool:
    """True if another id could be from the same file."""
    if own.isdecimal():
        if not other.isdecimal() or abs(len(own) - len(other)) > 1:
            return False
        return len(own) >= _LONG_NUMBER_DIGITS or 0 < int(other) - int(own) <= _NEAR
    if not own or not other or (" " in own) != (" " in other):
        return own == other
    if _marks(own) != _marks(other) or any(map(str.isdigit, own)) != any(map(str.isdigit, other)):
        return False
    if _has_digit(own):
        return abs(len(own) - len(other)) <= 1 and not other.isdecimal()
    return " " in own or (own.islower() == other.islower() and own.isupper() == other.isupper())


def _marks(key: str) -> str:
    return "".join(char for char in key if not char.isalnum() and char != " ")


def explain_quotes(line: str, dialect: Dialect) -> str:
    """Return what to set if a line that can't be read shows quotes or escapes of another dialect; else an empty string."""
    if dialect.escape is None and dialect.quote is not None and f"\\{dialect.quote}" in line:
        return "; if a backslash stands before quotes in cells, set manifest.csv.escape: '\\'"
    if dialect.doubts_quotes and '"' in line:
        return "; the cells of a TSV have no quotes unless manifest.csv.quote: '\"' is set"
    return ""


def is_quoted_cell(cell: str) -> bool:
    """True for a cell that only a writer of quotes makes: the quotes in it are doubled, and there are some."""
    inner = cell[1:-1]
    return cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def opens_quote(cell: str) -> bool:
    """True for a cell that begins with a quote which is still open at its end."""
    return cell.startswith('"') and cell.count('"') % 2 == 1


def find_delimiter(line: str, dialect: Dialect, fits: Callable[[list[str]], bool]) -> str | None:
    """Return the other usual delimiter that splits a line into the most cells, if `fits` takes them; else None."""
    others = [char for char in _DELIMITERS if char not in (dialect.delimiter, dialect.quote, dialect.escape)]
    found = [
        (cells, char) for char in others if (cells := replace(dialect, delimiter=char).split(line)) and fits(cells)
    ]
    return max(found, key=lambda one: len(one[0]), default=([], None))[1]
