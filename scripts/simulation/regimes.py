"""The regimes: a model of the service, models of the workers, and what is asked of each."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random

from arkbeam.emulator.options import QuotaWindow
from arkbeam.quota.control import InFlight
from arkbeam.quota.pacer import Pacer

from scripts.simulation.clock import Clock
from scripts.simulation.service import Service, ServiceOptions
from scripts.simulation.worker import Fate, Item, Marks, Worker

HEADROOM = 0.995
RPM = 600
NO_LIMIT = 10**9
IN_FLIGHT_MAX = 256
MEAN_TOKENS = 990 / math.log(100)  # of sizes spread evenly over the logarithms from 10 to 1,000
TPM = round(RPM * MEAN_TOKENS)


@dataclass(frozen=True, slots=True)
class Regime:
    """`rpm` and `tpm` are the config's. `limit` is what utilisation is a share of: by default the service's own limit.

    `asked` is the least utilisation from the second minute on, `refused_max` the largest share of refusals, `above_max` by how
    many requests a 60 s may hold more than the quota.
    """

    title: str
    service: ServiceOptions = field(default_factory=ServiceOptions)
    rpm: int = RPM
    tpm: int = NO_LIMIT
    headroom: float = HEADROOM
    limit: float | None = None
    fates: tuple[Fate, ...] = field(default=(Fate(),))
    leases: bool = False
    marks: Marks = field(default_factory=Marks)
    rows: int | None = None
    """A worker's; None: more than it can send."""
    minutes: float = 6.0
    starts_s: float = 0.0
    """Where in a calendar minute the run begins."""
    asked: float | None = None
    refused_max: float | None = None
    above_max: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a regime came to. `most` is the most of the binding limit in any 60 s, as a share of it."""

    utilisation: float
    refused: float
    most: float
    found_rpm: int | None
    found_tpm: int | None
    in_flight_most: int
    failed: int

    def meets(self, regime: Regime) -> bool:
        """Whether it is what was asked."""
        return (
            self.utilisation >= (regime.asked or 0)
            and self.refused <= (1.0 if regime.refused_max is None else regime.refused_max)
            and self.most <= (math.inf if regime.above_max is None else 1 + regime.above_max / RPM)
        )


def simulate(regime: Regime, seed: int = 0) -> Outcome:
    """Run a regime. Equal seeds give equal outcomes."""
    random = Random(seed)
    clock = Clock(regime.starts_s)
    service = Service(regime.service, Random(random.random()))
    shared = None if regime.leases else _make_pacer(regime, clock.now_s)
    marks = replace(regime.marks, tokens={}) if regime.leases else None
    workers: list[Worker] = []

    def start(number: int, fate: Fate) -> None:
        pacer = shared or _make_pacer(regime, clock.now_s)
        items = _make_items(regime, Random(random.random()))
        worker = Worker(f"{number}", clock, service, pacer, items, Random(random.random()), fate, marks)
        workers.append(worker)
        worker.start()

    for number, fate in enumerate(regime.fates):
        clock.call_at(regime.starts_s + fate.starts_s, _bind(start, number, fate))
    if regime.rows is not None:
        clock.call_at(regime.starts_s, lambda: _start_late(regime, clock, workers, start))
    clock.run(regime.starts_s + regime.minutes * 60)
    return _measure(regime, service, workers)


def _bind(start: Callable[[int, Fate], None], number: int, fate: Fate) -> Callable[[], None]:
    return lambda: start(number, fate)


def _start_late(regime: Regime, clock: Clock, workers: list[Worker], start: Callable[[int, Fate], None]) -> None:
    """Start one more lane for each that is done, until there were twice as many: an engine with too few slots."""
    done = sum(worker.done_s is not None for worker in workers)
    while len(workers) - len(regime.fates) < min(done, len(regime.fates)):
        start(len(workers), Fate())
    clock.call_at(clock.now_s + 0.5, lambda: _start_late(regime, clock, workers, start))


def _make_pacer(regime: Regime, now_s: float) -> Pacer:
    return Pacer(regime.rpm, regime.tpm, regime.headroom, now_s, InFlight(IN_FLIGHT_MAX))


def _make_items(regime: Regime, random: Random) -> Iterator[Item]:
    """Texts of 10 to 1,000 tokens where tokens bind, estimated to within a tenth; else of 20."""
    sent = 0
    while regime.rows is None or sent < regime.rows:
        sent += 1
        tokens = round(10 * 100 ** random.random()) if regime.tpm < NO_LIMIT else 20
        yield Item(tokens * random.uniform(0.9, 1.1), tokens)


def _measure(regime: Regime, service: Service, workers: list[Worker]) -> Outcome:
    by_tokens = regime.tpm < NO_LIMIT
    limit = regime.limit or (regime.service.tpm if by_tokens else regime.service.rpm) or math.inf
    amounts = [(at_s, tokens if by_tokens else 1.0) for at_s, tokens in service.taken]
    from_s = regime.starts_s + 60
    until_s = regime.starts_s + regime.minutes * 60
    if workers and all(worker.done_s is not None for worker in workers):
        until_s = max(worker.done_s or 0.0 for worker in workers)
    used = sum(amount for at_s, amount in amounts if from_s <= at_s < until_s)
    return Outcome(
        utilisation=used / limit / ((until_s - from_s) / 60),
        refused=len(service.refused) / max(1, len(service.received)),
        most=_find_most(amounts) / limit,
        found_rpm=workers[0].pacer.found.rpm,
        found_tpm=workers[0].pacer.found.tpm,
        in_flight_most=max(worker.in_flight_most for worker in workers),
        failed=sum(worker.failed for worker in workers),
    )


def _find_most(amounts: list[tuple[float, float]]) -> float:
    """Return the most that any 60 s hold, half open as a sliding minute is."""
    times = [at_s for at_s, _ in amounts]
    sums = [0.0]
    for _, amount in amounts:
        sums.append(sums[-1] + amount)
    return max(
        (sums[at + 1] - sums[bisect_left(times, times[at] - 60 + 1e-9)] for at in range(len(times))), default=0.0
    )


_TOKENS = ServiceOptions(rpm=None, tpm=TPM)
_FOUR = (Fate(), Fate(), Fate(), Fate())
_LOWER = round(0.6 * RPM)

REGIMES: dict[str, Regime] = {
    "sliding": Regime("sliding window, refusals free", asked=0.98, refused_max=0.005, above_max=0),
    "sliding_counted": Regime(
        "sliding window, refusals count", ServiceOptions(refusals_count=True), asked=0.95, refused_max=0, above_max=0
    ),
    "calendar": Regime("calendar minute", ServiceOptions(window=QuotaWindow.CALENDAR), asked=0.97, refused_max=0.005),
    "calendar_37": Regime(
        "calendar minute, begun at :37",
        ServiceOptions(window=QuotaWindow.CALENDAR),
        starts_s=37,
        asked=0.97,
        refused_max=0.005,
    ),
    "full_headroom": Regime(
        "sliding window, refusals count, headroom 1",
        ServiceOptions(refusals_count=True),
        headroom=1.0,
        asked=0.98,
        refused_max=0.005,
    ),
    "tokens": Regime("TPM binds, sizes spread 1:100", _TOKENS, rpm=NO_LIMIT, tpm=TPM, asked=0.95, refused_max=0.005),
    "lower": Regime("real limit 60 % of the configured", ServiceOptions(rpm=_LOWER), asked=0.90, refused_max=0.03),
    "lower_counted": Regime(
        "the same, refusals count", ServiceOptions(rpm=_LOWER, refusals_count=True), asked=0.90, refused_max=0.03
    ),
    "lower_calendar": Regime(
        "the same, calendar minute, begun at :37",
        ServiceOptions(rpm=_LOWER, window=QuotaWindow.CALENDAR),
        starts_s=37,
        minutes=10,
        asked=0.90,
        refused_max=0.03,
    ),
    "lower_tokens": Regime(
        "real TPM 60 % of the configured, sizes 1:100",
        ServiceOptions(rpm=None, tpm=round(0.6 * TPM)),
        rpm=NO_LIMIT,
        tpm=TPM,
        asked=0.90,
        refused_max=0.03,
    ),
    "much_lower": Regime("real limit 10 % of the configured", ServiceOptions(rpm=60), minutes=10, asked=0.80),
    "overload": Regime("10 % random overload answers", ServiceOptions(overloaded=0.1), asked=0.80),
    "overload_counted": Regime(
        "the same, refusals count", ServiceOptions(overloaded=0.1, refusals_count=True), asked=0.80
    ),
    "noise": Regime("10 % random RPM refusals", ServiceOptions(noise=0.1), asked=0.80),
    "noise_told": Regime("the same with Retry-After: 0", ServiceOptions(noise=0.1, retry_after_s=0.0), asked=0.80),
    "spikes": Regime(
        "20 % of the answers take ten times as long", ServiceOptions(spikes=0.2), asked=0.97, refused_max=0.005
    ),
    "in_flight": Regime(
        "5 requests may be open, at 1 s each",
        ServiceOptions(in_flight_max=5, latency_s=1.0),
        limit=5 * 60,
        asked=0.85,
        refused_max=0.03,
    ),
    "in_flight_fast": Regime(
        "15,000 RPM at 300 ms",
        ServiceOptions(rpm=15_000, latency_s=0.3),
        rpm=15_000,
        minutes=3,
        asked=0.97,
        refused_max=0.005,
    ),
    "shared": Regime("4 processes, one exact budget", fates=_FOUR, asked=0.95, refused_max=0.005),
    "lanes": Regime(
        "4 lanes, leases, one killed at 2:00, another in its place at 3:00",
        fates=(Fate(), Fate(), Fate(), Fate(killed_s=120), Fate(starts_s=180)),
        leases=True,
        asked=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "stalled": Regime(
        "4 lanes, one stalled for three leases",
        fates=(Fate(), Fate(), Fate(), Fate(stalled_s=(120, 129))),
        leases=True,
        asked=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "cut_off": Regime(
        "4 lanes, one cut off from the store for a minute",
        fates=(Fate(), Fate(), Fate(), Fate(cut_off_s=(120, 180))),
        leases=True,
        asked=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "slow_listing": Regime(
        "4 lanes, a listing takes 1.2 s",
        fates=_FOUR,
        leases=True,
        marks=Marks(list_s=1.2),
        asked=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "late": Regime(
        "4 lanes, of which two can only run after the others",
        fates=(Fate(), Fate()),
        leases=True,
        rows=900,
        minutes=20,
        asked=0.92,
        refused_max=0.005,
        above_max=5,
    ),
}
