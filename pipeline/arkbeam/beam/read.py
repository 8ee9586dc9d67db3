"""Read in Beam: turn shards into keys by bucket and shard summaries, and bring the store's index up to date."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from arkbeam.base import schema
from arkbeam.base.files import Listed
from arkbeam.manifest.shards import Shard
from arkbeam.stages.plan import split_buckets
from arkbeam.stages.read import ShardSummary, cover_files, find_uncovered, stage_shard
from arkbeam.stages.spec import RunSpec

KEYS, SUMMARIES = "keys", "summaries"
_EMIT_ROWS = 131_072  # about 4 MB of keys: elements stay below 8 MB, and several small shards share one


class StageShards(beam.PTransform):
    """Stage shards. Outputs: `keys` (bucket, KEYS), `summaries` (ShardSummary)."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, shards: beam.PCollection[Shard]) -> Any:
        """Distribute the shards over workers, then stage each."""
        stage = beam.ParDo(_StageShard(self._spec)).with_outputs(KEYS, SUMMARIES)
        return shards | "Spread" >> beam.Reshuffle() | "Stage" >> stage


class CoverStore(beam.PTransform):
    """Write index files for the part of the store that none covers. Output: how many files each of them covers."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, once: beam.PCollection[None]) -> beam.PCollection[int]:
        """List the store in a worker, not while the graph is built; distribute what must be read."""
        return (
            once
            | "List" >> beam.FlatMap(_find_uncovered, self._spec)
            | "Spread" >> beam.Reshuffle()
            | "Cover" >> beam.Map(_cover_files, self._spec)
        )


class _StageShard(beam.DoFn):
    """Collects keys over a bundle, so that many small shards do not make many small elements."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def start_bundle(self) -> None:
        self._keys: list[pa.Table] = []

    def process(self, shard: Shard) -> Iterator[Any]:
        for staged in stage_shard(shard, self._spec):
            if isinstance(staged, ShardSummary):
                yield TaggedOutput(SUMMARIES, staged)
                continue
            self._keys.append(staged)
            if sum(table.num_rows for table in self._keys) >= _EMIT_ROWS:
                yield from self._take()

    def finish_bundle(self) -> Iterator[Any]:
        for tagged in self._take():
            yield TaggedOutput(tagged.tag, GlobalWindows.windowed_value(tagged.value))

    def _take(self) -> Iterator[Any]:
        table = schema.concat(self._keys, schema.KEYS)
        self._keys = []
        for element in split_buckets(table, self._spec.buckets):
            yield TaggedOutput(KEYS, element)


def _find_uncovered(_: None, spec: RunSpec) -> list[tuple[Listed, ...]]:
    return find_uncovered(spec)


def _cover_files(files: tuple[Listed, ...], spec: RunSpec) -> int:
    return cover_files(files, spec)
