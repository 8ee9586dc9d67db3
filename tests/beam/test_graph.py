"""The graph that is sent to an engine: its size, and shapes that engines in Java do not translate."""

from collections import Counter
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from arkbeam.app.prepare import Job
from arkbeam.beam.gather import Gather
from arkbeam.beam.pipeline import build_pipeline, build_plan
from arkbeam.manifest.shards import Shard
from arkbeam.stages.inputs import read_shards, whole_spec, write_inputs

BUILDERS = [build_pipeline, build_plan]
FLATTEN = "beam:transform:flatten:v1"


@pytest.fixture
def job(make_place: Any) -> Job:
    """A run that is prepared, for a server that nobody asks."""
    place = make_place("http://127.0.0.1:1/api/v3")
    place.write_texts(3)
    return place.prepare()


def _shards(count: int) -> list[Shard]:
    return [
        Shard(number, f"s3://bucket/{number:032x}/rows.jsonl", f"{number:032x}", "jsonl", None, 0, 100, "1")
        for number in range(count)
    ]


def _graph(build: Any, spec: Any) -> Any:
    pipeline = beam.Pipeline(FnApiRunner())
    build(pipeline, spec)
    return pipeline.to_runner_api()


@pytest.mark.parametrize("build", BUILDERS)
def test_the_graph_does_not_grow_with_the_input(build: Any, job: Job) -> None:
    """With 3,000 shards, manifests and folders, the graph is not larger than with one of each."""
    sizes = []
    for count in (1, 3_000):
        shards = _shards(count)
        uris = tuple(shard.manifest for shard in shards)
        spec = replace(
            job.spec,
            config={"manifest": {"uris": list(uris)}},
            manifest=replace(job.spec.manifest, uris=uris),
            media=replace(job.spec.media, allowed_roots=uris),
        )
        sizes.append(len(_graph(build, write_inputs(shards, spec)).SerializeToString()))
    assert sizes[1] < sizes[0] + 1_000
    assert max(sizes) < 200_000


@pytest.mark.parametrize("count", [1, 3_000])
def test_what_is_not_sent_is_read_back(count: int, job: Job) -> None:
    """A worker finds the shards and the lists of the spec in the run's folder, as they were."""
    shards = [replace(shard, failures=("a", "b"), compression="gzip") for shard in _shards(count)]
    uris = tuple(shard.manifest for shard in shards)
    spec = replace(job.spec, media=replace(job.spec.media, allowed_roots=uris))
    sent = write_inputs(shards, spec)
    assert [*read_shards(sent)] == shards
    assert whole_spec(sent) == replace(spec, config=whole_spec(sent).config)
    assert whole_spec(sent).config == spec.config


def _shared_inputs(graph: Any) -> list[str]:
    """Return the inputs of Flattens that other transforms take as well; check that there is a Flatten."""
    leaves = [one for one in graph.components.transforms.values() if not one.subtransforms]
    takers = Counter(name for one in leaves for name in one.inputs.values())
    flattened = [name for one in leaves if one.spec.urn == FLATTEN for name in one.inputs.values()]
    assert flattened
    return [name for name in flattened if takers[name] > 1]


def test_no_flatten_shares_an_input(job: Job) -> None:
    """What a Flatten takes is taken by nothing else: Flink and Spark do not translate such a graph (apache/beam#34647)."""
    assert _shared_inputs(_graph(build_pipeline, job.spec)) == []


def test_gather_makes_one_list() -> None:
    """All elements of all inputs come as one list; an input may have other consumers; nothing comes of nothing."""
    with beam.Pipeline(FnApiRunner()) as pipeline:
        some, none = pipeline | "Some" >> beam.Create([1, 2]), pipeline | "None" >> beam.Create([])
        lists = (
            (some, some | "More" >> beam.Map(str), none)
            | "All" >> Gather()
            | beam.Map(lambda all: sorted(map(str, all)))
        )
        assert_that(lists, equal_to([["1", "1", "2", "2"]]))
        assert_that((none,) | "Nothing" >> Gather(), equal_to([]), label="nothing")
        assert _shared_inputs(pipeline.to_runner_api()) == []
