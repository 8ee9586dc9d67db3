"""Which columns the manifests have, and which of the columns that the config names they lack.

A manifest has a column if its header or schema names it, or if any of its JSON objects has the key, whatever the values.
The path of a shard may name columns too.
"""

import difflib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, repeat
from operator import contains, itemgetter

from arkbeam.base.redaction import redact, redact_uri
from arkbeam.manifest.batches import RawRow
from arkbeam.manifest.options import ManifestOptions

NAMES_CHARS_MAX = 65_536
"""Most characters of the column names that one shard reports, and that a survey holds; further names are left out."""
_NAME_CHARS_MAX = 200
_SHOWN_NAMES_MAX = 20
_SHOWN_MISSING_MAX = 5
_SHOWN_CHARS_MAX = 60
_SIMILARITY_MIN = 0.5


def named_columns(options: ManifestOptions) -> dict[str, str]:
    """Return the columns that the config names, each with the first key that names it, such as `manifest.keep`."""
    columns, named = options.columns, dict[str, str]()
    for key in ("id", "text", "image", "video", "input", "instructions", "sparse", "video_sampling"):
        value: str | tuple[str, ...] | None = getattr(columns, key)
        for name in value if isinstance(value, tuple) else filter(None, [value]):
            named.setdefault(name, f"manifest.columns.{key}")
    for name in options.keep:
        named.setdefault(name, "manifest.keep")
    return named


@dataclass(frozen=True, slots=True)
class ShardColumns:
    """What a shard shows about its columns."""

    has_header: bool = False
    """True if the shard has a header or schema that is not empty."""
    complete: bool = True
    """False if rows that were not read may have more columns: a failure table named some rows of a JSONL manifest."""
    rows: int = 0
    """The rows whose columns are known: all rows if there is a header or schema, otherwise the JSON objects."""
    without: tuple[tuple[str, int], ...] = ()
    """Each named column that some of these rows lack, and how many rows lack it."""
    names: tuple[str, ...] = ()
    """The shard's columns, but only if none of its rows has a certain named column, or if none gave a request."""
    cut: bool = False
    """True if names were left out of `names`."""

    @property
    def known(self) -> bool:
        """True if the shard has a header, a schema or a JSON object. Blank lines, for example, show nothing."""
        return self.has_header or self.rows > 0

    @property
    def absent(self) -> frozenset[str]:
        """The named columns that none of the rows has."""
        return frozenset(name for name, rows in self.without if rows == self.rows)


NO_COLUMNS = ShardColumns()


class ColumnWatch:
    """Notes the columns of one shard while it is read.

    Args:
        named: the columns that the config names.
        complete: False if only some rows are read.
    """

    def __init__(self, named: Iterable[str], *, complete: bool = True) -> None:
        self._having = dict.fromkeys(named, 0)  # rows that have the column; a column that all rows have is removed
        self._counts = bool(self._having)
        self._complete = complete
        self._has_header = False
        self._rows = 0
        self._names = _Names()

    def note_path(self, names: Collection[str]) -> None:
        """Note columns that all rows have, because the path of the shard names them."""
        for name in names:
            self._having.pop(name, None)
        self._names.add(names)

    def note_header(self, names: Collection[str]) -> None:
        """Note the columns of a header or schema, which all rows have. An empty header shows nothing."""
        if names:
            self._has_header = self._complete = True
            self.note_path(names)

    def note_rows(self, rows: Sequence[RawRow], *, requests: int) -> None:
        """Note the keys of JSON objects, of which `requests` gave a request. Without effect if there is a header."""
        if self._has_header or (requests and not self._counts):
            return
        objects = [row for row in rows if type(row) is dict]
        self._rows += len(objects)
        for name in self._having:
            self._having[name] += sum(map(contains, objects, repeat(name)))
        if not requests or not all(self._having.values()):
            self._names.add(chain.from_iterable(objects))

    @property
    def names(self) -> list[str]:
        """The names found so far, in their order."""
        return list(self._names.names)

    def report(self, rows: int, requests: int) -> ShardColumns:
        """Return what was noted. The shard has `rows` rows that are not blank, of which `requests` gave a request."""
        if not self._has_header:
            rows = self._rows
        without = tuple((name, rows - have) for name, have in self._having.items() if have < rows or self._has_header)
        found = ShardColumns(self._has_header, self._complete, rows, without)
        if requests and not found.absent:
            return found
        return replace(found, names=tuple(self._names.names), cut=self._names.cut)


