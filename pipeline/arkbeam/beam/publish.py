"""Publish in Beam: number the parts, write them, commit once. Side inputs enforce the order of these steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection

from arkbeam.base import schema
from arkbeam.base.files import Listed
from arkbeam.base.parallel import LOCAL_IN_FLIGHT, in_parallel
from arkbeam.base.uris import is_local
from arkbeam.engine.outcomes import Counts, LaneReport
from arkbeam.outputs.publishing import publish_page
from arkbeam.quota.use import QuotaUse
from arkbeam.stages.meter import Phase, note_work
from arkbeam.stages.plan import PlanTotals, split_by
from arkbeam.stages.publish.commit import Commit, begin_commit, end_run, publishes
from arkbeam.stages.publish.cuts import NO_MARKS, Marks, count_rows, cut_rows, find_marks, merge_marks, number_parts
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.embeddings import publish_parts
from arkbeam.stages.publish.failures import write_failures_part
from arkbeam.stages.publish.parts import Manifests, assign_parts, count_by, part_numbers, sum_counts
from arkbeam.stages.publish.usage import UsagePart, list_usage_sources, publish_usage_part
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import list_parquet, segment_id, segments_folder

_BATCH_PARTS = 16
_PARTS_IN_FLIGHT = 4  # on object stores


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
        begun = AsSingleton(report | "Begin" >> beam.Map(_begin, AsSingleton(settled.totals), spec))
        manifests = AsSingleton(once | "Manifests" >> beam.Map(_manifests, AsIter(settled.summaries)))
        embeddings = settled.refs | "Embeddings" >> _PublishEmbeddings(spec, begun, manifests)
        failures = settled.failed | "Failures" >> _PublishFailures(spec, begun, manifests, settled.summaries)
        usage = (
            once
            | "UsageSources" >> beam.FlatMap(_usage_sources, spec, begun)
            | "SpreadUsage" >> beam.Reshuffle()
            | "Usage" >> _Publish(_usage_part, spec, begun)
        )
        return once | "Commit" >> beam.Map(
            _commit,
            AsSingleton(settled.totals),
            AsSingleton(report),
            AsIter(embeddings),
            AsIter(failures),
            AsIter(usage),
            begun,
            spec,
        )


class _Publish(beam.PTransform):
    """Call a function for each part, in several threads.

    The function takes the element, the arguments `given`, the spec and the value of `begun`; it returns the files of the
    part.
    """

    def __init__(self, function: Callable[..., Iterable[Any]], spec: RunSpec, begun: AsSingleton, *given: Any) -> None:
        super().__init__()
        self._function, self._spec, self._begun, self._given = function, spec, begun, given

    def expand(self, elements: PCollection[Any]) -> PCollection[Any]:
        """Batch the elements of each bundle."""
        batch = beam.BatchElements(min_batch_size=_BATCH_PARTS, max_batch_size=_BATCH_PARTS)
        publish = beam.FlatMap(_publish_batch, self._function, self._spec, self._begun, *self._given)
        return elements | "Batch" >> batch | "Publish" >> publish


class _PublishEmbeddings(beam.PTransform):
    """Cut REFS into parts and publish them. What is combined for all rows is small: marks, and rows from mark to mark."""

    def __init__(self, spec: RunSpec, begun: AsSingleton, manifests: AsSingleton) -> None:
        super().__init__()
        self._spec, self._begun, self._manifests = spec, begun, manifests

    def expand(self, refs: PCollection[pa.Table]) -> PCollection[PartFile]:
        found = refs | "Mark" >> beam.Map(find_marks) | "Merge" >> beam.CombineGlobally(merge_marks)
        marks = AsSingleton(found)
        counts = refs | "Count" >> beam.Map(count_rows, marks) | "Sum" >> beam.CombineGlobally(_sum_arrays)
        cuts = AsSingleton(counts | "Cut" >> beam.Map(_cut, marks, self._begun, self._spec))
        once = refs.pipeline | "Once" >> beam.Create([None])
        segments = AsSingleton(once | "Segments" >> beam.Map(_segments, self._begun, self._spec))
        first = once | "First" >> beam.FlatMap(_first_part, self._begun, schema.REFS)
        return (
            (refs | "Split" >> beam.FlatMap(_split_refs, cuts, self._begun), first)
            | "All" >> beam.Flatten()
            | "ByPart" >> beam.GroupByKey()
            | "Write" >> _Publish(_embeddings_part, self._spec, self._begun, segments, self._manifests)
        )


class _PublishFailures(beam.PTransform):
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
            | "Write" >> _Publish(_failures_part, self._spec, self._begun, self._manifests)
        )


def _merge_reports(_: None, reports: Iterable[LaneReport], spec: RunSpec) -> LaneReport:
    merged = LaneReport(Counts(), QuotaUse(*spec.rate_limits))
    for report in reports:
        merged = merged.merge(report)
    return merged


def _begin(report: LaneReport, totals: PlanTotals, spec: RunSpec) -> Earlier | None:
    """Begin the commit; None if the run does not publish."""
    return begin_commit(spec, totals) if publishes(report.stop, spec) else None


def _publish_batch(
    batch: Sequence[Any], function: Callable[..., Iterable[Any]], spec: RunSpec, earlier: Earlier | None, *given: Any
) -> Iterator[Any]:
    in_flight = LOCAL_IN_FLIGHT if is_local(spec.run.output_uri) else _PARTS_IN_FLIGHT
    for parts in in_parallel(lambda element: list(function(element, *given, spec, earlier)), batch, in_flight):
        note_work(spec, Phase.PUBLISHING, parts_written=len(parts))
        yield from parts


def _manifests(_: None, summaries: Iterable[ShardSummary]) -> Manifests:
    return Manifests.of(summaries)


def _number(counts: dict[int, int], begun: Earlier | None, spec: RunSpec) -> dict[int, int]:
    if begun is None:
        return {}
    parts = assign_parts(counts)
    note_work(spec, Phase.PUBLISHING, parts_planned=max(parts.values(), default=0) + 1)
    return parts


def _sum_arrays(counts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Add up counts. An empty array is the sum of none."""
    total = np.zeros(0, np.int64)
    for one in counts:
        total = one if len(total) == 0 else total + one if len(one) else total
    return total


