"""Read in Beam: turn shards into keys by bucket and shard summaries, and read the store's index by bucket."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindows

from arkbeam.base import schema
from arkbeam.manifest.shards import Shard
from arkbeam.stages.plan import split_buckets
from arkbeam.stages.read import ShardSummary, StoreFiles, read_store_files, stage_shard
from arkbeam.stages.spec import RunSpec

KEYS, SUMMARIES = "keys", "summaries"
INDEX, REJECTED = "index", "rejected"
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


class ReadStoreFiles(beam.PTransform):
    """Read groups of store files. Outputs: `index` (bucket, INDEX), `rejected` (bucket, REJECTED)."""

    def __init__(self, spec: RunSpec) -> None:
        super().__init__()
        self._spec = spec

    def expand(self, groups: beam.PCollection[StoreFiles]) -> Any:
        """Distribute the groups over workers, then read each."""
        read = beam.FlatMap(_read_group, self._spec).with_outputs(INDEX, REJECTED)
        return groups | "Spread" >> beam.Reshuffle() | "Index" >> read


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


def _read_group(group: StoreFiles, spec: RunSpec) -> Iterable[Any]:
    index, rejected = read_store_files(group, spec)
    yield from (TaggedOutput(INDEX, element) for element in split_buckets(index, spec.buckets))
    yield from (TaggedOutput(REJECTED, element) for element in split_buckets(rejected, spec.buckets))
