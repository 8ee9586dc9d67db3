"""The note `running` of a run: what `arkbeam status`, `wait` and `stop` need to know of it, without its manifests.

It is in the run's folder in the store, as long as that exists. It holds the config as `run.json` does, with secrets masked.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import orjson

from arkbeam.app.config import parse_config
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import read_if_exists, write_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.records import ServiceKind
from arkbeam.stages.spec import RunIdentity, RunSpec
from arkbeam.store.layout import PLAN_SUFFIX, start_of_run
from arkbeam.store.run_files import RUNNING, note_uri

NOTES_MAX = 256


@dataclass(frozen=True, slots=True)
class RunNote:
    """What the note says. `host` and `pid` are those of the process that started the run."""

    run: str
    output: str
    service: str
    started_s: float
    many_processes: bool
    buckets: int
    manifest_bytes: int
    rows_before: int | None
    host: str
    pid: int
    config: dict[str, Any]
    submitted_s: float | None = None
    """When a job that nobody waits for was handed to an engine: it may not have begun (`store.living`)."""

    def spec(self, store_uri: str) -> RunSpec:
        """Return the spec of the run, as far as its progress and its stop need it.

        Raise ConfigError if another version wrote the note, with keys that this version does not know.
        """
        try:
            config = parse_config(self.config)
        except ConfigError as error:
            raise ConfigError(f"run {self.run} was started by another version of arkbeam: {error}") from None
        return RunSpec(
            run=RunIdentity(self.run, self.started_s, ServiceKind(self.service), self.output),
            model=ModelSpec.of(config.model),
            manifest=config.manifest,
            media=config.media,
            api=config.api,
            quota=config.quota,
            budget=config.budget,
            limits=config.limits,
            store=replace(config.store, uri=store_uri),
            config=self.config,
            buckets=self.buckets,
            many_processes=self.many_processes,
            rows_before=self.rows_before,
            manifest_bytes=self.manifest_bytes,
        )


_KEYS = {field.name for field in fields(RunNote)}


def write_run_note(spec: RunSpec, submitted_s: float | None = None) -> None:
    """Write the note. Compaction then keeps the files that the run may read. Raise StoreError."""
    run = spec.run
    note = RunNote(
        run.name,
        run.output_uri,
        run.service.value,
        run.started_s,
        spec.many_processes,
        spec.buckets,
        spec.manifest_bytes,
        spec.rows_before,
        socket.gethostname(),
        os.getpid(),
        spec.config,
        submitted_s,
    )
    write_bytes(note_uri(spec.store.uri, run.name, RUNNING), orjson.dumps(asdict(note)), durable=False)


def read_run_note(store_uri: str, run: str) -> RunNote | None:
    """Return the note of a run, without keys of later versions; None if it has none, as after its end. Raise StoreError."""
    data = read_if_exists(note_uri(store_uri, run, RUNNING))
    if data is None or data == b"{}":  # an earlier version writes an empty note
        return None
    try:
        return RunNote(**{name: value for name, value in orjson.loads(data).items() if name in _KEYS})
    except (ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"the note of run {run} in its folder is damaged: {error}") from None


def read_newest_notes(store_uri: str, runs: Iterable[str]) -> list[RunNote]:
    """Return the notes of the newest `NOTES_MAX` of some runs, the newest first; plans have none. Raise StoreError."""
    named = [run for run in runs if not run.endswith(PLAN_SUFFIX)]
    newest = sorted(named, key=lambda run: start_of_run(run) or 0.0, reverse=True)[:NOTES_MAX]
    return [note for note in in_parallel(partial(read_run_note, store_uri), newest) if note is not None]
