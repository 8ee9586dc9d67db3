"""Embed in Beam: one element is a lane; the outputs are refs, rejections and a report, never vectors."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection, TaggedOutput

from arkbeam.engine.outcomes import LaneReport
from arkbeam.stages.embed.lanes import Block, embed_lane
from arkbeam.stages.embed.process import open_engine
from arkbeam.stages.plan import split_buckets
from arkbeam.stages.spec import RunSpec

BOUGHT, REJECTED, REPORTS = "bought", "rejected", "reports"


class EmbedLanes(beam.PTransform):
    """Send the rows of lanes. Outputs: `bought` (bucket, INDEX), `rejected` (bucket, REJECTED), `reports` (LaneReport)."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, lanes: PCollection[tuple[int, Iterable[Block]]]) -> Any:
        """Embed each lane."""
        return lanes | "Embed" >> beam.ParDo(_EmbedLane(self._spec)).with_outputs(BOUGHT, REJECTED, REPORTS)


class _EmbedLane(beam.DoFn):
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def process(self, lane: tuple[int, Iterable[Block]]) -> Iterator[Any]:
        _, blocks = lane
        for result in embed_lane(list(blocks), self._spec, open_engine(self._spec)):
            if isinstance(result, LaneReport):
                yield TaggedOutput(REPORTS, result)
                continue
            yield from (TaggedOutput(BOUGHT, element) for element in split_buckets(result.index, self._spec.buckets))
            yield from (
                TaggedOutput(REJECTED, element) for element in split_buckets(result.rejected, self._spec.buckets)
            )
