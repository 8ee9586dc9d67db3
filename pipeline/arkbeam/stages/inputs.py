"""Lists that grow with the input. They are written to the run's folder, so that the job that is sent to an engine stays small."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import orjson

from arkbeam.base.files import read_bytes, write_bytes
from arkbeam.manifest.shards import Shard
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import note_uri

_SENT_NAMES_MAX = 64  # URIs and folders that are sent with the job
_whole: dict[str, RunSpec] = {}
_whole_lock = threading.Lock()


def write_inputs(shards: Sequence[Shard], spec: RunSpec) -> RunSpec:
    """Write the list of shards. Return the spec that is sent with the job: without long lists, which are written too.

    Raise StoreError if the run's folder can't be written.
    """
    write_bytes(note_uri(spec.run_files_uri, spec.run.name, "shards"), orjson.dumps(shards), durable=False)
    if len(spec.manifest.uris) + len(spec.media.allowed_roots) <= _SENT_NAMES_MAX:
        return spec
    lists = {"config": spec.config, "uris": spec.manifest.uris, "allowed_roots": spec.media.allowed_roots}
    write_bytes(note_uri(spec.run_files_uri, spec.run.name, "lists"), orjson.dumps(lists), durable=False)
    return replace(
        spec,
        config={},
        manifest=replace(spec.manifest, uris=()),
        media=replace(spec.media, allowed_roots=()),
    )


def read_shards(spec: RunSpec) -> Iterator[Shard]:
    """Read the list of shards. Raise StoreError if it can't be read."""
    for shard in orjson.loads(read_bytes(note_uri(spec.run_files_uri, spec.run.name, "shards"))):
        yield Shard(**shard | {"failures": tuple(shard["failures"])})


def whole_spec(spec: RunSpec) -> RunSpec:
    """Return the spec with its lists, which a process reads once for each run. Raise StoreError if they can't be read."""
    if spec.config:
        return spec
    with _whole_lock:
        if spec.run.name not in _whole:
            lists = orjson.loads(read_bytes(note_uri(spec.run_files_uri, spec.run.name, "lists")))
            _whole.clear()  # a process has one run at a time
            _whole[spec.run.name] = replace(
                spec,
                config=lists["config"],
                manifest=replace(spec.manifest, uris=tuple(lists["uris"])),
                media=replace(spec.media, allowed_roots=tuple(lists["allowed_roots"])),
            )
        return _whole[spec.run.name]
