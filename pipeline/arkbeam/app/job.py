"""The job: one pipeline, Read → Plan → Embed → Publish, and what must hold around it."""

import logging
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from arkbeam.app.config import Config, describe_config
from arkbeam.ark.client import endpoint_url, is_stand_in
from arkbeam.ark.models import MODEL_FAMILY, check_options, dimensions_published, dimensions_stored, notes
from arkbeam.ark.wire import wire_options
from arkbeam.base.errors import ArkbeamError, ConfigError, ManifestError, OutputInUse, StoreError
from arkbeam.base.files import absolute, read_bytes, remove_folder, remove_leftovers, write_bytes
from arkbeam.base.records import ServiceKind
from arkbeam.base.redaction import redact
from arkbeam.beam.embed import EmbedLanes
from arkbeam.beam.plan import DealLanes, PlanRows, SettleRows, SumTotals
from arkbeam.beam.publish import Publish, Settled
from arkbeam.beam.read import ReadShards, ReadStore
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import close_engine, stop_engines, telling_others
from arkbeam.manifest.context import ReadContext
from arkbeam.manifest.shards import Manifest, Shard, cut_shards, list_manifests, manifest_folders
from arkbeam.media import is_below
from arkbeam.quota.marks import quota_folder, remove_marks_of_output
from arkbeam.stages.embed import check_secrets
from arkbeam.stages.embed.stops import write_stop
from arkbeam.stages.plan import PlanTotals, count_buckets
from arkbeam.stages.read import ShardSummary, StoreFiles, list_store_files
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import claim_output
from arkbeam.store.journal import book_lost_attempts
from arkbeam.store.layout import (
    events_folder,
    multi_folder,
    new_run_name,
    run_folder,
    runs_of_output,
    segment_ids,
    segments_folder,
)
from arkbeam.store.media_cache import compact_media
from arkbeam.store.model_record import ModelRecord, read_model, write_model
from arkbeam.store.run_files import note_uri

