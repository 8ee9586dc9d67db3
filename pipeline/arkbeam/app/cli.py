"""The command line: `arkbeam run`, `plan`, `emulator`, `inspect`."""

import logging
import os
import signal
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from arkbeam import __version__
from arkbeam.app.config import Config, load_config
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.engine.options import LimitsOptions
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import stop_engines

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn manifests of text, images and video into vectors through Volcengine Ark, into Parquet.",
)
_LOG_CHARS_MAX = 4_000
out, err = Console(), Console(stderr=True)

EXIT_CODES = """Exit codes: 0 all rows published, or no more failed than limits.failures_allowed; 1 a fault of ours or of
storage; 2 bad config or manifest; 3 more failure rows than allowed; 4 the service said stop; 5 budget reached; 6 the output
is in use by another run; 130 interrupted (what was paid for is kept). Where several hold: 130, 4, 5, 3."""

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML config; see the README for its keys.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Lay a value over the config, as in --set quota.rpm=600. Repeatable."
    ),
]
BeamOptions = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- BEAM OPTIONS]", help="Options for Apache Beam after --, as in -- --runner=FlinkRunner."
    ),
]


class ExitCode(IntEnum):
    """What the shell learns; see EXIT_CODES."""

    OK = 0
    FAULT = 1
    USAGE = 2
    FAILURES = 3
    STOPPED = 4
    BUDGET = 5
    IN_USE = 6
    INTERRUPTED = 130


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    if version:
        print(f"arkbeam {__version__}")
        raise typer.Exit


@app.command(epilog=EXIT_CODES)
def run(
    config: ConfigPath,
    beam_options: BeamOptions = None,
    settings: Settings = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Send requests again that the service refused for good in an earlier run."),
    ] = False,
    publish_partial: Annotated[
        bool,
        typer.Option("--publish-partial", help="Publish also when the run stops early; the rest become failure rows."),
    ] = False,
    accept_model_change: Annotated[
        bool,
        typer.Option(
            "--accept-model-change",
            help="Buy all anew if the model's name was seen to stand for another version since.",
        ),
    ] = False,
) -> None:
    """Embed what the store does not hold yet, and publish the output."""
    from arkbeam.app.job import prepare_job, run_job  # Beam takes half a second to import: not for --help
    from arkbeam.app.progress import show_progress
    from arkbeam.app.report import summary_table

    loaded = load_config(config, settings or [])
    with _signals(), _service(loaded) as base_url:
        job = prepare_job(loaded, base_url=base_url, retry_failed=retry_failed, publish_partial=publish_partial)
        _print_notes(job.notes)
        with show_progress(job.spec, err):
            note = run_job(job, beam_options or [], accept_model_change=accept_model_change)
    _print_warnings(note)
    out.print(summary_table(note))
    code = exit_code(note, loaded.limits)
    _print_ending(note, code, loaded.output.uri)
    raise typer.Exit(code)


@app.command()
def plan(
    config: ConfigPath,
    beam_options: BeamOptions = None,
    settings: Settings = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Plan as `run --retry-failed` would.")] = False,
) -> None:
    """Say what a run would buy, cost and last; send nothing."""
    from arkbeam.app.job import plan_job, prepare_job
    from arkbeam.app.report import plan_table
    from arkbeam.stages.plan import estimate

    loaded = load_config(config, settings or [])
    job = prepare_job(loaded, retry_failed=retry_failed)
    _print_notes(job.notes)
    totals, spec = plan_job(job, beam_options or []), job.spec
    limits, capabilities = spec.rate_limits, spec.model.capabilities
    expected = estimate(totals, capabilities, limits, headroom=spec.quota.headroom, budget=spec.budget)
    out.print(plan_table(totals, expected))


@app.command()
def emulator(
    port: Annotated[int, typer.Option(help="Loopback port; 0 takes a free one.")] = 8080,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="An option, as in --set rpm=600 or --set faults.error_500=0.05."
        ),
    ] = None,
) -> None:
    """Serve a stand-in for the API on this machine, until Ctrl-C. Options: the keys of the config's emulator section."""
    from arkbeam.app.config import parse_emulator
    from arkbeam.emulator.serve import serve

    serve(parse_emulator(settings or []), port)


@app.command()
def inspect(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The output's folder.")],
    rows: Annotated[int, typer.Option(help="How many rows to show.")] = 2,
) -> None:
    """Show what an output holds: its run, schema, a few rows, failures by code."""
    from arkbeam.app.report import inspect_output

    for table in inspect_output(output, rows):
        out.print(table)


