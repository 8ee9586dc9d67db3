"""How the records of a CSV or TSV file are split into cells, and what about a record shows that they are split wrongly.

Nothing here is needed for a record that is well formed and has one line.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from arkbeam.manifest.options import CsvOptions

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

    def read(self, lines: Iterable[str], *, strict: bool = True) -> Iterator[list[str]]:
        """Return the records of some lines; with `strict`, wrong quotes raise `csv.Error`."""
        return csv.reader(
            lines,
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

    def split_plainly(self, line: str) -> list[str]:
        """Return the cells of a line if the quote that is open at its end is taken for a plain character."""
        cells = next(self.read([line], strict=False), [])
        return cells if self.split(line) is not None else [*cells[:-1], *cells[-1].rstrip("\r\n").split(self.delimiter)]

    def with_delimiter(self, delimiter: str) -> "Dialect":
        """Return the same dialect with another delimiter."""
        return replace(self, delimiter=delimiter)

    @property
    def escapes(self) -> re.Pattern[str] | None:
        """A pattern that finds all escape characters; its group 1 is empty for one that stands for itself."""
        if self.escape is None:
            return None
        meant = re.escape("".join({self.delimiter, self.quote or self.escape, self.escape}))
        return re.compile(rf"{re.escape(self.escape)}([{meant}\n]?)")


def hides_record(lines: Sequence[str], columns: int, key: int, dialect: Dialect, *, fits: bool) -> bool:
    """True if later lines of a record look like records of their own, so that stray quotes may have joined them.

    `columns` is the number of columns, and `key` the place of the id or, without an id, of the first column. `fits` is
    true if the record has as many cells as there are columns. A line looks like a record if

    - it can be read alone and has as many cells as there are columns;
    - no cell begins with a blank, as in prose, unless a cell of the first line does;
    - its id is like the id of the first line: the same punctuation, with or without digits, about as long; a number of
      up to three digits must be greater by 1 to 100.

    One such line is enough if the id has digits, and the first line is a whole record once its open quote is taken for
    a plain character, or the record does not fit. Otherwise the sign is weaker: if the id has digits, two lines are
    needed; if it has none, all later lines, below a first line that is whole. Text that was quoted for its line ends
    rarely has as many delimiters in each line as the file has. Files of one column can't be judged.
    """
    if columns < 2:
        return False
    delimiter, fewest = dialect.delimiter, columns - 1
    # If the id is in the first column, it decides without splitting lines into cells. An empty id is like any other.
    own = lines[0].partition(delimiter)[0].strip(_AROUND) if key == 0 else ""
    wide = [
        line
        for line in lines[1:]
        if line.count(delimiter) >= fewest and _is_near(own, line.partition(delimiter)[0].strip(_AROUND))
    ]
    if not wide:
        return False
    first = dialect.split_plainly(lines[0])
    if len(first) <= key:
        return False
    own = first[key].strip()
    blanks = any(cell.startswith(" ") for cell in first)
    found = sum(_is_like(dialect.split(line), own, columns, key, blanks) for line in wide)
    whole = len(first) == columns
    if not fits or (whole and _has_digit(own)):
        return found > 0
    return found > 1 if _has_digit(own) else whole and found == sum(bool(line.strip("\r\n")) for line in lines[1:])


def _is_like(cells: list[str] | None, own: str, columns: int, key: int, blanks: bool) -> bool:
    if cells is None or len(cells) != columns or (not blanks and any(cell.startswith(" ") for cell in cells)):
        return False
    return _is_near(own, cells[key].strip())


def _has_digit(key: str) -> bool:
    return " " not in key and any(map(str.isdigit, key))


def _is_near(own: str, other: str) -> bool:
    """True if another id could be from the same file. If the record has no id, any could be."""
    if own.isdecimal():
        if not other.isdecimal() or abs(len(own) - len(other)) > 1:
            return False
        return len(own) >= _LONG_NUMBER_DIGITS or 0 < int(other) - int(own) <= _NEAR
    if not own:
        return True
    if " " in own:
        return bool(other) and own[0].isdigit() == other[0].isdigit()
    if not other or " " in other or _marks(own) != _marks(other) or _has_digit(own) != _has_digit(other):
        return False
    if _has_digit(own):
        return abs(len(own) - len(other)) <= 1 and not other.isdecimal()
    return own.islower() == other.islower() and own.isupper() == other.isupper()


def _marks(key: str) -> str:
    return "".join(char for char in key if not char.isalnum())


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
