"""The scenarios: each has a model of the service, models of the workers, and targets."""

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
from scripts.simulation.worker import Lifecycle, MarkStore, SimulatedRequest, Worker

HEADROOM = 0.995
RPM = 600
NO_LIMIT = 10**9
IN_FLIGHT_MAX = 256
MEAN_TOKENS = 990 / math.log(100)  # of sizes from 10 to 1,000 whose logarithms are uniformly distributed
TPM = round(RPM * MEAN_TOKENS)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A simulated run and its targets.

    `rpm` and `tpm` are the configured limits. Utilisation is a share of `limit`, by default the limit of the service.
    The targets: a utilisation of at least `utilisation_min` from the second minute on, a share of refusals of at most
    `refused_max`, and in any 60 s at most `above_max` requests more than the quota. None: no target.
    """

    title: str
    service: ServiceOptions = field(default_factory=ServiceOptions)
    rpm: int = RPM
    tpm: int = NO_LIMIT
    headroom: float = HEADROOM
    limit: float | None = None
    lifecycles: tuple[Lifecycle, ...] = field(default=(Lifecycle(),))
    leases: bool = False
    store: MarkStore = field(default_factory=MarkStore)
    rows: int | None = None
    """Number of rows of each worker. None: as many as it can send."""
    minutes: float = 6.0
    starts_s: float = 0.0
    """The second of the calendar minute in which the run starts."""
    utilisation_min: float | None = None
    refused_max: float | None = None
    above_max: float | None = None


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The result of a scenario. `most` is the highest use of the binding limit in any 60 s, as a share of it."""

    utilisation: float
    refused: float
    most: float
    found_rpm: int | None
    found_tpm: int | None
    in_flight_most: int
    failed: int

    def meets(self, scenario: Scenario) -> bool:
        """Return True if the result meets all targets of the scenario."""
        return (
            self.utilisation >= (scenario.utilisation_min or 0)
            and self.refused <= (1.0 if scenario.refused_max is None else scenario.refused_max)
            and self.most <= (math.inf if scenario.above_max is None else 1 + scenario.above_max / RPM)
        )


def simulate(scenario: Scenario, seed: int = 0) -> ScenarioResult:
    """Simulate a scenario. Equal seeds give equal results."""
    random = Random(seed)
    clock = Clock(scenario.starts_s)
    service = Service(scenario.service, Random(random.random()))
    shared = None if scenario.leases else _make_pacer(scenario, clock.now_s)
    store = replace(scenario.store, marks={}) if scenario.leases else None
    workers: list[Worker] = []

    def start(number: int, lifecycle: Lifecycle) -> None:
        pacer = shared or _make_pacer(scenario, clock.now_s)
        items = _make_items(scenario, Random(random.random()))
        worker = Worker(f"{number}", clock, service, pacer, items, Random(random.random()), lifecycle, store)
        workers.append(worker)
        worker.start()

    for number, lifecycle in enumerate(scenario.lifecycles):
        clock.call_at(scenario.starts_s + lifecycle.starts_s, _bind(start, number, lifecycle))
    if scenario.rows is not None:
        clock.call_at(scenario.starts_s, lambda: _start_late(scenario, clock, workers, start))
    clock.run(scenario.starts_s + scenario.minutes * 60)
    return _measure(scenario, service, workers)


def _bind(start: Callable[[int, Lifecycle], None], number: int, lifecycle: Lifecycle) -> Callable[[], None]:
    return lambda: start(number, lifecycle)


def _start_late(
    scenario: Scenario, clock: Clock, workers: list[Worker], start: Callable[[int, Lifecycle], None]
) -> None:
    """Start one more worker for each one that is done, until there are twice as many as at the start.

    This models a cluster with fewer slots than bundles.
    """
    done = sum(worker.done_s is not None for worker in workers)
    while len(workers) - len(scenario.lifecycles) < min(done, len(scenario.lifecycles)):
        start(len(workers), Lifecycle())
    clock.call_at(clock.now_s + 0.5, lambda: _start_late(scenario, clock, workers, start))