def exit_code(note: dict[str, Any], limits: LimitsOptions) -> ExitCode:
    """Return what a run that came to its end exits with."""
    stopped = note["stopped"]
    if stopped is not None:
        by_kind = {
            StopKind.INTERRUPTED: ExitCode.INTERRUPTED,
            StopKind.SERVICE: ExitCode.STOPPED,
            StopKind.BUDGET: ExitCode.BUDGET,
        }
        return by_kind.get(StopKind(stopped["kind"]), ExitCode.FAULT)
    return ExitCode.FAILURES if note["failed"] > limits.count_failures_allowed(note["rows"]) else ExitCode.OK


def main() -> NoReturn:
    """Run the command line; our errors become one line and an exit code. Never returns."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("arkbeam").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_no_error_of_ours)
        handler.addFilter(_redact_record)
    try:
        app(standalone_mode=True)
        _leave(ExitCode.OK)
    except SystemExit as ending:
        _leave(ending.code if isinstance(ending.code, int) else ExitCode.OK)
    except ArkbeamError as error:
        err.print(f"[bold red]error[/] {type(error).__name__}:", end=" ")
        _say(str(error))
        _leave(error.exit_code)


@contextmanager
def _service(config: Config) -> Iterator[str]:
    """Give the base URL of the service, with an emulator behind it for the length of the block if the config asks for one."""
    with ExitStack() as stack:
        if not config.starts_emulator:
            yield config.api.base_url
            return
        try:
            from arkbeam.emulator.serve import start_emulator
        except ImportError as error:
            raise ArkbeamError(
                f"api.base_url is emulator, which needs the extra: pip install 'arkbeam[emulator]' ({error})"
            ) from None
        yield stack.enter_context(start_emulator(config.emulator))


@contextmanager
def _signals() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM stop the run in order, the second at once."""
    seen = 0

    def handle(number: int, _: types.FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(ExitCode.INTERRUPTED)
        name = signal.Signals(number).name
        if stop_engines(Stop(StopKind.INTERRUPTED, name, f"{name} received")):
            print("stopping: waiting for open requests; once more to leave at once", file=sys.stderr, flush=True)
            return
        print(f"interrupted ({name}); the same command goes on from here", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        _say(f"note: {note}")


def _print_warnings(note: dict[str, Any]) -> None:
    if note["over_context"]:
        err.print(
            f"warning: {note['over_context']:,} rows are longer than the model takes, by estimate; they were sent whole, "
            "and the service's refusals are failure rows"
        )
    if note["all_runs"]["files_unreadable"]:
        _say(
            f"warning: {note['all_runs']['files_unreadable']:,} damaged files of the store could not be read at all; "
            "usage/ is short by what they cost, unless a killed run's journal knew it"
        )
    if note["usage_missing"]:
        _say(
            f"warning: {note['usage_missing']:,} paid replies came without usage; their tokens and cost are not counted"
        )


def _print_ending(note: dict[str, Any], code: ExitCode, output_uri: str) -> None:
    stopped, output_uri = note["stopped"], redact_uri(output_uri)
    if stopped is not None:
        _say(f"stopped ({stopped['code']}): {stopped['message']}")
        _say("what was paid for is in the store; the same command goes on from here")
    if "files" in note:
        out.print(f"output: {output_uri}", markup=False, highlight=False, soft_wrap=True)
    else:
        _say(f"nothing was published: {output_uri} is as it was")
    if code is ExitCode.FAILURES:
        _say(f"{note['failed']:,} rows failed, more than limits.failures_allowed; see `arkbeam inspect {output_uri}`")


def _say(text: str) -> None:
    """Print one line for people: as it is, whatever the width and whatever brackets are in it."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def _is_no_error_of_ours(record: logging.LogRecord) -> bool:
    """Keep Beam from logging with a traceback what becomes one line in the end."""
    return record.exc_info is None or not isinstance(record.exc_info[1], (ArkbeamError, KeyboardInterrupt))


def _redact_record(record: logging.LogRecord) -> bool:
    """Mask what libraries log of URLs and of exceptions that quote them."""
    record.msg, record.args = redact(record.getMessage(), _LOG_CHARS_MAX), ()
    if record.exc_info and not record.exc_text:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.exc_text = "\n".join(redact(line, _LOG_CHARS_MAX) for line in text.splitlines())
    return True


def _leave(code: int) -> NoReturn:
    """Leave without waiting for the threads of runner and libraries: a stage may hold some, and some die with an abort."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
