"""The commands for a finished output: `arkbeam verify` and `arkbeam diff`."""

import dataclasses
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

out, err = Console(), Console(stderr=True)
OutputUri = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    app.command(
        epilog="Example: arkbeam verify out/demo\n\nExit codes: 0: no fault; 1: a fault, or a storage error; 2: the folder has no output."
    )(verify)
    app.command(
        epilog="Example: arkbeam diff out/monday out/tuesday\n\nExit codes: 0, also if they differ; 1: a storage error; 2: one of them is no complete output."
    )(diff)


def verify(
    output: OutputUri,
    as_json: AsJson = False,
    repeated_ids_ok: Annotated[
        bool, typer.Option("--repeated-ids-ok", help="An id that several rows of the manifest have is no fault.")
    ] = False,
) -> None:
    """Check that an output is complete and undamaged, and show the first ten faults.

    Reads every file once: its hash, its schema, the counts of run.json, every id and every row of the manifest once,
    vectors without NaN, their norms, and the order of sparse indices. Changes nothing.
    """
    from arkbeam.outputs.verify import verify_output

    with err.status("checking …") as status:
        report = verify_output(
            output,
            repeated_ids_ok=repeated_ids_ok,
            note_progress=lambda files: status.update(f"checking … {files:,} files read"),
        )
    if as_json:
        print_json(dataclasses.asdict(report) | {"sound": report.is_sound})
    else:
        for fault in report.faults:
            say(f"{fault.code} {fault.where}: {fault.message}")
        more = sum(report.counts.values()) - len(report.faults)
        if more:
            say(f"… and {more:,} more faults")
        read = f"{report.files:,} files, {report.bytes:,} bytes, {report.published:,} rows published, {report.failed:,} failed"
        say(f"{'no fault' if report.is_sound else f'{sum(report.counts.values()):,} faults'}: {read}")
    raise typer.Exit(0 if report.is_sound else 1)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Folder of the older output.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Folder of the newer output.")],
    as_json: AsJson = False,
) -> None:
    """Compare two outputs by id: rows that were added, are gone, or have another vector or other kept columns.

    If the vectors of both have the same length, the cosines between the old and the new vectors are shown, for example
    of the same rows embedded by two models.
    """
    from arkbeam.outputs.diff import describe, diff_outputs

    with err.status("reading …") as status:
        found = diff_outputs(a, b, lambda files: status.update(f"reading … {files:,} files read"))
    if as_json:
        print_json(dataclasses.asdict(found) | {"empty": found.is_empty})
        return
    for line in describe(found):
        say(line)


def say(text: str) -> None:
    """Print one line: no wrapping, no markup, and nothing that a terminal obeys."""
    out.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """Replace characters that can't be printed, such as those that begin a terminal's commands."""
    return "".join(character if character.isprintable() else "�" for character in text)


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON object. Values that JSON lacks become strings."""
    print(orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())
