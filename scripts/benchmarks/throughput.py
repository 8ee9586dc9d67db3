"""Items a second at zero latency: `arkbeam run` compared with a loop that only sends and decodes.

Each side runs two sizes, and the figures are for the difference, so that the start-up and the first part file do not
count. The sides take turns in each round, so that other load on the machine affects all of them alike. The figures are
medians over the rounds.
"""

from dataclasses import dataclass
from statistics import median

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.runs import BenchError, Site, read_emulator_cpu_s, run_module
from scripts.benchmarks.table import Bench, Figure, Size, at_least
from scripts.benchmarks.texts import make_texts, write_texts

WORKERS = 64
TARGET = 0.6
GOAL = 0.8
KINDS = ("arkbeam", "httpx", "ark")  # a run; the bare loop with httpx; the bare loop with this project's client


@dataclass(frozen=True, slots=True)
class Sizes:
    """Texts of the two runs, and the number of rounds."""

    low: int
    high: int
    rounds: int


SIZES = {Size.FULL: Sizes(10_000, 60_000, 3), Size.QUICK: Sizes(1_000, 5_000, 1), Size.TINY: Sizes(20, 60, 1)}


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of one run: wall time, CPU of its process, CPU of the emulator (which can be the bottleneck)."""

    wall_s: float
    cpu_s: float
    emulator_s: float


@dataclass(frozen=True, slots=True)
class Rate:
    """Figures of one round: items a second; CPU time an item, of the run and of the emulator."""

    per_s: float
    cpu_ms: float
    emulator_ms: float


def measure(bench: Bench) -> list[Figure]:
    """Items a second of a run of texts at zero latency, over those of a loop that only sends and decodes."""
    sizes = SIZES[bench.size]
    rounds: dict[str, list[Rate]] = {kind: [] for kind in KINDS}
    with start_emulator(EmulatorOptions()) as url:
        for number in range(sizes.rounds):
            low = {kind: _take(bench, kind, url, sizes.low, number) for kind in KINDS}
            high = {kind: _take(bench, kind, url, sizes.high, number) for kind in KINDS}
            for kind in KINDS:
                rounds[kind].append(_difference(low[kind], high[kind], sizes.high - sizes.low))
    rates = {kind: median(rate.per_s for rate in rounds[kind]) for kind in KINDS}
    figures = [
        Figure("throughput", f"{kind} items/s", f"{rates[kind]:,.0f}", details=_describe(rounds[kind]))
        for kind in KINDS
    ]
    for kind, name, target in (("httpx", "over httpx alone", TARGET), ("ark", "over our client alone", None)):
        pairs = zip(rounds["arkbeam"], rounds[kind], strict=True)
        ratios = [ours.per_s / bare.per_s for ours, bare in pairs]
        ratio = median(ratios)
        details = "by round: " + ", ".join(f"{one:.2f}" for one in ratios)
        met = None if target is None else at_least(ratio, target)
        words = "" if target is None else f"≥ {target} (goal {GOAL})"
        figures.append(Figure("throughput", name, f"{ratio:.2f}", words, met, details))
    return figures


def _take(bench: Bench, kind: str, url: str, count: int, number: int) -> Took:
    """Run one side once, with an empty store."""
    before_s = read_emulator_cpu_s()
    if kind == "arkbeam":
        wall_s, cpu_s = _run_pipeline(Site(bench.folder / f"{number}-{count}"), url, count)
    else:
        ended, said = run_module("bare", [kind, url, str(count), str(WORKERS)], bench.folder)
        wall_s, cpu_s = said["seconds"], ended.cpu_s
    bench.say(f"round {number + 1}, {kind}, {count:,} texts: {wall_s:.1f} s")
    return Took(wall_s, cpu_s, read_emulator_cpu_s() - before_s)


def _run_pipeline(site: Site, url: str, count: int) -> tuple[float, float]:
    site.write_config(url, limits={"requests_in_flight": WORKERS})
    write_texts(site.manifest, make_texts(count))
    ended = site.run()
    paid = site.note()["requests_paid"]
    if paid != count:
        raise BenchError(f"the run paid for {paid} requests instead of {count}")
    return ended.wall_s, ended.cpu_s


def _difference(low: Took, high: Took, items: int) -> Rate:
    """Subtract the smaller run from the larger one; NaN if they are too small to differ."""
    wall_s, cpu_s, emulator_s = (getattr(high, name) - getattr(low, name) for name in ("wall_s", "cpu_s", "emulator_s"))
    return Rate(items / wall_s if wall_s > 0 else float("nan"), cpu_s * 1000 / items, emulator_s * 1000 / items)


def _describe(rounds: list[Rate]) -> str:
    each = ", ".join(f"{rate.per_s:,.0f}" for rate in rounds)
    cpu_ms, emulator_ms = (median(getattr(rate, name) for rate in rounds) for name in ("cpu_ms", "emulator_ms"))
    return f"by round: {each}; CPU an item {cpu_ms:.2f} ms, and {emulator_ms:.2f} ms of the emulator's"
