"""What faults cost: the time of 22 % faulty replies, and the rows that fail with and without the second pass."""

import secrets
from collections.abc import Mapping
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

PASSING = FaultShares(error_500=0.05, reset=0.03)
OFTEN = FaultShares(error_500=0.2)
PASSING_ROWS = {Size.FULL: 5_000, Size.QUICK: 1_000, Size.TINY: 100}
OFTEN_ROWS = {Size.FULL: 400, Size.QUICK: 400, Size.TINY: 100}
SECOND_PASS_S = {Size.FULL: 30.0, Size.QUICK: 2.0, Size.TINY: 0.5}
POISON = "poison"


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


def measure_second_pass(bench: Bench) -> list[Figure]:
    """Rows that fail at 5 % status 500 and 3 % lost connections, and at 20 % status 500, besides one that is rejected."""
    passing = _count_failed(bench, "5 % 500, 3 % lost", PASSING_ROWS[bench.size], PASSING)
    return [passing, _count_failed(bench, "20 % 500", OFTEN_ROWS[bench.size], OFTEN)]


def _count_failed(bench: Bench, name: str, rows: int, shares: FaultShares) -> Figure:
    """Return the rows that fail by default; the details have those without a second pass, and with two tries for a 500."""
    seconds = SECOND_PASS_S[bench.size]
    failed, alone, few, few_alone = (
        _fail_rows(bench, rows, shares, {"second_pass_s": pass_s, **tries})
        for tries in ({}, {"attempts_500": 2})
        for pass_s in (seconds, 0.0)
    )
    details = (
        f"of {rows:,} rows and one that is rejected; {alone} without the second pass; with two tries for a 500 "
        f"{few} with the second pass and {few_alone} without it"
    )
    return Figure("second_pass", f"rows failed, {name}", f"{failed}", "≤ 1", at_most(failed, 1), details)


def _fail_rows(bench: Bench, rows: int, shares: FaultShares, limits: Mapping[str, object]) -> int:
    """Run a job on a new store; return the number of rows that failed."""
    site = Site(bench.folder / secrets.token_hex(4))
    with start_emulator(EmulatorOptions(faults=shares, poison=POISON, seed=5)) as url:
        site.write_config(url, limits={"requests_in_flight": IN_FLIGHT, "failures_allowed": "100%", **limits})
        write_texts(site.manifest, [POISON, *make_texts(rows)])
        site.run()
    note = site.note()
    bench.say(f"{dict(limits)}: {note['failed']} failed, second pass {note['second_pass']}, {note['lost']} lost")
    return int(note["failed"])


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
