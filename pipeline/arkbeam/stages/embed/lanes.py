"""Embed one lane: from blocks of missing rows to refs and failures."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.schema import concat
from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import LaneReport, Sink, StopKind
from arkbeam.stages.embed.feed import MEDIA_THREADS, Feed, StagedRow, Unsendable, read_rows
from arkbeam.stages.embed.process import read_stop, write_stop
from arkbeam.stages.embed.second_pass import read_waves, wait_for_held
from arkbeam.stages.meter import Phase, note_failures, note_work
from arkbeam.stages.spec import RunSpec
from arkbeam.store.events import read_rejected
from arkbeam.store.layout import events_folder, list_parquet, segments_folder
from arkbeam.store.model_record import read_model
from arkbeam.store.run_files import buyers_uri, read_block
from arkbeam.store.segments import read_index

_EMIT_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a lane's work: one row group of a shard's buyers."""

    shard: int
    number: int
    rows: int

    @property
    def place(self) -> tuple[int, int]:
        """Shard and number."""
        return self.shard, self.number


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Results of some of a lane's items: INDEX rows of those with a vector, REJECTED rows of the others."""

    index: pa.Table
    rejected: pa.Table


def embed_lane(blocks: Sequence[Block], spec: RunSpec, engine: Engine) -> Iterator[Outcomes | LaneReport]:
    """Send the rows of a lane's blocks. Yield outcomes as they accumulate, and at the end the lane's report.

    When all rows are settled, those that failed for a passing reason are tried once more. While they wait for it, the
    lane leaves its share of the quota to others.
    If the runner repeats a lane, rows that the first attempt settled are taken from the store and not sent again. Once
    the run stops, in this process or in another one, the remaining rows are skipped and have no outcome.
    """
    stopped = read_stop(spec)
    if stopped is not None:
        engine.stop(stopped)
    engine.expect(sum(block.rows for block in blocks))
    note_work(spec, Phase.EMBEDDING)
    sink, gathered = Sink(), _Gathered(spec)
    with ThreadPoolExecutor(MEDIA_THREADS, thread_name_prefix="arkbeam-media") as pool:
        feed = Feed(spec, engine, pool)
        with engine.lane():
            yield from _send(_rows(blocks, spec, gathered), feed, sink, gathered)
            engine.settle(sink)
        if wait_for_held(min(block.place for block in blocks), spec, engine, sink):
            with engine.lane():
                for rows in read_waves(spec, engine, sink):
                    yield from _send(rows, feed, sink, gathered)
                engine.settle(sink)
    report = engine.finish(sink)
    if report.stop is not None and report.stop.kind is not StopKind.BUDGET:  # other processes may have budget left
        write_stop(spec, report.stop)
    yield from gathered.add(sink)
    yield gathered.take()
    yield report


def _send(rows: Iterator[StagedRow], feed: Feed, sink: Sink, gathered: "_Gathered") -> Iterator[Outcomes]:
    """Submit rows until the run stops; yield outcomes as they accumulate."""
    for batch in feed.batches(rows):
        if isinstance(batch, Unsendable):
            feed.engine.expect(-1)  # it will not be sent
            sink.add(1)
            sink.add_failure(batch.fingerprint, batch.failure.code, batch.failure.message)
            continue
        if not feed.engine.submit(batch, sink):
            break
        yield from gathered.add(sink)


class _Gathered:
    """Collects outcomes into elements of `_EMIT_ROWS` rows, so that the pipeline has few and large elements."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._index: list[pa.Table] = []
        self._rejected: list[pa.Table] = []
        self._rows = 0

    def put(self, index: pa.Table, rejected: pa.Table) -> None:
        self._index.append(index)
        self._rejected.append(rejected)
        self._rows += index.num_rows + rejected.num_rows

    def add(self, sink: Sink) -> Iterator[Outcomes]:
        index, rejected = sink.collect()
        note_failures(self._spec, rejected["code"])
        self.put(concat(index, schema.INDEX), rejected)
        if self._rows >= _EMIT_ROWS:
            yield self.take()

    def take(self) -> Outcomes:
        outcomes = Outcomes(concat(self._index, schema.INDEX), concat(self._rejected, schema.REJECTED))
        self._index, self._rejected, self._rows = [], [], 0
        return outcomes


def _rows(blocks: Sequence[Block], spec: RunSpec, gathered: _Gathered) -> Iterator[StagedRow]:
    """Read the rows of the blocks in the order of the manifest, without those that this run has already settled."""
    own = _own_outcomes(spec)
    for block in sorted(blocks, key=lambda block: block.place):
        buyers = read_block(buyers_uri(spec.run_files_uri, spec.run.name, block.shard), block.number)
        index, rejected = (_only(table, buyers) for table in (own.index, own.rejected))
        gathered.put(index, rejected)
        for settled in (index, rejected):
            buyers = buyers.filter(pc.invert(_is_in(buyers, settled)))
        yield from read_rows(buyers, block.place, spec)


def _own_outcomes(spec: RunSpec) -> Outcomes:
    """Read what this run has in the store: nothing, unless a lane is repeated or another lane ran before."""
    segments = list_parquet(segments_folder(spec.store.uri, spec.run.name))
    events = list_parquet(events_folder(spec.store.uri, spec.run.name))
    # Not `spec.model_owned`: the lane's first attempt may have set the resolved model.
    model = read_model(spec.store.uri, spec.run.service, spec.model.name).resolved
    return Outcomes(
        concat([read_index(uri, model) for uri in segments], schema.INDEX),
        concat([read_rejected(uri) for uri in events], schema.REJECTED),
    )


def _only(table: pa.Table, buyers: pa.Table) -> pa.Table:
    return table.filter(_is_in(table, buyers))


def _is_in(table: pa.Table, others: pa.Table) -> pa.ChunkedArray:
    return pc.is_in(table["fingerprint"], value_set=others["fingerprint"].combine_chunks())
