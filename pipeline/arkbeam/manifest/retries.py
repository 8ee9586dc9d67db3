"""Failures given as a manifest: the rows that they name are fetched again from where they came.

A table of failures names rows by manifest and number. It says nothing that is sent: texts in it may be cut and URLs in it
have lost what signed them. So each manifest that it names is read once more, and of what is read those rows are taken which
the failures name and which still are what they were when they failed; the others stay failures, and say why.

Whoever can write such a file could otherwise have any file of this machine read. Hence manifests are read only below
`manifest.roots`, and what was read of a row that is not the one that failed is shown nowhere.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from arkbeam.base import schema
from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import MASK, redact
from arkbeam.manifest.batches import RowBatch, quote_row
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.storage import manifest_errors, open_parquet
from arkbeam.media import is_below, local_path

_FOLDER = "failures"
_COLUMNS = ("row", "id", "original", "manifest")
_BATCH_ROWS = 1024
_DIGEST_BYTES = 16
_UNSEEN, _CHANGED, _DONE = 0, 1, 2
_REASONS = {
    _UNSEEN: ("row_missing", "the manifest has no such row any more"),
    _CHANGED: (
        "row_changed",
        "the row, or what manifest.columns reads of it, is not what it was when it failed; give the manifest itself",
    ),
}
_GONE = ("manifest_missing", "the manifest that the row came from is not there any more")
_MASKED = ("manifest_missing", "the manifest was read with a password or signature, which failures do not repeat")


def is_failures(found: pa.Schema) -> bool:
    """Tell a table of failures by its columns, wherever it lies and whoever copied it."""
    if sorted(found.names) != sorted(schema.FAILURES.names):
        return False
    wanted = pa.types.is_integer
    return all(wanted(found.field(n).type) if n == "row" else _is_text(found.field(n).type) for n in found.names)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def named_manifests(uri: str, options: ManifestOptions) -> list[str]:
    """Return the manifests that a table of failures names. Raises ManifestError for one that may not be read."""
    names: dict[str, None] = {}
    for table in _read(uri, ["manifest"], options):
        names |= dict.fromkeys(table["manifest"].unique().to_pylist())
    roots = options.roots or _own_roots(uri)
    for name in names:
        if is_masked(name):
            continue
        if not is_below(name, roots):
            raise ManifestError(
                f"{redact(uri)} names {redact(name)}, which does not lie below {redact(', '.join(roots))}: if it may be"
                " read, name its folder in manifest.roots"
            )
        path = local_path(name)
        if path is not None and os.path.exists(path) and not os.path.isfile(path):
            raise ManifestError(f"{redact(uri)} names {redact(name)}, which is no file")
    return list(names)


def is_masked(uri: str) -> bool:
    """Tell a published URI that has lost its password or signature, and so can't be opened."""
    return "://" in uri and MASK in uri


def _own_roots(uri: str) -> tuple[str, ...]:
    """Where the manifests may lie of which a file tells, unless the config says otherwise."""
    path = local_path(uri)
    if path is None:
        scheme, _, rest = uri.partition("://")
        return (f"{scheme}://{rest.lstrip('/').partition('/')[0]}",)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.basename(folder) == _FOLDER:  # of an output, and others may lie beside that
        folder = os.path.dirname(os.path.dirname(folder))
    return (os.getcwd(), folder)


def _read(uri: str, columns: Sequence[str], options: ManifestOptions) -> Iterator[pa.Table]:
    """Read columns of a table of failures, some rows at a time. Raises ManifestError for anything else."""
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        stream = filesystem.open(path, "rb")
    with stream:
        with manifest_errors(uri):
            batches = open_parquet(uri, stream, options).iter_batches(_BATCH_ROWS, columns=list(columns))
        wanted = pa.schema([schema.FAILURES.field(name) for name in columns])
        while True:
            with manifest_errors(uri):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
                table = pa.Table.from_batches([batch]).select(list(columns))
                if any(table[field.name].null_count for field in wanted if not field.nullable):
                    raise ManifestError(f"{redact(uri)} is no table of failures: it holds a row without {columns[0]}")
                table = table.cast(wanted)
            yield table


