"""The command line: `arkbeam run`, `plan`, `emulator`, `inspect`, and `arkbeam store` with its commands."""

import logging
import os
import signal
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import orjson
import typer
from rich.console import Console

from arkbeam import __version__
from arkbeam.app import cli_store
from arkbeam.app.cli_options import AsJson, ConfigPath, ExitCode, Settings
from arkbeam.app.config import Config, load_config
from arkbeam.app.messages import TEXT_FORMAT, Level, LogForm, Messages, redact_record, write_event
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.redaction import redact_uri
from arkbeam.decoding.workers import resume as resume_looking
from arkbeam.decoding.workers import stop as stop_looking
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import stop_engines
from arkbeam.media.http import interrupt as interrupt_reading
from arkbeam.quota.options import LimitsOptions

if TYPE_CHECKING:
    from arkbeam.stages.spec import RunSpec

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn manifests of text, images and video into vectors through Volcengine Ark, and write them as Parquet.",
    epilog="To try it without an API key: arkbeam run configs/demo.yaml",
)
out, err = Console(), Console(stderr=True)
_messages = Messages()

EXIT_CODES = """Exit codes:

0: every row was published, or at most limits.failures_allowed rows failed;
1: an internal error or a storage error;
2: an error in the command line, the config or a manifest;
3: more rows failed than limits.failures_allowed;
4: the service refused to continue (overdue account, exhausted quota, wrong key, …), or rejected all of the first rows;
5: the budget was used up;
6: another run of the output is alive (wait until it ends, or run with --take-over, which ends it first);
130: interrupted by Ctrl-C or SIGTERM.

If several apply, the first of 130, 4, 5, 3 is returned."""

BeamOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- BEAM OPTIONS", help="Options of Apache Beam after --, such as -- --runner=FlinkRunner."),
]
LogOption = Annotated[LogForm, typer.Option("--log", help="The form of messages and progress on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings, errors and what --json asks for.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"arkbeam {__version__}")
        raise typer.Exit


@app.command(epilog=f"Example: arkbeam run config.yaml --set quota.rpm=600\n\n{EXIT_CODES}")
def run(
    config: ConfigPath,
    beam_options: BeamOptions = None,
    settings: Settings = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Send rows again that the service rejected for good in an earlier run."),
    ] = False,
    publish_partial: Annotated[
        bool,
        typer.Option(
            "--publish-partial",
            help="Publish even if the run stops early; rows that were not sent become failure rows (not_bought).",
        ),
    ] = False,
    accept_model_change: Annotated[
        bool,
        typer.Option(
            "--accept-model-change",
            help="Re-embed everything if the model name now resolves to a different version.",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every part of the output that would be kept; write it again if it is damaged."
        ),
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="If another run of this output is alive, also on other machines, tell it to stop, and wait until it has ended.",
        ),
    ] = False,
    as_json: AsJson = False,
    log: LogOption = LogForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Embed all rows that have no vector in the store, and write the output.

    Reads the manifests and looks up every row in the store.
    Sends one request for each distinct row that is missing.
    Writes embeddings/, failures/, usage/ and run.json to the folder output.uri; part files that have not changed stay.

    Vectors that were paid for are kept in the store.
    After an interruption or an error, run the same command again: it sends only what is still missing.
    """
    from arkbeam.app.job import prepare_job, run_job, set_processes  # Beam takes half a second: not for --help
    from arkbeam.app.report import summary_table

    _messages.set(log, quiet=quiet)
    loaded = load_config(config, settings or [])
    with _signals(), _service(loaded) as base_url:
        job = prepare_job(
            loaded, base_url=base_url, retry_failed=retry_failed, publish_partial=publish_partial, verify=verify
        )
        _print_notes(job.notes)
        job = set_processes(job, beam_options or [])
        with _progress(job.spec):
            result = run_job(
                job, beam_options or [], accept_model_change=accept_model_change, take_over=take_over, say=_say
            )
    _print_warnings(result)
    if as_json:
        _print_json(result)
    elif not quiet:
        out.print(summary_table(result))
    code = exit_code(result, loaded.limits)
    _print_ending(result, code, loaded.output.uri, as_json=as_json)
    raise typer.Exit(code)


@app.command(epilog="Example: arkbeam plan config.yaml\n\nExit codes: 0, 1, 2 and 130, as for arkbeam run.")
def plan(
    config: ConfigPath,
    beam_options: BeamOptions = None,
    settings: Settings = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Plan for a run with --retry-failed.")] = False,
    as_json: AsJson = False,
    log: LogOption = LogForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Show how many requests a run would send, what it would cost and how long it would take. Send nothing.

    Reads the manifests and the store, as a run does. Token counts are estimates.
    An owned row has its vector in the store and costs nothing.
    """
    from arkbeam.app.job import name_plan, plan_job, prepare_job, set_processes
    from arkbeam.app.report import describe_plan, plan_table
    from arkbeam.stages.plan import estimate

    _messages.set(log, quiet=quiet)
    loaded = load_config(config, settings or [])
    job = set_processes(name_plan(prepare_job(loaded, retry_failed=retry_failed)), beam_options or [])
    _print_notes(job.notes)
    with _progress(job.spec):
        totals, spec = plan_job(job, beam_options or []), job.spec
    limits, capabilities = spec.rate_limits, spec.model.capabilities
    expected = estimate(totals, capabilities, limits, headroom=spec.quota.headroom, budget=spec.budget)
    _print_manifest_warnings((note.level, note.message) for note in totals.notes)
    if as_json:
        _print_json(describe_plan(totals, expected))
    else:
        out.print(plan_table(totals, expected))


@app.command(epilog="Example: arkbeam emulator --port 8080 --set rpm=600 --set faults.error_500=0.05")
def emulator(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 chooses a free one.")] = 8080,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set an option: --set rpm=600. Repeatable."),
    ] = None,
) -> None:
    """Run the emulator, a local server that speaks the API's contract, until Ctrl-C.

    Its vectors are computed from the words and colours of a request; they are not those of the real model.
    To use it, set api.base_url to the URL that it prints. It needs no API key.
    Its options are the keys of the config's section emulator.
    """
    from arkbeam.app.config import parse_emulator
    from arkbeam.emulator.serve import serve

    serve(parse_emulator(settings or []), port)


