"""Read: stage the rows of shards in the run's folder, and read the index of the store.

Only keys and index are passed on to Plan; rows stay in the run's folder.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from arkbeam.base import faults, schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import remove_folder
from arkbeam.base.redaction import redact
from arkbeam.base.schema import concat
from arkbeam.manifest.columns import NO_COLUMNS, ColumnWatch, ShardColumns, named_columns
from arkbeam.manifest.kept import merge_kinds
from arkbeam.manifest.kinds import NO_ROWS, Kind
from arkbeam.manifest.options import ReadContext
from arkbeam.manifest.portable import find_nanoseconds
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import Shard
from arkbeam.media import reading
from arkbeam.stages.spec import RunSpec
from arkbeam.store.events import REJECTED_COLUMNS, read_rejected
from arkbeam.store.integrity import is_whole, note_verified, read_verified, set_aside
from arkbeam.store.layout import events_folder, list_parquet, segment_id, segment_ids, segments_folder
from arkbeam.store.media_cache import StoredMediaCache
from arkbeam.store.run_files import PieceWriter, rows_folder, unreadable_folder
from arkbeam.store.segments import INDEX_COLUMNS, is_damaged, read_index

STORE_FILES_PER_GROUP = 256
_media_caches: dict[str, StoredMediaCache] = {}
_media_caches_lock = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a shard contains."""

    number: int
    manifest: str
    label: str
    lines: int
    """Physical lines, blank ones included. The row numbers of the manifest's next shard start after them."""
    staged: int
    """Rows with a request. Each of them, and each unreadable row, becomes a published row or a failure row."""
    unreadable: int
    kept: tuple[tuple[str, Kind], ...]
    """What the values of each kept column are."""
    over_context: int = 0
    """Rows whose estimate is above what the model takes."""
    nanoseconds: frozenset[str] = frozenset()
    """The kept columns with timestamps that are not whole numbers of microseconds."""
    not_finite: int = 0
    """Kept values that are NaN or Infinity in JSON; they are published as null."""
    columns: ShardColumns = NO_COLUMNS


def stage_shard(shard: Shard, spec: RunSpec) -> Iterator[pa.Table | ShardSummary]:
    """Read a shard and write its rows to the run's folder. Yield KEYS tables, and at the end the summary.

    Raise ManifestError if the manifest can't be read, StoreError if the run's folder can't be written.
    """
    store_uri, run = spec.store.uri, spec.run.name
    folders = (rows_folder(store_uri, run, shard.number), unreadable_folder(store_uri, run, shard.number))
    for folder in folders:
        remove_folder(folder)  # an earlier attempt may have left pieces that were cut at other rows
    lines = over_context = not_finite = 0
    reading.resize(spec.limits.bytes_in_flight)
    context, cache = ReadContext(spec.run.service, spec.model, spec.media), open_media_cache(spec)
    watch = ColumnWatch(named_columns(spec.manifest), complete=not shard.failures)
    kept = dict.fromkeys(spec.manifest.keep, NO_ROWS)
    nanoseconds: set[str] = set()
    with PieceWriter(folders[0]) as staged, PieceWriter(folders[1]) as unreadable:
        for chunk in read_shard(shard, spec.manifest, context, cache, watch):
            lines += chunk.rows
            over_context += chunk.over_context
            not_finite += chunk.not_finite
            kept = merge_kinds(kept, chunk.kinds)
            staged.write(chunk.staged)
            unreadable.write(chunk.unreadable)
            faults.hit("read.chunk")
            if chunk.staged.num_rows and "kept" in chunk.staged.column_names:
                nanoseconds |= find_nanoseconds(chunk.staged["kept"].combine_chunks())
            yield chunk.keys
    cache.flush()
    faults.hit("read.summary")
    yield ShardSummary(
        shard.number,
        shard.manifest,
        shard.label,
        lines,
        staged.rows,
        unreadable.rows,
        tuple(kept.items()),
        over_context,
        frozenset(nanoseconds),
        not_finite,
        watch.report(staged.rows + unreadable.rows, staged.rows),
    )


def open_media_cache(spec: RunSpec) -> StoredMediaCache:
    """Return the store's media cache. A process reads it once for each run, not once for each shard."""
    with _media_caches_lock:
        if spec.run.name not in _media_caches:
            _media_caches.clear()  # a process has one run at a time
            _media_caches[spec.run.name] = StoredMediaCache(spec.store.uri, segment_ids())
        return _media_caches[spec.run.name]


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """Some of a store's segments and event files: one element of the pipeline.

    `unverified` has those of the segments whose content has not been compared with its hash yet.
    """

    segments: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    unverified: frozenset[str] = frozenset()


def list_store_files(store_uri: str, run: str) -> list[StoreFiles]:
    """List all segments and event files of a store, in groups."""
    size = STORE_FILES_PER_GROUP
    segments, events = list_parquet(segments_folder(store_uri)), list_parquet(events_folder(store_uri))
    ids = np.array([segment_id(uri) for uri in segments], np.uint64)
    known = np.isin(ids, read_verified(store_uri, run))
    unverified = frozenset(uri for uri, verified in zip(segments, known.tolist(), strict=True) if not verified)
    groups = [tuple(segments[start : start + size]) for start in range(0, len(segments), size)]
    return [
        *(StoreFiles(segments=group, unverified=unverified.intersection(group)) for group in groups),
        *(StoreFiles(events=tuple(events[start : start + size])) for start in range(0, len(events), size)),
    ]


def read_store_files(files: StoreFiles, spec: RunSpec) -> tuple[pa.Table, pa.Table]:
    """Read the INDEX of segments and the REJECTED rows of event files.

    A damaged file is set aside, and its vectors are bought again. When a segment is read for the first time, its whole
    content is verified. Later only the columns read here are checked, because Publish verifies what it reads.
    """

    def read_segment(uri: str) -> pa.Table:
        if uri in files.unverified and not is_whole(spec.store.uri, uri):
            raise StoreError(f"{redact(uri)} does not have the content that was written")
        return read_index(uri, spec.model_owned)

    index = _read_all(files.segments, read_segment, INDEX_COLUMNS, spec)
    rejected = _read_all(files.events, read_rejected, REJECTED_COLUMNS, spec)
    whole = [segment_id(uri) for uri in index if uri in files.unverified]
    if whole:
        note_verified(spec.store.uri, f"{spec.run.name}-{whole[0]:016x}", whole)
    return concat(index.values(), schema.INDEX), concat(rejected.values(), schema.REJECTED)


def _read_all(
    uris: Sequence[str], read: Callable[[str], pa.Table], columns: Sequence[str], spec: RunSpec
) -> dict[str, pa.Table]:
    tables = {}
    for uri in uris:
        try:
            tables[uri] = read(uri)
        except StoreError as error:
            # If the storage failed and the file is whole, keep the file: its vectors must not be bought again.
            if not is_damaged(uri, columns) and is_whole(spec.store.uri, uri):
                tables[uri] = read(uri)
                continue
            _log.warning("damaged and set aside as %s: %s", set_aside(spec.store.uri, uri), error)
    return tables
