"""Read in Beam: turn shards into keys by bucket and shard summaries, and bring the store's index up to date."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from arkbeam.base import schema
from arkbeam.base.files import Listed
from arkbeam.beam.counters import count
from arkbeam.manifest.shards import Shard
from arkbeam.stages.counters import tally_shard
from arkbeam.stages.embed.process import check_secrets
from arkbeam.stages.inputs import read_shards, whole_spec
from arkbeam.stages.plan import split_buckets
from arkbeam.stages.presence import check_process
from arkbeam.stages.read import ShardSummary, cover_files, find_uncovered, stage_shard
from arkbeam.stages.spec import RunSpec

ASIDE = -1
"""In place of a bucket, with elements that are no tables of rows. An output of its own would be one more step for engines
in Java."""
_EMIT_ROWS = 131_072  # about 4 MB of keys: elements stay below 8 MB, and several small shards share one


class Read(beam.PTransform):
    """Stage the run's shards, and write index files for the part of the store that none covers.

    Output: (bucket, KEYS), and (ASIDE, ShardSummary). There is at least one element: for each group of files (ASIDE, how
    many are covered). When the keys are grouped, the index is complete, because one transform does both.
    """

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, once: beam.PCollection[bytes]) -> Any:
        """List shards and store in a worker, not while the graph is built; distribute both over the workers."""
        work = once | "List" >> beam.FlatMap(_list_work, self._spec) | "Spread" >> beam.Reshuffle()
        return work | "Read" >> beam.ParDo(_Read(self._spec))


class _Read(beam.DoFn):
    """Collects keys over a bundle, so that many small shards do not make many small elements."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def setup(self) -> None:
        check_process(self._spec, check_secrets)

    def start_bundle(self) -> None:
        self._keys: list[pa.Table] = []

    def process(self, work: Shard | tuple[Listed, ...]) -> Iterator[Any]:
        if not isinstance(work, Shard):
            yield ASIDE, cover_files(work, self._spec)
            return
        for staged in stage_shard(work, whole_spec(self._spec)):
            if isinstance(staged, ShardSummary):
                count(tally_shard(staged))
                yield ASIDE, staged
                continue
            self._keys.append(staged)
            if sum(table.num_rows for table in self._keys) >= _EMIT_ROWS:
                yield from self._take()

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(GlobalWindows.windowed_value, self._take())

    def _take(self) -> Iterator[tuple[int, pa.Table]]:
        table = schema.concat(self._keys, schema.KEYS)
        self._keys = []
        yield from split_buckets(table, self._spec.buckets)


def _list_work(_: bytes, spec: RunSpec) -> Iterator[Shard | tuple[Listed, ...]]:
    check_process(spec, check_secrets)
    yield from read_shards(spec)
    yield from find_uncovered(spec) or [()]
