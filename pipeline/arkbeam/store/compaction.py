"""Compaction: replace many small segments and event files by few large ones, without a moment at which anything is missing.

Each gathered segment is one unit: a record that names the old and the new files (`store.replaced`), then the events with
its costs, then the segment. A kill leaves a unit that counts or one that does not. Old files stay for a grace period, so
that runs that planned on them can finish; the next compaction after that removes them.

One compaction at a time works on a store: it holds a claim in the folder of the records. If two do so all the same, because
one was taken for dead, each file is still replaced once: the record with the lower id counts, and the other's files are
removed later.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from arkbeam.base import faults
from arkbeam.base.errors import OutputInUse
from arkbeam.base.files import (
    Listed,
    exists,
    list_folders,
    put_file,
    remove_files,
    remove_leftovers,
    temporary_folder,
    write_bytes,
)
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import join
from arkbeam.store.claim import LEASE_S, check_claim, claim_output
from arkbeam.store.entries import rejection_entries, vector_entries
from arkbeam.store.gathering import Gathered, gather_events, gather_segments
from arkbeam.store.index_merge import tidy_index
from arkbeam.store.integrity import set_aside
from arkbeam.store.layout import (
    GATHERED_FULL,
    GATHERED_PART,
    events_folder,
    gathered_events,
    hash_content,
    hash_file,
    id_in_place_of,
    journals_folder,
    key_of_run,
    replaced_folder,
    run_folder,
    run_of,
    segment_id,
    segment_ids,
    segment_name,
    segments_folder,
    start_of_run,
)
from arkbeam.store.leftovers import AGE_S, UNMARKED_AGE_S
from arkbeam.store.listing import has_multi, is_event_file, list_sources, source_name
from arkbeam.store.lookup import open_store_index
from arkbeam.store.own_index import OwnIndex
from arkbeam.store.replaced import (
    Replaced,
    Replacement,
    decide,
    read_replacements,
    remove_replacement,
    write_replacement,
)
from arkbeam.store.run_files import note_uri
from arkbeam.store.segments import is_damaged, parquet_bytes

SMALL_BYTES = 64 * 1024 * 1024
SMALL_EVENTS_BYTES = 8 * 1024 * 1024
EVENTS_BYTES_MAX = 16 * 1024 * 1024
FINAL_S = 3600.0
VOID_S = 3600.0
INDEX_ROWS = 524_288
_CLOCK_S = 3600.0  # by so much, the clocks of two machines may differ
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompactionOptions:
    """When a compaction does something, and for how long old files stay."""

    grace_s: float
    files_min: int = 2
    """The fewest files that are replaced by one."""
    share_min: float = 0.0
    """Segments are left as they are if small ones have at most this share of the bytes of all."""
    duration_s: float = float("inf")
    """After this time, no more files are read."""
    lease_s: float = LEASE_S

    def within(self, grace_h: float) -> "CompactionOptions":
        """Return these options with another grace period."""
        return replace(self, grace_s=3600.0 * grace_h)


AUTOMATIC = CompactionOptions(grace_s=24 * 3600.0, files_min=16, share_min=0.2, duration_s=60.0)
"""What the end of a run does."""


@dataclass(slots=True)
class Compacted:
    """What a compaction did."""

    replaced: int = 0
    """Old files that do not count any more."""
    written: int = 0
    """New files that count instead."""
    rows: int = 0
    """Rows of the new segments."""
    bytes: int = 0
    """Bytes of the new files."""
    removed: int = 0
    """Files that were removed: old ones after their grace period, and those that a killed compaction has left."""
    waiting: int = 0
    """Old files that stay for the grace period, after this compaction."""
    in_use: bool = False
    """True if another compaction works on the store."""
    complete: bool = True
    """False if the time was over before everything was replaced."""


@dataclass(frozen=True, slots=True)
class StoreState:
    """What a compaction needs to know of a store."""

    listed: dict[str, Listed]
    replaced: Replaced
    running: frozenset[str]
    """The runs with a folder of their own: they run, or were killed and not cleaned up yet."""
    journals: frozenset[str]
    """The runs with a journal: the next run of their output looks for its attempts in their segments and events."""

    @property
    def current(self) -> dict[str, Listed]:
        """The files that count."""
        hidden = self.replaced.hidden
        return {name: one for name, one in self.listed.items() if name not in hidden}

    @property
    def taken(self) -> frozenset[str]:
        """The files that are not gathered now: a record names them, and is or may have been in force."""
        whole = [record for record in self.replaced.void if self.is_whole(record)]
        new = (name for record in self.replaced.void for name in record.new)
        return frozenset(name for record in (*self.replaced.in_force, *whole) for name in record.names) | frozenset(new)

    def is_whole(self, record: Replacement) -> bool:
        """True if all new files of a record are there."""
        return all(name in self.listed for name in record.new)

    @property
    def waiting(self) -> int:
        """The number of replaced files that are still there."""
        return sum(name in self.listed for record in self.replaced.in_force for name in record.old)


def read_state(store_uri: str) -> StoreState:
    """List a store. Raise StoreError."""
    listed = list_sources(store_uri)
    replaced = decide(read_replacements(store_uri), listed)
    runs, journals = (list_folders(folder(store_uri)) for folder in (run_folder, journals_folder))
    ended = in_parallel(lambda run: exists(note_uri(store_uri, run, "result")), runs)
    running = frozenset(run for run, has_ended in zip(runs, ended, strict=True) if not has_ended)
    return StoreState(listed, replaced, running, frozenset(journals))


def choose_segments(state: StoreState, options: CompactionOptions) -> list[Listed]:
    """Return the segments to gather, in the order of their ids; none if there are too few."""
    segments = {name: one for name, one in state.current.items() if not is_event_file(name) and not has_multi(one)}
    busy, taken = state.running | state.journals, state.taken
    small = [
        one
        for name, one in segments.items()
        if one.size < SMALL_BYTES
        and name not in taken
        and (run := run_of(one.uri)) not in busy
        and (run == GATHERED_PART or key_of_run(run) is not None)
    ]
    size, all_sizes = sum(one.size for one in small), sum(one.size for one in segments.values())
    if len(small) < options.files_min or size <= options.share_min * all_sizes:
        return []
    return sorted(small, key=lambda one: one.uri.rpartition("/")[2])


def choose_events(state: StoreState, options: CompactionOptions) -> dict[str, list[Listed]]:
    """Return the event files to gather, by the key of their output."""
    busy, taken = state.running | state.journals, state.taken
    by_key: dict[str, list[Listed]] = {}
    for name, one in state.current.items():
        run = run_of(one.uri)
        key = key_of_run(run) if is_event_file(name) and name not in taken and run not in busy else None
        if key is not None and one.size < SMALL_EVENTS_BYTES:
            by_key.setdefault(key, []).append(one)
    return {key: files for key, files in by_key.items() if len(files) >= options.files_min}


def compact_store(store_uri: str, options: CompactionOptions) -> Compacted:
    """Compact a store. Whatever interrupts it, the next call goes on.

    Any run may use the store at the same time. Raise StoreError if the storage fails.
    """
    state = read_state(store_uri)
    if not (choose_segments(state, options) or choose_events(state, options) or _has_old(state, options)):
        return Compacted(waiting=state.waiting)
    name = f"compaction-{os.getpid()}-{secrets.token_hex(4)}"
    done = Compacted()
    try:
        with claim_output(replaced_folder(store_uri), name, lambda _: None, lease_s=options.lease_s):
            _Compaction(store_uri, options, name, done).work()
    except OutputInUse:
        done.in_use = True
    return done


def _has_old(state: StoreState, options: CompactionOptions) -> bool:
    """True if there may be something to remove."""
    oldest_s = time.time() - options.grace_s
    return bool(state.replaced.void) or any(record.written_s <= oldest_s for record in state.replaced.in_force)


@dataclass(slots=True)
class _Compaction:
    """One compaction, while it holds the claim."""

    store_uri: str
    options: CompactionOptions
    name: str
    done: Compacted
    ids: Iterator[int] = field(default_factory=segment_ids)
    _index: OwnIndex = field(init=False)
    _start_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._index = OwnIndex(self.store_uri, "")  # of all runs

    def work(self) -> None:
        """Remove what is old, then gather segments, then events."""
        for folder in (GATHERED_FULL, GATHERED_PART):
            remove_leftovers(segments_folder(self.store_uri, folder), age_s=AGE_S)
        remove_leftovers(replaced_folder(self.store_uri), age_s=AGE_S)
        # Listed again each time: another compaction may have ended meanwhile, and what is cleaned up frees other files.
        self._clean_up(read_state(self.store_uri))
        for unit in self._units(read_state(self.store_uri)):
            unit()
        faults.hit("compact.index")
        self._index.flush(self.ids)
        tidy_index(self.store_uri, open_store_index(self.store_uri), next(self.ids))
        self.done.waiting = read_state(self.store_uri).waiting

    def _units(self, state: StoreState) -> Iterator[Callable[[], None]]:
        segments, events = choose_segments(state, self.options), choose_events(state, self.options)
        with temporary_folder() as folder:
            for gathered in gather_segments(self.store_uri, segments, folder, self._is_over):
                if len(gathered.old) >= 2:
                    yield partial(self._store_segment, gathered)
                gathered.path.unlink(missing_ok=True)
        for key, files in events.items():
            for some in _cut(files):
                if self._is_over():
                    return
                yield partial(self._gather_events, key, some)

    def _is_over(self) -> bool:
        if time.monotonic() - self._start_s < self.options.duration_s:
            return False
        self.done.complete = False
        return True

    def _store_segment(self, gathered: Gathered) -> None:
        folder = GATHERED_FULL if gathered.full else GATHERED_PART
        segment = id_in_place_of(map(segment_id, gathered.old), secrets.randbits(22))
        name = segment_name(segment, hash_file(gathered.path))
        uri = join(segments_folder(self.store_uri, folder), name)
        size = gathered.path.stat().st_size
        costs = [self._encode_events(key, table) for key, table in sorted(gathered.events.items())]
        self._record(gathered.old, [*(cost.uri for cost in costs), uri])
        self._put_events(costs)
        faults.hit("compact.segment", uri)
        self._check()
        put_file(gathered.path, uri)
        faults.hit("compact.written", uri)
        self._add(uri, vector_entries(gathered.index))
        self._count(
            len(gathered.old), 1 + len(costs), gathered.index.num_rows, size + sum(len(one.data) for one in costs)
        )

    def _gather_events(self, key: str, files: Sequence[Listed]) -> None:
        old, table = gather_events(self.store_uri, files)
        if len(old) < 2:
            return
        encoded = self._encode_events(key, table)
        self._record(old, [encoded.uri])
        self._put_events([encoded])
        faults.hit("compact.written", encoded.uri)
        self._count(len(old), 1, 0, len(encoded.data))

    def _encode_events(self, key: str, table: pa.Table) -> "_Encoded":
        data = parquet_bytes(table)
        name = segment_name(next(self.ids), hash_content(data))
        uri = join(events_folder(self.store_uri, gathered_events(key)), name)
        return _Encoded(uri, data, rejection_entries(table))

    def _record(self, old: Sequence[str], new: Sequence[str]) -> None:
        """Write the record of a unit. It is in force when all new files are in the store."""
        faults.hit("compact.record")
        self._check()
        names = tuple(source_name(uri) for uri in new)
        write_replacement(self.store_uri, Replacement(next(self.ids), time.time(), tuple(old), names))

    def _put_events(self, files: Sequence["_Encoded"]) -> None:
        faults.hit("compact.events")
        self._check()
        for _ in in_parallel(lambda one: write_bytes(one.uri, one.data), files):
            pass
        for one in files:
            self._add(one.uri, one.entries)

    def _add(self, uri: str, entries: pa.Table) -> None:
        self._index.add(uri, entries)
        self._index.flush(self.ids, INDEX_ROWS)

    def _count(self, replaced: int, written: int, rows: int, size: int) -> None:
        self.done.replaced += replaced
        self.done.written += written
        self.done.rows += rows
        self.done.bytes += size

    def _check(self) -> None:
        check_claim(replaced_folder(self.store_uri), self.name)

    def _clean_up(self, state: StoreState) -> None:
        """Remove old files after their grace period, and what killed compactions have left."""
        now_s = time.time()
        void = []
        for record in state.replaced.void:
            # A whole one may have been in force. The writer of another one may still be alive, if it lost its claim.
            if now_s - record.written_s >= max(VOID_S, self.options.grace_s if state.is_whole(record) else 0.0):
                self._remove(record, record.new, state.listed)
                remove_replacement(self.store_uri, record)
            else:
                void.append(record)
        for record in state.replaced.in_force:
            if record.final:
                self._remove(record, record.old, state.listed)  # none, unless a compaction was killed here
                # As long as a void record has one of the same files, this one must stay in force.
                if now_s - record.written_s >= FINAL_S and all(record.names.isdisjoint(one.old) for one in void):
                    remove_replacement(self.store_uri, record)
            elif now_s - record.written_s >= self.options.grace_s and not self._is_awaited(record, state, now_s):
                self._remove_old(record, state.listed, now_s)

    def _is_awaited(self, record: Replacement, state: StoreState, now_s: float) -> bool:
        """True if a run may have planned on the old files: it began before they were replaced. Long after, it is dead."""
        begun = (started_s for run in state.running if (started_s := start_of_run(run)) is not None)
        return any(now_s - UNMARKED_AGE_S < one <= record.written_s + _CLOCK_S for one in begun)

    def _remove_old(self, record: Replacement, listed: Mapping[str, Listed], now_s: float) -> None:
        """Remove the old files of a record if all new ones are whole."""
        if self._is_over():
            return
        damaged = [name for name in record.new if is_damaged(listed[name].uri)]
        for name in damaged:
            _log.warning(
                "%s is damaged and set aside as %s: the files that it has replaced count again",
                name,
                set_aside(self.store_uri, listed[name].uri),
            )
        if damaged:
            return
        faults.hit("compact.final")
        self._check()
        write_replacement(self.store_uri, replace(record, final=True, written_s=now_s))
        self._remove(record, record.old, listed)

    def _remove(self, record: Replacement, names: Sequence[str], listed: Mapping[str, Listed]) -> None:
        faults.hit("compact.remove", f"{record.number:016x}")
        self._check()
        gone = [listed[name].uri for name in names if name in listed]
        remove_files(gone)
        self.done.removed += len(gone)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An event file that is not written yet."""

    uri: str
    data: bytes
    entries: pa.Table


def _cut(files: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Cut event files into groups of at most EVENTS_BYTES_MAX."""
    group: list[Listed] = []
    size = 0
    for file in files:
        if group and size + file.size > EVENTS_BYTES_MAX:
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if len(group) > 1:
        yield group
