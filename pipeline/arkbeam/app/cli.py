"""The command line: `arkbeam run`, `plan`, `emulator` and `inspect`, and the commands of the modules `cli_*`."""

import logging
import os
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from arkbeam import __version__
from arkbeam.app import cli_outputs, cli_runs, cli_search, cli_setup, cli_store, terminal
from arkbeam.app.cli_options import EXIT_CODES, AsJson, ConfigPath, ExitCode, LogOption, OutputUri, Quiet, Settings
from arkbeam.app.cli_print import out, print_json
from arkbeam.app.config import load_config
from arkbeam.app.messages import TEXT_FORMAT, LogForm, redact_record
from arkbeam.app.service import open_service
from arkbeam.base.errors import ArkbeamError, ConfigError
from arkbeam.base.redaction import redact_uri
from arkbeam.decoding.workers import resume as resume_looking
from arkbeam.decoding.workers import stop as stop_looking
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import stop_engines
from arkbeam.media.http import interrupt as interrupt_reading

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn manifests of text, images and video into vectors through Volcengine Ark, and write them as Parquet.",
    epilog="To try it without an API key: arkbeam run configs/demo.yaml\n\nWith your own files: arkbeam init PATH",
)
_BEFORE, _RUN, _AFTER, _STORE = "Before a run", "Run", "A finished output", "The store"
cli_setup.add_commands(app, _BEFORE)

BeamOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- BEAM OPTIONS", help="Options of Apache Beam after --, such as -- --runner=FlinkRunner."),
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"arkbeam {__version__}")
        raise typer.Exit


@app.command(epilog=f"Example: arkbeam run config.yaml --set quota.rpm=600\n\n{EXIT_CODES}", rich_help_panel=_RUN)
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
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            help="Submit the job to an engine, print the run's name, and end. See arkbeam status, wait and stop.",
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
    from arkbeam.app.job import run_job, set_processes, submit_job  # Beam takes half a second
    from arkbeam.app.prepare import prepare_job
    from arkbeam.beam.submission import Ending, choose_ending

    terminal.messages.set(log, quiet=quiet)
    loaded = load_config(config, settings or [])
    ending = choose_ending(beam_options or [], no_wait=no_wait)
    if ending is not Ending.WAIT and loaded.starts_emulator:
        raise ConfigError(
            "api.base_url is emulator, which would end with this command: start one with `arkbeam emulator`, and set its URL"
        )
    with _signals(), open_service(loaded) as base_url:
        job = prepare_job(
            loaded, base_url=base_url, retry_failed=retry_failed, publish_partial=publish_partial, verify=verify
        )
        terminal.print_notes(job.notes)
        job = set_processes(job, beam_options or [])
        if ending is not Ending.WAIT:
            job_id = submit_job(
                job,
                beam_options or [],
                ending,
                accept_model_change=accept_model_change,
                take_over=take_over,
                say=terminal.say,
            )
            cli_runs.print_submitted(job.spec, job_id, ending, as_json=as_json)
            return
        with terminal.progress(job.spec):
            result = run_job(
                job,
                beam_options or [],
                accept_model_change=accept_model_change,
                take_over=take_over,
                say=terminal.say,
            )
    raise typer.Exit(terminal.print_result(result, job.spec.run.output_uri, as_json=as_json))


@app.command(
    epilog="Example: arkbeam plan config.yaml\n\nExit codes: 0, 1, 2 and 130, as for arkbeam run.", rich_help_panel=_RUN
)
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
    from arkbeam.app.job import name_plan, plan_job, set_processes
    from arkbeam.app.prepare import prepare_job
    from arkbeam.app.report import describe_plan, plan_table
    from arkbeam.stages.plan import estimate

    terminal.messages.set(log, quiet=quiet)
    loaded = load_config(config, settings or [])
    job = set_processes(name_plan(prepare_job(loaded, retry_failed=retry_failed)), beam_options or [])
    terminal.print_notes(job.notes)
    with terminal.progress(job.spec):
        totals, spec = plan_job(job, beam_options or []), job.spec
    limits, capabilities = spec.rate_limits, spec.model.capabilities
    expected = estimate(totals, capabilities, limits, headroom=spec.quota.headroom, budget=spec.budget)
    terminal.print_manifest_warnings((note.level, note.message) for note in totals.notes)
    if as_json:
        print_json({"output": redact_uri(spec.run.output_uri), **describe_plan(totals, expected)})
    else:
        out.print(plan_table(totals, expected))
        terminal.print_output(spec.run.output_uri)


@app.command(
    epilog="Example: arkbeam emulator --port 8080 --set rpm=600 --set faults.error_500=0.05", rich_help_panel=_RUN
)
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
    epilog="Example: arkbeam inspect out/demo --rows 3\n\nExit codes: 0; 1: a storage error; 2: the folder has no complete output.",
    rich_help_panel=_AFTER,
)
def inspect(
    output: OutputUri,
    rows: Annotated[int, typer.Option(help="Number of rows to show.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show an output: the summary of its run, its columns, a few rows, and the failures by code."""
    from arkbeam.app.report import describe_output, inspect_output

    if as_json:
        print_json(describe_output(output, rows))
        return
    for table in inspect_output(output, rows):
        out.print(table)


cli_runs.add_commands(app, _RUN)
cli_outputs.add_commands(app, _AFTER)
cli_search.add_commands(app, _AFTER)
cli_store.add_commands(app, _STORE)


def main() -> NoReturn:
    """Run the command line and exit the process. An ArkbeamError becomes one line and an exit code."""
    logging.basicConfig(level=logging.ERROR, format=TEXT_FORMAT)
    terminal.messages.set(LogForm.TEXT, quiet=False)
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
        terminal.say_error(error)
        _leave(error.exit_code)


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
            terminal.say_in_handler("stopping: waiting for open requests; press Ctrl-C again to exit at once")
            return
        terminal.say_in_handler(f"interrupted ({name}); run the same command again to continue")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        resume_looking()


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
