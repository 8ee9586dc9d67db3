"""Publish in Beam: number the parts, write them, commit once. Gathering and side inputs enforce the order of these steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection, TaggedOutput

from arkbeam.base import schema
from arkbeam.beam.gather import Gather, only
from arkbeam.beam.plan import REFS, Planned
from arkbeam.engine.outcomes import Counts, LaneReport
from arkbeam.quota.use import QuotaUse
from arkbeam.stages.inputs import whole_spec
from arkbeam.stages.plan import PlanTotals, split_by
from arkbeam.stages.publish import embeddings, failures, usage
from arkbeam.stages.publish.commit import Commit, begin_commit, end_run, publishes
from arkbeam.stages.publish.embeddings import write_embeddings_part, write_multi_part
from arkbeam.stages.publish.failures import write_failures_part
from arkbeam.stages.publish.parts import Manifests, PartFile, RowCounts, assign_parts, part_numbers, sum_counts
from arkbeam.stages.publish.usage import UsagePart, list_usage_sources, write_usage_part
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import list_parquet, segment_id, segments_folder

BEGUN, PIECES = "begun", "pieces"
_Part = tuple[str, int]
"""A folder of the output and the number of a part in it."""


class Settled(NamedTuple):
    """The results of a run, as Publish takes them."""

    once: PCollection[bytes]
    """One element."""
    results: PCollection[tuple[str, pa.Table]]
    """(REFS, table) and (FAILED, table)."""
    planned: PCollection[Planned]
    counts: PCollection[RowCounts]
    """Of what Embed bought."""
    reports: PCollection[LaneReport]


@dataclass(frozen=True, slots=True)
class Begun:
    """What is decided before the first part is written. Nothing is numbered if the run does not publish."""

    totals: PlanTotals
    report: LaneReport
    parts: dict[str, dict[int, int]]
    """By folder: the part of each segment, or of each shard."""
    segments: dict[int, str]
    """URI of each segment that is published."""
    manifests: Manifests


class Publish(beam.PTransform):
    """Write the output of a run, or keep the earlier one if the run stopped. Write the note `result` in both cases."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, settled: Any) -> PCollection[None]:
        """Begin, write all parts, commit. The input is a Settled."""
        spec = self._spec
        begin = (
            (settled.planned, settled.counts, settled.reports)
            | "Together" >> Gather()
            | "Begin" >> beam.FlatMap(_begin, spec).with_outputs(BEGUN, PIECES)
        )
        begun = AsSingleton(begin.begun)
        tables = settled.results | "Split" >> beam.FlatMap(_split, begun)
        files = (
            (tables, begin.pieces)
            | beam.Flatten()
            | "ByPart" >> beam.GroupByKey()
            | "Write" >> beam.FlatMap(_write, begun, spec)
        )
        return settled.once | "Commit" >> beam.Map(_commit, begun, AsIter(files), spec)


def _begin(gathered: list[Any], spec: RunSpec) -> Iterator[Any]:
    """Decide what is published. Yield the Begun, and the pieces of parts that are no tables of rows."""
    (planned,) = only(Planned, gathered)
    report = LaneReport(Counts(), QuotaUse(*spec.rate_limits))
    for one in only(LaneReport, gathered):
        report = report.merge(one)
    manifests = Manifests.of(planned.summaries)
    if not publishes(report.stop, spec):
        yield TaggedOutput(BEGUN, Begun(planned.totals, report, {}, {}, manifests))
        return
    begin_commit(spec.run.output_uri, spec.run.name)
    counts = RowCounts.total([planned.counts, *only(RowCounts, gathered)])
    unreadable = {shard.number: shard.unreadable for shard in planned.summaries if shard.unreadable}
    parts = {
        embeddings.FOLDER: assign_parts(counts.by_segment),
        failures.FOLDER: assign_parts(sum_counts([counts.by_shard, unreadable])),
    }
    yield TaggedOutput(BEGUN, Begun(planned.totals, report, parts, _segments(counts, spec), manifests))
    # An empty part 0, so that readers find the schema even if there are no rows.
    yield TaggedOutput(PIECES, ((embeddings.FOLDER, 0), schema.REFS.empty_table()))
    yield TaggedOutput(PIECES, ((failures.FOLDER, 0), schema.FAILED.empty_table()))
    for shard in unreadable:
        yield TaggedOutput(PIECES, ((failures.FOLDER, parts[failures.FOLDER][shard]), shard))
    for part, uris in list_usage_sources(spec.store.uri, spec.run.output_uri):
        yield TaggedOutput(PIECES, ((usage.FOLDER, part), uris))


def _segments(counts: RowCounts, spec: RunSpec) -> dict[int, str]:
    uris = list_parquet(segments_folder(spec.store.uri))
    return {segment: uri for uri in uris if (segment := segment_id(uri)) in counts.by_segment}


def _split(result: tuple[str, pa.Table], begun: Begun) -> Iterator[tuple[_Part, pa.Table]]:
    kind, table = result
    folder, name = (embeddings.FOLDER, "segment") if kind == REFS else (failures.FOLDER, "shard")
    if begun.parts:
        for part, rows in split_by(table, part_numbers(table, name, begun.parts[folder])):
            yield (folder, part), rows


def _write(element: tuple[_Part, Iterable[Any]], begun: Begun, spec: RunSpec) -> Iterator[PartFile | UsagePart]:
    (folder, part), pieces = element
    if folder == usage.FOLDER:
        for uris in pieces:
            yield write_usage_part(part, uris, spec)
        return
    gathered = list(pieces)
    tables = only(pa.Table, gathered)
    if folder == failures.FOLDER:
        rows = schema.concat(tables, schema.FAILED)
        yield write_failures_part(part, rows, only(int, gathered), begun.manifests, spec)
        return
    refs = schema.concat(tables, schema.REFS)
    if spec.model.asks_multi:
        yield write_multi_part(part, refs, begun.segments, begun.manifests, spec)
    yield write_embeddings_part(part, refs, begun.segments, begun.manifests, spec)


def _commit(_: bytes, begun: Begun, files: Iterable[PartFile | UsagePart], spec: RunSpec) -> None:
    written = list(files)
    parts = only(PartFile, written)
    failed = [file for file in parts if file.path.startswith(f"{failures.FOLDER}/")]
    vectors = [file for file in parts if file not in failed]
    end_run(Commit(begun.totals, begun.report, vectors, failed, only(UsagePart, written)), whole_spec(spec))
