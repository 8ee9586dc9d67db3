"""What commands print about a run: messages and progress on stderr, its result on stdout, and the exit code of the result."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from arkbeam.app.cli_options import ExitCode
from arkbeam.app.cli_print import err, out, print_json, print_line
from arkbeam.app.messages import Level, LogForm, Messages, write_event
from arkbeam.app.program import program
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.files import exists
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import join
from arkbeam.engine.outcomes import StopKind
from arkbeam.quota.options import LimitsOptions

if TYPE_CHECKING:
    from arkbeam.stages.spec import RunSpec

messages = Messages()


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


def print_result(result: dict[str, Any], output_uri: str, *, as_json: bool) -> ExitCode:
    """Print the result of a run, and what a person has to know of it; return the exit code."""
    from arkbeam.app.report import summary_table  # noqa: PLC0415 - takes a while: not for --help

    _print_warnings(result)
    if as_json:
        print_json(result)
    elif not messages.quiet:
        out.print(summary_table(result))
    limits = LimitsOptions(failures_allowed=result["config"]["limits"]["failures_allowed"])
    code = exit_code(result, limits)
    _print_ending(result, code, output_uri, as_json=as_json)
    return code


def print_notes(notes: tuple[str, ...]) -> None:
    """Print the notes of a job."""
    for note in notes:
        say(note, "note")


def print_manifest_warnings(notes: Iterable[tuple[str, str]]) -> None:
    """Print the warnings among the notes about the manifests; the table has all notes."""
    for level, message in notes:
        if level == "warning":
            say(message, "warning")


def print_output(output_uri: str) -> None:
    """Print where the output is."""
    print_line(f"output: {shorten(output_uri)}")


def shorten(uri: str) -> str:
    """Return a URI as a person would write it: a local path below the working directory becomes relative."""
    here = f"{os.getcwd()}/"
    return redact_uri(uri.removeprefix("file://").removeprefix(here))


def say(text: str, level: Level = "info") -> None:
    """Print one line to stderr as it is: no wrapping, no markup."""
    messages.say(err, text, level)


def say_error(error: ArkbeamError) -> None:
    """Print an error that ends the command."""
    if messages.form is LogForm.TEXT:
        err.print(f"[bold red]error[/] {type(error).__name__}:", end=" ")
    messages.say(err, str(error), "error", error=type(error).__name__, exit_code=error.exit_code)


def say_in_handler(text: str) -> None:
    """Print from a signal handler: without rich, whose lock the interrupted code may hold."""
    if messages.form is LogForm.JSON:
        write_event(sys.stderr, "message", {"level": "warning", "message": text})
    else:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this module prints


@contextmanager
def progress(spec: "RunSpec") -> Iterator[None]:
    """Show the progress of a run for the length of the block, unless `--quiet` is given."""
    from arkbeam.app.progress import show_progress  # noqa: PLC0415 - takes a while: not for --help

    with nullcontext() if messages.quiet else show_progress(spec, err, form=messages.form):
        yield


def _print_warnings(result: dict[str, Any]) -> None:
    print_manifest_warnings((note["level"], note["message"]) for note in result["notes"])
    if result["over_context"]:
        say(
            f"{result['over_context']:,} rows are longer than the model's context, by estimate; they were sent, and those"
            " that the service rejected are failure rows",
            "warning",
        )
    if result["all_runs"]["files_unreadable"]:
        say(
            f"{result['all_runs']['files_unreadable']:,} damaged files of the store can't be read; usage/ lacks the cost of"
            " their vectors, except for requests in the journal of a killed run",
            "warning",
        )
    if result["usage_missing"]:
        say(f"{result['usage_missing']:,} paid replies had no usage; their tokens and cost are not counted", "warning")


def _print_ending(result: dict[str, Any], code: ExitCode, output_uri: str, *, as_json: bool) -> None:
    from arkbeam.outputs.publishing import REPORT  # noqa: PLC0415 - these take a while: not for --help
    from arkbeam.outputs.search import search_arguments  # noqa: PLC0415

    stopped = result["stopped"]
    if stopped is not None:
        say(f"stopped ({stopped['code']}): {stopped['message']}", "error")
        say("vectors that were paid for are in the store; run the same command again to continue", "error")
    if "files" not in result:
        say(f"nothing was published: {shorten(output_uri)} is unchanged", "error")
    elif not (messages.quiet or as_json):
        print_output(output_uri)
        if exists(join(output_uri, REPORT)):
            print_line(f"report: {shorten(join(output_uri, REPORT))}")
        if result["published"]:
            arguments = f"{shlex.quote(shorten(output_uri))} 'WORDS'{search_arguments(result)}"
            print_line(f"to search it: {program()} search {arguments}")
    if code is ExitCode.FAILURES:
        say(
            f"{result['failed']:,} rows failed, more than limits.failures_allowed; see"
            f" `{program()} inspect {shlex.quote(shorten(output_uri))}`",
            "error",
        )
