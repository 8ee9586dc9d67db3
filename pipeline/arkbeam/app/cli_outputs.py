"""The commands for a finished output: `arkbeam report`, `arkbeam map`, `arkbeam verify` and `arkbeam diff`."""

import dataclasses
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from arkbeam.app.cli_options import AsJson, ExitCode, OutputUri
from arkbeam.app.cli_print import err, note, print_json, print_line
from arkbeam.app.config import parse_published
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError
from arkbeam.base.uris import absolute, is_local
from arkbeam.manifest.options import ReadContext

if TYPE_CHECKING:
    from arkbeam.outputs.originals import Source
    from arkbeam.outputs.published import Published

_CODES = "Exit codes: 0; 1: a storage error; 2: the folder has no complete output."
_POINTS_MAX = 20_000  # more would take minutes: each row is compared with each other one


def add_commands(app: typer.Typer, panel: str) -> None:
    """Add the commands to the command line, in a panel of its help."""

    def add(command: Callable[..., None], epilog: str, name: str | None = None) -> None:
        app.command(name, epilog=epilog, rich_help_panel=panel)(command)

    add(report, f"Example: arkbeam report out/demo\n\n{_CODES}")
    add(make_map, f"Example: arkbeam map out/demo\n\n{_CODES}", "map")
    add(
        verify,
        "Example: arkbeam verify out/demo\n\nExit codes: 0: no fault; 1: a fault, or a storage error; 2: the folder has no"
        " output.",
    )
    add(
        diff,
        "Example: arkbeam diff out/monday out/tuesday\n\nExit codes: 0, also if they differ; 1: a storage error; 2: one of"
        " them is not a complete output.",
    )


def report(output: OutputUri) -> None:
    """Write report.html of an output again: a page that shows the run and a sample of its rows.

    A run writes it too, unless output.report is false. Texts and pictures are read again from local manifests below the
    working directory or below the folder that contains the output.
    """
    from arkbeam.outputs.published import open_output
    from arkbeam.outputs.publishing import write_page

    published = open_output(output)
    print_line(f"report: {write_page(published, _find_source(published))}")


def make_map(
    output: OutputUri,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="The file. Default: OUTPUT.map.parquet.")
    ] = None,
    points: Annotated[int, typer.Option(help="Most rows on the map.", min=3, max=_POINTS_MAX)] = 5_000,
) -> None:
    """Write a map of a sample of rows as Parquet (x, y, neighbors), and print the command that opens it.

    Rows are placed by t-SNE if the extra `map` is installed and there are at most 5,000 of them, otherwise by PCA.
    """
    from arkbeam.outputs.atlas import write_map
    from arkbeam.outputs.neighbours import WITHOUT_TSNE
    from arkbeam.outputs.published import open_output

    published = open_output(output)
    written = write_map(published, to or _name_map(published.uri), points, _find_source(published))
    print_line(f"map: {written.uri}, {written.rows:,} rows, placed by {written.method}")
    if written.method == WITHOUT_TSNE:
        note("rows are placed by t-SNE after: pip install 'arkbeam[map]'")
    print_line(f"to open it (pip install embedding-atlas): {shlex.join(written.command)}")


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
            print_line(f"{fault.code} {fault.where}: {fault.message}")
        more = sum(report.counts.values()) - len(report.faults)
        if more:
            print_line(f"… and {more:,} more faults")
        read = f"{report.files:,} files, {report.bytes:,} bytes, {report.published:,} rows published, {report.failed:,} failed"
        print_line(f"{'no fault' if report.is_sound else f'{sum(report.counts.values()):,} faults'}: {read}")
    raise typer.Exit(ExitCode.OK if report.is_sound else ExitCode.FAULT)


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
        print_line(line)


def _name_map(uri: str) -> str:
    """Return the name of a map beside a local output; in the working directory for an output in an object store."""
    return f"{uri if is_local(uri) else uri.rpartition('/')[2]}.map.parquet"


def _find_source(output: "Published") -> "Source | None":
    """Return how to read the output's manifests again, with its own config; None if that config can't be used.

    The output may come from someone else: only files below the working directory and beside the output are read.
    """
    from arkbeam.outputs.originals import Source

    try:
        config, service = parse_published(output.note)
        context = ReadContext(service, ModelSpec.of(config.model), config.media)
    except ConfigError as error:
        note(f"note: texts and pictures are not shown: {'; '.join(str(error).splitlines())}")
        return None
    here = absolute(".")
    roots = (here, output.uri.rpartition("/")[0] or "/") if is_local(output.uri) else (here,)
    return Source(config.manifest, context, roots)