_log = logging.getLogger(__name__)
_PROBE_S = 2.0
_PLAN = "-plan"
_ERRORS: dict[str, type[ArkbeamError]] = {
    kind.__name__: kind for kind in (ArkbeamError, ConfigError, ManifestError, OutputInUse, StoreError)
}
_QUOTED_ERROR = re.compile(rf"^arkbeam\.base\.errors\.({'|'.join(_ERRORS)}): (.+)$", re.MULTILINE)
_WHILE_RUNNING = re.compile(r" \[while running '.*'\]$")


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to go: what it does and what it reads. `notes` are things its user should know."""

    spec: RunSpec
    shards: tuple[Shard, ...]
    notes: tuple[str, ...]


def prepare_job(
    config: Config, *, base_url: str | None = None, retry_failed: bool = False, publish_partial: bool = False
) -> Job:
    """Check all that can be checked before anything is sent, and fix what every stage needs to know.

    `base_url` is that of the emulator which was started for this run, if one was.

    Raises: ConfigError and ManifestError, naming the key or the file.
    """
    model = config.model
    capabilities = check_options(model)
    wire = wire_options(model, capabilities)
    api = replace(config.api, base_url=base_url or config.api.base_url)
    service = _find_service(config, api.base_url)
    manifests = list_manifests(config.manifest)
    shards = cut_shards(manifests, config.manifest.shard_bytes_max)
    rpm, tpm = config.quota.rpm or capabilities.rpm, config.quota.tpm or capabilities.tpm
    media = config.media
    if not media.allowed_roots:
        media = replace(media, allowed_roots=manifest_folders(manifests))
    _check_failures(manifests, config.output.uri)
    output_uri, started_s = absolute(config.output.uri), time.time()
    spec = RunSpec(
        run=new_run_name(output_uri, started_s, secrets.token_hex(4)),
        started_s=started_s,
        service=service,
        manifest=config.manifest,
        reading=ReadContext(
            service=service,
            model=model.name,
            dimensions=wire.dimensions,
            instructions=model.instructions,
            sparse=model.sparse,
            capabilities=capabilities,
            media=media,
            encoding_format=wire.encoding_format,
            multi_embedding=wire.multi_embedding,
            video=model.video,
            dimensions_published=dimensions_published(model, capabilities),
        ),
        wire=wire,
        dimensions=dimensions_stored(model, capabilities),
        dimensions_published=dimensions_published(model, capabilities),
        multi=model.asks_multi,
        capabilities=capabilities,
        api=api,
        quota=config.quota,
        budget=config.budget,
        quota_account=f"{service.value}-{config.quota.account}-{MODEL_FAMILY}",
        rpm=rpm,
        tpm=tpm,
        limits=config.limits,
        store=replace(config.store, uri=absolute(config.store.uri)),
        output_uri=output_uri,
        buckets=count_buckets(sum(manifest.bytes or 0 for manifest in manifests)),
        needs_key=service is ServiceKind.ARK,
        retry_failed=retry_failed,
        publish_partial=publish_partial,
        config=describe_config(config),
    )
    return Job(spec, tuple(shards), (*notes(model, capabilities), *_quota_notes(spec)))


def _check_failures(manifests: Sequence[Manifest], output_uri: str) -> None:
    """Refuse to retry failures into the output that holds them: its other rows would be gone, and so would they."""
    for uri in sorted({uri for manifest in manifests for uri in manifest.failures}):
        if is_below(uri, [absolute(output_uri)]):
            raise ConfigError(
                f"manifest.uris names the failures of this output, {redact(uri)}: name another output.uri, or run the"
                " manifest itself again, which tries what failed and buys nothing twice"
            )


def _find_service(config: Config, base_url: str) -> ServiceKind:
    """Tell whether vectors come from a stand-in; only a loopback address is ever asked."""
    if config.starts_emulator:
        return ServiceKind.STAND_IN
    endpoint_url(base_url)
    return ServiceKind.STAND_IN if is_stand_in(base_url, _PROBE_S) else ServiceKind.ARK


def plan_job(job: Job, beam_arguments: Sequence[str] = ()) -> PlanTotals:
    """Read and plan, and send nothing.

    Raises: ArkbeamError of the stage that failed.
    """
    model = read_model(job.spec.store.uri, job.spec.service, job.spec.wire.model)
    spec = replace(job.spec, run=f"{job.spec.run}{_PLAN}", model_owned=model.resolved)
    job = replace(job, spec=spec)
    try:
        with _pipeline(beam_arguments) as pipeline:
            planned, summaries = _plan(pipeline, job)
            _ = (planned.totals, summaries) | "Sum" >> SumTotals() | "Note" >> beam.Map(_note_plan, spec)
        return PlanTotals(**orjson.loads(read_bytes(note_uri(spec.store.uri, spec.run, "plan"))))
    finally:
        remove_folder(run_folder(spec.store.uri, spec.run))


def run_job(job: Job, beam_arguments: Sequence[str] = (), *, accept_model_change: bool = False) -> dict[str, Any]:
    """Run the whole pipeline; return what `run.json` says, also of a run that stopped and published nothing.

    Raises: OutputInUse before anything is sent; ConfigError without an API key; StoreError; KeyboardInterrupt.
    """
    spec = replace(job.spec, processes=_count_processes(beam_arguments, job.spec.quota.lanes))
    job = replace(job, spec=spec)
    check_secrets(spec)
    with claim_output(spec.output_uri, spec.run, _stop_when_lost):
        _clear_dead_runs(spec)
        compact_media(spec.store.uri)
        spec = replace(spec, model_owned=_find_model(spec, accept_change=accept_model_change))
        spec = replace(spec, shares_budget=_has_many_processes(beam_arguments))
        job = replace(job, spec=spec)
        try:
            with _telling_workers(spec), _pipeline(beam_arguments) as pipeline:
                build_pipeline(pipeline, job)
            note: dict[str, Any] = orjson.loads(read_bytes(note_uri(spec.store.uri, spec.run, "result")))
        finally:
            close_engine(spec.run)
            _remove_marks(spec)
            remove_folder(run_folder(spec.store.uri, spec.run))
        _book_lost(spec)
        return note


def build_pipeline(pipeline: beam.Pipeline, job: Job) -> None:
    """Lay out the flow: Read → Plan → Embed → Plan → Publish."""
    spec = job.spec
    planned, summaries = _plan(pipeline, job)
    bought = planned.buyers | "Deal" >> DealLanes(spec) | "Embed" >> EmbedLanes(spec)
    settled = {
        "waiting": planned.waiting,
        "bought": bought.bought,
        "refused": bought.refused,
    } | "Settle" >> SettleRows()
    _ = Settled(
        refs=(planned.owned, settled.refs) | "Refs" >> beam.Flatten(),
        failed=(planned.refused, settled.failed) | "Failed" >> beam.Flatten(),
        summaries=summaries,
        totals=(planned.totals, summaries) | "Totals" >> SumTotals(),
        reports=bought.reports,
    ) | "Publish" >> Publish(spec)


def _plan(pipeline: beam.Pipeline, job: Job) -> tuple[Any, beam.PCollection[ShardSummary]]:
    spec = job.spec
    read = pipeline | "Shards" >> beam.Create(job.shards) | "Read" >> ReadShards(spec)
    files: list[StoreFiles] = list_store_files(spec.store.uri, spec.run)
    store = pipeline | "StoreFiles" >> beam.Create(files) | "ReadStore" >> ReadStore(spec)
    planned = {"keys": read.keys, "index": store.index, "refused": store.refused} | "Plan" >> PlanRows(spec)
    return planned, read.summaries


@contextmanager
def _pipeline(beam_arguments: Sequence[str]) -> Iterator[beam.Pipeline]:
    """Make a pipeline on the in-process runner, unless the arguments name another; run it at the end of the block.

    The runner is chosen by class: by its plain name, the DirectRunner of today may try to download another.
    """
    options = PipelineOptions(list(beam_arguments))
    named = any(argument.startswith("--runner") for argument in beam_arguments)
    _check_beam_arguments(beam_arguments, options, named)
    pipeline = beam.Pipeline(options=options) if named else beam.Pipeline(_make_runner(options), options=options)
    yield pipeline
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:
        raise _unwrap(error) from error


def _make_runner(options: PipelineOptions) -> FnApiRunner:
    """Make the in-process runner; for workers in processes of their own, with such as obey this process alone.

    Ctrl-C on a terminal, and a service manager's SIGTERM, reach every process of a run, and would end workers with what
    they hold; Beam's own command for them does not say otherwise, so it is given here in place of its mode.
    """
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return FnApiRunner()
    direct.direct_running_mode = "in_memory"
    command = f"trap '' INT TERM; exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


@contextmanager
def _telling_workers(spec: RunSpec) -> Iterator[None]:
    """Let whoever stops this process's engines stop those of its workers as well."""
    if spec.processes == 1:
        yield
        return
    with telling_others(lambda stop: write_stop(spec, stop)):
        yield


