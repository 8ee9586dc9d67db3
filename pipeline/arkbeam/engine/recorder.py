"""The open buffer of a process: results of all its lanes, until they are a segment. The journal is kept here too."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from arkbeam.base import faults
from arkbeam.engine.outcomes import Sink
from arkbeam.store.events import Event, write_events
from arkbeam.store.journal import Journal
from arkbeam.store.multi import multi_table, write_multi
from arkbeam.store.segments import Bought, index_table, segment_table, write_segment

MULTI_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoreTarget:
    """Where a process writes: which store, which run, vectors of which length, and whether tokens have some too."""

    store_uri: str
    run: str
    dimensions: int
    multi: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one flush writes, and who is told."""

    target: StoreTarget
    segments: Iterator[int]
    bought: Sequence[tuple[Bought, Sink | None]]
    events: Sequence[Event]

    def write(self) -> None:
        """Write the segment, then tell every lane where its vectors are.

        Raises: StoreError when the store can't be written; the lanes are told nothing then.
        """
        faults.hit("store.flush")
        if self.events:
            write_events(self.target.store_uri, self.target.run, next(self.segments), self.events)
        if not self.bought:
            return
        sinks = {id(sink): sink for _, sink in self.bought if sink is not None}
        index = self._write_segment()
        for key, sink in sinks.items():
            rows = [row for row, (_, owner) in enumerate(self.bought) if id(owner) == key]
            sink.deliver(index if len(rows) == index.num_rows else index.take(pa.array(rows)))
        faults.hit("store.flushed")

    def _write_segment(self) -> pa.Table:
        segment = next(self.segments)
        bought = [bought for bought, _ in self.bought]
        table = segment_table(bought, self.target.dimensions)
        if self.target.multi:
            multi = multi_table(bought, self.target.dimensions)
            metadata = write_multi(self.target.store_uri, self.target.run, segment, multi)
            table = table.replace_schema_metadata(metadata)
        write_segment(self.target.store_uri, self.target.run, segment, table)
        return index_table(table.column("fingerprint").combine_chunks(), segment)


@dataclass(slots=True)
class Recorder:
    """Takes results and events in; gives them out as a batch to write. Used by the engine's thread alone."""

    target: StoreTarget
    segments: Iterator[int]
    journal: Journal
    _bought: list[tuple[Bought, Sink | None]] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _oldest_s: float = math.inf
    _multi_bytes: int = 0
    _open: set[str] = field(default_factory=set)

    def is_full(self, rows_max: int) -> bool:
        """Tell whether it is time to write: enough rows, or so many vectors of tokens that they weigh on memory."""
        return len(self._bought) + len(self._events) >= rows_max or self._multi_bytes >= MULTI_BYTES_MAX

    def age_s(self, now_s: float) -> float:
        """Return how long the oldest entry waits; negative infinity when nothing does."""
        return now_s - self._oldest_s

    def sent(self, client_request_id: str, fingerprint: bytes) -> None:
        """Note a request that is about to go out."""
        self.journal.sent(client_request_id, fingerprint)
        self._open.add(client_request_id)
        faults.hit("embed.sending")

    def unpaid(self, client_request_id: str) -> None:
        """Note a request that ended without a bill."""
        self.journal.unpaid(client_request_id)
        self._open.discard(client_request_id)

    def is_open(self, client_request_id: str) -> bool:
        """Tell whether a request has gone out and nothing more is known of it."""
        return client_request_id in self._open

    def bought(self, bought: Bought, sink: Sink | None) -> None:
        """Keep a result until the next flush; without a sink it is stored for a later run and this one is not told."""
        reply = bought.reply
        faults.hit("embed.answered")
        self._open.discard(bought.attempt.client_request_id)
        self.journal.paid(bought.attempt.client_request_id, reply.id, reply.model, reply.created, reply.usage)
        self._oldest_s = min(self._oldest_s, time.monotonic())
        self._bought.append((bought, sink))
        self._multi_bytes += reply.multi.nbytes if reply.multi is not None else 0

    def event(self, event: Event) -> None:
        """Keep an event until the next flush."""
        self._open.discard(event.attempt.client_request_id)
        if event.paid:
            self.journal.paid(
                event.attempt.client_request_id, event.request_id, event.model, event.created, event.usage
            )
        self._oldest_s = min(self._oldest_s, time.monotonic())
        self._events.append(event)

    def take(self) -> Batch | None:
        """Take what waits, or None when nothing does."""
        if not (self._bought or self._events):
            return None
        batch = Batch(self.target, self.segments, self._bought, self._events)
        self._bought, self._events, self._oldest_s, self._multi_bytes = [], [], math.inf, 0
        return batch

    def close(self, *, complete: bool) -> None:
        """Close the journal; when everything it knows is stored, it is not needed any more."""
        self.journal.close(keep=not complete)
