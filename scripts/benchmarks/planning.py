"""Microseconds to plan a row: for the join alone, for the join through Beam, for the whole command."""

from dataclasses import dataclass
from itertools import islice

from scripts.benchmarks.owned import own_texts
from scripts.benchmarks.runs import BenchError, Site, run_child, run_module
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, write_texts

TARGET_US = 12.0
DIMENSIONS = 1024
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of rows of the manifest, and of rows whose vector is in the store."""

    rows: int
    known: int


SIZES = {Size.FULL: Sizes(1_000_000, 500_000), Size.QUICK: Sizes(100_000, 50_000), Size.TINY: Sizes(1_000, 500)}


def measure(bench: Bench) -> list[Figure]:
    """Time to plan 1,000,000 rows with 500,000 of them in the store: Plan on one core, and the whole `arkbeam plan`."""
    sizes = SIZES[bench.size]
    site = Site(bench.folder)
    site.write_config("emulator", model={"dimensions": DIMENSIONS})
    write_texts(site.manifest, make_texts(sizes.rows))
    arguments = [str(site.config), str(sizes.rows), str(sizes.known)]
    _, said = run_module("planning_child", arguments, bench.folder, **_ONE_THREAD)
    bench.say(f"{sizes.rows:,} rows on one core: {said['join']['wall_s']:.1f} s, Beam {said['beam']['wall_s']:.1f} s")
    own_texts(site, islice(make_texts(sizes.rows), sizes.known), DIMENSIONS)
    bench.say(f"store of {sizes.known:,} vectors written")
    return [
        _figure("the join", said["join"], sizes, "split into buckets and plan_bucket, on one core"),
        _figure("through Beam", said["beam"], sizes, "PlanBuckets on the in-process runner, on one core"),
        _command_figure(bench, site, sizes, "arkbeam plan, no index"),
        _command_figure(bench, site, sizes, "arkbeam plan"),
    ]


def _figure(name: str, took: dict[str, float], sizes: Sizes, what: str) -> Figure:
    wall_us = took["wall_s"] * 1e6 / sizes.rows
    details = f"{what}; {took['cpu_s'] * 1e6 / sizes.rows:.1f} µs of CPU, {took['wall_s']:.1f} s in total"
    return Figure("plan", name, f"{wall_us:.1f} µs/row", f"≤ {TARGET_US:.0f} µs", at_most(wall_us, TARGET_US), details)


def _command_figure(bench: Bench, site: Site, sizes: Sizes, name: str) -> Figure:
    """Run `arkbeam plan`, and check that it counts the rows in the store."""
    ended = run_child(site.command("plan"), bench.folder)
    lines = dict(_read_table(ended.stdout))
    if (lines.get("owned"), lines.get("to send")) != (
        f"{sizes.known:,} rows have their vector in the store",
        f"{sizes.rows - sizes.known:,} requests",
    ):
        raise BenchError(f"arkbeam plan has other counts than the bench: {lines}")
    bench.say(f"{name}: {ended.wall_s:.1f} s")
    return Figure(
        "plan",
        name,
        f"{ended.wall_s * 1e6 / sizes.rows:.1f} µs/row",
        details=f"with reading {sizes.rows:,} lines of JSONL and {sizes.known:,} fingerprints in the store: "
        f"{ended.wall_s:.1f} s, {ended.cpu_s:.1f} s of CPU, {ended.peak_bytes / 1e6:,.0f} MB",
    )


def _read_table(text: str) -> list[tuple[str, str]]:
    """Read the two columns of a table drawn with box characters."""
    rows = (line.strip("│┃| ").split("│") for line in text.splitlines() if line.count("│") == 3)
    return [(cells[0].strip(), cells[1].strip()) for cells in rows]
