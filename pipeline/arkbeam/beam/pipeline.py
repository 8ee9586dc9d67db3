"""The whole run as one Beam pipeline, and the runner that executes it."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from arkbeam.base.errors import ArkbeamError, ConfigError, ManifestError, OutputInUse, StoreError
from arkbeam.base.files import write_bytes
from arkbeam.base.redaction import redact
from arkbeam.beam.embed import EmbedBlocks
from arkbeam.beam.plan import DealBlocks, PlanBuckets, SettleBuckets, SumTotals
from arkbeam.beam.publish import Publish, Settled
from arkbeam.beam.read import Read
from arkbeam.beam.submission import Ending, find_runner
from arkbeam.stages.plan import PlanTotals
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import note_uri

_ERRORS: dict[str, type[ArkbeamError]] = {
    kind.__name__: kind for kind in (ArkbeamError, ConfigError, ManifestError, OutputInUse, StoreError)
}
_QUOTED_ERROR = re.compile(rf"^arkbeam\.base\.errors\.({'|'.join(_ERRORS)}): (.+)$", re.MULTILINE)
_WHILE_RUNNING = re.compile(r" \[while running '.*'\]$")
# Workers write to this process's stderr, where the progress is: Beam's own messages are left out, except errors.
_WORKER_LOGS = {"default_sdk_harness_log_level": "ERROR", "sdk_harness_log_level_overrides": {"arkbeam": "WARNING"}}
_WORKER_OPTIONS = orjson.dumps({"options": _WORKER_LOGS}).decode()


def build_pipeline(pipeline: beam.Pipeline, spec: RunSpec) -> None:
    """Add all stages of a run: Read → Plan → Embed → Plan → Publish. The shards are listed in the run's folder."""
    once = pipeline | "Once" >> beam.Impulse()
    planned = once | "Read" >> Read(spec) | "Plan" >> PlanBuckets(spec)
    dealt = (planned.buyers, planned.counts) | "Deal" >> DealBlocks(spec)
    embedded = dealt.blocks | "Embed" >> EmbedBlocks(spec)
    settled = (planned.waiting, embedded) | "Settle" >> SettleBuckets()
    _ = Settled(
        once=once,
        results=(planned.results, settled.results) | "Results" >> beam.Flatten(),
        planned=dealt.planned,
        counts=settled.counts,
    ) | "Publish" >> Publish(spec)


def build_plan(pipeline: beam.Pipeline, spec: RunSpec) -> None:
    """Add Read and Plan alone. The totals are written to the note `plan` in the run's folder."""
    planned = pipeline | "Once" >> beam.Impulse() | "Read" >> Read(spec) | "Plan" >> PlanBuckets(spec)
    _ = planned.counts | "Sum" >> SumTotals(spec) | "Note" >> beam.Map(_note_plan, spec)


def _note_plan(totals: PlanTotals, spec: RunSpec) -> None:
    write_bytes(note_uri(spec.run_files_uri, spec.run.name, "plan"), orjson.dumps(totals))


@contextmanager
def open_pipeline(beam_arguments: Sequence[str]) -> Iterator[beam.Pipeline]:
    """Make a pipeline, and run it at the end of the block.

    It runs on the in-process runner unless the arguments name another one. The in-process runner is passed as an
    object: under the name DirectRunner, recent Beam versions may try to download a different runner.

    Raise ConfigError for arguments that Beam does not know, the ArkbeamError of the stage that failed,
    KeyboardInterrupt.
    """
    pipeline = _make_pipeline(beam_arguments)
    yield pipeline
    with _our_errors():
        pipeline.run().wait_until_finish()


def submit_pipeline(spec: RunSpec, beam_arguments: Sequence[str], ending: Ending) -> str | None:
    """Build all stages of a run, and hand the job over; return the engine's id of the job, if it has one.

    It waits only for a job that is written, not for one that runs. Raise as `open_pipeline` does.
    """
    pipeline = _make_pipeline(beam_arguments, spec.run.name)
    build_pipeline(pipeline, spec)
    with _our_errors():
        result: Any = pipeline.run()
        if ending is not Ending.SUBMIT:
            result.wait_until_finish()
            return None
    if hasattr(result, "job_id"):
        return str(result.job_id())
    return getattr(result, "_job_id", None)  # Beam's portable result has no public name for it


def _make_pipeline(beam_arguments: Sequence[str], run: str = "") -> beam.Pipeline:
    options = PipelineOptions(list(beam_arguments))
    named = _names_runner(beam_arguments)
    _check_arguments(beam_arguments, options, named)
    if not named:
        return beam.Pipeline(_make_runner(options), options=options)
    job = options.view_as(GoogleCloudOptions)
    if run and job.job_name is None:
        job.job_name = f"arkbeam-{run.lower()}"  # what people see on the engine; Dataflow takes small letters only
    try:
        return beam.Pipeline(find_runner(options), options=options)
    except ValueError as error:  # options that the runner needs are missing
        raise ConfigError(f"Apache Beam: {redact(str(error))}") from None


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _unwrap(error) from error


def has_many_processes(beam_arguments: Sequence[str]) -> bool:
    """Return True if several processes may send: in mode `multi_processing`, and on any other runner."""
    mode = PipelineOptions(list(beam_arguments)).view_as(DirectOptions).direct_running_mode
    return mode == "multi_processing" or _names_runner(beam_arguments)


def _names_runner(beam_arguments: Sequence[str]) -> bool:
    return any(argument.startswith("--runner") for argument in beam_arguments)


def _make_runner(options: PipelineOptions) -> FnApiRunner:
    """Make the in-process runner; in mode `multi_processing`, with worker processes that ignore signals.

    Ctrl-C on a terminal and a service manager's SIGTERM reach every process of a run. A worker that they kill loses the
    replies that it holds. So workers ignore both signals, and this process stops them in order. Beam's own command for
    workers does not ignore signals, so this function sets another command and resets the mode.
    """
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return FnApiRunner()
    direct.direct_running_mode = "in_memory"
    command = (
        f"trap '' INT TERM; PIPELINE_OPTIONS={shlex.quote(_WORKER_OPTIONS)}"
        f" exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    )
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


def _check_arguments(arguments: Sequence[str], options: PipelineOptions, named: bool) -> None:
    """Raise ConfigError for arguments that Beam would ignore silently. A named runner may have options of its own."""
    if arguments and not arguments[0].startswith("-"):
        raise ConfigError(f"unexpected argument {arguments[0]!r}: options of Apache Beam begin with --")
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(options.get_all_options())
    if unknown and not named:
        raise ConfigError(f"Apache Beam has no option --{min(unknown)}")


def _unwrap(error: BaseException) -> ArkbeamError | KeyboardInterrupt:
    """Find our own exception, or KeyboardInterrupt, inside a runner's exception; remove what Beam adds to its message.

    A worker process passes on only the text of a traceback: its last line has the exception's name and message.
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
        return ArkbeamError(
            f"the pipeline failed: {error}; paid vectors are in the store, run the same command again to continue"
        )
    name, message = quoted[-1]
    return _ERRORS[name](_WHILE_RUNNING.sub("", message))
