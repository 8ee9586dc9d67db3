"""What a run costs that has nothing to buy: calls and seconds to plan on a store that owns all rows.

The store is on the S3 stand-in with 20 ms a call, and is written by the store's own code.
"""

from dataclasses import dataclass
from itertools import islice

from scripts.benchmarks.media import BUCKET, credentials
from scripts.benchmarks.runs import BenchError, Site, run_child, run_module
from scripts.benchmarks.s3_stand_in import read_calls, start_stand_in
from scripts.benchmarks.table import Bench, Figure, Size
from scripts.benchmarks.texts import make_texts, write_texts

DIMENSIONS = 1024
LATENCY_MS = 20.0
_STORE = f"s3://{BUCKET}/store"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows owned, each by one run; number of runs and rows of each; entries of a large index."""

    owned: tuple[int, ...]
    runs: int
    run_rows: int
    entries: int


SIZES = {
    Size.FULL: Sizes((25_000, 250_000), 1_000, 1_000, 10_000_000),
    Size.QUICK: Sizes((25_000,), 100, 1_000, 1_000_000),
    Size.TINY: Sizes((600,), 3, 100, 3_000),
}


def measure_owned(bench: Bench) -> list[Figure]:
    """Calls and seconds of `arkbeam plan` on an S3 store that owns 25,000 and 250,000 rows, without and with an index."""
    figures = []
    for rows in SIZES[bench.size].owned:
        site = _make_site(bench, f"owned-{rows}", rows)
        _fill(bench, site, rows, 1, "none")
        figures += _plan(bench, site, rows, ("no index", "index"))
    return figures


def measure_runs(bench: Bench) -> list[Figure]:
    """Index files, calls and seconds of `arkbeam plan` after 1,000 runs of 1,000 rows each on an S3 store."""
    sizes = SIZES[bench.size]
    rows = sizes.runs * sizes.run_rows
    site = _make_site(bench, "runs", rows)
    said = _fill(bench, site, sizes.run_rows, sizes.runs, "each")
    bench.say(f"{sizes.runs:,} runs written: {said['files']} index files")
    return _plan(bench, site, rows, (f"after {sizes.runs:,} runs, {said['files']} index files",))


def measure_index(bench: Bench) -> list[Figure]:
    """Seconds and memory to merge, open and search an index of 10,000,000 entries, in process."""
    entries = SIZES[bench.size].entries
    store = str(bench.folder / "store")
    run_module("store_child", ["make", store, str(entries)], bench.folder)
    ended, said = run_module("store_child", ["index", store], bench.folder)
    figures = [
        Figure(
            "store_index",
            f"{entries:,} entries: {name}",
            f"{took['wall_s']:.2f} s",
            details=f"{took['cpu_s']:.2f} s of CPU, {took['more_bytes'] / 1e6:,.0f} MB more than before; {took['what']}",
        )
        for name, took in said["steps"].items()
    ]
    bench.say(
        f"{entries:,} entries: {said['bytes'] / entries:.1f} bytes an entry, peak {ended.peak_bytes / 1e6:,.0f} MB"
    )
    size = f"{said['bytes'] / entries:.1f}"
    return [
        *figures,
        Figure("store_index", "bytes an entry", size, details=f"{said['bytes'] / 1e6:,.0f} MB in one file"),
    ]


def _make_site(bench: Bench, name: str, rows: int) -> Site:
    site = Site(bench.folder / name)
    (site.folder / "s3" / BUCKET).mkdir(parents=True)
    output = {"uri": f"s3://{BUCKET}/out"}
    site.write_config("emulator", model={"dimensions": DIMENSIONS}, store={"uri": _STORE}, output=output)
    write_texts(site.manifest, islice(make_texts(rows), rows))
    return site


def _fill(bench: Bench, site: Site, rows: int, runs: int, index: str) -> dict[str, int]:
    """Write the vectors of so many runs, with an index file for each run (`each`) or without (`none`)."""
    with start_stand_in(site.folder / "s3") as endpoint:
        arguments = ["fill", _STORE, str(rows), str(runs), index]
        _, said = run_module("store_child", arguments, site.folder, **credentials(endpoint))
    bench.say(f"{rows * runs:,} vectors written in {said['segments']:,} segments")
    return dict(said)


def _plan(bench: Bench, site: Site, rows: int, names: tuple[str, ...]) -> list[Figure]:
    """Run `arkbeam plan` once for each name; check that everything is owned."""
    figures = []
    with start_stand_in(site.folder / "s3", LATENCY_MS) as endpoint:
        before: dict[str, int] = {}
        for name in names:
            ended = run_child(site.command("plan"), site.folder, **credentials(endpoint))
            if f"{rows:,} rows have their vector in the store" not in ended.stdout:
                raise BenchError(f"the plan does not own {rows:,} rows: {ended.stdout}")
            calls = read_calls(endpoint)
            kinds = [kind for kind in sorted(calls) if kind != "bytes"]
            made = {kind: calls[kind] - before.get(kind, 0) for kind in kinds}
            before = calls
            listed = ", ".join(f"{count:,} {kind}" for kind, count in made.items() if count)
            bench.say(f"{rows:,} rows, {name}: {ended.wall_s:.1f} s, {listed}")
            details = f"calls: {listed}; {ended.cpu_s:.1f} s of CPU, {ended.peak_bytes / 1e6:,.0f} MB"
            measured = f"{sum(made.values()):,} calls, {ended.wall_s:.1f} s"
            figures.append(Figure("store", f"plan, {rows:,} owned, {name}", measured, details=details))
    return figures
