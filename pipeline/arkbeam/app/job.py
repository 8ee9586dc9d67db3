"""Run a job: claim the output, clean up after earlier runs, run `beam.pipeline`, or hand it to an engine."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import orjson

from arkbeam.app.holding import claiming, clear_dead_runs, forget_run, recover_killed, showing_life
from arkbeam.app.prepare import Job
from arkbeam.app.run_note import write_run_note
from arkbeam.app.take_over import TakeOver
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.files import exists, read_bytes, remove_folder
from arkbeam.base.uris import is_local
from arkbeam.beam.pipeline import build_pipeline, build_plan, has_many_processes, open_pipeline, submit_pipeline
from arkbeam.beam.submission import Ending
from arkbeam.engine.registry import forwarding_stops
from arkbeam.stages.embed.process import check_secrets, write_stop
from arkbeam.stages.inputs import write_inputs
from arkbeam.stages.meter import Phase, forget_work, note_work
from arkbeam.stages.plan import Note, PlanTotals
from arkbeam.stages.presence import read_error
from arkbeam.stages.read import forget_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import Claim, show_alive
from arkbeam.store.compaction import AUTOMATIC, compact_store
from arkbeam.store.layout import PLAN_SUFFIX, new_run_name, run_folder, uri_key
from arkbeam.store.living import Watches
from arkbeam.store.media_cache import compact_media
from arkbeam.store.model_record import ModelRecord, read_model, write_model
from arkbeam.store.run_files import note_uri
from arkbeam.store.scratch import has_room, scratch_folder

_log = logging.getLogger(__name__)


def name_plan(job: Job) -> Job:
    """Return the job under the name of a plan: its folder in the store differs from that of a run."""
    run = job.spec.run
    name = new_run_name(uri_key(run.output_uri), run.started_s, run.name.rpartition("-")[2])
    return replace(job, spec=replace(job.spec, run=replace(run, name=f"{name}{PLAN_SUFFIX}")))


def set_processes(job: Job, beam_arguments: Sequence[str]) -> Job:
    """Return the job, in which the spec says if Beam's arguments let it run in several processes. Raise ConfigError."""
    return replace(job, spec=replace(job.spec, many_processes=has_many_processes(beam_arguments)))


def plan_job(job: Job, beam_arguments: Sequence[str] = ()) -> PlanTotals:
    """Run Read and Plan alone; send nothing.

    Raise the ArkbeamError of the stage that failed; the survey of the manifests can fail as in a run.
    """
    job = set_processes(job if job.spec.run.name.endswith(PLAN_SUFFIX) else name_plan(job), beam_arguments)
    model = read_model(job.spec.store.uri, job.spec.run.service, job.spec.model.name)
    planned = replace(job, spec=replace(job.spec, model_owned=model.resolved))
    with _run_files(planned) as spec, show_alive(folder := _folder(spec), spec.run.name):
        try:
            sent = write_inputs(job.shards, spec)
            if spec.many_processes:
                write_run_note(spec)
            with open_pipeline(beam_arguments) as pipeline:
                build_plan(pipeline, sent)
            totals = orjson.loads(read_bytes(note_uri(spec.run_files_uri, spec.run.name, "plan")))
            return PlanTotals(**totals | {"notes": tuple(Note(**note) for note in totals["notes"])})
        finally:
            forget_index(spec.run.name)
            forget_work(spec.run.name)
            remove_folder(folder)


def run_job(
    job: Job,
    beam_arguments: Sequence[str] = (),
    *,
    accept_model_change: bool = False,
    take_over: bool = False,
    say: Callable[[str], None] = _log.warning,
) -> dict[str, Any]:
    """Run the whole pipeline; return the content of `run.json`, also if the run stopped and published nothing.

    With `take_over`, other runs of the output are ended first; `say` is given what happens, in lines for people.

    Raise OutputInUse if another run is writing the output (nothing was sent then), ConfigError if the API key is
    missing, StoreError, KeyboardInterrupt.
    """
    job = set_processes(job, beam_arguments)
    check_secrets(job.spec)
    if take_over:
        TakeOver(job.spec, say).run()
    try:
        result = _run_claimed(job, beam_arguments, accept_model_change=accept_model_change)
        _compact_store(job.spec)
    finally:
        forget_work(job.spec.run.name)  # at the very end: until then the progress display shows it
    return result


