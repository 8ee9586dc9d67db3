"""The command line of the bench."""

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from arkbeam.base.errors import ArkbeamError
from rich.console import Console

from scripts.benchmarks import (
    again,
    faults,
    fixed,
    kill,
    media,
    media_peak,
    memory,
    planning,
    quota,
    quota_many,
    report,
    search,
    store,
    throughput,
    volume,
)
from scripts.benchmarks.runs import BenchError
from scripts.benchmarks.table import Bench, Figure, Measure, Size, describe_machine, figures_table

MEASURES: dict[str, Measure] = {
    "throughput": throughput.measure,
    "fixed": fixed.measure,
    "quota_rpm": quota.measure_requests,
    "quota_tpm": quota.measure_tokens,
    "quota_sliding": quota.measure_sliding,
    "quota_spread": quota.measure_spread,
    "quota_fast": quota.measure_fast,
    "quota_marks": quota_many.measure_marks,
    "quota_redis": quota_many.measure_redis,
    "bytes": volume.measure,
    "plan": planning.measure,
    "memory": memory.measure,
    "kill": kill.measure,
    "faults": faults.measure,
    "second_pass": faults.measure_second_pass,
    "media_plan": media.measure_plan,
    "media_cpu": media.measure_cpu,
    "media_memory": media.measure_memory,
    "media_peak": media_peak.measure,
    "report": report.measure,
    "store_owned": store.measure_owned,
    "store_compacted": store.measure_compacted,
    "store_runs": store.measure_runs,
    "store_index": store.measure_index,
    "again": again.measure,
    "again_local": again.measure_local,
    "search": search.measure,
}

_NAMES = "\n\n".join(f"{name}: {' '.join((measure.__doc__ or '').split())}" for name, measure in MEASURES.items())
_EPILOG = f"""Measures:

{_NAMES}

Figures are only meaningful on a machine without other load. Runs use temporary folders below TMPDIR (about 4 GB at \
full size), which are removed afterwards; nothing is written into the checkout.

Example: scripts/bench --quick fixed kill

Exit codes: 0: every measure was made, even if it missed a target; 1: a measure could not be made; 2: an error \
in the command line."""


def run_measures(names: Sequence[str], size: Size, console: Console) -> tuple[list[Figure], bool]:
    """Make the measures, each in a temporary folder; return the figures, and True if all measures could be made."""
    figures: list[Figure] = []
    complete = True
    for name in names:
        start_s = time.monotonic()

        def say(words: str, name: str = name, start_s: float = start_s) -> None:
            console.print(f"{name}, {time.monotonic() - start_s:.0f} s: {words}", markup=False, highlight=False)

        with tempfile.TemporaryDirectory(prefix="arkbeam-bench-", ignore_cleanup_errors=True) as folder:
            try:
                figures += [replace(one, measure=name) for one in MEASURES[name](Bench(size, Path(folder), say))]
                say("done")
            except (BenchError, ArkbeamError) as error:
                say(f"could not be made: {error}")
                figures.append(Figure(name, "", "none", details="could not be made, see above"))
                complete = False
    return figures, complete


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Measures to make; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: about 10 minutes instead of 60.")] = False,
) -> None:
    """Measure what this project promises, and print one table of the figures."""
    chosen = names or list(MEASURES)
    unknown = [name for name in chosen if name not in MEASURES]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(MEASURES)}")
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that folders and child processes are removed, as with Ctrl-C
    size = Size.QUICK if quick else Size.FULL
    figures, complete = run_measures(chosen, size, Console(stderr=True))
    out = Console(width=None if sys.stdout.isatty() else 200)
    out.print(figures_table(figures, size))
    out.print(describe_machine(), highlight=False)
    raise typer.Exit(0 if complete else 1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=_EPILOG)(main)
    app(prog_name="scripts/bench")
