"""Kill a run with SIGKILL half-way and repeat the command: count what is paid twice, check the output and `usage/`."""

import time
from dataclasses import dataclass

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.outputs import Checked, check_vectors, sum_usage
from scripts.benchmarks.runs import BenchError, Site, read_stats, start_child, tail
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, write_texts

IN_FLIGHT = 32
FLUSH_ROWS = 64
LATENCY_MS = 100.0
_POLL_S = 0.005
_DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of rows of a run, and of runs that are killed."""

    rows: int
    times: int


SIZES = {Size.FULL: Sizes(2_000, 3), Size.QUICK: Sizes(600, 1), Size.TINY: Sizes(160, 1)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that was killed and repeated: counts of the server and of `usage/`, and the check of the output."""

    paid_at_kill: int
    paid: int
    paid_twice: int
    tokens: int
    usage_requests: int
    usage_tokens: int
    checked: Checked

    @property
    def usage_is_bill(self) -> bool:
        """True if the sums of `usage/` are what the server billed."""
        return (self.usage_requests, self.usage_tokens) == (self.paid, self.tokens)


def measure(bench: Bench) -> list[Figure]:
    """Kill a run of 2,000 rows half-way, repeat it, and compare the output and `usage/` with the server's bill."""
    sizes = SIZES[bench.size]
    points = _kill_points(sizes.rows)[: sizes.times]
    outcomes = [_kill_once(bench, sizes.rows, point) for point in points]
    twice = max(one.paid_twice for one in outcomes)
    right = all(one.checked.is_right for one in outcomes)
    bills = [f"{one.usage_requests:,}/{one.paid:,} and {one.usage_tokens:,}/{one.tokens:,}" for one in outcomes]
    each = ", ".join(f"{one.paid_twice} (killed at {one.paid_at_kill:,} paid)" for one in outcomes)
    faults = [sum(getattr(one.checked, name) for one in outcomes) for name in ("wrong", "missing", "repeated")]
    equal = sum(one.usage_is_bill for one in outcomes)
    return [
        Figure(
            "kill", "paid twice, the worst", f"{twice}", f"≤ {IN_FLIGHT}", at_most(twice, IN_FLIGHT), f"each: {each}"
        ),
        Figure(
            "kill",
            "output",
            "complete" if right else "wrong",
            "complete, right",
            right,
            f"{sizes.times} times {sizes.rows:,} rows: {faults[0]} wrong, {faults[1]} missing, {faults[2]} repeated",
        ),
        Figure(
            "kill",
            "usage/ equals the bill",
            f"{equal} of {sizes.times}",
            "always",
            equal == sizes.times,
            f"usage/server, requests and tokens: {'; '.join(bills)}",
        ),
    ]


def _kill_points(rows: int) -> list[int]:
    """Return the numbers of paid requests after which a run is killed: half of all; a few more; the worst moment.

    At the worst moment, the results that are held have just been written or are being written, and most of the next
    requests are in flight.
    """
    half = rows // 2
    written = -(-half // FLUSH_ROWS) * FLUSH_ROWS
    return [half, half + FLUSH_ROWS // 3, written + IN_FLIGHT - 8]


def _kill_once(bench: Bench, rows: int, point: int) -> Outcome:
    site = Site(bench.folder / str(point))
    texts = list(make_texts(rows, seed=point))
    with start_emulator(EmulatorOptions(latency_ms=LATENCY_MS)) as url:
        site.write_config(
            url, limits={"requests_in_flight": IN_FLIGHT}, store={"uri": str(site.store), "flush_rows": FLUSH_ROWS}
        )
        write_texts(site.manifest, texts)
        paid_at_kill = _run_and_kill(site, url, point)
        site.run()
        stats = read_stats(url)
    requests, tokens = sum_usage(site.output)
    outcome = Outcome(
        paid_at_kill,
        stats["paid"],
        stats["paid"] - stats["paid_distinct"],
        stats["tokens"]["total"],
        requests,
        tokens,
        check_vectors(site.output, texts),
    )
    said = site.note()["all_runs"]["paid_twice"]
    bench.say(f"killed at {paid_at_kill:,} paid; paid twice: {outcome.paid_twice}, run.json says {said}")
    return outcome


def _run_and_kill(site: Site, url: str, paid_min: int) -> int:
    """Start a run and kill it once the server counts `paid_min` paid requests; return the count at that time."""
    said = site.folder / "said.txt"
    with said.open("wb") as output:
        process = start_child(site.command(), site.folder, output.fileno(), output.fileno())
    deadline_s = time.monotonic() + _DEADLINE_S
    try:
        while time.monotonic() < deadline_s and process.poll() is None:
            paid = int(read_stats(url)["paid"])
            if paid >= paid_min:
                return paid
            time.sleep(_POLL_S)
    finally:
        process.kill()
        process.wait()
    raise BenchError(f"the run ended with {process.returncode} before it could be killed: {tail(said.read_text())}")
