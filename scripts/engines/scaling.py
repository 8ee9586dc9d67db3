"""Large manifests on each engine: mostly owned rows that are published, or rows that are only planned. There is no quota."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import orjson
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.owned import own_texts
from scripts.benchmarks.runs import BenchError, Ended, Site, read_stats, run_child
from scripts.benchmarks.texts import make_texts, write_texts
from scripts.children import arkbeam_command
from scripts.engines.comparison import ENGINES

DIMENSIONS = 1024
COLUMNS = ("rows published", "paid", "equal", "wall", "CPU of the command", "again, all owned")
PLAN_COLUMNS = ("rows planned", "to send", "wall", "CPU of the command", "peak memory of the command")


def run_rows(name: str, folder: Path, rows: int, new: int, first: Path | None) -> tuple[Sequence[str], Path]:
    """Run a manifest of which all but `new` rows are owned, then the same again; return the cells of `COLUMNS`, and the output.

    `first`: an output with which this one is compared. Raise BenchError, EngineError.
    """
    site = Site(folder)
    with start_emulator(EmulatorOptions()) as url, ENGINES[name][1]() as beam:
        site.write_config(url, model={"dimensions": DIMENSIONS})
        write_texts(site.manifest, make_texts(rows))
        own_texts(site, islice(make_texts(rows), rows - new), DIMENSIONS)
        run = _run("run", site, beam)
        paid, note = int(read_stats(url)["paid"]), site.note()
        again = _run("run", site, beam)
        if int(read_stats(url)["paid"]) != paid:
            raise BenchError("the second run has sent requests")
    run_child(arkbeam_command("verify", str(site.output)), folder)
    equal = "-" if first is None else _compare(first, site)
    return [
        f"{note['published']:,}",
        f"{paid:,}",
        equal,
        f"{run.wall_s:.0f} s",
        f"{run.cpu_s:.0f} s",
        f"{again.wall_s:.0f} s",
    ], site.output


def plan_rows(name: str, folder: Path, rows: int) -> Sequence[str]:
    """Plan a manifest with an empty store; return the cells of `PLAN_COLUMNS`. Raise BenchError, EngineError."""
    site = Site(folder)
    with start_emulator(EmulatorOptions()) as url, ENGINES[name][1]() as beam:
        site.write_config(url, model={"dimensions": DIMENSIONS})
        write_texts(site.manifest, make_texts(rows))
        plan = _run("plan", site, beam, "--json")
    totals = orjson.loads(plan.stdout)
    return [
        f"{totals['rows']:,}",
        f"{totals['to_buy']:,}",
        f"{plan.wall_s:.0f} s",
        f"{plan.cpu_s:.0f} s",
        f"{plan.peak_bytes / 1e6:.0f} MB",
    ]


def _run(command: str, site: Site, beam: Sequence[str], *options: str) -> Ended:
    return run_child([*site.command(command), *options, *(["--", *beam] if beam else [])], site.folder)


def _compare(first: Path, site: Site) -> str:
    found = run_child(arkbeam_command("diff", str(first), str(site.output), "--json"), site.folder)
    return "yes" if orjson.loads(found.stdout)["empty"] else "no"