@dataclass(slots=True)
class _Names:
    """Different names in the order in which they first appear, within NAMES_CHARS_MAX."""

    names: dict[str, None] = field(default_factory=dict)
    cut: bool = False
    _chars: int = 0

    def add(self, names: Iterable[str]) -> None:
        if self.cut:
            return
        for whole in dict.fromkeys(names):
            name = whole if len(whole) <= _NAME_CHARS_MAX else redact(whole, _NAME_CHARS_MAX)
            if name not in self.names:
                self._chars += len(name) + 1
                if self._chars > NAMES_CHARS_MAX:
                    self.cut = True
                    return
                self.names[name] = None


@dataclass(frozen=True, slots=True)
class Lack:
    """A named column that some manifests lack."""

    manifests: int
    """How many lack it as a whole."""
    example: str
    """The first of them, redacted."""
    rows: int = 0
    """Rows without the column, also those of manifests that have it in other rows."""


@dataclass(frozen=True, slots=True)
class ColumnSurvey:
    """What all manifests show about their columns. Manifests that show nothing are not counted."""

    manifests: int
    rows: int
    has_header: bool
    """True if any of the manifests has a header or schema; otherwise all of them are JSON."""
    lacks: Mapping[str, Lack]
    """Named columns that at least one manifest lacks as a whole."""
    missing: tuple[str, ...]
    """Named columns that no manifest has; empty if this is not certain."""
    names: tuple[str, ...]
    """Columns found, as in `ShardColumns`."""
    cut: bool


def survey_columns(shards: Iterable[tuple[str, ShardColumns]]) -> ColumnSurvey:
    """Put together what shards show. Takes pairs of manifest and columns; shards of a manifest follow each other."""
    manifests = rows = 0
    certain, has_header = True, False
    names, lacks, without = _Names(), dict[str, Lack](), Counter[str]()
    for manifest, group in groupby(shards, itemgetter(0)):
        columns = [one for _, one in group]
        certain = certain and all(one.complete for one in columns)
        columns = [one for one in columns if one.known and one.complete]
        if not columns:
            continue
        manifests += 1
        rows += sum(one.rows for one in columns)
        for one in columns:
            has_header = has_header or one.has_header
            names.add(one.names)
            names.cut = names.cut or one.cut
            without.update(dict(one.without))
        for name in frozenset.intersection(*(one.absent for one in columns)):
            lack = lacks.get(name, Lack(0, redact_uri(manifest)))
            lacks[name] = replace(lack, manifests=lack.manifests + 1)
    lacks = {name: replace(lack, rows=without[name]) for name, lack in lacks.items()}
    missing = tuple(name for name, lack in lacks.items() if certain and lack.manifests == manifests)
    return ColumnSurvey(manifests, rows, has_header, lacks, missing, tuple(names.names), names.cut)


def describe_missing(missing: Sequence[str], survey: ColumnSurvey, named: Mapping[str, str]) -> str:
    """Describe columns that no manifest has: the key that names each, the nearest name, the columns found."""
    words = []
    for name in missing[:_SHOWN_MISSING_MAX]:
        near = find_nearest(name, survey.names)
        hint = "" if near is None else f", did you mean {_show_near(near, name)}?"
        words.append(f"{show_name(name)} ({named[name]}{hint})")
    more = len(missing) - len(words)
    text = ", ".join(words) + (f" and {more:,} more" if more else "")
    return f"no manifest has the column{'s' if len(missing) > 1 else ''} {text}; {describe_found(survey)}"


def describe_found(survey: ColumnSurvey) -> str:
    """List the columns found, at most 20 of them."""
    shown = ", ".join(map(show_name, survey.names[:_SHOWN_NAMES_MAX]))
    more = len(survey.names) - _SHOWN_NAMES_MAX
    rest = f" and {'at least ' if survey.cut else ''}{more:,} more" if more > 0 else ""
    return f"columns found: {shown or 'none'}{rest}"


def find_nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar name; None if no name is similar.

    A name that differs only in case, in blanks around it or in the form of its letters takes precedence.
    """
    folded: dict[str, str] = {}
    for one in names:
        folded.setdefault(_fold(one), one)
    wanted = _fold(name[:_NAME_CHARS_MAX])
    near = [wanted] if wanted in folded else difflib.get_close_matches(wanted, folded, 1, _SIMILARITY_MIN)
    return folded[near[0]] if near else None


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _show_near(near: str, name: str) -> str:
    """Escape all letters beyond ASCII if the two names look the same, such as an accented letter in its two forms."""
    looks_same = unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", name)
    return show_name(near) if not looks_same else redact(ascii(near), _SHOWN_CHARS_MAX)


def show_name(name: str) -> str:
    """Quote a column's name for a message: on one line, invisible characters escaped, secrets masked, cut to 60."""
    return redact(repr(name), _SHOWN_CHARS_MAX)
