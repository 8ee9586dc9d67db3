"""The open buffer of a process, its journal, and the flushes, which write the buffer to the store.

The buffer holds the results of all sessions of the process until they are written as a segment.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from arkbeam.base import faults, schema
from arkbeam.base.errors import ArkbeamError, StoreError
from arkbeam.engine.items import Tracked
from arkbeam.engine.outcomes import Sink
from arkbeam.store.entries import rejection_entries, vector_entries
from arkbeam.store.events import Event, events_table, write_events
from arkbeam.store.journal import Journal
from arkbeam.store.own_index import FLUSH_ROWS, OwnIndex
from arkbeam.store.results import write_results
from arkbeam.store.segments import Bought, index_table

MULTI_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Where and what a process writes. `multi`: also per-token vectors."""

    store_uri: str
    run: str
    dimensions: int
    multi: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one flush writes, with the items whose results they are, and the generation of the journal that has it."""

    target: StoreTarget
    segments: Iterator[int]
    bought: Sequence[tuple[Bought, Tracked | None]]
    events: Sequence[Event]
    index: OwnIndex
    journal: Journal
    generation: int

    def write(self) -> pa.Table:
        """Write the events and the segment; return the INDEX rows of its results, in their order.

        Raise StoreError if the store can't be written.
        """
        faults.hit("store.flush")
        written: list[str] = []
        with self.journal.guard(written):
            segment, table = self._write_files(written)
            self.journal.note_stored(segment)
        self.journal.settle(self.generation)
        faults.hit("store.flushed")
        if table is None:
            return schema.INDEX.empty_table()
        return index_table(table.column("fingerprint").combine_chunks(), segment)

    def deliver(self, index: pa.Table) -> None:
        """Deliver the INDEX rows that `write` returned to the sinks that wait for them. Called in the engine's thread."""
        rows: dict[Sink, list[int]] = {}
        for row, (_, tracked) in enumerate(self.bought):
            if tracked is not None:
                rows.setdefault(tracked.sink, []).append(row)
        for sink, own in rows.items():
            sink.deliver(index if len(own) == index.num_rows else index.take(pa.array(own)))

    def write_index(self) -> None:
        """Write an index file if there are enough new entries."""
        self.index.flush(self.segments, FLUSH_ROWS)

    def _write_files(self, written: list[str]) -> tuple[int, pa.Table | None]:
        """Write the events and the segment; return the last id, and the segment's table if there is one."""
        target, table, segment = self.target, None, 0
        if self.events:
            segment = next(self.segments)
            written.append(write_events(target.store_uri, target.run, segment, self.events))
            self.index.add(written[-1], rejection_entries(events_table(self.events)))
        if self.bought:
            segment, bought = next(self.segments), [bought for bought, _ in self.bought]
            uri, table = write_results(
                target.store_uri, target.run, segment, bought, target.dimensions, multi=target.multi
            )
            written.append(uri)
            self.index.add(uri, vector_entries(table))
        return segment, table