def submit_job(
    job: Job,
    beam_arguments: Sequence[str],
    ending: Ending,
    *,
    accept_model_change: bool = False,
    take_over: bool = False,
    say: Callable[[str], None] = _log.warning,
) -> str | None:
    """Build the pipeline and hand it over, without waiting for its end; return the engine's id of the job, if known.

    The claim on the output and the run's files are left to the job, also to one that is written and may run later.

    Raise as `run_job` does; ConfigError also if the service is an emulator that would end with this process.
    """
    job = set_processes(job, beam_arguments)
    job = replace(job, spec=replace(job.spec, is_detached=True))
    check_secrets(job.spec)
    if take_over:
        TakeOver(job.spec, say).run()
    submitted_s = time.time() if ending is Ending.SUBMIT else None
    with (
        claiming(job.spec) as (claim, watches),
        showing_life(job.spec, submitted_s),
        ExitStack() as undo,
    ):
        undo.callback(forget_run, job.spec)
        spec = _begin(job.spec, claim, watches, accept_model_change=accept_model_change)
        job_id = submit_pipeline(write_inputs(job.shards, spec), beam_arguments, ending)
        if ending is not Ending.DRY_RUN:
            claim.leave()
            undo.pop_all()
    return job_id


def _run_claimed(job: Job, beam_arguments: Sequence[str], *, accept_model_change: bool) -> dict[str, Any]:
    with _run_files(job) as placed, claiming(placed) as (claim, watches):
        try:
            with showing_life(placed):
                spec = _begin(placed, claim, watches, accept_model_change=accept_model_change)
                sent = write_inputs(job.shards, spec)
                result = _run_pipeline(sent, beam_arguments)
        finally:
            forget_run(placed)
        recover_killed(spec)
    return result


def _begin(spec: RunSpec, claim: Claim, watches: Watches, *, accept_model_change: bool) -> RunSpec:
    """Clean up after earlier runs of the output. Return the spec with the model whose vectors count as owned."""
    clear_dead_runs(spec, claim.before, watches)
    compact_media(spec.store.uri)
    return replace(spec, model_owned=_find_model(spec, accept_change=accept_model_change))


def _run_pipeline(spec: RunSpec, beam_arguments: Sequence[str]) -> dict[str, Any]:
    """Run the pipeline; return the note `result`, which its last stage writes when everything else is done."""
    note = note_uri(spec.run_files_uri, spec.run.name, "result")
    try:
        with _forwarding_stops_to_workers(spec), _naming_errors(spec), open_pipeline(beam_arguments) as pipeline:
            build_pipeline(pipeline, spec)
    except ArkbeamError as error:
        if not (spec.many_processes and exists(note)):
            raise
        _log.warning("the runner reports an error, but the job had ended before it: %s", error)
    result: dict[str, Any] = orjson.loads(read_bytes(note))
    return result


def _compact_store(spec: RunSpec) -> None:
    """Compact the store if it has many small files. A job that nobody waits for leaves this to a later run of any output.

    The run has ended: an error of the storage, or Ctrl-C, ends the compaction with a warning and does not change the
    exit code.
    """
    if spec.store.compact == "off":
        return
    note_work(spec, Phase.COMPACTING)
    try:
        compact_store(spec.store.uri, AUTOMATIC.within(spec.store.grace_h))
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the rows are published and paid for
        _log.warning("the store is not compacted; the next run tries again: %s", str(error) or "interrupted")


@contextmanager
def _run_files(job: Job) -> Iterator[RunSpec]:
    """Decide where the files of a run are, for the length of the block: on the local disk if only this process needs them.

    They stay in the store if that is local anyway, or if the local disk may be too small.
    """
    spec = job.spec
    is_alone = not spec.many_processes and not is_local(spec.store.uri)
    if is_alone and job.manifest_bytes is not None and has_room(job.manifest_bytes):
        with scratch_folder(spec.run.name) as folder:
            yield replace(spec, scratch_uri=folder)
    else:
        yield spec


def _folder(spec: RunSpec) -> str:
    return run_folder(spec.run_files_uri, spec.run.name)


@contextmanager
def _naming_errors(spec: RunSpec) -> Iterator[None]:
    """If the pipeline fails because a process is not set up, raise the error that this process has left in the store."""
    try:
        yield
    except ArkbeamError as error:
        noted = read_error(spec)
        raise (noted or error) from error


@contextmanager
def _forwarding_stops_to_workers(spec: RunSpec) -> Iterator[None]:
    """For the length of the block, pass each stop of this process's engines on to the worker processes."""
    if not spec.many_processes:
        yield
        return
    with forwarding_stops(lambda stop: write_stop(spec, stop)):
        yield


def _find_model(spec: RunSpec, *, accept_change: bool) -> str | None:
    """Return the resolved model whose vectors count as owned.

    With `accept_change`, the version that the service last named becomes the resolved model.
    """
    record = read_model(spec.store.uri, spec.run.service, spec.model.name)
    if accept_change and record.seen is not None:
        _log.warning(
            "vectors of %s no longer count as owned: the name %s now resolves to %s",
            record.resolved,
            record.name,
            record.seen,
        )
        record = ModelRecord(record.name, record.seen)
        write_model(spec.store.uri, spec.run.service, record)
    return record.resolved
