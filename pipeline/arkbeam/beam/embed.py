"""Embed in Beam: one element is a lane; the outputs are refs, rejections and a report, never vectors."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection, TaggedOutput

from arkbeam.beam.plan import BOUGHT, REJECTED
from arkbeam.engine.outcomes import LaneReport
from arkbeam.stages.embed.lanes import Block, embed_lane
from arkbeam.stages.embed.process import open_engine
from arkbeam.stages.inputs import whole_spec
from arkbeam.stages.plan import split_buckets
from arkbeam.stages.spec import RunSpec

OUTCOMES, REPORTS = "outcomes", "reports"


class EmbedLanes(beam.PTransform):
    """Send the rows of lanes.

    Outputs: `outcomes` (bucket, (BOUGHT, INDEX)) and (bucket, (REJECTED, REJECTED)), `reports` (LaneReport).
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, lanes: PCollection[list[Block]]) -> Any:
        """Distribute the lanes over the workers, then embed each lane."""
        embed = beam.ParDo(_EmbedLane(self._spec)).with_outputs(OUTCOMES, REPORTS)
        return lanes | "Spread" >> beam.Reshuffle() | "Embed" >> embed


class _EmbedLane(beam.DoFn):
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def process(self, blocks: list[Block]) -> Iterator[Any]:
        spec = whole_spec(self._spec)
        for result in embed_lane(blocks, spec, open_engine(spec)):
            if isinstance(result, LaneReport):
                yield TaggedOutput(REPORTS, result)
                continue
            for kind, table in ((BOUGHT, result.index), (REJECTED, result.rejected)):
                for bucket, part in split_buckets(table, self._spec.buckets):
                    yield TaggedOutput(OUTCOMES, (bucket, (kind, part)))
