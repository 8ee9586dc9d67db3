"""Plan in Beam: join keys with the index by bucket, distribute missing rows over lanes, and join again after Embed."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import PCollection, TaggedOutput

from arkbeam.base import faults
from arkbeam.base.schema import KEYS, concat
from arkbeam.stages.embed.lanes import Block
from arkbeam.stages.plan import PlanTotals, cut_blocks, deal_lane, plan_bucket, settle_bucket, split_by, sum_totals
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import BLOCK_ROWS, RunSpec
from arkbeam.store.run_files import buyers_uri, write_tables

OWNED, WAITING, BUYERS, REJECTED, TOTALS = "owned", "waiting", "buyers", "rejected", "totals"
REFS, FAILED = "refs", "failed"


class PlanBuckets(beam.PTransform):
    """Join `keys`, `index` and `rejected` by bucket.

    Outputs: `owned` (REFS), `waiting` (bucket, keys), `buyers` (shard, KEYS), `rejected` (FAILED), `totals`
    (PlanTotals).
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, tables: Any) -> Any:
        """Group by bucket, then plan each bucket."""
        plan = beam.FlatMap(_plan_bucket, self._spec).with_outputs(OWNED, WAITING, BUYERS, REJECTED, TOTALS)
        return tables | "ByBucket" >> beam.CoGroupByKey() | "Join" >> plan


class SumTotals(beam.PTransform):
    """Add up the totals of buckets (PlanTotals) and of shards (ShardSummary) to the totals of the run."""

    def expand(self, counted: Any) -> PCollection[PlanTotals]:
        """Return one element, even if there is no bucket."""
        totals, summaries = counted
        of_shards = summaries | "Unread" >> beam.Map(_total_of_shard)
        return (totals, of_shards) | beam.Flatten() | beam.CombineGlobally(sum_totals)


class DealLanes(beam.PTransform):
    """Write each shard's buyers as blocks and distribute the blocks over lanes: (shard, KEYS) in, (lane, [Block]) out."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, buyers: PCollection[tuple[int, pa.Table]]) -> PCollection[tuple[int, Iterable[Block]]]:
        """Group by shard, cut into blocks, group by lane."""
        return (
            buyers
            | "ByShard" >> beam.GroupByKey()
            | "Cut" >> beam.FlatMap(_write_blocks, self._spec)
            | "ByLane" >> beam.GroupByKey()
        )


class SettleBuckets(beam.PTransform):
    """Join `waiting` rows with `bought` and `rejected` by bucket. Outputs: `refs` (REFS), `failed` (FAILED)."""

    def expand(self, tables: Any) -> Any:
        """Group by bucket, then settle each bucket."""
        settle = beam.FlatMap(_settle_bucket).with_outputs(REFS, FAILED)
        return tables | "ByBucket" >> beam.CoGroupByKey() | "Join" >> settle


def _plan_bucket(element: tuple[int, dict[str, Iterable[pa.Table]]], spec: RunSpec) -> Iterator[Any]:
    bucket, tables = element
    faults.hit("plan.bucket")
    plan = plan_bucket(
        list(tables["keys"]), list(tables["index"]), list(tables["rejected"]), resend_rejected=spec.retry_failed
    )
    yield TaggedOutput(TOTALS, plan.totals)
    if plan.owned.num_rows:
        yield TaggedOutput(OWNED, plan.owned)
    if plan.rejected.num_rows:
        yield TaggedOutput(REJECTED, plan.rejected)
    if plan.waiting.num_rows:
        yield TaggedOutput(WAITING, (bucket, plan.waiting))
        for element in split_by(plan.buyers, plan.buyers["shard"].to_numpy()):
            yield TaggedOutput(BUYERS, element)


def _total_of_shard(summary: ShardSummary) -> PlanTotals:
    return PlanTotals(unreadable=summary.unreadable, over_context=summary.over_context, not_finite=summary.not_finite)


def _write_blocks(element: tuple[int, Iterable[pa.Table]], spec: RunSpec) -> Iterator[tuple[int, Block]]:
    shard, tables = element
    faults.hit("plan.deal")
    blocks = list(cut_blocks(concat(tables, KEYS), BLOCK_ROWS))
    write_tables(buyers_uri(spec.store.uri, spec.run.name, shard), blocks, KEYS)
    faults.hit("plan.dealt")
    for number, block in enumerate(blocks):
        yield deal_lane(shard, number, spec.quota.lanes), Block(shard, number, block.num_rows)


def _settle_bucket(element: tuple[int, dict[str, Iterable[pa.Table]]]) -> Iterator[Any]:
    _, tables = element
    faults.hit("plan.settle")
    refs, failed = settle_bucket(list(tables["waiting"]), list(tables["bought"]), list(tables["rejected"]))
    if refs.num_rows:
        yield TaggedOutput(REFS, refs)
    if failed.num_rows:
        yield TaggedOutput(FAILED, failed)
