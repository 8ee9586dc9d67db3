"""Look at a manifest whose config is not written yet: guess how it is written, and read its first rows."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.base.uris import find_filesystem
from arkbeam.manifest.columns import ColumnWatch
from arkbeam.manifest.csv_dialect import Dialect, find_delimiter, is_quoted_cell
from arkbeam.manifest.json_array import is_array
from arkbeam.manifest.options import CsvOptions, Format, ManifestOptions
from arkbeam.manifest.parquet_rows import read_parquet
from arkbeam.manifest.raw_rows import read_text
from arkbeam.manifest.shards import FORMATS, Shard, cut_shards, list_manifests, split_endings
from arkbeam.manifest.storage import manifest_errors, open_manifest, without_query
from arkbeam.manifest.text import HEAD_BYTES, find_wide_encoding, guess_encoding

SAMPLE_ROWS = 200
_DELIMITERS = ",;\t|"
_UNUSED = "\x01"  # a delimiter that no text has
_LINES = 50
_SENTENCE_WORDS = 4
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_NAME = re.compile(r"[\w.-]{1,40}")
_PARQUET = b"PAR1"


@dataclass(frozen=True, slots=True)
class Written:
    """How a manifest is written: settings of the section `manifest:` by key, and why each is as it is."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def csv(self) -> dict[str, Any]:
        """The settings of `manifest.csv`."""
        return {key[4:]: value for key, value in self.settings.items() if key.startswith("csv.")}

    def options(self, uri: str) -> ManifestOptions:
        """Return the options with which the manifest is read."""
        plain = {key: value for key, value in self.settings.items() if not key.startswith("csv.")}
        return ManifestOptions((uri,), csv=CsvOptions(**self.csv), **plain)


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a manifest. `bad` of them can't be read; `flaw` says why, of the first."""

    format: Format
    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    bad: int = 0
    flaw: Failure | None = None


def guess_writing(uri: str) -> Written:
    """Guess the format, the encoding and the CSV dialect of a manifest from its name and its first 64 kB.

    Raise ManifestError if it can't be read, is empty, or is of no known format.
    """
    head = _read_head(uri)
    named = FORMATS.get(split_endings(without_query(uri))[1])
    settings: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if not head:
        raise ManifestError(f"{redact(uri)} is empty")
    if head.startswith(_PARQUET):
        if named != "parquet":
            settings["format"], reasons["format"] = "parquet", "by its first bytes"
        return Written(settings, reasons)
    encoding = _guess_encoding(head)
    if encoding is not None:
        settings["encoding"], reasons["encoding"] = encoding
    lines = _first_lines(head, settings.get("encoding", "utf-8"))
    if not lines or "\0" in lines[0]:
        raise ManifestError(f"{redact(uri)} is neither text nor Parquet, so it can't be a manifest")
    kind = named or _guess_format(lines)
    if named is None:
        settings["format"], reasons["format"] = kind, "by its first lines"
    if kind in ("csv", "tsv"):
        for key, value, reason in _guess_dialect(lines, kind, named is not None):
            settings[f"csv.{key}"], reasons[f"csv.{key}"] = value, reason
    return Written(settings, reasons)


def read_sample(uri: str, written: Written, rows_max: int = SAMPLE_ROWS) -> Sample:
    """Read the first rows of a manifest with all their columns. Raise ManifestError if it can't be read."""
    options = written.options(uri)
    manifests = list_manifests(options)
    shards = cut_shards(manifests[:1], options.shard_bytes_max)
    if not shards:
        raise ManifestError(f"{redact(uri)} has no rows")
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    bad: list[Failure] = []
    with _raw_rows(shards[0], options, names) as found:
        for row in found:
            if isinstance(row, Failure):
                bad.append(row)
            elif row is not None:
                rows.append(row)
            if len(rows) + len(bad) >= rows_max:
                break
    if not names:
        names += dict.fromkeys(name for row in rows for name in row)
    return Sample(shards[0].format, tuple(names), tuple(rows), len(bad), bad[0] if bad else None)


