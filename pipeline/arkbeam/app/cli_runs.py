"""`arkbeam status`, `wait` and `stop`: runs that nobody waits for. They read, and write, notes in the store only."""

import shlex
import signal
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from arkbeam.app import terminal
from arkbeam.app.cli_options import EXIT_CODES, AsJson, ExitCode, LogOption, Quiet, Settings
from arkbeam.app.cli_print import out, print_json
from arkbeam.app.messages import LogForm
from arkbeam.app.program import program
from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import redact_uri
from arkbeam.engine.outcomes import Stop, StopKind

if TYPE_CHECKING:
    from arkbeam.app.find_run import FoundRun
    from arkbeam.beam.submission import Ending
    from arkbeam.stages.spec import RunSpec

What = Annotated[
    str,
    typer.Argument(
        metavar="RUN|OUTPUT|CONFIG",
        help="Name of the run; or its output, or its config, for the newest run of that output.",
    ),
]
StoreUri = Annotated[
    str | None, typer.Option("--store", metavar="URI", help="The store: needed with a name and without --config.")
]
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="CONFIG", help="The config of the run: it names the store.")
]
_SILENT_S = 120.0  # `watching.SILENT_S`, whose imports take a second: not for --help


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line, in a panel of its help."""
    app.command(
        epilog="Example: arkbeam status config.yaml\n\nExit codes: 0; 1: a storage error; 2: no such run.",
        rich_help_panel=panel,
    )(status)
    app.command(
        epilog=f"Example: arkbeam wait config.yaml --timeout-s 3600\n\n{EXIT_CODES}\n\n1 also if the run is dead, 124 after"
        " --timeout-s, and 130 also if the waiting was interrupted.",
        rich_help_panel=panel,
    )(wait)
    app.command(
        epilog="Example: arkbeam stop config.yaml --wait\n\nExit codes: 0; 1: a storage error, or with --wait the run is"
        " dead; 2: no such run, or one that works in one process.",
        rich_help_panel=panel,
    )(stop)


def status(
    what: What,
    store: StoreUri = None,
    config: ConfigOption = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show what a run is doing, or its result.

    Reads the notes of the run in the store: also for a run on another machine. Rates are means since the start.
    """
    from arkbeam.app.report import summary_table, two_columns
    from arkbeam.app.watching import describe_run, list_rows, look, spec_of

    run = _find(what, store, config, settings)
    spec = spec_of(run) if run.result is None else None
    seen = None if spec is None else look(spec, time.time())
    if as_json:
        print_json(describe_run(run, seen))
    elif run.result is not None:
        out.print(summary_table(run.result))
        terminal.print_output(run.output_uri)
    elif spec is not None and seen is not None:
        out.print(two_columns(f"run {run.name}", list_rows(run, seen, spec)))


def wait(
    what: What,
    store: StoreUri = None,
    config: ConfigOption = None,
    settings: Settings = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout-s", min=0.0, help="Wait at most so long; then exit with 124.")
    ] = None,
    silent_s: Annotated[
        float, typer.Option("--silent-s", min=10.0, help="The run is dead if nothing renews it for so long.")
    ] = _SILENT_S,
    as_json: AsJson = False,
    log: LogOption = LogForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Wait for the end of a run, and exit as `arkbeam run` would have.

    Shows the progress as `arkbeam run` does. Ctrl-C or SIGTERM ends the waiting, not the run.
    """
    terminal.messages.set(log, quiet=quiet)
    run = _find(what, store, config, settings)
    raise typer.Exit(_wait(run, timeout_s=timeout_s, silent_s=silent_s, as_json=as_json))


def stop(
    what: What,
    store: StoreUri = None,
    config: ConfigOption = None,
    settings: Settings = None,
    wait_for_end: Annotated[bool, typer.Option("--wait", help="Wait until the run has ended.")] = False,
    as_json: AsJson = False,
    log: LogOption = LogForm.TEXT,
    quiet: Quiet = False,
) -> None:
    """Stop a run in order: it sends nothing more, and stores what it has paid for.

    The run's processes look for the stop every second while they send. The output stays as it was.
    The same `arkbeam run` command continues later.
    """
    from arkbeam.app.watching import spec_of
    from arkbeam.stages.embed.process import write_stop

    terminal.messages.set(log, quiet=quiet)
    run = _find(what, store, config, settings)
    if run.result is None:
        spec = spec_of(run)
        _check_listens(run, spec)
        write_stop(spec, Stop(StopKind.INTERRUPTED, "stopped", f"arkbeam stop was called on {socket.gethostname()}"))
        terminal.say(f"run {run.name} is told to stop")
    if wait_for_end:
        _wait(run, timeout_s=None, silent_s=_SILENT_S, as_json=as_json)
    elif run.result is not None:
        terminal.say(f"run {run.name} has ended already")


def print_submitted(spec: "RunSpec", job_id: str | None, ending: "Ending", *, as_json: bool) -> None:
    """Print the name of a run that nobody waits for, and what to do next."""
    from arkbeam.beam.submission import Ending

    run, store_uri = spec.run, redact_uri(spec.store.uri)
    state = {Ending.SUBMIT: "submitted", Ending.WRITE: "written", Ending.DRY_RUN: "dropped"}[ending]
    if as_json:
        document = {"run": run.name, "output": redact_uri(run.output_uri), "store": store_uri, "job_id": job_id}
        print_json({**document, "state": state})
    else:
        print(run.name)
    if ending is Ending.SUBMIT:
        terminal.say(
            f"submitted{f' as job {job_id}' if job_id else ''}: {program()} wait {run.name} --store {shlex.quote(store_uri)}"
        )
    elif ending is Ending.WRITE:
        terminal.say(
            "the job is written; this command does not run it. It can run once, as long as no other run of its output has"
            f" begun: it needs the run's files in {store_uri}"
        )
    else:
        terminal.say("dry run: the job was built, and dropped")


def _find(what: str, store: str | None, config: str | None, settings: list[str] | None) -> "FoundRun":
    from arkbeam.app.find_run import find_run

    return find_run(what, store=store, config=config, settings=settings or [])


def _wait(run: "FoundRun", *, timeout_s: float | None, silent_s: float, as_json: bool) -> ExitCode:
    """Wait for the end of a run, print the result, and return the exit code."""
    from arkbeam.app.watching import spec_of, wait_for_end

    result = run.result
    if result is None:
        spec = spec_of(run)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with terminal.progress(spec):
                result = wait_for_end(run, spec, timeout_s=timeout_s, silent_s=silent_s)
        except KeyboardInterrupt:
            terminal.say(f"interrupted; run {run.name} goes on", "warning")
            return ExitCode.INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)
    return terminal.print_result(result, run.output_uri, as_json=as_json)


def _check_listens(run: "FoundRun", spec: "RunSpec") -> None:
    """Raise ConfigError for a run of one process, which looks for no stop in the store."""
    if not spec.many_processes and run.note is not None:
        raise ConfigError(
            f"run {run.name} works in one process: send SIGTERM to process {run.note.pid} on {run.note.host}, or press Ctrl-C"
            " there"
        )
