"""Prepare and run a job: check the config, claim the output, clean up after earlier runs, run `beam.pipeline`."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import orjson

from arkbeam.app.config import Config, describe_config, list_similar_names
from arkbeam.app.holding import claiming, clear_dead_runs, forget_run, recover_killed, showing_life
from arkbeam.app.output_uri import resolve
from arkbeam.app.run_note import write_run_note
from arkbeam.app.take_over import TakeOver
from arkbeam.ark.client import endpoint_url, is_stand_in
from arkbeam.ark.models import list_notes
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ArkbeamError, ConfigError, StoreError
from arkbeam.base.files import exists, read_bytes, remove_folder
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.base.uris import absolute, is_local, join
from arkbeam.beam.pipeline import build_pipeline, build_plan, has_many_processes, open_pipeline, submit_pipeline
from arkbeam.beam.submission import Ending
from arkbeam.engine.registry import forwarding_stops
from arkbeam.manifest.finding import WrittenFolder
from arkbeam.manifest.shards import Manifest, Shard, cut_shards, list_manifests, manifest_folders
from arkbeam.media import is_below
from arkbeam.media.options import MediaOptions
from arkbeam.outputs.publishing import REPORT
from arkbeam.stages.embed.process import check_secrets, write_stop
from arkbeam.stages.inputs import write_inputs
from arkbeam.stages.meter import forget_work
from arkbeam.stages.plan import Note, PlanTotals, count_buckets
from arkbeam.stages.presence import read_error
from arkbeam.stages.publish.commit import PART_FOLDERS, SUCCESS
from arkbeam.stages.publish.earlier import RUN_NOTE
from arkbeam.stages.read import forget_index
from arkbeam.stages.spec import RunIdentity, RunSpec
from arkbeam.store.claim import Claim, show_alive
from arkbeam.store.compaction import AUTOMATIC, compact_store
from arkbeam.store.layout import (
    EXAMPLES,
    PLAN_SUFFIX,
    new_run_name,
    run_folder,
    uri_key,
)
from arkbeam.store.living import Watches
from arkbeam.store.media_cache import compact_media
from arkbeam.store.model_record import ModelRecord, read_model, write_model
from arkbeam.store.outputs import find_output_key
from arkbeam.store.run_files import note_uri
from arkbeam.store.scratch import has_room, scratch_folder

_log = logging.getLogger(__name__)
_PROBE_S = 2.0  # time limit for asking a local server if it is an emulator
_PART = "part-00000-0123456789abcdef.parquet"  # a file in each folder of the output


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to start: its spec, the shards that it reads, and notes to show to the user."""

    spec: RunSpec
    shards: tuple[Shard, ...]
    notes: tuple[str, ...]
    manifest_bytes: int | None = None
    """Size of all manifests; None if that of some is unknown."""


def prepare_job(
    config: Config,
    *,
    base_url: str | None = None,
    retry_failed: bool = False,
    publish_partial: bool = False,
    verify: bool = False,
) -> Job:
    """Check everything that can be checked before anything is sent, and make the spec that all stages use.

    Args:
        config: the parsed config.
        base_url: URL of the emulator that was started for this run; None for `api.base_url`.
        retry_failed: send requests again that the service rejected permanently in an earlier run.
        publish_partial: publish even if the run stops early.
        verify: read the parts of the output that are kept, and write damaged ones again.

    Raise ConfigError or ManifestError that names the key or the file.
    """
    started_s, random_hex = time.time(), secrets.token_hex(4)
    config = _resolve_output(config, started_s, random_hex)
    model = ModelSpec.of(config.model)
    api = replace(config.api, base_url=base_url or config.api.base_url)
    service = _find_service(config, api.base_url)
    manifests = list_manifests(config.manifest, _written_folders(config))
    shards = cut_shards(manifests, config.manifest.shard_bytes_max)
    _check_failures(manifests, config.output.uri)
    output_uri = absolute(config.output.uri)
    key = find_output_key(output_uri, absolute(config.store.uri)) or secrets.token_hex(4)
    run = RunIdentity(new_run_name(key, started_s, random_hex), started_s, service, output_uri)
    described = describe_config(config)
    reads_failures = all(manifest.failures for manifest in manifests)  # an empty failure table names no manifest
    spec = RunSpec(
        run=run,
        model=model,
        manifest=config.manifest,
        media=_fill_roots(config.media, manifests),
        api=api,
        quota=config.quota,
        budget=config.budget,
        limits=config.limits,
        store=replace(config.store, uri=absolute(config.store.uri)),
        config=described,
        buckets=count_buckets(sum(manifest.bytes or 0 for manifest in manifests)),
        layout=config.output.layout,
        report=config.output.report,
        retry_failed=retry_failed,
        publish_partial=publish_partial,
        verify=verify,
        reads_failures=reads_failures,
        manifest_bytes=sum(shard.bytes for shard in shards),
        rows_before=None if reads_failures else _find_rows_before(run.output_uri, described["manifest"]["uris"]),
    )
    notes = (
        *list_notes(config.model, model.capabilities),
        *_quota_notes(spec),
        *_name_notes(manifests),
        *list_similar_names(config),
    )
    sizes = [manifest.bytes for manifest in manifests]
    return Job(spec, tuple(shards), notes, None if None in sizes else sum(filter(None, sizes)))