def _cut(counts: npt.NDArray[np.int64], marks: Marks, begun: Earlier | None, spec: RunSpec) -> Marks:
    cuts = cut_rows(marks, counts) if len(counts) else NO_MARKS
    if begun is not None:
        note_work(spec, Phase.PUBLISHING, parts_planned=len(cuts.keys) + 1)
    return cuts


def _first_part(_: None, begun: Earlier | None, wanted: pa.Schema) -> list[tuple[int, pa.Table]]:
    """Return an empty part 0, so that readers find the schema even if there are no rows."""
    return [] if begun is None else [(0, wanted.empty_table())]


def _segments(_: None, begun: Earlier | None, spec: RunSpec) -> dict[int, str]:
    if begun is None:
        return {}
    return {segment_id(uri): uri for uri in list_parquet(segments_folder(spec.store.uri))}


def _split_refs(table: pa.Table, cuts: Marks, begun: Earlier | None) -> Iterator[tuple[int, pa.Table]]:
    if begun is not None:
        yield from split_by(table, number_parts(table, cuts))


def _split(table: pa.Table, name: str, parts: dict[int, int]) -> Iterator[tuple[int, pa.Table]]:
    if parts:
        yield from split_by(table, part_numbers(table, name, parts))


def _embeddings_part(
    element: tuple[int, Iterable[pa.Table]],
    segments: dict[int, str],
    manifests: Manifests,
    spec: RunSpec,
    earlier: Earlier,
) -> Iterator[PartFile]:
    part, tables = element
    return publish_parts(part, schema.concat(tables, schema.REFS), segments, manifests, spec, earlier)


def _unreadable(summary: ShardSummary) -> dict[int, int]:
    return {summary.number: summary.unreadable} if summary.unreadable else {}


def _shards(counts: dict[int, int], parts: dict[int, int]) -> Iterator[tuple[int, int]]:
    for shard in counts:
        if shard in parts:
            yield parts[shard], shard


def _failures_part(
    element: tuple[int, dict[str, Iterable[Any]]], manifests: Manifests, spec: RunSpec, earlier: Earlier
) -> list[PartFile]:
    part, groups = element
    failed = schema.concat(groups["failed"], schema.FAILED)
    return [write_failures_part(part, failed, groups["shards"], manifests, spec, earlier)]


def _usage_sources(_: None, spec: RunSpec, begun: Earlier | None) -> list[tuple[int, tuple[Listed, ...]]]:
    if begun is None:
        return []
    sources = list_usage_sources(spec.store.uri, spec.run.output_uri)
    note_work(spec, Phase.PUBLISHING, parts_planned=len(sources))
    return sources


def _usage_part(source: tuple[int, tuple[Listed, ...]], spec: RunSpec, earlier: Earlier) -> list[UsagePart]:
    part, files = source
    return [publish_usage_part(part, files, spec, earlier)]


def _commit(
    _: None,
    totals: PlanTotals,
    report: LaneReport,
    embeddings: Iterable[PartFile],
    failures: Iterable[PartFile],
    usage: Iterable[UsagePart],
    begun: Earlier | None,
    spec: RunSpec,
) -> None:
    end_run(Commit(totals, report, [*embeddings], [*failures], [*usage], begun or Earlier()), spec, publish_page)
