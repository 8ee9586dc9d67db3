"""The header of a CSV or TSV file: which cell of a record belongs to which column."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact
from arkbeam.manifest.csv_dialect import Dialect, find_delimiter
from arkbeam.manifest.text import show_line

_SEPARATOR = re.compile(r'"?sep=([^\r\n"])"?[\r\n]*', re.IGNORECASE)
_SHOWN_NAMES = 8


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a file. The names are the keys of the rows, so no two are the same."""

    names: list[str]
    needed: int
    """Fewest cells of a record: columns at the end that have no name may be missing."""
    key: int | None
    """Place of the id among the cells; None if the file has no id."""

    def fits(self, cells: Sequence[str]) -> bool:
        """True if a record has all columns, and cells without a column only if they are empty."""
        return len(cells) >= self.needed and not any(cell.strip(" \t") for cell in cells[len(self.names) :])


def find_separator(line: str) -> str | None:
    """Return the delimiter that a line such as `sep=;` names, which spreadsheets write above the header; else None."""
    match = _SEPARATOR.fullmatch(line)
    return None if match is None else match[1]


def skip_blanks(line: str, cells: Sequence[str], used: Collection[str], dialect: Dialect) -> Dialect:
    """Return a dialect that skips the blanks behind delimiters if each delimiter of the header has one."""
    gap, later = f"{dialect.delimiter} ", cells[1:]
    if not later or dialect.delimiter == " " or line.count(gap) < len(later) or not set(later).isdisjoint(used):
        return dialect
    return replace(dialect, skips_blanks=True)


def name_columns(uri: str, cells: Sequence[str], used: Collection[str], ids: Sequence[str]) -> Header:
    """Return the columns that the cells of a header name. `used` are the columns that the run reads, `ids` the id's.

    Blanks around a name are removed, unless the name is used with them, or another column has the name without them.
    Columns without a name, and unused ones that repeat a name, can't be read; in failure rows they have names such as
    `(3)`. Raise ManifestError if the name of a used column is repeated.
    """
    exact = set(cells)
    bare = [_strip(cell, exact, used) for cell in cells]
    counts = Counter(bare)
    repeated = sorted(name for name, count in counts.items() if count > 1 and name in used)
    if repeated:
        raise ManifestError(
            f"manifest {redact(uri)}: the header names column {redact(repeated[0], 100)!r} more than once, and the run reads"
            " that column: rename one of them"
        )
    names: list[str] = []
    taken = {*bare, *used}
    seen: set[str] = set()
    for index, name in enumerate(bare):
        is_own = counts[name] == 1 or (name != "" and name not in seen)
        names.append(name if is_own else _number(name, index, taken))
        seen.add(name)
    needed = max((index + 1 for index, name in enumerate(bare) if name), default=len(bare))
    return Header(names, needed, next((names.index(name) for name in ids if name in seen), None))


def _strip(cell: str, exact: Collection[str], used: Collection[str]) -> str:
    bare = cell.strip()
    return cell if bare and (cell in used or bare in exact) else bare


def _number(name: str, index: int, taken: Collection[str]) -> str:
    """Return a name of its own for a column, with its place counted from 1."""
    name = f"{name} ({index + 1})".strip()
    while name in taken:
        name += "'"
    return name


def check_dialect(uri: str, line: str, cells: Sequence[str], used: Collection[str], dialect: Dialect) -> None:
    """Raise ManifestError if the header shows that cells are separated or quoted in another way.

    This is so if none of the used columns is in the header, and another delimiter gives one of them or, for a header of
    one name, several names. `line` is the header as it was read.
    """
    names = {cell.strip() for cell in cells}
    if dialect.doubts_quotes and any(f'"{name}"' in names and name not in names for name in used):
        raise ManifestError(
            f"manifest {redact(uri)}: names in the header {show_line(line)} are in quotes, which are characters like any other"
            " in a TSV: set manifest.csv.quote: '\"'"
        )
    if not names.isdisjoint(used):
        return
    likely = find_delimiter(line, dialect, lambda found: any(cell.strip() in used for cell in found))
    if likely is None and len(cells) == 1:
        likely = find_delimiter(line, dialect, lambda found: len(found) > 1 and all(map(str.strip, found)))
    if likely is not None:
        wanted = ", ".join(sorted(used)[:_SHOWN_NAMES])
        raise ManifestError(
            f"manifest {redact(uri)}: the delimiter is {dialect.delimiter!r}, and the header {show_line(line)} has none of the"
            f" columns {redact(wanted, 200)}; the delimiter is probably {likely!r}: {_advise(likely)}"
        )


def check_first_record(uri: str, line: str, names: Sequence[str], dialect: Dialect) -> None:
    """Raise ManifestError if the first line of a file that should have no header shows that the config is wrong.

    It is the header that the config names, or has one cell and, with another delimiter, all columns.
    """
    cells = [cell.strip() for cell in dialect.split(line) or ()]
    if cells == list(names):
        raise ManifestError(
            f"manifest {redact(uri)}: the first line {show_line(line)} is a header: leave manifest.csv.header out"
        )
    likely = find_delimiter(line, dialect, lambda found: len(found) == len(names) > 1) if len(cells) == 1 else None
    if likely is not None:
        raise ManifestError(
            f"manifest {redact(uri)}: the delimiter is {dialect.delimiter!r}, and the first line {show_line(line)} has one cell;"
            f" the delimiter is probably {likely!r}: {_advise(likely)}"
        )


def _advise(delimiter: str) -> str:
    shown = (
        '"\\t"' if delimiter == "\t" else f"'{delimiter}'" if delimiter.isprintable() else f'"\\x{ord(delimiter):02x}"'
    )
    return f"set manifest.csv.delimiter: {shown}"