def _resolve_output(config: Config, started_s: float, random_hex: str) -> Config:
    """Return the config with the URI of this run's output.

    Raise ConfigError if the store is in an output that later runs do not have.
    """
    uri = resolve(config.output.uri, started_s, random_hex)
    if uri != config.output.uri and is_below(absolute(config.store.uri), [absolute(uri)]):
        raise ConfigError(
            f"store.uri is below this run's output, {redact_uri(uri)}: set one outside, which later runs use as well"
        )
    return replace(config, output=replace(config.output, uri=uri))


def _written_folders(config: Config) -> list[WrittenFolder]:
    """Return what the run writes to the output and the store."""
    output_uri, store_uri = absolute(config.output.uri), absolute(config.store.uri)
    return [
        *(WrittenFolder("output.uri", join(output_uri, folder), _PART) for folder in PART_FOLDERS),
        *(WrittenFolder("output.uri", join(output_uri, name)) for name in (RUN_NOTE, REPORT)),
        *(WrittenFolder("store.uri", join(store_uri, folder), example) for folder, example in EXAMPLES.items()),
    ]


def _fill_roots(media: MediaOptions, manifests: Sequence[Manifest]) -> MediaOptions:
    """Allow media below the folders of the manifests, unless the config has `media.allowed_roots`."""
    return media if media.allowed_roots else replace(media, allowed_roots=manifest_folders(manifests))


def _check_failures(manifests: Sequence[Manifest], output_uri: str) -> None:
    """Raise ConfigError if a manifest is the `failures/` of this output: publishing would replace it, and drop all other rows."""
    for uri in sorted({uri for manifest in manifests for uri in manifest.failures}):
        if is_below(uri, [absolute(output_uri)]):
            raise ConfigError(
                f"manifest.uris names the failures of this output, {redact(uri)}: set another output.uri, or run the"
                " original manifest again, which retries the failed rows and pays for no row twice"
            )


def _find_rows_before(output_uri: str, manifest_uris: Sequence[str]) -> int | None:
    """Return how many rows the last run of a complete output read; None if it read manifests of other URIs."""
    try:
        if not exists(join(output_uri, SUCCESS)):
            return None
        before = orjson.loads(read_bytes(join(output_uri, RUN_NOTE)))
        return int(before["rows"]) if set(before["config"]["manifest"]["uris"]) == set(manifest_uris) else None
    except (StoreError, ValueError, TypeError, KeyError) as error:
        _log.warning(
            "the number of rows is not compared with that of the last run: its run.json can't be read: %s", error
        )
        return None


def _find_service(config: Config, base_url: str) -> ServiceKind:
    """Return which kind of service makes the vectors. Only a server on a loopback address is asked if it is a stand-in."""
    if config.starts_emulator:
        return ServiceKind.STAND_IN
    endpoint_url(base_url)
    return ServiceKind.STAND_IN if is_stand_in(base_url, _PROBE_S) else ServiceKind.ARK


def name_plan(job: Job) -> Job:
    """Return the job under the name of a plan: its folder in the store differs from that of a run."""
    run = job.spec.run
    name = new_run_name(uri_key(run.output_uri), run.started_s, run.name.rpartition("-")[2])
    return replace(job, spec=replace(job.spec, run=replace(run, name=f"{name}{PLAN_SUFFIX}")))


def set_processes(job: Job, beam_arguments: Sequence[str]) -> Job:
    """Return the job with a note if Beam's arguments let it run in several processes. Raise ConfigError."""
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


def _name_notes(manifests: Sequence[Manifest]) -> Iterator[str]:
    linked = [manifest for manifest in manifests if manifest.other_names]
    if linked:
        names, first = sum(len(manifest.other_names) for manifest in linked), linked[0]
        yield (
            f"each manifest is read once: names that lead to a file with another name are left out ({names:,}), such as"
            f" {redact(first.other_names[0])}, which is {redact(first.uri)}"
        )


def _quota_notes(spec: RunSpec) -> Iterator[str]:
    listed, (rpm, tpm) = spec.model.capabilities, spec.rate_limits
    if rpm > listed.rpm or tpm > listed.tpm:
        limits = f"{listed.rpm:,} requests and {listed.tpm:,} tokens a minute"
        yield f"the configured quota is above the vendor's limits for {spec.model.name} ({limits}); it is used as configured"
