"""Publish in Beam: number the parts, write them, commit once. Side inputs enforce the order of these steps."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection

from arkbeam.base import schema
from arkbeam.engine.outcomes import Counts, LaneReport
from arkbeam.outputs.publishing import publish_page
from arkbeam.quota.use import QuotaUse
from arkbeam.stages.meter import Phase, note_work
from arkbeam.stages.plan import PlanTotals, split_by
from arkbeam.stages.publish.commit import Commit, begin_commit, end_run, publishes
from arkbeam.stages.publish.embeddings import write_embeddings_part, write_multi_part
from arkbeam.stages.publish.failures import write_failures_part
from arkbeam.stages.publish.parts import Manifests, PartFile, assign_parts, count_by, part_numbers, sum_counts
from arkbeam.stages.publish.usage import UsagePart, list_usage_sources, write_usage_part
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import list_parquet, segment_id, segments_folder


class Settled(NamedTuple):
    """The results of a run, as Publish takes them."""

    refs: PCollection[pa.Table]
    failed: PCollection[pa.Table]
    summaries: PCollection[ShardSummary]
    totals: PCollection[PlanTotals]
    reports: PCollection[LaneReport]


class Publish(beam.PTransform):
    """Write the output of a run, or keep the earlier one if the run stopped. Write the note `result` in both cases."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, settled: Any) -> PCollection[None]:
        """Begin, write all parts, commit. The input is a Settled."""
        spec = self._spec
        once = settled.totals.pipeline | "Once" >> beam.Create([None])
        report = once | "Merge" >> beam.Map(_merge_reports, AsIter(settled.reports), spec)
        begun = AsSingleton(report | "Begin" >> beam.Map(_begin, spec))
        manifests = AsSingleton(once | "Manifests" >> beam.Map(_manifests, AsIter(settled.summaries)))
        embeddings = settled.refs | "Embeddings" >> _WriteEmbeddingsParts(spec, begun, manifests)
        failures = settled.failed | "Failures" >> _WriteFailuresParts(spec, begun, manifests, settled.summaries)
        usage = (
            once
            | "UsageSources" >> beam.FlatMap(_usage_sources, spec, begun)
            | "SpreadUsage" >> beam.Reshuffle()
            | "Usage" >> beam.Map(_write_usage, spec)
        )
        return once | "Commit" >> beam.Map(
            _commit,
            AsSingleton(settled.totals),
            AsSingleton(report),
            AsIter(embeddings),
            AsIter(failures),
            AsIter(usage),
            spec,
        )


class _WriteEmbeddingsParts(beam.PTransform):
    def __init__(self, spec: RunSpec, begun: AsSingleton, manifests: AsSingleton) -> None:
        super().__init__()
        self._spec, self._begun, self._manifests = spec, begun, manifests

    def expand(self, refs: PCollection[pa.Table]) -> PCollection[PartFile]:
        counts = refs | "Count" >> beam.Map(count_by, "segment") | "Sum" >> beam.CombineGlobally(sum_counts)
        parts = AsSingleton(counts | "Number" >> beam.Map(_number, self._begun, self._spec))
        once = refs.pipeline | "Once" >> beam.Create([None])
        segments = AsSingleton(once | "Segments" >> beam.Map(_segments, self._begun, AsSingleton(counts), self._spec))
        first = once | "First" >> beam.FlatMap(_first_part, self._begun, schema.REFS)
        return (
            (refs | "Split" >> beam.FlatMap(_split, "segment", parts), first)
            | "All" >> beam.Flatten()
            | "ByPart" >> beam.GroupByKey()
            | "Write" >> beam.FlatMap(_write_embeddings, segments, self._manifests, self._spec)
        )


