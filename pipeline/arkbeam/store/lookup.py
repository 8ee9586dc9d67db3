"""Find fingerprints in a store: match its index files with its listing, and read what no index file covers."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, list_versions
from arkbeam.base.parallel import in_parallel
from arkbeam.store.entries import read_entries
from arkbeam.store.index import (
    DamagedIndex,
    IndexFile,
    open_entries,
    open_index_file,
    prefixes,
)
from arkbeam.store.layout import SUFFIX, index_folder
from arkbeam.store.replaced import list_current

_TRIES = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Covering:
    """An open index file, and which of its sources count: those in the store that no other index file covers."""

    file: IndexFile
    counts: npt.NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """The number of entries that count."""
        return sum(source.rows for source, counts in zip(self.file.sources, self.counts, strict=True) if counts)


@dataclass(frozen=True, slots=True)
class Found:
    """The INDEX rows and the REJECTED rows of some fingerprints."""

    index: pa.Table
    rejected: pa.Table


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """What the index files say about a store. They are open, so it does not matter if another run removes them."""

    covering: tuple[Covering, ...] = ()
    uncovered: tuple[Listed, ...] = ()
    """The segments and event files that no index file covers."""
    damaged: tuple[str, ...] = ()
    """URIs of damaged index files."""

    def find(self, fingerprints: pa.Array | pa.ChunkedArray, model: str | None = None) -> Found:
        """Return where the vectors of fingerprints are, and which fingerprints the service rejected.

        Vectors of other models than `model` are left out, unless it is None; those without a model are included.
        `uncovered` files are not searched. Rows of other fingerprints may be returned too: all of those with the same
        first 8 bytes.
        """
        wanted = np.unique(prefixes(fingerprints))
        index, rejected = [], []
        for covering in self.covering:
            for table in covering.file.find(wanted, covering.counts):
                is_rejected = pc.is_valid(table["code"])
                index.append(_index_rows(table.filter(pc.invert(is_rejected)), covering.file, model))
                rejected.append(table.filter(is_rejected).select(schema.REJECTED.names).cast(schema.REJECTED))
        return Found(schema.concat(index, schema.INDEX), schema.concat(rejected, schema.REJECTED))

    def complete(self, store_uri: str) -> "StoreIndex":
        """Return an index in which all files are covered: the uncovered ones are read. Raise StoreError."""
        parts = list(read_entries(store_uri, self.uncovered))
        if not parts:
            return replace(self, uncovered=())
        read = Covering(open_entries(parts), np.ones(len(parts), np.bool_))
        return replace(self, covering=(*self.covering, read), uncovered=())


def open_store_index(store_uri: str, opened: Iterable[IndexFile] = ()) -> StoreIndex:
    """List a store, and open its index files. `opened` are not opened again. Raise StoreError if the store can't be listed."""
    known = {file.uri: file for file in opened}
    # Index files are listed first, so that the listing of the store is not older than what they cover.
    for _ in range(_TRIES):
        listed = list_versions(index_folder(store_uri), SUFFIX)
        files = list(in_parallel(partial(_open, known), listed))
        known |= {file.uri: file for file in files if isinstance(file, IndexFile)}
        if None not in files:  # else another run has merged some meanwhile
            break
    damaged = [one.uri for one, file in zip(listed, files, strict=True) if isinstance(file, DamagedIndex)]
    usable = [file for file in files if isinstance(file, IndexFile)]
    return replace(match(usable, list_current(store_uri)), damaged=tuple(damaged))


def match(files: Iterable[IndexFile], listing: Mapping[str, Listed]) -> StoreIndex:
    """Decide which entries count: those of sources that are listed with the same version, each from one index file.

    The file with the most listed sources comes first, then the one with the fewest others. So after a merge, the
    entries of the merged files do not count.
    """
    uncovered = dict(listing)
    covering = []
    listed = {file: _find_listed(file, listing) for file in files}
    for file in sorted(listed, key=lambda file: (-int(listed[file].sum()), len(file.sources), file.uri)):
        counts = listed[file]
        for number in np.flatnonzero(counts).tolist():
            counts[number] = uncovered.pop(file.sources[number].name, None) is not None
        covering.append(Covering(file, counts))
    return StoreIndex(tuple(covering), tuple(uncovered.values()))


def _find_listed(file: IndexFile, listing: Mapping[str, Listed]) -> npt.NDArray[np.bool_]:
    """Return for each source whether it is listed with the version that was covered."""
    found = ((listing.get(source.name), source.version) for source in file.sources)
    return np.array([one is not None and one.version == version for one, version in found], np.bool_)


def _open(known: Mapping[str, IndexFile], listed: Listed) -> IndexFile | StoreError | None:
    """Open an index file. A file that can't be read is left out, since its sources can be read instead."""
    if listed.uri in known:
        return known[listed.uri]
    try:
        return open_index_file(listed)
    except StoreError as error:
        _log.warning("an index file is not used, and what it covers is read again: %s", error)
        return error


def _index_rows(entries: pa.Table, file: IndexFile, model: str | None) -> pa.Table:
    if model is not None:
        entries = entries.filter(pc.equal(entries["model"].cast(pa.string()), model).fill_null(fill_value=True))
    segments = file.segments[entries["source"].to_numpy()]
    return pa.table([entries["fingerprint"], segments, entries["row"]], schema=schema.INDEX)
