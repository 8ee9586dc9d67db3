"""Publish in Beam: number the parts, write them, commit once. Gathering and side inputs enforce the order of these steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton, PCollection, TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from arkbeam.base import schema
from arkbeam.base.parallel import LOCAL_IN_FLIGHT, in_parallel
from arkbeam.base.uris import is_local
from arkbeam.beam.gather import Gather, only
from arkbeam.beam.plan import REFS, Planned
from arkbeam.engine.outcomes import RunReport, Stop, first_stop
from arkbeam.outputs.publishing import publish_page
from arkbeam.stages.embed.counts import read_counts
from arkbeam.stages.embed.dead_processes import settle_processes
from arkbeam.stages.inputs import whole_spec
from arkbeam.stages.meter import Phase, note_work
from arkbeam.stages.plan import PlanTotals, split_by
from arkbeam.stages.presence import showing_process
from arkbeam.stages.publish import embeddings, failures, usage
from arkbeam.stages.publish.commit import Commit, begin_commit, end_run, publishes
from arkbeam.stages.publish.cuts import NO_MARKS, Marks, count_rows, cut_rows, number_parts
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.embeddings import publish_parts
from arkbeam.stages.publish.ending import end_job, has_ended
from arkbeam.stages.publish.failures import write_failures_part
from arkbeam.stages.publish.parts import Divisions, Manifests, assign_parts, part_numbers, sum_counts
from arkbeam.stages.publish.usage import (
    UsagePart,
    count_own_outcomes,
    list_usage_sources,
    publish_usage_part,
    settle_counts,
)
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import list_parquet, segment_id, segments_folder
from arkbeam.store.recovery import Recovered

BEGUN, PIECES = "begun", "pieces"
_BATCH_PARTS = 16
_PARTS_IN_FLIGHT = 4  # on object stores
_Part = tuple[str, int]
"""A folder of the output and the number of a part in it."""


class Settled(NamedTuple):
    """The results of a run, as Publish takes them."""

    once: PCollection[bytes]
    """One element."""
    results: PCollection[tuple[str, pa.Table]]
    """(REFS, table) and (FAILED, table)."""
    planned: PCollection[Planned]
    counts: PCollection[Divisions | Stop]
    """Of what Embed settled."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """What is known before the first part is written."""

    earlier: Earlier
    manifests: Manifests
    marks: Marks
    failed: dict[int, int]
    """The part of `failures/` of each shard."""
    segments: dict[int, str]
    """URI of each segment in the store."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What all steps of Publish know. `publishing` is None if the run does not publish."""

    totals: PlanTotals
    report: RunReport
    publishing: Publishing | None = None


