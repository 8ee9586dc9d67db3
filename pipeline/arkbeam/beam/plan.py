"""Plan in Beam: join keys with the index by bucket, cut missing rows into blocks, and join again after Embed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, TaggedOutput

from arkbeam.base import faults
from arkbeam.base.schema import KEYS, concat
from arkbeam.beam.counters import count
from arkbeam.beam.gather import Gather, only
from arkbeam.beam.read import ASIDE
from arkbeam.stages.counters import tally_plan
from arkbeam.stages.inputs import whole_spec
from arkbeam.stages.meter import Phase, note_work
from arkbeam.stages.plan import (
    Block,
    PlanTotals,
    cut_blocks,
    order_blocks,
    plan_bucket,
    settle_bucket,
    split_by,
    sum_totals,
)
from arkbeam.stages.publish.parts import Divisions
from arkbeam.stages.read import ShardSummary, open_index
from arkbeam.stages.spec import RunSpec
from arkbeam.stages.survey import survey_shards
from arkbeam.store.run_files import buyers_uri, write_tables

RESULTS, WAITING, BUYERS, COUNTS = "results", "waiting", "buyers", "counts"
BLOCKS, PLANNED = "blocks", "planned"
REFS, FAILED = "refs", "failed"
"""Kinds of results: (REFS, table), (FAILED, table)."""
WANTED, BOUGHT, REJECTED = "wanted", "bought", "rejected"
"""What is joined after Embed: (bucket, (kind, table))."""


@dataclass(frozen=True, slots=True)
class Planned:
    """All that is known of a run before anything is sent: its totals, its shards, and divisions of rows without a request."""

    totals: PlanTotals
    summaries: tuple[ShardSummary, ...]
    divisions: Divisions


class PlanBuckets(beam.PTransform):
    """Join keys, the output of Read, with the index of the store.

    Outputs: `results` (kind, table) of rows that are owned or were rejected, `waiting` (bucket, (WANTED, keys)), `buyers`
    (shard, KEYS), `counts` (PlanTotals, Divisions, and what Read has set aside: ShardSummary).
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, keys: PCollection[tuple[int, Any]]) -> Any:
        """Group by bucket, then plan each bucket."""
        plan = beam.FlatMap(_plan_bucket, self._spec).with_outputs(RESULTS, WAITING, BUYERS, COUNTS)
        return keys | "ByBucket" >> beam.GroupByKey() | "Join" >> plan


class DealBlocks(beam.PTransform):
    """Write each shard's buyers as blocks, survey all shards, and give out the blocks in the order of the manifests.

    Input: a tuple of PCollections: buyers (shard, KEYS), counts of Plan. Outputs: `blocks` (Block), `planned` one
    Planned. All blocks and summaries are gathered before the first block is given out. Nothing is sent if the manifests
    lack what they must have: the job fails here.
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, plan: Any) -> Any:
        """Group by shard and cut into blocks, then deal."""
        buyers, counts = plan
        blocks = buyers | "ByShard" >> beam.GroupByKey() | "Cut" >> beam.FlatMap(_write_blocks, self._spec)
        deal = beam.FlatMap(_deal, self._spec).with_outputs(BLOCKS, PLANNED)
        return (counts, blocks) | "Together" >> Gather() | "Deal" >> deal


class SumTotals(beam.PTransform):
    """Add up the totals of all buckets and of the survey. The input is the counts of Plan."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, counts: PCollection[Any]) -> PCollection[PlanTotals]:
        """Return one element, even if there is no bucket."""
        return (counts,) | "Together" >> Gather() | "Sum" >> beam.Map(_sum_totals, self._spec)


class SettleBuckets(beam.PTransform):
    """Join waiting rows with what Embed bought: a tuple of PCollections of (bucket, (kind, table)).

    Outputs: `results` (kind, table), `counts` (Divisions, and what Embed has set aside: Stop).
    """

    def expand(self, tables: Any) -> Any:
        """Group by bucket, then settle each bucket."""
        settle = beam.FlatMap(_settle_bucket).with_outputs(RESULTS, COUNTS)
        return tables | beam.Flatten() | "ByBucket" >> beam.GroupByKey() | "Join" >> settle


def _plan_bucket(element: tuple[int, Iterable[Any]], spec: RunSpec) -> Iterator[Any]:
    bucket, tables = element
    if bucket == ASIDE:
        yield from _set_aside(tables)
        return
    faults.hit("plan.bucket")
    keys = concat(tables, KEYS)
    found = open_index(spec).find(keys["fingerprint"], spec.model_owned)
    plan = plan_bucket([keys], [found.index], [found.rejected], resend_rejected=spec.retry_failed)
    totals = plan.totals
    note_work(
        spec,
        Phase.PLANNING,
        rows_planned=totals.rows,
        to_buy=totals.to_buy,
        text_tokens=totals.text_tokens,
        image_tokens=totals.image_tokens,
    )
    count(tally_plan(totals))
    yield TaggedOutput(COUNTS, totals)
    yield from _results(plan.owned, plan.rejected)
    if plan.waiting.num_rows:
        yield TaggedOutput(WAITING, (bucket, (WANTED, plan.waiting)))
        for element in split_by(plan.buyers, plan.buyers["shard"].to_numpy()):
            yield TaggedOutput(BUYERS, element)


def _results(refs: pa.Table, failed: pa.Table) -> Iterator[TaggedOutput]:
    yield TaggedOutput(COUNTS, Divisions.of(refs, failed))
    for kind, table in ((REFS, refs), (FAILED, failed)):
        if table.num_rows:
            yield TaggedOutput(RESULTS, (kind, table))


def _write_blocks(element: tuple[int, Iterable[pa.Table]], spec: RunSpec) -> Iterator[Block]:
    shard, tables = element
    faults.hit("plan.deal")
    blocks = list(cut_blocks(concat(tables, KEYS), spec.rate_limits))
    write_tables(buyers_uri(spec.run_files_uri, spec.run.name, shard), blocks, KEYS)
    faults.hit("plan.dealt")
    for number, block in enumerate(blocks):
        yield Block(shard, number, block.num_rows)


def _deal(gathered: list[Any], spec: RunSpec) -> Iterator[Any]:
    summaries = tuple(only(ShardSummary, gathered))
    yield TaggedOutput(
        PLANNED, Planned(_sum_totals(gathered, spec), summaries, Divisions.merge(only(Divisions, gathered)))
    )
    for block in order_blocks(only(Block, gathered)):
        yield TaggedOutput(BLOCKS, block)


def _sum_totals(gathered: list[Any], spec: RunSpec) -> PlanTotals:
    return sum_totals([*only(PlanTotals, gathered), survey_shards(only(ShardSummary, gathered), whole_spec(spec))])


def _settle_bucket(element: tuple[int, Iterable[Any]]) -> Iterator[Any]:
    bucket, tables = element
    if bucket == ASIDE:
        yield from _set_aside(tables)
        return
    faults.hit("plan.settle")
    by_kind: dict[str, list[pa.Table]] = {WANTED: [], BOUGHT: [], REJECTED: []}
    for kind, table in tables:
        by_kind[kind].append(table)
    yield from _results(*settle_bucket(by_kind[WANTED], by_kind[BOUGHT], by_kind[REJECTED]))


def _set_aside(elements: Iterable[Any]) -> Iterator[TaggedOutput]:
    for element in elements:
        yield TaggedOutput(COUNTS, element)