def _check_beam_arguments(arguments: Sequence[str], options: PipelineOptions, named: bool) -> None:
    """Refuse what Beam would drop without a word. A runner that is named may know more options than Beam does."""
    if arguments and not arguments[0].startswith("-"):
        raise ConfigError(f"{arguments[0]!r} is one argument too many; options of Apache Beam begin with --")
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options())
    if unknown and not named:
        raise ConfigError(f"Apache Beam has no option --{min(unknown)}")


def _unwrap(error: BaseException) -> ArkbeamError | KeyboardInterrupt:
    """Find our own exception, or Ctrl-C, in what Beam makes of it, and take Beam's words off its message.

    From a worker in another process only the text of a traceback comes: the exception's name and message end it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ArkbeamError):
            return type(cause)(_WHILE_RUNNING.sub("", str(cause)))
        if isinstance(cause, KeyboardInterrupt):
            return cause
        cause = cause.__cause__ or cause.__context__
    quoted = _QUOTED_ERROR.findall(str(error))
    if not quoted:
        return ArkbeamError(f"the pipeline failed: {error}; what was paid is in the store, the same command goes on")
    name, message = quoted[-1]
    return _ERRORS[name](_WHILE_RUNNING.sub("", message))


def _has_many_processes(beam_arguments: Sequence[str]) -> bool:
    """Tell whether lanes may run in several processes: in process they never do."""
    mode = PipelineOptions(list(beam_arguments)).view_as(DirectOptions).direct_running_mode
    return mode == "multi_processing" or any(argument.startswith("--runner") for argument in beam_arguments)


def _count_processes(beam_arguments: Sequence[str], lanes: int) -> int:
    """Return how many processes may run lanes at once: one in process, elsewhere as many as there are lanes."""
    return lanes if _has_many_processes(beam_arguments) else 1


def _book_lost(spec: RunSpec) -> int:
    """Book what processes of this output's runs sent and could not keep. We hold the output, so all of them have ended."""
    return book_lost_attempts(spec.store.uri, spec.output_uri, segment_ids())


def _find_model(spec: RunSpec, *, accept_change: bool) -> str | None:
    """Return the model whose vectors are owned; with `accept_change`, from now on the one that was seen last."""
    record = read_model(spec.store.uri, spec.service, spec.wire.model)
    if accept_change and record.seen is not None:
        _log.warning(
            "vectors of %s are missing from now on: %s answers for %s", record.resolved, record.seen, record.name
        )
        record = ModelRecord(record.name, record.seen)
        write_model(spec.store.uri, spec.service, record)
    return record.resolved


def _clear_dead_runs(spec: RunSpec) -> None:
    """Remove what earlier runs of this output left behind, once it is booked."""
    lost = _book_lost(spec)
    if lost:
        _log.warning("an earlier run was killed: %d requests whose answers it could not keep are booked as paid", lost)
    _remove_marks(spec)
    for run in runs_of_output(run_folder(spec.store.uri), spec.output_uri):
        if not run.endswith(_PLAN):
            for folder in (segments_folder, multi_folder, events_folder):
                remove_leftovers(folder(spec.store.uri, run))
            remove_folder(run_folder(spec.store.uri, run))


def _remove_marks(spec: RunSpec) -> None:
    """Remove the marks of this output's processes: of killed ones, and of workers that ended right after their last lane."""
    try:
        remove_marks_of_output(quota_folder(spec.store.uri, spec.quota_account), spec.output_uri)
    except StoreError as error:
        _log.warning("marks of ended processes are left behind, which others count for some seconds: %s", error)


def _stop_when_lost(reason: str) -> None:
    stop_engines(Stop(StopKind.INTERRUPTED, "output_lost", reason))


def _note_plan(totals: PlanTotals, spec: RunSpec) -> None:
    write_bytes(note_uri(spec.store.uri, spec.run, "plan"), orjson.dumps(totals))


def _quota_notes(spec: RunSpec) -> Iterator[str]:
    listed = spec.capabilities
    if spec.rpm > listed.rpm or spec.tpm > listed.tpm:
        limits = f"{listed.rpm:,} requests and {listed.tpm:,} tokens a minute"
        yield f"the quota is above what the vendor lists for {spec.wire.model} ({limits}); taken as configured"
