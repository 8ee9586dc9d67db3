"""The command line of the compatibility test."""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from arkbeam.base.schema import Layout
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator
from rich.console import Console

from scripts.compatibility import outputs, readers
from scripts.compatibility.readers import READERS, Reader
from scripts.compatibility.report import Notes, Outcomes, join_folders, make_table
from scripts.make_docs import OUTPUT_PAGE, write_table

TIMED = ("duckdb", "polars")
TIMED_ROWS, TIMED_DIMENSIONS = 200_000, (1024, 2048)
_ROUNDS = 3
_EPILOG = f"""Readers: {", ".join(READERS)}.

The first run installs them below the cache folder: about 5 GB, and some minutes. Spark needs Java 17.

Exit codes: 0: the tables were made, whatever they say; 1: a reader could not be installed or started; 2: an error in \
the command line."""
_Pythons = Mapping[Reader, Path]


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[READER]...", help="Only these readers.")] = None,
    layout: Annotated[list[Layout] | None, typer.Option(help="Only this layout; default: both.")] = None,
    output: Annotated[Path | None, typer.Option(help="Read this output instead of making outputs.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for the environments of the readers.")] = None,
    timed: Annotated[bool, typer.Option("--time", help="Measure reading times instead of comparing values.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Also write the tables to the page about the output.")] = False,
) -> None:
    """Make outputs with the emulator, read them with common readers, compare each value, and print tables in Markdown."""
    unknown = [name for name in names or () if name not in READERS]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(READERS)}")
    folders = [name for name in outputs.FOLDERS if output is not None and any((output / name).glob("*.parquet"))]
    if output is not None and not folders:
        raise typer.BadParameter(f"--output {output}: no Parquet files in {', '.join(outputs.FOLDERS)} below it")
    say = Console(stderr=True, highlight=False, markup=False).print
    try:
        pythons = {}
        for name in names or (TIMED if timed else READERS):
            say(f"{name}: preparing its environment")
            pythons[READERS[name]] = readers.prepare(READERS[name], cache or readers.cache_folder())
        with tempfile.TemporaryDirectory(prefix="arkbeam-compat-") as folder:
            if timed:
                tables = list(time_layouts(Path(folder), layout or list(Layout), pythons))
            elif output is not None:
                tables = list(compare_output(Path(folder), output, folders, pythons))
            else:
                tables = list(compare_layouts(Path(folder), layout or list(Layout), pythons))
    except subprocess.CalledProcessError as error:
        say(f"{' '.join(error.cmd[:4])} … ended with {error.returncode}:\n{error.stderr}")
        raise typer.Exit(1) from None
    told = ", ".join(f"{reader.name} {readers.find_version(reader, python)}" for reader, python in pythons.items())
    text = "\n\n".join([f"Read on {time.strftime('%Y-%m-%d', time.gmtime())} with {told}.", *tables])
    print(text)
    if write:
        write_table(OUTPUT_PAGE, "reading times" if timed else "readers", f"\n{text}\n")


def compare_layouts(folder: Path, layouts: Sequence[Layout], pythons: _Pythons) -> Iterator[str]:
    """Make and read an output in each layout, then one for each odd type of kept column; yield tables and notes."""
    notes = Notes()
    with start_emulator(EmulatorOptions()) as url:
        for layout in layouts:
            made = outputs.make_output(folder, url, layout)
            yield make_table(f"`{layout}`", _compare(folder, made, outputs.FOLDERS, pythons), notes)
        odd = {name: outputs.make_output(folder, url, Layout.PORTABLE, name) for name in outputs.odd_columns()}
    found: Outcomes = {reader.name: {} for reader in pythons}
    for name, made in odd.items():
        for reader, outcomes in _compare(folder, made, ("embeddings",), pythons).items():
            own, other = (outcomes[f"`{column}`"] for column in (name, "dense"))
            found[reader][f"`{name}`"] = own if other.startswith("ok") else f"nor any other column: {own}"
    yield make_table("kept as it is", found, notes)
    yield notes.lines()


def compare_output(folder: Path, output: Path, names: Sequence[str], pythons: _Pythons) -> Iterator[str]:
    """Read the named folders of an output that exists; yield their table and notes."""
    notes = Notes()
    yield make_table(output.name, _compare(folder, output, names, pythons), notes)
    yield notes.lines()


def _compare(folder: Path, output: Path, names: Sequence[str], pythons: _Pythons) -> Outcomes:
    pairs = []
    for name in names:
        expected = folder / f"{output.name}-{name}.json"
        outputs.write_expected(output / name, expected)
        pairs.append((output / name, expected))
    outcomes = {reader.name: readers.compare(reader, python, pairs) for reader, python in pythons.items()}
    return {reader: join_folders(list(zip(names, found, strict=True))) for reader, found in outcomes.items()}


def time_layouts(folder: Path, layouts: Sequence[Layout], pythons: _Pythons) -> Iterator[str]:
    """Write the same vectors in each layout; yield a table of bytes a row, and of the best reading time of three rounds."""
    lines = [f"| rows | layout | bytes a row | {' | '.join(reader.name for reader in pythons)} |"]
    lines.append("|---" * (len(pythons) + 3) + "|")
    for dimensions in TIMED_DIMENSIONS:
        made = {layout: folder / f"{layout}-{dimensions}" for layout in layouts}
        for layout, path in made.items():
            outputs.write_vectors(path, layout, TIMED_ROWS, dimensions)
        rounds = [
            [
                [readers.time_reading(reader, python, path) for reader, python in pythons.items()]
                for path in made.values()
            ]
            for _ in range(_ROUNDS)
        ]
        for index, (layout, path) in enumerate(made.items()):
            size = sum(file.stat().st_size for file in path.iterdir()) / TIMED_ROWS
            best = [min(times) for times in zip(*(one[index] for one in rounds), strict=True)]
            cells = " | ".join(f"{seconds:.1f} s" for seconds in best)
            lines.append(f"| {TIMED_ROWS:,} × {dimensions:,} | `{layout}` | {size:,.0f} | {cells} |")
    yield "\n".join(lines)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=_EPILOG)(main)
    app()
