"""The time that faults cost: the same rows with 22 % faulty replies and without."""

from dataclasses import dataclass

from arkbeam.emulator.options import EmulatorOptions, FaultShares
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.runs import Site, read_stats
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, write_texts

ROWS = {Size.FULL: 20_000, Size.QUICK: 2_000, Size.TINY: 200}
SHARES = FaultShares(
    rate_429=0.01,
    overload_429=0.09,
    error_500=0.05,
    reset=0.03,
    hang=0.01,
    truncated=0.01,
    wrong_length=0.01,
    nan=0.01,
)
LATENCY_MS = 100.0
IN_FLIGHT = 64
TIMEOUT_S = 2.0
TARGET = 1.5


@dataclass(frozen=True, slots=True)
class _Run:
    wall_s: float
    received: int
    published: int
    failed: int


def measure(bench: Bench) -> list[Figure]:
    """Time of 20,000 rows with 22 % faulty replies, over the time that additional requests and time-outs explain."""
    rows = ROWS[bench.size]
    clean, faulty = _run(bench, "clean", FaultShares()), _run(bench, "faulty", SHARES)
    hangs_s = faulty.received * SHARES.hang * TIMEOUT_S / IN_FLIGHT
    explained_s = clean.wall_s * faulty.received / clean.received + hangs_s
    ratio = faulty.wall_s / explained_s
    return [
        Figure(
            "faults",
            "time over what the faults explain",
            f"{ratio:.2f}",
            f"≤ {TARGET}",
            at_most(ratio, TARGET),
            f"{rows:,} rows: {clean.wall_s:.1f} s and {clean.received:,} requests without faults, "
            f"{faulty.wall_s:.1f} s and {faulty.received:,} with; {hangs_s:.1f} s for replies that never came; "
            f"{faulty.published:,} published, {faulty.failed} failed",
        )
    ]


def _run(bench: Bench, name: str, shares: FaultShares) -> _Run:
    rows = ROWS[bench.size]
    site = Site(bench.folder / name)
    with start_emulator(EmulatorOptions(latency_ms=LATENCY_MS, faults=shares, seed=5)) as url:
        limits = {"requests_in_flight": IN_FLIGHT, "failures_allowed": "1%"}
        site.write_config(url, limits=limits, api={"base_url": url, "timeout_text_s": TIMEOUT_S})
        write_texts(site.manifest, make_texts(rows))
        ended = site.run()
        received = int(read_stats(url)["received"])
    note = site.note()
    bench.say(f"{name}: {ended.wall_s:.1f} s, {received:,} requests, {note['published']:,} published")
    return _Run(ended.wall_s, received, note["published"], note["failed"])