class _WriteFailuresParts(beam.PTransform):
    def __init__(
        self, spec: RunSpec, begun: AsSingleton, manifests: AsSingleton, summaries: PCollection[ShardSummary]
    ) -> None:
        super().__init__()
        self._spec, self._begun, self._manifests, self._summaries = spec, begun, manifests, summaries

    def expand(self, failed: PCollection[pa.Table]) -> PCollection[PartFile]:
        unreadable = self._summaries | "Unreadable" >> beam.Map(_unreadable)
        counts = (
            (failed | "Count" >> beam.Map(count_by, "shard"), unreadable)
            | "Join" >> beam.Flatten()
            | "Sum" >> beam.CombineGlobally(sum_counts)
        )
        parts = AsSingleton(counts | "Number" >> beam.Map(_number, self._begun, self._spec))
        once = failed.pipeline | "Once" >> beam.Create([None])
        first = once | "First" >> beam.FlatMap(_first_part, self._begun, schema.FAILED)
        tables = (failed | "Split" >> beam.FlatMap(_split, "shard", parts), first) | "All" >> beam.Flatten()
        shards = unreadable | "Shards" >> beam.FlatMap(_shards, parts)
        return (
            {"failed": tables, "shards": shards}
            | "ByPart" >> beam.CoGroupByKey()
            | "Write" >> beam.Map(_write_failures, self._manifests, self._spec)
        )


def _merge_reports(_: None, reports: Iterable[LaneReport], spec: RunSpec) -> LaneReport:
    merged = LaneReport(Counts(), QuotaUse(*spec.rate_limits))
    for report in reports:
        merged = merged.merge(report)
    return merged


def _begin(report: LaneReport, spec: RunSpec) -> bool:
    if not publishes(report.stop, spec):
        return False
    begin_commit(spec.run.output_uri, spec.run.name)
    return True


def _manifests(_: None, summaries: Iterable[ShardSummary]) -> Manifests:
    return Manifests.of(summaries)


def _number(counts: dict[int, int], begun: bool, spec: RunSpec) -> dict[int, int]:
    if not begun:
        return {}
    parts = assign_parts(counts)
    note_work(spec, Phase.PUBLISHING, parts_planned=max(parts.values(), default=0) + 1)
    return parts


def _first_part(_: None, begun: bool, wanted: pa.Schema) -> list[tuple[int, pa.Table]]:
    """Return an empty part 0, so that readers find the schema even if there are no rows."""
    return [(0, wanted.empty_table())] if begun else []


def _segments(_: None, begun: bool, counts: dict[int, int], spec: RunSpec) -> dict[int, str]:
    if not begun:
        return {}
    uris = list_parquet(segments_folder(spec.store.uri))
    return {segment: uri for uri in uris if (segment := segment_id(uri)) in counts}


def _split(table: pa.Table, name: str, parts: dict[int, int]) -> Iterator[tuple[int, pa.Table]]:
    if parts:
        yield from split_by(table, part_numbers(table, name, parts))


def _write_embeddings(
    element: tuple[int, Iterable[pa.Table]], segments: dict[int, str], manifests: Manifests, spec: RunSpec
) -> Iterator[PartFile]:
    part, tables = element
    refs = schema.concat(tables, schema.REFS)
    if spec.model.asks_multi:
        yield write_multi_part(part, refs, segments, manifests, spec)
    yield write_embeddings_part(part, refs, segments, manifests, spec)


def _unreadable(summary: ShardSummary) -> dict[int, int]:
    return {summary.number: summary.unreadable} if summary.unreadable else {}


def _shards(counts: dict[int, int], parts: dict[int, int]) -> Iterator[tuple[int, int]]:
    for shard in counts:
        if shard in parts:
            yield parts[shard], shard


def _write_failures(element: tuple[int, dict[str, Iterable[Any]]], manifests: Manifests, spec: RunSpec) -> PartFile:
    part, groups = element
    failed = schema.concat(groups["failed"], schema.FAILED)
    return write_failures_part(part, failed, groups["shards"], manifests, spec)


def _usage_sources(_: None, spec: RunSpec, begun: bool) -> list[tuple[int, tuple[str, ...]]]:
    if not begun:
        return []
    sources = list_usage_sources(spec.store.uri, spec.run.output_uri)
    note_work(spec, Phase.PUBLISHING, parts_planned=len(sources))
    return sources


def _write_usage(source: tuple[int, tuple[str, ...]], spec: RunSpec) -> UsagePart:
    part, uris = source
    return write_usage_part(part, uris, spec)


def _commit(
    _: None,
    totals: PlanTotals,
    report: LaneReport,
    embeddings: Iterable[PartFile],
    failures: Iterable[PartFile],
    usage: Iterable[UsagePart],
    spec: RunSpec,
) -> None:
    end_run(Commit(totals, report, [*embeddings], [*failures], [*usage]), spec, publish_page)
