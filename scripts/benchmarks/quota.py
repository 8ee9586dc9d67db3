"""The used share of the quota and the share of refused requests, as counted by the server.

A run of as many rows as the quota allows in a minute is never refused, because one sliding minute holds all of them. So
a second run, with half as many new rows, starts at once: the requests of the first run still fill the minute.

Measures that last several minutes use the server's counts by second, from the second minute on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.parts import TextPart, count_parts
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.runs import UNLIMITED_RPM, UNLIMITED_TPM, Ended, Site, read_stats
from scripts.benchmarks.table import Bench, Figure, Size, at_least, at_most
from scripts.benchmarks.texts import make_mixed_texts, make_spread_texts, make_texts, write_texts

RPM = 600
HEADROOM = 0.98
LATENCY_MS = 200.0
TARGET_SHARE = 0.94
ROWS = {Size.FULL: 600, Size.QUICK: 60, Size.TINY: 12}

# For measures that last several minutes.
MINUTES = {Size.FULL: 3.0, Size.QUICK: 1.0, Size.TINY: 0.1}
LONG_HEADROOM = 0.995
FAST_RPM = {Size.FULL: 15_000, Size.QUICK: 15_000, Size.TINY: 3_000}


@dataclass(frozen=True, slots=True)
class _Scenario:
    """A quota for a run of some minutes, and its targets. `rpm` is the binding limit if it is set, otherwise `tpm`.

    `target`: least used share of the limit. `refused_max`: largest share of refused requests.
    """

    name: str
    rpm: int | None
    tpm: int | None
    latency_ms: float
    target: float
    refused_max: float
    refusals_count: bool = True


@dataclass(frozen=True, slots=True)
class _Spent:
    """What the server counted; `minutes` is the time from its first paid request to its last."""

    requests: int
    tokens: int
    minutes: float
    refused: int

    @classmethod
    def of(cls, stats: dict[str, Any]) -> "_Spent":
        minutes = (stats["last_paid_s"] - stats["first_paid_s"]) / 60
        return cls(stats["paid"], stats["tokens"]["total"], minutes, stats["refused"])

    def share(self, amount: int, per_minute: int) -> float:
        """Return the used share of a quota. n requests have n - 1 gaps between them, so the last one does not count."""
        return amount * (1 - 1 / self.requests) / self.minutes / per_minute


def measure_requests(bench: Bench) -> list[Figure]:
    """Used share of 600 requests a minute at 200 ms latency, and the number of refused requests."""
    texts = list(make_texts(ROWS[bench.size] * 3 // 2))
    return _measure(bench, "quota_rpm", texts, rpm=RPM, tpm=None)


def measure_tokens(bench: Bench) -> list[Figure]:
    """Used share of a quota of tokens at 200 ms latency, and the number of refused requests. Rows have 2 to 120 words."""
    rows = ROWS[bench.size]
    texts = list(make_mixed_texts(rows * 3 // 2))
    tokens = sum(count_parts([TextPart(text)], None).total_tokens or 0 for text in texts[:rows])
    return _measure(bench, "quota_tpm", texts, rpm=None, tpm=tokens * RPM // rows)


def _measure(bench: Bench, name: str, texts: Sequence[str], *, rpm: int | None, tpm: int | None) -> list[Figure]:
    rows = ROWS[bench.size]
    quota = {"rpm": rpm or UNLIMITED_RPM, "tpm": tpm or UNLIMITED_TPM, "headroom": HEADROOM}
    site = Site(bench.folder / name)
    emulator = EmulatorOptions(rpm=rpm, tpm=tpm, refusals_count=True, latency_ms=LATENCY_MS)
    with start_emulator(emulator) as url:
        site.write_config(url, quota=quota)
        write_texts(site.manifest, texts[:rows])
        site.run()
        spent, note = _Spent.of(read_stats(url)), site.note()
        bench.say(f"{rows} rows: {spent.minutes * 60:.1f} s from the first paid request to the last")
        write_texts(site.manifest, texts)
        site.run()
        after = read_stats(url)
        bench.say(f"{len(texts) - rows} more right after: {after['refused']} refused")
    share = spent.share(spent.requests, rpm) if rpm else spent.share(spent.tokens, tpm or 1)
    said = note["quota"]
    refused = (
        f"{spent.refused} in the first run; {after['refused'] - spent.refused} in one of {len(texts) - rows} more rows"
    )
    return [
        Figure(
            name,
            f"used share of {'rpm' if rpm else 'tpm'} {rpm or tpm:,}",
            f"{share:.1%}",
            f"≥ {TARGET_SHARE:.0%}",
            at_least(share, TARGET_SHARE),
            f"at the server; run.json says {said['utilisation']:.1%} of {said['binding']}; "
            f"{rows} rows, {spent.tokens:,} tokens in {spent.minutes * 60:.1f} s, headroom {HEADROOM}",
        ),
        Figure(name, "refused", f"{after['refused']}", "0", at_most(after["refused"], 0), f"{refused} right after"),
    ]


def measure_sliding(bench: Bench) -> list[Figure]:
    """Used share of 600 RPM over three sliding minutes, from the second on. Refused requests count as well."""
    rows = round(RPM * MINUTES[bench.size]) + 12
    scenario = _Scenario("quota_sliding", RPM, None, LATENCY_MS, 0.95, 0.0)
    return _measure_minutes(bench, scenario, list(make_texts(rows)))[0]


def measure_spread(bench: Bench) -> list[Figure]:
    """Used share of a quota of tokens over three sliding minutes, with texts of 4 to 1,600 words."""
    texts = list(make_spread_texts(round(RPM * MINUTES[bench.size]) + 12))
    tokens = sum(count_parts([TextPart(text)], None).total_tokens or 0 for text in texts)
    scenario = _Scenario("quota_spread", None, tokens * RPM // len(texts), LATENCY_MS, 0.95, 0.005)
    return _measure_minutes(bench, scenario, texts)[0]


def measure_fast(bench: Bench) -> list[Figure]:
    """Used share of 15,000 RPM over three minutes in one process, from the second on; and its CPU time."""
    rpm = FAST_RPM[bench.size]
    rows = round(rpm * MINUTES[bench.size]) + 12
    figures, ended = _measure_minutes(
        bench, _Scenario("quota_fast", rpm, None, 300.0, 0.97, 0.005), list(make_texts(rows))
    )
    cores = ended.cpu_s / ended.wall_s
    details = f"{ended.cpu_s:.1f} s of CPU in {ended.wall_s:.1f} s, start and publishing included"
    return [*figures, Figure("quota_fast", "of a core", f"{cores:.1%}", "≤ 35%", at_most(cores, 0.35), details)]


def _measure_minutes(bench: Bench, scenario: _Scenario, texts: Sequence[str]) -> tuple[list[Figure], Ended]:
    quota = {
        "rpm": scenario.rpm or UNLIMITED_RPM,
        "tpm": scenario.tpm or UNLIMITED_TPM,
        "headroom": LONG_HEADROOM,
    }
    site = Site(bench.folder / scenario.name)
    emulator = EmulatorOptions(
        rpm=scenario.rpm, tpm=scenario.tpm, refusals_count=scenario.refusals_count, latency_ms=scenario.latency_ms
    )
    write_texts(site.manifest, texts)
    with start_emulator(emulator) as url:
        site.write_config(url, quota=quota, limits={"requests_in_flight": 256})
        ended = site.run()
        stats = read_stats(url)
    bench.say(f"{len(texts):,} rows in {ended.wall_s:.0f} s")
    unit, limit = ("paid", scenario.rpm) if scenario.rpm else ("tokens", scenario.tpm or 1)
    share, seconds = find_share(stats["requests_by_second"], unit, limit)
    refused = stats["refused"] / stats["received"]
    words = f"over {seconds} s at the server, headroom {LONG_HEADROOM}; at most {stats['in_flight_max']} in flight"
    target = f"≥ {scenario.target:.0%}"
    return [
        Figure(
            scenario.name,
            f"used share of {'rpm' if scenario.rpm else 'tpm'} {limit:,}, minutes 2 on",
            f"{share:.1%}",
            target,
            at_least(share, scenario.target),
            words,
        ),
        Figure(
            scenario.name,
            "refused share",
            f"{refused:.2%}",
            f"≤ {scenario.refused_max:.1%}",
            at_most(refused, scenario.refused_max),
            f"{stats['refused']:,} of {stats['received']:,}",
        ),
    ], ended


def find_share(by_second: Sequence[Mapping[str, int]], unit: str, limit: int) -> tuple[float, int]:
    """Return the used share of a limit per minute, and the number of whole seconds over which it was measured.

    The measured time starts one minute after the first request, or after a third of the time if that is shorter. It
    ends before the last second. The share is NaN if nothing can be measured.
    """
    counted = {second["second"]: second[unit] for second in by_second}
    if not counted:
        return float("nan"), 0
    first, last = min(counted), max(counted)
    start = first + min(60, (last - first) // 3)
    seconds = last - start
    used = sum(amount for at, amount in counted.items() if start <= at < last)
    return (used / limit / (seconds / 60) if seconds else float("nan")), seconds
