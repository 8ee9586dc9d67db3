"""Commands on a finished output: `arkbeam report` and `arkbeam map`."""

import shlex
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from arkbeam.app.config import parse_config
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError
from arkbeam.base.files import absolute, exists, is_local, join, read_bytes
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.options import ReadContext
from arkbeam.stages.publish.commit import RUN_NOTE, SUCCESS

commands = typer.Typer()
_CODES = "Exit codes: 0; 1: a storage error; 2: the folder has no complete output."
_out, _err = Console(), Console(stderr=True)

Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of the output.")]


@commands.command(epilog=f"Example: arkbeam report out/demo\n\n{_CODES}")
def report(output: Output) -> None:
    """Write report.html of an output again: a page that shows the run and a sample of its rows.

    A run writes it too, unless output.report is false. Texts and pictures are read again from local manifests below the
    working directory or below the folder that contains the output.
    """
    from arkbeam.outputs.publishing import write_page

    uri, note = absolute(output), _read_note(output)
    _print(f"report: {write_page(uri, note, _find_source(uri, note))}")


@commands.command(name="map", epilog=f"Example: arkbeam map out/demo\n\n{_CODES}")
def make_map(
    output: Output,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="The file. Default: OUTPUT.map.parquet.")
    ] = None,
    points: Annotated[int, typer.Option(help="Most rows on the map.", min=3, max=20_000)] = 5_000,
) -> None:
    """Write a map of a sample of rows as Parquet (x, y, neighbors), and print the command that opens it.

    Rows are placed by t-SNE if the extra `map` is installed and there are at most 5,000 of them, otherwise by PCA.
    """
    from arkbeam.outputs.atlas import write_map

    uri, note = absolute(output), _read_note(output)
    written = write_map(uri, note, to or _name_map(uri), points, _find_source(uri, note))
    _print(f"map: {written.uri}, {written.rows:,} rows, placed by {written.method}")
    _print(f"to open it: {shlex.join(written.command)}")


def _read_note(output: str) -> dict[str, Any]:
    """Return the content of the output's `run.json`. Raise ConfigError if the output is not complete."""
    if not exists(join(output, SUCCESS)):
        raise ConfigError(f"{output} is not a complete output: it has no {SUCCESS}")
    note: dict[str, Any] = orjson.loads(read_bytes(join(output, RUN_NOTE)))
    return note


def _name_map(uri: str) -> str:
    """Return the name of a map beside a local output; in the working directory for an output in an object store."""
    return f"{uri if is_local(uri) else uri.rpartition('/')[2]}.map.parquet"


def _find_source(uri: str, note: dict[str, Any]) -> Any:
    """Return how to read the output's manifests again, with its own config; None if that config can't be used.

    The output may come from someone else: only files below the working directory and beside the output are read.
    """
    from arkbeam.outputs.originals import Source

    try:
        config = parse_config(note["config"])
        context = ReadContext(ServiceKind(note["service"]), ModelSpec.of(config.model), config.media)
    except (ConfigError, KeyError, ValueError) as error:
        _err.print(f"note: texts and pictures are not shown: {error}", markup=False, highlight=False, soft_wrap=True)
        return None
    roots = (absolute("."), uri.rpartition("/")[0] or "/") if is_local(uri) else (absolute("."),)
    return Source(config.manifest, context, roots)


def _print(text: str) -> None:
    _out.print(text, markup=False, highlight=False, soft_wrap=True)