@dataclass(slots=True)
class Recorder:
    """Collects results and events, and returns them as a batch to write. Used only by the engine's thread."""

    target: StoreTarget
    segments: Iterator[int]
    journal: Journal
    _bought: list[tuple[Bought, Tracked | None]] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _oldest_s: float = math.inf
    _multi_bytes: int = 0
    _open: dict[str, bytes] = field(default_factory=dict)
    _index: OwnIndex = field(init=False)

    def __post_init__(self) -> None:
        self._index = OwnIndex(self.target.store_uri, self.target.run)

    def is_full(self, rows_max: int) -> bool:
        """True if the buffer should be written: it has `rows_max` rows, or too many bytes of per-token vectors."""
        return len(self._bought) + len(self._events) >= rows_max or self._multi_bytes >= MULTI_BYTES_MAX

    def age_s(self, now_s: float) -> float:
        """Return how long the oldest entry has waited, in seconds; negative infinity if the buffer is empty."""
        return now_s - self._oldest_s

    def announce(self, client_request_id: str, fingerprint: bytes) -> None:
        """Record in the journal a request that will probably be sent soon."""
        self.journal.sent(client_request_id, fingerprint)
        self._open[client_request_id] = fingerprint

    def note_sent(self, client_request_id: str, fingerprint: bytes) -> None:
        """Record in the journal a request that is about to be sent, if it was not announced."""
        if client_request_id not in self._open:
            self.announce(client_request_id, fingerprint)
        faults.hit("embed.sending")

    def note_unpaid(self, client_request_id: str) -> None:
        """Record in the journal a request that ended and is not billed, or that will not be sent."""
        if self._open.pop(client_request_id, None) is not None:
            self.journal.unpaid(client_request_id)
        if self.journal.is_large and not (self._bought or self._events):
            self.journal.settle(self.journal.turn(self._open))

    def add_result(self, bought: Bought, tracked: Tracked | None) -> None:
        """Keep a result until the next flush. Without its item it is stored for later runs and not delivered in this one."""
        reply = bought.reply
        faults.hit("embed.answered")
        self.journal.bought(bought)
        self._open.pop(bought.attempt.client_request_id, None)
        self._oldest_s = min(self._oldest_s, time.monotonic())
        self._bought.append((bought, tracked))
        self._multi_bytes += reply.multi.nbytes if reply.multi is not None else 0

    def add_event(self, event: Event) -> None:
        """Keep an event until the next flush."""
        self._open.pop(event.attempt.client_request_id, None)
        if event.paid:
            self.journal.paid(
                event.attempt.client_request_id, event.request_id, event.model, event.created, event.usage
            )
        self._oldest_s = min(self._oldest_s, time.monotonic())
        self._events.append(event)

    def take(self) -> Batch | None:
        """Return what the buffer holds as a batch and empty the buffer; None if it is empty."""
        if not (self._bought or self._events):
            return None
        generation = self.journal.turn(self._open)
        batch = Batch(self.target, self.segments, self._bought, self._events, self._index, self.journal, generation)
        self._bought, self._events, self._oldest_s, self._multi_bytes = [], [], math.inf, 0
        return batch

    def close(self, *, complete: bool) -> None:
        """Close the journal, and delete it if everything in it is stored (`complete`). Write the rest of the index."""
        self.journal.close(keep=not complete)
        if complete:  # else a write that hangs may still use the iterator of ids
            self._index.flush(self.segments)


@dataclass(slots=True)
class Flusher:
    """Decides when the open buffer is written: when it is full or old, or when no more results will come.

    One write runs at a time, in a thread. `on_stored` is called with the items of a write and their INDEX rows,
    `on_fault` with an error that prevents results from being stored.
    Only the engine's thread uses a Flusher, except for `close`.
    """

    recorder: Recorder
    rows_max: int
    age_s_max: float
    timeout_s: float
    on_stored: Callable[[Batch, pa.Table], None]
    on_fault: Callable[[ArkbeamError], None]
    _unwritten: int = 0
    _writing: set[asyncio.Task[None]] = field(default_factory=set)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "arkbeam-flush"))

    def note_result(self) -> None:
        """Count a result; write the buffer when it is 3/4 full. The last quarter is room for results that arrive meanwhile."""
        self._unwritten += 1
        if self.recorder.is_full(max(1, self.rows_max * 3 // 4)):
            self.start()

    def start(self) -> list[asyncio.Task[None]]:
        """Start to write the buffer; return all writes that are running."""
        batch = self.recorder.take()
        if batch is not None:
            task = asyncio.get_running_loop().create_task(self._write(batch))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return list(self._writing)

    async def wait_for_room(self) -> None:
        """Wait while `rows_max` results are unwritten: the journal holds at most these and the next buffer."""
        while self._unwritten >= self.rows_max and self._writing:
            await asyncio.wait(self._writing, return_when=asyncio.FIRST_COMPLETED)

    async def keep_time(self) -> None:
        """Write the buffer whenever its oldest entry is old enough, until cancelled."""
        while True:
            await asyncio.sleep(self.age_s_max / 4)
            if self.recorder.age_s(time.monotonic()) >= self.age_s_max * 3 / 4:
                self.start()

    async def finish(self) -> None:
        """Write the buffer and wait for all writes."""
        await asyncio.gather(*self.start(), return_exceptions=True)

    def close(self) -> None:
        """End the thread without waiting for a write that hangs; `on_fault` has been called for it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _write(self, batch: Batch) -> None:
        loop = asyncio.get_running_loop()
        try:
            index = await asyncio.wait_for(loop.run_in_executor(self._pool, batch.write), self.timeout_s)
            self._unwritten -= len(batch.bought)
            batch.deliver(index)
            self.on_stored(batch, index)
            await asyncio.wait_for(loop.run_in_executor(self._pool, batch.write_index), self.timeout_s)
        except TimeoutError:
            message = f"the store took longer than {self.timeout_s:g} s (store.timeout_s) to write a segment"
            self.on_fault(StoreError(message))
        except ArkbeamError as fault:
            self.on_fault(fault)
        except Exception as error:  # noqa: BLE001 - a fault of ours must end the run, not be lost in a task
            self.on_fault(ArkbeamError(f"fault in a flush: {type(error).__name__}: {error}"))
