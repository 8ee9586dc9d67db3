"""Keep the index files of a store few: small ones are merged, and those of no use are removed.

Files belong to tiers by their number of entries, each tier for four times as many as the one below. When a tier has too
many files, they and all smaller files are merged into one. So a store of 16,000,000 vectors has at most 19 index files,
and an entry is written about once for each tier.

Several runs may do this at the same time. A merged file replaces others only after it is in the store, and a file is
removed only if other files cover what it covers. At worst, some sources are covered twice or not at all: the next run
removes the needless file, or reads the sources again.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from arkbeam.base.errors import StoreError
from arkbeam.base.files import remove_files
from arkbeam.store.index import ENTRIES_READ, Source, sort_entries, write_index
from arkbeam.store.lookup import Covering, StoreIndex

SMALL_ROWS = 65_536
TIER_FACTOR = 4
SMALL_FILES_MAX = 7
TIER_FILES_MAX = 3
_MERGED_ROWS = 131_072  # entries that are merged at once: about 10 MB
_log = logging.getLogger(__name__)


def tidy_index(store_uri: str, index: StoreIndex, file_id: int) -> bool:
    """Merge index files if there are many, and remove those of no use; return True if the store's files have changed.

    If the storage fails, this only logs a warning.
    """
    merged = [index.covering[number] for number in choose_merge(index.covering)]
    useless = [covering for covering in index.covering if not covering.counts.any()]
    try:
        if merged:
            merge(store_uri, merged, file_id)
        gone = [covering.file.uri for covering in (*merged, *useless)] + list(index.damaged)
        remove_files(gone)
    except StoreError as error:
        _log.warning("the index files of the store are not merged: %s", error)
        return False
    return bool(gone)


def choose_merge(covering: Sequence[Covering]) -> list[int]:
    """Return the positions of the files to merge into one: small ones if there are many, and those that are mostly stale."""
    rows = [one.rows for one in covering]
    used = [number for number, one in enumerate(covering) if one.counts.any()]
    chosen = {number for number in used if rows[number] < covering[number].file.rows / 2}
    while True:
        tiers = {number: _tier(rows[number]) for number in used if number not in chosen}
        counts = np.bincount([*tiers.values(), *([_tier(sum(rows[number] for number in chosen))] if chosen else [])])
        full = [
            tier for tier, files in enumerate(counts.tolist()) if files > (TIER_FILES_MAX if tier else SMALL_FILES_MAX)
        ]
        if not full:
            return sorted(chosen)
        chosen |= {number for number, tier in tiers.items() if tier <= full[0]}


def merge(store_uri: str, covering: Sequence[Covering], file_id: int) -> str:
    """Write one index file with all entries of others that count; return its URI. Raise StoreError.

    The files are read in ranges of fingerprints, so the memory that this takes does not depend on their size.
    """
    sources: list[Source] = []
    numbers = []  # for each file: the new number of each of its sources
    for one in covering:
        numbers.append(np.cumsum(one.counts, dtype=np.uint32) - 1 + np.uint32(len(sources)))
        sources += [source for source, counts in zip(one.file.sources, one.counts, strict=True) if counts]
    parts = max(1, -(-sum(one.file.rows for one in covering) // _MERGED_ROWS))

    def tables() -> Iterator[pa.Table]:
        for low, high in cut_prefixes(parts):
            pieces = [ENTRIES_READ.empty_table()]
            for one, new in zip(covering, numbers, strict=True):
                table = one.file.read_between(low, high, one.counts)
                source = pa.array(new[table["source"].to_numpy()], pa.uint32())
                pieces.append(table.set_column(1, ENTRIES_READ.field("source"), source))
            yield sort_entries(pa.concat_tables(pieces).combine_chunks())

    return write_index(store_uri, file_id, sources, tables())


def cut_prefixes(parts: int) -> Iterator[tuple[int, int]]:
    """Cut the prefixes of fingerprints into ranges of equal size. They are hashes, so each range has about as many."""
    for low, end in pairwise((number << 64) // parts for number in range(parts + 1)):
        yield low, end - 1


def _tier(rows: int) -> int:
    tier = 0
    while rows >= SMALL_ROWS * TIER_FACTOR**tier:
        tier += 1
    return tier