def _make_pacer(scenario: Scenario, now_s: float) -> Pacer:
    return Pacer(scenario.rpm, scenario.tpm, scenario.headroom, now_s, InFlight(IN_FLIGHT_MAX))


def _make_items(scenario: Scenario, random: Random) -> Iterator[SimulatedRequest]:
    """Yield requests of 10 to 1,000 tokens if the scenario limits TPM, else of 20 tokens. Estimates are within 10 %."""
    sent = 0
    while scenario.rows is None or sent < scenario.rows:
        sent += 1
        tokens = round(10 * 100 ** random.random()) if scenario.tpm < NO_LIMIT else 20
        yield SimulatedRequest(tokens * random.uniform(0.9, 1.1), tokens)


def _measure(scenario: Scenario, service: Service, workers: list[Worker]) -> ScenarioResult:
    by_tokens = scenario.tpm < NO_LIMIT
    limit = scenario.limit or (scenario.service.tpm if by_tokens else scenario.service.rpm) or math.inf
    amounts = [(at_s, tokens if by_tokens else 1.0) for at_s, tokens in service.accepted]
    from_s = scenario.starts_s + 60
    until_s = scenario.starts_s + scenario.minutes * 60
    if workers and all(worker.done_s is not None for worker in workers):
        until_s = max(worker.done_s or 0.0 for worker in workers)
    used = sum(amount for at_s, amount in amounts if from_s <= at_s < until_s)
    return ScenarioResult(
        utilisation=used / limit / ((until_s - from_s) / 60),
        refused=len(service.refused) / max(1, len(service.received)),
        most=_find_most(amounts) / limit,
        found_rpm=workers[0].pacer.found.rpm,
        found_tpm=workers[0].pacer.found.tpm,
        in_flight_most=max(worker.in_flight_most for worker in workers),
        failed=sum(worker.failed for worker in workers),
    )


def _find_most(amounts: list[tuple[float, float]]) -> float:
    """Return the highest sum in any 60 s, a half-open interval as in a sliding window."""
    times = [at_s for at_s, _ in amounts]
    sums = [0.0]
    for _, amount in amounts:
        sums.append(sums[-1] + amount)
    return max(
        (sums[at + 1] - sums[bisect_left(times, times[at] - 60 + 1e-9)] for at in range(len(times))), default=0.0
    )


_TOKENS = ServiceOptions(rpm=None, tpm=TPM)
_FOUR = (Lifecycle(), Lifecycle(), Lifecycle(), Lifecycle())
_LOWER = round(0.6 * RPM)

