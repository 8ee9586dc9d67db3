"""Plan in Beam: join keys with the index by bucket, distribute missing rows over lanes, and join again after Embed."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection, TaggedOutput

from arkbeam.base import faults
from arkbeam.base.schema import KEYS, concat
from arkbeam.stages.embed.lanes import Block
from arkbeam.stages.meter import Phase, note_work
from arkbeam.stages.plan import PlanTotals, cut_blocks, deal_lane, plan_bucket, settle_bucket, split_by, sum_totals
from arkbeam.stages.read import ShardSummary, open_index
from arkbeam.stages.spec import BLOCK_ROWS, RunSpec
from arkbeam.stages.survey import survey_shards
from arkbeam.store.run_files import buyers_uri, write_tables

OWNED, WAITING, BUYERS, REJECTED, TOTALS = "owned", "waiting", "buyers", "rejected", "totals"
REFS, FAILED = "refs", "failed"


class PlanBuckets(beam.PTransform):
    """Join keys, (bucket, KEYS), with the index of the store. The index is opened once `covered` is complete.

    Outputs: `owned` (REFS), `waiting` (bucket, keys), `buyers` (shard, KEYS), `rejected` (FAILED), `totals`
    (PlanTotals).
    """

    def __init__(self, spec: RunSpec, covered: PCollection[int]) -> None:
        super().__init__()
        self._spec, self._covered = spec, covered

    def expand(self, keys: PCollection[tuple[int, pa.Table]]) -> Any:
        """Group by bucket, then plan each bucket."""
        plan = beam.FlatMap(_plan_bucket, AsIter(self._covered), self._spec)
        outputs = plan.with_outputs(OWNED, WAITING, BUYERS, REJECTED, TOTALS)
        return keys | "ByBucket" >> beam.GroupByKey() | "Join" >> outputs


class SurveyShards(beam.PTransform):
    """Survey all shards: ShardSummary in, one PlanTotals out. The job fails here if the manifests lack what they must have."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, summaries: PCollection[ShardSummary]) -> PCollection[PlanTotals]:
        """Take the summaries as one side input: a bundle of them would not be all."""
        once = summaries.pipeline | "Once" >> beam.Create([None])
        return once | "Survey" >> beam.Map(_survey, AsIter(summaries), self._spec)


class SumTotals(beam.PTransform):
    """Add up the totals of buckets and of the survey (PlanTotals both) to the totals of the run."""

    def expand(self, counted: Any) -> PCollection[PlanTotals]:
        """Return one element, even if there is no bucket."""
        totals, surveyed = counted
        # Runners in Java do not translate a PCollection that a Flatten shares with another consumer, hence the copy.
        copied = surveyed | "Copy" >> beam.Map(_same)
        return (totals, copied) | beam.Flatten() | beam.CombineGlobally(sum_totals)


class DealLanes(beam.PTransform):
    """Write each shard's buyers as blocks and distribute the blocks over lanes: (shard, KEYS) in, (lane, [Block]) out.

    No block is given to a lane before the survey has ended.
    """

    def __init__(self, spec: RunSpec, surveyed: PCollection[PlanTotals]) -> None:
        super().__init__()
        self._spec, self._surveyed = spec, surveyed

    def expand(self, buyers: PCollection[tuple[int, pa.Table]]) -> PCollection[tuple[int, Iterable[Block]]]:
        """Group by shard, cut into blocks, group by lane."""
        return (
            buyers
            | "ByShard" >> beam.GroupByKey()
            | "Cut" >> beam.FlatMap(_write_blocks, AsSingleton(self._surveyed), self._spec)
            | "ByLane" >> beam.GroupByKey()
        )


class SettleBuckets(beam.PTransform):
    """Join `waiting` rows with `bought` and `rejected` by bucket. Outputs: `refs` (REFS), `failed` (FAILED)."""

    def expand(self, tables: Any) -> Any:
        """Group by bucket, then settle each bucket."""
        settle = beam.FlatMap(_settle_bucket).with_outputs(REFS, FAILED)
        return tables | "ByBucket" >> beam.CoGroupByKey() | "Join" >> settle


def _plan_bucket(element: tuple[int, Iterable[pa.Table]], _: Iterable[int], spec: RunSpec) -> Iterator[Any]:
    bucket, tables = element
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
    yield TaggedOutput(TOTALS, totals)
    if plan.owned.num_rows:
        yield TaggedOutput(OWNED, plan.owned)
    if plan.rejected.num_rows:
        yield TaggedOutput(REJECTED, plan.rejected)
    if plan.waiting.num_rows:
        yield TaggedOutput(WAITING, (bucket, plan.waiting))
        for element in split_by(plan.buyers, plan.buyers["shard"].to_numpy()):
            yield TaggedOutput(BUYERS, element)


def _survey(_: None, summaries: Iterable[ShardSummary], spec: RunSpec) -> PlanTotals:
    return survey_shards(summaries, spec)


def _same(totals: PlanTotals) -> PlanTotals:
    return totals


def _write_blocks(element: tuple[int, Iterable[pa.Table]], _: PlanTotals, spec: RunSpec) -> Iterator[tuple[int, Block]]:
    shard, tables = element
    faults.hit("plan.deal")
    blocks = list(cut_blocks(concat(tables, KEYS), BLOCK_ROWS))
    write_tables(buyers_uri(spec.run_files_uri, spec.run.name, shard), blocks, KEYS)
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