class Publish(beam.PTransform):
    """Write the output of a run, or keep the earlier one if the run stopped. Write the note `result` in both cases."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, settled: Any) -> PCollection[None]:
        """Begin, cut the rows into parts, write all parts, commit. The input is a Settled."""
        spec = self._spec
        begin = (
            (settled.planned, settled.counts)
            | "Together" >> Gather()
            | "Begin" >> beam.FlatMap(_begin, spec).with_outputs(BEGUN, PIECES)
        )
        begun = AsSingleton(begin.begun)
        counts = settled.results | "Count" >> beam.ParDo(_CountRows(), begun)
        cut = (counts,) | "Sum" >> Gather() | "Cut" >> beam.Map(_cut, spec)
        cuts = AsSingleton(cut, default_value=NO_MARKS)
        tables = settled.results | "Split" >> beam.FlatMap(_split, begun, cuts)
        files = (
            (tables, begin.pieces)
            | beam.Flatten()
            | "ByPart" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(_Write(spec), begun)
        )
        return settled.once | "Commit" >> beam.Map(_commit, begun, AsIter(files), spec)


def _begin(gathered: list[Any], spec: RunSpec) -> Iterator[Any]:
    """Decide what is published. Yield the Begun, and the pieces of parts that are no tables of rows."""
    (planned,) = only(Planned, gathered)
    recovered = settle_processes(spec)
    report = replace(read_counts(spec), stop=first_stop(only(Stop, gathered)))
    if not publishes(report.stop, spec):
        if recovered != Recovered():
            report = replace(report, counts=settle_counts(report.counts, count_own_outcomes(spec)))
        yield TaggedOutput(BEGUN, Begun(planned.totals, report))
        return
    earlier = begin_commit(spec, planned.totals)
    divisions = Divisions.merge([planned.divisions, *only(Divisions, gathered)])
    unreadable = {shard.number: shard.unreadable for shard in planned.summaries if shard.unreadable}
    failed = assign_parts(sum_counts([divisions.failed, unreadable]))
    segments = {segment_id(uri): uri for uri in list_parquet(segments_folder(spec.store.uri))}
    publishing = Publishing(earlier, Manifests.of(planned.summaries), divisions.marks, failed, segments)
    yield TaggedOutput(BEGUN, Begun(planned.totals, report, publishing))
    # An empty part 0, so that readers find the schema even if there are no rows.
    yield TaggedOutput(PIECES, ((embeddings.FOLDER, 0), schema.REFS.empty_table()))
    yield TaggedOutput(PIECES, ((failures.FOLDER, 0), schema.FAILED.empty_table()))
    for shard in unreadable:
        yield TaggedOutput(PIECES, ((failures.FOLDER, failed[shard]), shard))
    sources = list_usage_sources(spec.store.uri, spec.run.output_key)
    for part, files in sources:
        yield TaggedOutput(PIECES, ((usage.FOLDER, part), files))
    note_work(spec, Phase.PUBLISHING, parts_planned=len({0, *failed.values()}) + len(sources) + 1)


@dataclass(frozen=True, slots=True)
class _Counted:
    """How many rows of a bundle there are from mark to mark.

    The marks go along, so that the next step has no side input, which would make it a step
    of its own on engines in Java.
    """

    marks: Marks
    counts: npt.NDArray[np.int64]


class _CountRows(beam.DoFn):
    """Counts rows from mark to mark. The counts of a bundle are added up: they are as long as the list of marks."""

    def start_bundle(self) -> None:
        self._counted: _Counted | None = None

    def process(self, result: tuple[str, pa.Table], begun: Begun) -> None:
        kind, table = result
        if kind == REFS and begun.publishing is not None:
            marks, before = begun.publishing.marks, self._counted
            counts = count_rows(table, marks)
            self._counted = _Counted(marks, counts if before is None else before.counts + counts)

    def finish_bundle(self) -> Iterator[Any]:
        if self._counted is not None:
            yield GlobalWindows.windowed_value(self._counted)


def _cut(counted: list[_Counted], spec: RunSpec) -> Marks:
    cuts = cut_rows(counted[0].marks, np.sum([one.counts for one in counted], axis=0))
    note_work(spec, Phase.PUBLISHING, parts_planned=len(cuts.keys))
    return cuts


def _split(result: tuple[str, pa.Table], begun: Begun, cuts: Marks) -> Iterator[tuple[_Part, pa.Table]]:
    kind, table = result
    if begun.publishing is None:
        return
    if kind == REFS:
        folder, numbers = embeddings.FOLDER, number_parts(table, cuts)
    else:
        folder, numbers = failures.FOLDER, part_numbers(table, "shard", begun.publishing.failed)
    for part, rows in split_by(table, numbers):
        yield (folder, part), rows


class _Write(beam.DoFn):
    """Writes several parts at once: those of a bundle, at most `_BATCH_PARTS`."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def start_bundle(self) -> None:
        self._parts: list[tuple[_Part, list[Any]]] = []
        self._publishing: Publishing | None = None

    def process(self, part: tuple[_Part, Iterable[Any]], begun: Begun) -> Iterator[PartFile | UsagePart]:
        self._publishing = begun.publishing
        self._parts.append((part[0], list(part[1])))
        if len(self._parts) == _BATCH_PARTS:
            yield from self._write_all()

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._write_all())

    def _write_all(self) -> Iterator[PartFile | UsagePart]:
        parts, self._parts = self._parts, []
        if self._publishing is None:
            return
        in_flight = LOCAL_IN_FLIGHT if is_local(self._spec.run.output_uri) else _PARTS_IN_FLIGHT
        write = partial(_write, publishing=self._publishing, spec=self._spec)
        with showing_process(self._spec):
            for files in in_parallel(write, parts, in_flight):
                note_work(self._spec, Phase.PUBLISHING, parts_written=len(files))
                yield from files


def _write(part: tuple[_Part, list[Any]], publishing: Publishing, spec: RunSpec) -> list[Any]:
    (folder, number), pieces = part
    earlier, manifests, tables = publishing.earlier, publishing.manifests, only(pa.Table, pieces)
    if folder == usage.FOLDER:
        return [publish_usage_part(number, files, spec, earlier) for files in pieces]
    if folder == failures.FOLDER:
        rows = schema.concat(tables, schema.FAILED)
        return [write_failures_part(number, rows, only(int, pieces), manifests, spec, earlier)]
    return [*publish_parts(number, schema.concat(tables, schema.REFS), publishing.segments, manifests, spec, earlier)]


def _commit(_: bytes, begun: Begun, files: Iterable[PartFile | UsagePart], spec: RunSpec) -> None:
    if not has_ended(spec):
        _end_run(begun, files, spec)
    end_job(spec)


def _end_run(begun: Begun, files: Iterable[PartFile | UsagePart], spec: RunSpec) -> None:
    written = list(files)
    parts = only(PartFile, written)
    failed = [file for file in parts if file.folder == failures.FOLDER]
    vectors = [file for file in parts if file.folder != failures.FOLDER]
    earlier = Earlier() if begun.publishing is None else begun.publishing.earlier
    commit = Commit(begun.totals, begun.report, vectors, failed, only(UsagePart, written), earlier)
    end_run(commit, whole_spec(spec), publish_page)