def _rows_of(manifest: str, uri: str, options: ManifestOptions) -> Iterator[pa.Table]:
    for table in _read(uri, _COLUMNS, options):
        yield table.filter(pc.equal(table["manifest"], manifest))


@dataclass(slots=True)
class Retry:
    """The rows of one manifest that are tried again, by their number: ids as published, and what the rows were."""

    manifest: str
    files: tuple[str, ...]
    options: ManifestOptions
    rows: NDArray[np.uint64]
    ids: list[str]
    digests: list[bytes]
    states: NDArray[np.uint8]

    @property
    def ends_at(self) -> int:
        """The number behind the last of the rows: nothing from there on need be read."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0

    def wants(self, start: int, end: int) -> bool:
        """Whether one of the rows lies in [start, end)."""
        low, high = self._between(start, end)
        return low < high

    def pick(self, batch: RowBatch, first_row: int) -> None:
        """Blank out all rows of a batch but those that are tried again, which get their published ids."""
        low, high = self._between(first_row, first_row + len(batch.rows))
        ids: dict[int, str] = {}
        for index in range(low, high):
            position = int(self.rows[index]) - first_row
            if batch.rows[position] is None:
                continue
            same = _digest(quote_row(batch, position)) == self.digests[index]
            self.states[index] = _DONE if same else _CHANGED
            if same:
                ids[position] = self.ids[index]
        batch.rows = [row if position in ids else None for position, row in enumerate(batch.rows)]
        batch.ids = ids

    def rest(self, *, gone: bool) -> Iterator[pa.Table]:
        """Give the rows that could not be tried again as UNREADABLE tables, with what the failures hold of them.

        `gone` says that the manifest could not be found. Each row is given once.
        """
        for uri in self.files:
            for named in _rows_of(self.manifest, uri, self.options):
                at = self._find(named["row"].to_numpy())
                waits = self.states[at] != _DONE
                left, first = np.unique(at[waits], return_index=True)
                table = named.filter(pa.array(waits)).take(pa.array(first))
                reasons = [self._reason(state, gone=gone) for state in self.states[left].tolist()]
                self.states[left] = _DONE
                columns = {name: table[name] for name in ("row", "id", "original")}
                columns |= {"code": pa.array([code for code, _ in reasons], pa.string())}
                columns |= {"message": pa.array([message for _, message in reasons], pa.string())}
                yield pa.table([columns[name] for name in schema.UNREADABLE.names], schema=schema.UNREADABLE)

    def _reason(self, state: int, *, gone: bool) -> tuple[str, str]:
        if state == _UNSEEN and gone:
            return _MASKED if is_masked(self.manifest) else _GONE
        return _REASONS[state]

    def _between(self, start: int, end: int) -> tuple[int, int]:
        low, high = np.searchsorted(self.rows, np.array([start, end], np.uint64))
        return int(low), int(high)

    def _find(self, rows: NDArray[np.uint64]) -> NDArray[np.intp]:
        at = np.searchsorted(self.rows, rows)
        if len(at) and (at.max() >= len(self.rows) or (self.rows[at] != rows).any()):
            raise ManifestError(f"the failures of {redact(self.manifest)} changed while they were read: run again")
        return at


def read_retry(manifest: str, files: Sequence[str], options: ManifestOptions) -> Retry:
    """Read which rows of a manifest some tables of failures name. Of each row some bytes are held, not what it was."""
    rows: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    ids: list[str] = []
    digests: list[bytes] = []
    for uri in files:
        for table in _rows_of(manifest, uri, options):
            rows.append(table["row"].to_numpy())
            ids += table["id"].to_pylist()
            digests += map(_digest, table["original"].to_pylist())
    unique, first = np.unique(np.concatenate(rows), return_index=True)
    kept = first.tolist()
    states = np.zeros(len(unique), np.uint8)
    ids, digests = [ids[at] for at in kept], [digests[at] for at in kept]
    return Retry(manifest, tuple(files), options, unique, ids, digests, states)


def _digest(original: str | None) -> bytes:
    return b"" if original is None else blake2b(original.encode(), digest_size=_DIGEST_BYTES).digest()
