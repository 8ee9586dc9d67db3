"""What a store costs that owns all rows: calls and seconds to plan, to run and to compact, and the size of the index.

The store is on the S3 stand-in with 20 ms a call, and is written by the store's own code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from scripts.benchmarks.media import BUCKET, credentials
from scripts.benchmarks.runs import BenchError, Site, run_child, run_module
from scripts.benchmarks.s3_stand_in import read_calls, start_stand_in
from scripts.benchmarks.table import Bench, Figure, Size
from scripts.benchmarks.texts import make_texts, write_texts
from scripts.children import arkbeam_command

DIMENSIONS = 1024
LATENCY_MS = 20.0
_STORE = f"s3://{BUCKET}/store"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows owned, each by one run; the same for compaction; number of runs and rows of each; entries of a large index."""

    owned: tuple[int, ...]
    compacted: tuple[int, ...]
    runs: int
    run_rows: int
    entries: int


SIZES = {
    Size.FULL: Sizes((25_000, 250_000), (250_000, 1_000_000), 1_000, 1_000, 10_000_000),
    Size.QUICK: Sizes((25_000,), (25_000,), 100, 1_000, 1_000_000),
    Size.TINY: Sizes((600,), (600,), 3, 100, 3_000),
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
    site.write_config(
        "emulator", model={"dimensions": DIMENSIONS}, store={"uri": _STORE, "compact": "off"}, output=output
    )
    write_texts(site.manifest, islice(make_texts(rows), rows))
    return site


def _fill(bench: Bench, site: Site, rows: int, runs: int, index: str) -> dict[str, int]:
    """Write the vectors of so many runs, with an index file for each run (`each`) or without (`none`)."""
    with start_stand_in(site.folder / "s3") as endpoint:
        arguments = ["fill", _STORE, str(rows), str(runs), index]
        _, said = run_module("store_child", arguments, site.folder, **credentials(endpoint))
    bench.say(f"{rows * runs:,} vectors written in {said['segments']:,} segments")
    return dict(said)


def measure_compacted(bench: Bench) -> list[Figure]:
    """Calls and seconds of a plan, of a run with nothing to buy, and of `arkbeam store compact`.

    The S3 store owns 250,000 and 1,000,000 rows; plan and run are measured before and after compaction.
    """
    figures = []
    for rows in SIZES[bench.size].compacted:
        site = _make_site(bench, f"compacted-{rows}", rows)
        _fill(bench, site, rows, 1, "each")
        compact = arkbeam_command("store", "compact", _STORE, "--grace-h", "0")
        owned = f"{rows:,} rows have their vector in the store"
        had = f"{rows:,} rows had their vector in the store"
        with start_stand_in(site.folder / "s3", LATENCY_MS) as endpoint:
            calls = _Calls(endpoint)
            for name in ("before compaction", "after compaction"):
                figures.append(_call(bench, site, calls, f"plan, {rows:,} owned, {name}", site.command("plan"), owned))
                figures.append(_call(bench, site, calls, f"run, {rows:,} owned, {name}", site.command("run"), had))
                if name.startswith("before"):
                    for step in ("gather", "remove what was replaced"):
                        figures.append(
                            _call(bench, site, calls, f"compact, {rows:,} owned: {step}", compact, "replaced")
                        )
    return figures


def _plan(bench: Bench, site: Site, rows: int, names: tuple[str, ...]) -> list[Figure]:
    """Run `arkbeam plan` once for each name; check that everything is owned."""
    owned = f"{rows:,} rows have their vector in the store"
    with start_stand_in(site.folder / "s3", LATENCY_MS) as endpoint:
        calls = _Calls(endpoint)
        return [
            _call(bench, site, calls, f"plan, {rows:,} owned, {name}", site.command("plan"), owned) for name in names
        ]


class _Calls:
    """Counts the calls that a stand-in answers between two takes."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._before: dict[str, int] = {}

    def take(self) -> dict[str, int]:
        """Return the calls by kind since the last take, with the uploaded bytes as `bytes`."""
        calls = read_calls(self.endpoint)
        made = {kind: calls[kind] - self._before.get(kind, 0) for kind in sorted(calls)}
        self._before = calls
        return made


def _call(bench: Bench, site: Site, calls: _Calls, name: str, command: Sequence[str], expected: str) -> Figure:
    """Run a command, and count its calls. Raise BenchError if it does not print what is expected."""
    ended = run_child(command, site.folder, **credentials(calls.endpoint))
    if expected not in ended.stdout:
        raise BenchError(f"{name}: the command did not print {expected!r}: {ended.stdout}")
    made = calls.take()
    uploaded = made.pop("bytes", 0)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in made.items() if count)
    bench.say(f"{name}: {ended.wall_s:.1f} s, {listed}")
    details = f"calls: {listed}; {uploaded / 1e6:,.1f} MB uploaded; {ended.cpu_s:.1f} s of CPU, {ended.peak_bytes / 1e6:,.0f} MB"
    return Figure("store", name, f"{sum(made.values()):,} calls, {ended.wall_s:.1f} s", details=details)
