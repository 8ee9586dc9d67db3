"""A model of the service: its quota and how it counts a minute, its other refusals, and its latency."""

from dataclasses import dataclass, field
from random import Random

from arkbeam.base.replies import Pressure
from arkbeam.emulator.options import QuotaWindow
from arkbeam.emulator.quota import Limit, QuotaMeter

REFUSAL_S = 0.01


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What the service really allows, independent of the config. Shares are of the requests that the quota admits."""

    rpm: int | None = 600
    tpm: int | None = None
    window: QuotaWindow = QuotaWindow.SLIDING
    refusals_count: bool = False
    latency_s: float = 0.2
    spikes: float = 0.0
    """Share of the answers with ten times the latency."""
    overloaded: float = 0.0
    """Share of the requests refused at random with ServerOverloaded."""
    noise: float = 0.0
    """Share of the requests refused at random with an RPM error."""
    in_flight_max: int | None = None
    retry_after_s: float | None = None
    """Retry-After of every refusal."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request: the kind of refusal, if any, and the latency."""

    pressure: Pressure
    latency_s: float


@dataclass(slots=True)
class Service:
    """The simulated service.

    It records, in order of time, when requests were `received` and `refused`, and time and tokens of those `accepted`.
    """

    options: ServiceOptions
    random: Random
    accepted: list[tuple[float, float]] = field(default_factory=list)
    received: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    _meter: QuotaMeter = field(init=False)
    _open: int = 0

    def __post_init__(self) -> None:
        self._meter = QuotaMeter(rpm=self.options.rpm, tpm=self.options.tpm, window=self.options.window)

    def receive(self, tokens: int, now_s: float) -> Answer:
        """Answer one request."""
        self.received.append(now_s)
        pressure = self._refuse(tokens, now_s)
        if pressure is not Pressure.NONE:
            self.refused.append(now_s)
            if self.options.refusals_count:
                self._meter.add(1, 0, now_s)
            return Answer(pressure, REFUSAL_S)
        self._meter.add(1, tokens, now_s)
        self.accepted.append((now_s, tokens))
        self._open += 1
        slow = self.random.random() < self.options.spikes
        return Answer(pressure, self.options.latency_s * self.random.uniform(0.9, 1.1) * (10 if slow else 1))

    def finish(self) -> None:
        """Count an accepted request as answered: it is no longer in flight."""
        self._open -= 1

    def _refuse(self, tokens: int, now_s: float) -> Pressure:
        options = self.options
        limit = self._meter.find_limit(tokens, now_s)
        if limit is not None:
            return Pressure.RPM if limit is Limit.REQUESTS else Pressure.TPM
        if options.in_flight_max is not None and self._open >= options.in_flight_max:
            return Pressure.IN_FLIGHT
        if self.random.random() < options.noise:
            return Pressure.RPM
        return Pressure.OVERLOAD if self.random.random() < options.overloaded else Pressure.NONE