@contextmanager
def _raw_rows(shard: Shard, options: ManifestOptions, names: list[str]) -> Iterator[Iterator[Any]]:
    """Yield the rows of a shard; the names of its header or schema are added to `names`."""
    if shard.format == "parquet":
        with manifest_errors(shard.manifest):
            filesystem, path = find_filesystem(shard.manifest)
            with filesystem.open(path, "rb") as stream:
                every = frozenset(pq.read_schema(stream).names)
        batches = read_parquet(shard, options, every, names.extend, every, options.line_bytes_max)
        yield (row for batch in batches for row in batch.rows)
        return
    with open_manifest(shard.manifest, shard.compression, shard.format, 0, options) as raw:
        watch = ColumnWatch(())
        batches = read_text(shard, raw, options, frozenset(), watch, None)
        yield (row for batch in batches for row in batch.rows)
        names += watch.names  # of a header; JSON rows name their own columns


def _read_head(uri: str) -> bytes:
    with open_manifest(uri, None, "csv", 0, ManifestOptions((uri,))) as raw:
        head = b""
        while len(head) < HEAD_BYTES and (block := raw.read(HEAD_BYTES)):
            head += block
    return head[:HEAD_BYTES]


def _guess_encoding(head: bytes) -> tuple[str, str] | None:
    wide = find_wide_encoding(head)
    if wide is not None:
        return wide
    try:
        head[: -4 if len(head) >= HEAD_BYTES else None].decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 8:
            likely = guess_encoding(head)
            return (likely, "it is not UTF-8, and looks like this") if likely is not None else None
    return None


def _first_lines(head: bytes, encoding: str) -> list[str]:
    lines = head.decode(encoding, "replace").removeprefix("\ufeff").splitlines()
    if len(head) >= HEAD_BYTES and len(lines) > 1:
        lines.pop()  # it is cut off
    return [line for line in lines if line.strip()][:_LINES]


def _guess_format(lines: list[str]) -> Format:
    first = lines[0].lstrip()
    if first.startswith("{"):
        return "jsonl"
    if is_array("\n".join(lines).encode()):
        return "json"
    counts = {mark: _even_count(lines, mark) for mark in _DELIMITERS}
    return "tsv" if counts["\t"] and counts["\t"] >= max(counts.values()) else "csv"


def _even_count(lines: list[str], mark: str) -> int:
    """Return how often a delimiter is in every line; 0 if the lines differ."""
    counts = {line.count(mark) for line in lines}
    return counts.pop() if len(counts) == 1 else 0


def _guess_dialect(lines: list[str], kind: Format, named: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield keys of `manifest.csv` that differ from their defaults, with their values and the reasons.

    A file whose name does not say that it is a table has one text in each line, unless its lines look like records.
    """
    dialect = Dialect.choose(CsvOptions(), tsv=kind == "tsv")
    if lines[0].lower().startswith("sep="):
        return
    if not named and not _is_table(lines, dialect.delimiter):
        yield "delimiter", _UNUSED, "each line is one text: this character is in none"
        yield "quote", "", "each line is one text"
        yield "header", ["line"], "there is no header: each line is one text"
        return
    if dialect.delimiter not in lines[0]:
        other = find_delimiter(lines[0], dialect, lambda cells: len(cells) > 1)
        if other is not None and any(other in line for line in lines[1:]):
            yield "delimiter", other, f"the first line has no {dialect.delimiter!r}"
            dialect = replace(dialect, delimiter=other)
    if kind == "tsv" and any(is_quoted_cell(cell) for line in lines for cell in line.split("\t")):
        yield "quote", '"', "cells are quoted"
    if kind == "csv" and '\\"' in "".join(lines) and '""' not in "".join(lines):
        yield "escape", "\\", "a backslash is before quotes in cells"
    first = dialect.split(lines[0]) or []
    if _are_values(first):
        yield "header", [f"column_{at + 1}" for at in range(len(first))], "the first line has values, not names"


def _is_table(lines: list[str], delimiter: str) -> bool:
    """True if the lines of a file with any name are records: the first has short names, and all have as many cells."""
    others = [mark for mark in _DELIMITERS if mark != "," and _even_count(lines, mark)]
    mark = others[0] if others else delimiter
    names = lines[0].split(mark)
    return (
        len(names) > 1
        and _even_count(lines, mark) > 0
        and all(_NAME.fullmatch(name if mark == "," else name.replace(" ", "_")) for name in map(str.strip, names))
    )


def _are_values(cells: list[str]) -> bool:
    """True if the cells of a first line are no names of columns: a URL, a sentence beside a number, or only numbers."""
    numbers = [bool(_NUMBER.fullmatch(cell.strip())) for cell in cells]
    has_sentence = any(len(cell.split()) >= _SENTENCE_WORDS for cell in cells)
    return any("://" in cell for cell in cells) or (any(numbers) and (all(numbers) or has_sentence))
