"""Read: stage the rows of shards in the run's folder, and bring the index of the store up to date.

Only keys are passed on to Plan. Rows stay in the run's folder, and each process that plans opens the index itself.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from arkbeam.base import faults
from arkbeam.base.collector import relax_collector
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, remove_folder
from arkbeam.base.parallel import read_ahead
from arkbeam.manifest.columns import NO_COLUMNS, ColumnWatch, ShardColumns, named_columns
from arkbeam.manifest.kept import merge_kinds
from arkbeam.manifest.kinds import NO_ROWS, Kind
from arkbeam.manifest.options import ReadContext
from arkbeam.manifest.portable import find_nanoseconds
from arkbeam.manifest.raw_rows import ShardPlace
from arkbeam.manifest.read import ShardChunk, read_shard
from arkbeam.manifest.shards import Shard
from arkbeam.media import reading
from arkbeam.stages.meter import Phase, note_failures, note_work
from arkbeam.stages.spec import RunSpec
from arkbeam.store.entries import read_entries
from arkbeam.store.index import write_entries
from arkbeam.store.index_merge import tidy_index
from arkbeam.store.layout import segment_ids
from arkbeam.store.lookup import StoreIndex, open_store_index
from arkbeam.store.media_cache import StoredMediaCache
from arkbeam.store.run_files import PieceWriter, rows_folder, unreadable_folder

STORE_FILES_PER_GROUP = 256
_GROUP_BYTES = 1024**3
_media_caches: dict[str, StoredMediaCache] = {}
_media_caches_lock = threading.Lock()
_indexes: dict[str, StoreIndex] = {}
_indexes_lock = threading.RLock()
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
    codes: tuple[tuple[str, int], ...] = ()
    """The unreadable rows by code."""


def stage_shard(shard: Shard, spec: RunSpec) -> Iterator[pa.Table | ShardSummary]:
    """Read a shard and write its rows to the run's folder. Yield KEYS tables, and at the end the summary.

    Raise ManifestError if the manifest can't be read, StoreError if the run's folder can't be written.
    """
    relax_collector()
    run_files = spec.run_files_uri, spec.run.name
    folders = (rows_folder(*run_files, shard.number), unreadable_folder(*run_files, shard.number))
    for folder in folders:
        remove_folder(folder)  # an earlier attempt may have left pieces that were cut at other rows
    lines = over_context = not_finite = 0
    reading.resize(spec.limits.bytes_in_flight)
    context, cache = ReadContext(spec.run.service, spec.model, spec.media), open_media_cache(spec)
    watch = ColumnWatch(named_columns(spec.manifest), complete=not shard.failures)
    kept = dict.fromkeys(spec.manifest.keep, NO_ROWS)
    counted, place = 0, ShardPlace()
    nanoseconds: set[str] = set()
    codes: Counter[str] = Counter()
    with PieceWriter(folders[0]) as staged, PieceWriter(folders[1]) as unreadable:
        for chunk in read_ahead(read_shard(shard, spec.manifest, context, cache, watch, place)):
            lines += chunk.rows
            over_context += chunk.over_context
            not_finite += chunk.not_finite
            kept = merge_kinds(kept, chunk.kinds)
            staged.write(chunk.staged)
            unreadable.write(chunk.unreadable)
            counted += _count_chunk(chunk, shard, place, counted, spec)
            codes.update(note_failures(spec, chunk.unreadable["code"]))
            faults.hit("read.chunk")
            if chunk.staged.num_rows and "kept" in chunk.staged.column_names:
                nanoseconds |= find_nanoseconds(chunk.staged["kept"].combine_chunks())
            yield chunk.keys
    cache.flush()
    note_work(spec, Phase.READING, bytes_read=shard.bytes - counted)
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
        tuple(codes.items()),
    )


def _count_chunk(chunk: ShardChunk, shard: Shard, place: ShardPlace, counted: int, spec: RunSpec) -> int:
    """Count the rows of a chunk, and return how many bytes of the shard are read since `counted` of them were."""
    rows = chunk.staged.num_rows + chunk.unreadable.num_rows
    taken = shard.bytes * rows // shard.rows if shard.rows else place.bytes - counted
    taken = max(0, min(taken, shard.bytes - counted))
    note_work(spec, Phase.READING, rows_read=rows, rows_unreadable=chunk.unreadable.num_rows, bytes_read=taken)
    return taken


def open_media_cache(spec: RunSpec) -> StoredMediaCache:
    """Return the store's media cache. A process reads it once for each run, not once for each shard."""
    with _media_caches_lock:
        if spec.run.name not in _media_caches:
            _media_caches.clear()  # a process has one run at a time
            _media_caches[spec.run.name] = StoredMediaCache(spec.store.uri, segment_ids())
        return _media_caches[spec.run.name]


def find_uncovered(spec: RunSpec) -> list[tuple[Listed, ...]]:
    """List the store; return the segments and event files that no index file covers, in groups.

    Index files are merged if there are many.
    """
    index = open_store_index(spec.store.uri)
    if tidy_index(spec.store.uri, index, next(segment_ids())):
        index = open_store_index(spec.store.uri, [covering.file for covering in index.covering])
    remember_index(spec.run.name, index)
    note_work(spec, Phase.READING, files_found=len(index.uncovered))
    return list(_group(index.uncovered))


def cover_files(files: Sequence[Listed], spec: RunSpec) -> int:
    """Read segments and event files, and write an index file that covers them; return how many are covered.

    A damaged file is set aside, and its vectors are bought again. Each file is verified once, here; Publish verifies what
    it reads. Raise StoreError if the store can't be read.
    """
    parts = list(read_entries(spec.store.uri, files))
    note_work(spec, Phase.READING, files_read=len(files))
    try:
        if parts:
            write_entries(spec.store.uri, next(segment_ids()), parts)
    except StoreError as error:
        _log.warning("no index file is written, and the same files are read again: %s", error)
    return len(parts)


def open_index(spec: RunSpec) -> StoreIndex:
    """Return the index of the whole store. A process opens it once for each run.

    Files that are still uncovered are read here: for example those that other runs have written meanwhile. What the run
    itself has written is left out: if the runner plans again, after the loss of a worker, the plan and its blocks are
    the same, and attempts at them are recognised (`engine.attempts`).
    """
    with _indexes_lock:
        index = _indexes.get(spec.run.name)
        if index is None or index.uncovered:
            opened = [covering.file for covering in index.covering] if index is not None else []
            index = open_store_index(spec.store.uri, opened, spec.run.name).complete(spec.store.uri)
            remember_index(spec.run.name, index)
        return index


def remember_index(run: str, index: StoreIndex) -> None:
    """Keep the index of a run for `open_index`."""
    with _indexes_lock:
        _indexes.clear()  # a process has one run at a time
        _indexes[run] = index


def forget_index(run: str) -> None:
    """Close the index that this process has opened for a run."""
    with _indexes_lock:
        _indexes.pop(run, None)


def _group(files: Iterable[Listed]) -> Iterator[tuple[Listed, ...]]:
    """Cut files into groups, so that several workers can read them, and no group takes long."""
    group: list[Listed] = []
    size = 0
    for file in files:
        if group and (len(group) >= STORE_FILES_PER_GROUP or size + file.size > _GROUP_BYTES):
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield tuple(group)
