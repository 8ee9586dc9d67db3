"""Failure tables given as manifests: the rows that they name are read again from their own manifests.

A failure table names rows by manifest and row number. Its content is not sent: texts in it may be cut off, and URLs in
it have lost their signatures. So each manifest that it names is read again. A named row is used if it is still the same
as when it failed; otherwise it stays a failure, with the reason.

Without a limit, anyone who can write such a table could make the pipeline read any file of this machine. Therefore
manifests are read only below `manifest.roots`, and the content of a row that differs from the failed one is never
shown.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from arkbeam.base import schema
from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import MASK, redact
from arkbeam.base.uris import find_filesystem
from arkbeam.manifest.batches import RowBatch, mask_row, quote_row
from arkbeam.manifest.common_type import is_text
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.storage import manifest_errors, open_parquet_manifest
from arkbeam.media import is_below, local_path

_FOLDER = "failures"
_COLUMNS = ("row", "id", "original", "manifest")
_SCHEMA = schema.FAILURES.set(schema.FAILURES.get_field_index("row"), schema.STAGED.field("row"))  # no row is negative
_BATCH_ROWS = 1024
_DIGEST_BYTES = 16
_UNSEEN, _CHANGED, _DONE = 0, 1, 2
_REASONS = {
    _UNSEEN: ("row_missing", "the manifest no longer has this row"),
    _CHANGED: (
        "row_changed",
        "the row, or the part of it that manifest.columns reads, has changed since it failed: to embed it as it is now, name its manifest in manifest.uris",
    ),
}
_GONE = ("manifest_missing", "the manifest of this row no longer exists")
_MASKED = (
    "manifest_missing",
    "the manifest's URI had a password or signature, which failure tables do not keep: name the manifest in manifest.uris",
)


def is_failure_table(found: pa.Schema) -> bool:
    """True if a Parquet schema has the columns of a failure table. The folder of the file does not matter."""
    if sorted(found.names) != sorted(schema.FAILURES.names):
        return False
    return all((pa.types.is_integer if name == "row" else is_text)(found.field(name).type) for name in found.names)


def list_named_manifests(uri: str, options: ManifestOptions) -> list[str]:
    """Return the manifests that a failure table names. Raise ManifestError if one of them may not be read."""
    names: dict[str, None] = {}
    for table in _read(uri, ["manifest"], options):
        names |= dict.fromkeys(table["manifest"].unique().to_pylist())
    roots = options.roots or _own_roots(uri)
    for name in names:
        if is_masked(name):
            continue
        if not is_below(name, roots):
            raise ManifestError(
                f"{redact(uri)} names the manifest {redact(name)}, which is not below {redact(', '.join(roots))}: to allow"
                " it, add its folder to manifest.roots"
            )
        path = local_path(name)
        if path is not None and os.path.exists(path) and not os.path.isfile(path):
            raise ManifestError(f"{redact(uri)} names the manifest {redact(name)}, which is not a regular file")
    return list(names)


def is_masked(uri: str) -> bool:
    """True if a published URI has lost its password or signature and so can't be opened."""
    return "://" in uri and MASK in uri


def _own_roots(uri: str) -> tuple[str, ...]:
    """Return the folders from which a failure table may name manifests if manifest.roots is not set."""
    path = local_path(uri)
    if path is None:
        scheme, _, rest = uri.partition("://")
        return (f"{scheme}://{rest.lstrip('/').partition('/')[0]}",)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.basename(folder) == _FOLDER:  # <outputs>/<output>/failures: allow all of <outputs>
        folder = os.path.dirname(os.path.dirname(folder))
    return (os.getcwd(), folder)


def _read(uri: str, columns: Sequence[str], options: ManifestOptions) -> Iterator[pa.Table]:
    """Yield columns of a failure table, 1,024 rows at a time. Raise ManifestError if it is not a failure table."""
    with manifest_errors(uri):
        filesystem, path = find_filesystem(uri)
        stream = filesystem.open(path, "rb")
    with stream:
        with manifest_errors(uri):
            batches = open_parquet_manifest(uri, stream, options).iter_batches(_BATCH_ROWS, columns=list(columns))
        wanted = pa.schema([_SCHEMA.field(name) for name in columns])
        while True:
            with manifest_errors(uri):
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
                table = pa.Table.from_batches([batch]).select(list(columns))
                empty = [field.name for field in wanted if not field.nullable and table[field.name].null_count]
                if empty:
                    raise ManifestError(f"{redact(uri)} is not a valid failure table: a row has no {empty[0]}")
                table = table.cast(wanted)
            yield table


def _rows_of(manifest: str, uri: str, options: ManifestOptions) -> Iterator[pa.Table]:
    for table in _read(uri, _COLUMNS, options):
        yield table.filter(pc.equal(table["manifest"], manifest))


@dataclass(slots=True)
class FailedRows:
    """The rows of one manifest that failure tables name, in the order of their numbers.

    `ids` are their published ids, `digests` identify their originals, `states` say what has been found so far.
    """

    manifest: str
    files: tuple[str, ...]
    options: ManifestOptions
    rows: NDArray[np.uint64]
    ids: list[str]
    digests: list[bytes]
    states: NDArray[np.uint8]

    @property
    def ends_at(self) -> int:
        """The row number after the last of the rows; reading can stop there."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0

    def wants(self, start: int, end: int) -> bool:
        """True if one of the rows lies in [start, end)."""
        low, high = self._between(start, end)
        return low < high

    def pick(self, batch: RowBatch, first_row: int) -> None:
        """Blank all rows of a batch except the named ones that have not changed; give these their published ids."""
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
        """Yield the rows that could not be read again as UNREADABLE tables, with the originals of the failure tables.

        `gone` is True if the manifest was not found. Each row is yielded once.
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
            raise ManifestError(
                f"the failure tables that name {redact(self.manifest)} have changed while they were read: run again"
            )
        return at


def list_failed_rows(manifest: str, files: Sequence[str], options: ManifestOptions) -> FailedRows:
    """Read which rows of a manifest the failure tables `files` name. Of each row a digest is kept, not its content.

    Originals are masked again: an earlier version of this package may have masked less.
    """
    rows: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    ids: list[str] = []
    digests: list[bytes] = []
    for uri in files:
        for table in _rows_of(manifest, uri, options):
            rows.append(table["row"].to_numpy())
            ids += table["id"].to_pylist()
            digests += [_digest(text and mask_row(text)) for text in table["original"].to_pylist()]
    unique, first = np.unique(np.concatenate(rows), return_index=True)
    kept = first.tolist()
    states = np.zeros(len(unique), np.uint8)
    ids, digests = [ids[at] for at in kept], [digests[at] for at in kept]
    return FailedRows(manifest, tuple(files), options, unique, ids, digests, states)


def _digest(original: str | None) -> bytes:
    return b"" if original is None else blake2b(original.encode(), digest_size=_DIGEST_BYTES).digest()