@app.command(
    epilog="Example: arkbeam inspect out/demo --rows 3\n\nExit codes: 0; 1: a storage error; 2: the folder has no complete output."
)
def inspect(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")],
    rows: Annotated[int, typer.Option(help="Number of rows to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show an output: the summary of its run, its columns, a few rows, and the failures by code."""
    from arkbeam.app.report import describe_output, inspect_output

    if as_json:
        _print_json(describe_output(output, rows))
        return
    for table in inspect_output(output, rows):
        out.print(table)


cli_store.add_commands(app)


def exit_code(result: dict[str, Any], limits: LimitsOptions) -> ExitCode:
    """Return the exit code of a run that ended without an exception."""
    stopped = result["stopped"]
    if stopped is not None:
        by_kind = {
            StopKind.INTERRUPTED: ExitCode.INTERRUPTED,
            StopKind.SERVICE: ExitCode.STOPPED,
            StopKind.BUDGET: ExitCode.BUDGET,
        }
        return by_kind.get(StopKind(stopped["kind"]), ExitCode.FAULT)
    return ExitCode.FAILURES if result["failed"] > limits.count_failures_allowed(result["rows"]) else ExitCode.OK


def main() -> NoReturn:
    """Run the command line and exit the process. An ArkbeamError becomes one line and an exit code."""
    logging.basicConfig(level=logging.ERROR, format=TEXT_FORMAT)
    _messages.set(LogForm.TEXT, quiet=False)
    logging.getLogger("arkbeam").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_our_error)
        handler.addFilter(redact_record)
    try:
        app(standalone_mode=True)
        _leave(ExitCode.OK)
    except SystemExit as ending:
        _leave(ending.code if isinstance(ending.code, int) else ExitCode.OK)
    except ArkbeamError as error:
        _say_error(error)
        _leave(error.exit_code)


@contextmanager
def _service(config: Config) -> Iterator[str]:
    """Yield the base URL of the service. If it is `emulator`, start an emulator for the length of the block."""
    with ExitStack() as stack:
        if not config.starts_emulator:
            yield config.api.base_url
            return
        try:
            from arkbeam.emulator.serve import start_emulator
        except ImportError as error:
            raise ArkbeamError(
                f"api.base_url is emulator, which needs more packages: pip install 'arkbeam[emulator]' ({error})"
            ) from None
        yield stack.enter_context(start_emulator(config.emulator))


@contextmanager
def _signals() -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM for the length of the block: the first stops the run in order, the second exits at once."""
    seen = 0

    def handle(number: int, _: types.FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            os._exit(ExitCode.INTERRUPTED)
        name = signal.Signals(number).name
        stop_looking()
        interrupt_reading()
        if stop_engines(Stop(StopKind.INTERRUPTED, name, f"{name} received")):
            _say_in_handler("stopping: waiting for open requests; press Ctrl-C again to exit at once")
            return
        _say_in_handler(f"interrupted ({name}); run the same command again to continue")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        resume_looking()


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        _say(note, "note")


def _print_manifest_warnings(notes: Iterable[tuple[str, str]]) -> None:
    """Print the warnings among the notes about the manifests; the table has all notes."""
    for level, message in notes:
        if level == "warning":
            _say(message, "warning")


def _print_warnings(result: dict[str, Any]) -> None:
    _print_manifest_warnings((note["level"], note["message"]) for note in result["notes"])
    if result["over_context"]:
        _say(
            f"{result['over_context']:,} rows are longer than the model's context, by estimate; they were sent, and those"
            " that the service rejected are failure rows",
            "warning",
        )
    if result["all_runs"]["files_unreadable"]:
        _say(
            f"{result['all_runs']['files_unreadable']:,} damaged files of the store can't be read; usage/ lacks the cost of"
            " their vectors, except for requests in the journal of a killed run",
            "warning",
        )
    if result["usage_missing"]:
        _say(f"{result['usage_missing']:,} paid replies had no usage; their tokens and cost are not counted", "warning")


def _print_ending(result: dict[str, Any], code: ExitCode, output_uri: str, *, as_json: bool) -> None:
    stopped, output_uri = result["stopped"], redact_uri(output_uri)
    if stopped is not None:
        _say(f"stopped ({stopped['code']}): {stopped['message']}", "error")
        _say("vectors that were paid for are in the store; run the same command again to continue", "error")
    if "files" not in result:
        _say(f"nothing was published: {output_uri} is unchanged", "error")
    elif not (_messages.quiet or as_json):
        out.print(f"output: {output_uri}", markup=False, highlight=False, soft_wrap=True)
    if code is ExitCode.FAILURES:
        _say(
            f"{result['failed']:,} rows failed, more than limits.failures_allowed; see `arkbeam inspect {output_uri}`",
            "error",
        )


def _say(text: str, level: Level = "info") -> None:
    """Print one line to stderr as it is: no wrapping, no markup."""
    _messages.say(err, text, level)


def _say_error(error: ArkbeamError) -> None:
    if _messages.form is LogForm.TEXT:
        err.print(f"[bold red]error[/] {type(error).__name__}:", end=" ")
    _messages.say(err, str(error), "error", error=type(error).__name__, exit_code=error.exit_code)


def _say_in_handler(text: str) -> None:
    """Print from a signal handler: without rich, whose lock the interrupted code may hold."""
    if _messages.form is LogForm.JSON:
        write_event(sys.stderr, "message", {"level": "warning", "message": text})
    else:
        print(text, file=sys.stderr, flush=True)


def _print_json(document: Any) -> None:
    """Print a document to stdout as JSON."""
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


@contextmanager
def _progress(spec: "RunSpec") -> Iterator[None]:
    """Show the progress for the length of the block, unless `--quiet` is given."""
    from arkbeam.app.progress import show_progress

    with nullcontext() if _messages.quiet else show_progress(spec, err, form=_messages.form):
        yield


def _is_not_our_error(record: logging.LogRecord) -> bool:
    """Return False for records of our own exceptions: `main` reports them in one line, without Beam's traceback."""
    return record.exc_info is None or not isinstance(record.exc_info[1], (ArkbeamError, KeyboardInterrupt))


def _leave(code: int) -> NoReturn:
    """Exit without waiting for threads: some threads of Beam and of libraries hang or abort when the interpreter exits."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
