"""Embed one bundle: from blocks of missing rows to refs and failures.

A session is what one bundle of Beam sends, through the engine that all sessions of a process share.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.schema import concat
from arkbeam.engine.attempts import Attempt
from arkbeam.engine.core import Engine
from arkbeam.engine.items import Item
from arkbeam.engine.outcomes import Sink, Stop, StopKind
from arkbeam.stages.counters import Tally, tally_counts
from arkbeam.stages.embed.counts import note_counts
from arkbeam.stages.embed.dead_processes import recover_processes
from arkbeam.stages.embed.feed import MEDIA_THREADS, Feed, StagedRow, Unsendable, read_rows
from arkbeam.stages.embed.own_results import open_own_results
from arkbeam.stages.embed.process import read_stop, write_stop
from arkbeam.stages.embed.second_pass import read_waves, wait_for_held
from arkbeam.stages.meter import Phase, note_failures, note_work
from arkbeam.stages.plan import Block
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import buyers_uri, read_block

_EMIT_ROWS = 65_536
_EMIT_S = 60.0  # a runner takes a bundle that is silent for minutes for one that hangs


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Results of some of a session's items: INDEX rows of those with a vector, REJECTED rows of the others."""

    index: pa.Table
    rejected: pa.Table


@dataclass(slots=True)
class Session:
    """Sends the rows of one bundle's blocks, block after block; the engine's queue is not emptied between them.

    `add` submits a block and yields the outcomes that have come so far. `finish` waits for the rest, which is bounded:
    the engine holds the items of at most `engine.items.AHEAD_S` of the quota. Then the rows that failed for a passing reason are
    tried once more, and the last outcomes are yielded, and the stop if the run stops. `close` must be called if one of them raises.

    If the runner repeats a bundle, rows that an earlier attempt settled are taken from the store and not sent again.
    Once the run stops, in this process or in another one, the remaining rows are skipped and have no outcome.
    """

    spec: RunSpec
    engine: Engine
    _sink: Sink = field(default_factory=Sink)
    _gathered: "_Gathered" = field(init=False)
    _feed: Feed = field(init=False)
    _first: tuple[int, int] | None = None
    _attempts: list[Attempt] = field(default_factory=list)
    _taking_part: ExitStack = field(default_factory=ExitStack)
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(MEDIA_THREADS, thread_name_prefix="arkbeam-media")
    )

    def __post_init__(self) -> None:
        self._gathered = _Gathered(self.spec, time.monotonic())
        self._feed = Feed(self.spec, self.engine, self._pool)

    def add(self, block: Block) -> Iterator[Outcomes | Tally]:
        """Submit the rows of a block; yield outcomes as they accumulate, and tallies of what was done."""
        self.engine.expect(block.rows_total)
        if self._first is None:
            self._begin(block)
        if self.engine.status().stop is None:
            attempt = self.engine.attempts.begin(block.place, lambda: self.engine.status().stop is not None)
            self._attempts.append(attempt)
            recover_processes(attempt.dead, self.spec)
            yield from self._send(self._feed.add(self._rows(attempt)))
            self._note_submitted()

    def finish(self) -> Iterator[Outcomes | Tally | Stop]:
        """Wait until all rows are settled and stored; yield the rest of the outcomes and a tally, then a stop, if there is one."""
        if self._first is None:
            self.close()
            return
        yield from self._send(self._feed.flush())
        self._note_submitted()
        self.engine.settle(self._sink)
        self._taking_part.close()
        yield self._collect()
        if wait_for_held(self._first, self.spec, self.engine, self._sink):
            with self.engine.taking_part():
                for rows in read_waves(self.spec, self.engine, self._sink):
                    yield from self._send(self._feed.add(rows))
                    yield from self._send(self._feed.flush())
                self.engine.settle(self._sink)
        stop = self.engine.finish(self._sink).stop
        note_counts(self.spec, self.engine)
        self._end_attempts()
        if stop is not None and stop.kind is not StopKind.BUDGET:  # other processes may have budget left
            write_stop(self.spec, stop)
        yield self._collect()
        yield self._gathered.take(time.monotonic())
        if stop is not None:
            yield stop
        self.close()

    def close(self) -> None:
        """End the session: leave the quota to others and end the threads that read media."""
        self._taking_part.close()
        self._feed.give_back()
        for attempt in self._attempts:
            attempt.is_submitted = True  # no more rows of it will come
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _note_submitted(self) -> None:
        reading = self._feed.reading
        for attempt in self._attempts:
            attempt.is_submitted = attempt not in reading

    def _end_attempts(self) -> None:
        """End the attempts of this session. Raise ArkbeamError if a newer attempt at one of its blocks has begun."""
        for attempt in self._attempts:
            self.engine.attempts.end(attempt)
        superseded = sum(attempt.superseded for attempt in self._attempts)
        if superseded:
            raise ArkbeamError(f"{superseded} blocks of this bundle are worked on by newer attempts: this one ends")

    def _begin(self, block: Block) -> None:
        self._first = block.place
        note_work(self.spec, Phase.EMBEDDING)
        stopped = read_stop(self.spec)
        if stopped is not None:
            self.engine.stop(stopped)
        self._taking_part.enter_context(self.engine.taking_part())

    def _collect(self) -> Tally:
        """Gather the outcomes that have come; return what the process has done since the last tally of any session."""
        codes = self._gathered.add(self._sink)
        throttled_s, latencies_ms = self.engine.take_throttled_s(), self._sink.take_latencies()
        return tally_counts(*self.engine.take_counts(), self.spec.prices, codes, throttled_s, latencies_ms)

    def _send(self, batches: Iterator[list[Item] | Unsendable]) -> Iterator[Outcomes | Tally]:
        """Submit batches until the run stops; yield outcomes as they accumulate, and a tally for each batch."""
        for batch in batches:
            if isinstance(batch, Unsendable):
                self.engine.fail(batch.fingerprint, batch.failure, self._sink)
                continue
            if not self.engine.submit(batch, self._sink):
                return
            yield self._collect()
            now_s = time.monotonic()
            if self._gathered.is_due(now_s):
                yield self._gathered.take(now_s)

    def _rows(self, attempt: Attempt) -> Iterator[StagedRow]:
        """Read the rows of a block in the order of the manifest, without those that this run has already settled."""
        shard, number = attempt.block
        buyers = read_block(buyers_uri(self.spec.run_files_uri, self.spec.run.name, shard), number)
        if attempt.is_repeated:
            settled = open_own_results(self.spec).find(buyers["fingerprint"].combine_chunks())
            self._gathered.put([settled[0]], settled[1])
            for found in settled:
                known = found["fingerprint"].combine_chunks()
                buyers = buyers.filter(pc.invert(pc.is_in(buyers["fingerprint"], value_set=known)))
        yield from read_rows(buyers, attempt, self.spec)


@dataclass(slots=True)
class _Gathered:
    """Collects outcomes into elements of `_EMIT_ROWS` rows or `_EMIT_S` seconds, so that elements are few and large."""

    spec: RunSpec
    emitted_s: float
    rows: int = 0
    _index: list[pa.Table] = field(default_factory=list)
    _rejected: list[pa.Table] = field(default_factory=list)

    def add(self, sink: Sink) -> dict[str, int]:
        """Take what a sink has; return its failures by code."""
        index, rejected = sink.collect()
        self.put(index, rejected)
        return note_failures(self.spec, rejected["code"])

    def put(self, index: list[pa.Table], rejected: pa.Table) -> None:
        self._index += index
        self._rejected.append(rejected)
        self.rows += sum(table.num_rows for table in index) + rejected.num_rows

    def is_due(self, now_s: float) -> bool:
        return self.rows >= _EMIT_ROWS or (self.rows > 0 and now_s - self.emitted_s >= _EMIT_S)

    def take(self, now_s: float) -> Outcomes:
        outcomes = Outcomes(concat(self._index, schema.INDEX), concat(self._rejected, schema.REJECTED))
        self._index, self._rejected, self.rows, self.emitted_s = [], [], 0, now_s
        return outcomes