SCENARIOS: dict[str, Scenario] = {
    "sliding": Scenario("sliding window, refusals do not count", utilisation_min=0.98, refused_max=0.005, above_max=0),
    "sliding_counted": Scenario(
        "sliding window, refusals count",
        ServiceOptions(refusals_count=True),
        utilisation_min=0.95,
        refused_max=0,
        above_max=0,
    ),
    "calendar": Scenario(
        "calendar minute", ServiceOptions(window=QuotaWindow.CALENDAR), utilisation_min=0.97, refused_max=0.005
    ),
    "calendar_37": Scenario(
        "calendar minute, start at :37",
        ServiceOptions(window=QuotaWindow.CALENDAR),
        starts_s=37,
        utilisation_min=0.97,
        refused_max=0.005,
    ),
    "full_headroom": Scenario(
        "sliding window, refusals count, headroom 1",
        ServiceOptions(refusals_count=True),
        headroom=1.0,
        utilisation_min=0.98,
        refused_max=0.005,
    ),
    "tokens": Scenario(
        "TPM is the binding limit, sizes 1:100", _TOKENS, rpm=NO_LIMIT, tpm=TPM, utilisation_min=0.95, refused_max=0.005
    ),
    "lower": Scenario(
        "real limit is 60 % of the configured one", ServiceOptions(rpm=_LOWER), utilisation_min=0.90, refused_max=0.03
    ),
    "lower_counted": Scenario(
        "real limit is 60 %, refusals count",
        ServiceOptions(rpm=_LOWER, refusals_count=True),
        utilisation_min=0.90,
        refused_max=0.03,
    ),
    "lower_calendar": Scenario(
        "real limit is 60 %, calendar minute, start at :37",
        ServiceOptions(rpm=_LOWER, window=QuotaWindow.CALENDAR),
        starts_s=37,
        minutes=10,
        utilisation_min=0.90,
        refused_max=0.03,
    ),
    "lower_tokens": Scenario(
        "real TPM is 60 % of the configured one, sizes 1:100",
        ServiceOptions(rpm=None, tpm=round(0.6 * TPM)),
        rpm=NO_LIMIT,
        tpm=TPM,
        utilisation_min=0.90,
        refused_max=0.03,
    ),
    "much_lower": Scenario(
        "real limit is 10 % of the configured one", ServiceOptions(rpm=60), minutes=10, utilisation_min=0.80
    ),
    "overload": Scenario("10 % refused at random, overload", ServiceOptions(overloaded=0.1), utilisation_min=0.80),
    "overload_counted": Scenario(
        "10 % refused at random, overload, refusals count",
        ServiceOptions(overloaded=0.1, refusals_count=True),
        utilisation_min=0.80,
    ),
    "noise": Scenario("10 % refused at random, RPM", ServiceOptions(noise=0.1), utilisation_min=0.80),
    "noise_told": Scenario(
        "10 % refused at random, RPM, Retry-After: 0",
        ServiceOptions(noise=0.1, retry_after_s=0.0),
        utilisation_min=0.80,
    ),
    "spikes": Scenario(
        "20 % of answers take ten times as long", ServiceOptions(spikes=0.2), utilisation_min=0.97, refused_max=0.005
    ),
    "in_flight": Scenario(
        "at most 5 requests in flight, latency 1 s",
        ServiceOptions(in_flight_max=5, latency_s=1.0),
        limit=5 * 60,
        utilisation_min=0.85,
        refused_max=0.03,
    ),
    "in_flight_fast": Scenario(
        "15,000 RPM, latency 300 ms",
        ServiceOptions(rpm=15_000, latency_s=0.3),
        rpm=15_000,
        minutes=3,
        utilisation_min=0.97,
        refused_max=0.005,
    ),
    "shared": Scenario(
        "4 processes, exactly shared quota (Redis)", lifecycles=_FOUR, utilisation_min=0.95, refused_max=0.005
    ),
    "replaced": Scenario(
        "4 processes, one killed at 2:00, replaced at 3:00",
        lifecycles=(Lifecycle(), Lifecycle(), Lifecycle(), Lifecycle(killed_s=120), Lifecycle(starts_s=180)),
        leases=True,
        utilisation_min=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "stalled": Scenario(
        "4 processes, one stalled for three leases",
        lifecycles=(Lifecycle(), Lifecycle(), Lifecycle(), Lifecycle(stalled_s=(120, 129))),
        leases=True,
        utilisation_min=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "cut_off": Scenario(
        "4 processes, one cannot reach the store for a minute",
        lifecycles=(Lifecycle(), Lifecycle(), Lifecycle(), Lifecycle(cut_off_s=(120, 180))),
        leases=True,
        utilisation_min=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "slow_listing": Scenario(
        "4 processes, a listing takes 1.2 s",
        lifecycles=_FOUR,
        leases=True,
        store=MarkStore(list_s=1.2),
        utilisation_min=0.93,
        refused_max=0.005,
        above_max=5,
    ),
    "late": Scenario(
        "4 processes, only 2 at a time",
        lifecycles=(Lifecycle(), Lifecycle()),
        leases=True,
        rows=900,
        minutes=20,
        utilisation_min=0.92,
        refused_max=0.005,
        above_max=5,
    ),
}
