"""When a request may be sent: both limits (requests and tokens a minute), pauses, and the adaptation to refusals."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from arkbeam.base.replies import Pressure
from arkbeam.quota.control import Control, InFlight, Ramp
from arkbeam.quota.rate import LeakyBucket, RateLimit
from arkbeam.quota.retry import RETRY_AFTER_S_MIN
from arkbeam.quota.use import FoundLimits, QuotaUse

PAUSE_S_MAX = 5.0  # a single request ends a pause, so short pauses cost little
DENSE_REFUSALS = 3  # so many refusals in a row, with pauses between them, are not random
ROUNDING_S = 1e-6


@dataclass(slots=True)
class Pacer:
    """Both limits, the current pause, the controls that adapt to refusals, and the record of the use of the quota.

    Each process has one, used by one thread. `share` is this process's share of both limits. Without `in_flight`, any
    number of requests may be in flight.
    """

    rpm: int
    tpm: int
    headroom: float
    now_s: float
    in_flight: InFlight | None = None
    ramp: Ramp | None = None
    requests: RateLimit = field(init=False)
    tokens: RateLimit = field(init=False)
    overload: Control = field(default_factory=lambda: Control(tolerance=0.2))
    share: float = 1.0
    excess: float = 0.0
    paused_until_s: float = -math.inf
    refusals_in_a_row: int = 0
    use: QuotaUse = field(init=False)
    _probing: bool = False
    _probe_until_s: float = -math.inf
    _held_since_s: float | None = None
    _tokens_mean: float = 0.0

    def __post_init__(self) -> None:
        self.requests, self.tokens = (
            RateLimit(limit, LeakyBucket(limit * self.headroom / 60, self.now_s, self.now_s), Control(tolerance=0.002))
            for limit in (self.rpm, self.tpm)
        )
        self.use = QuotaUse(self.rpm, self.tpm)

    @property
    def found(self) -> FoundLimits:
        """The limits that the service was seen to enforce, where they are lower than the configured ones."""
        return FoundLimits(self.requests.found, self.tokens.found)

    def wait_s(self, now_s: float, tokens: float = 0.0) -> float:
        """Return the seconds until a request of so many tokens may be sent; 0 means now. Does not count the request.

        The result is infinite while only an answer or a new share can allow it.
        """
        if self.share <= 0:
            return math.inf
        if now_s < self.paused_until_s:
            return self.paused_until_s - now_s
        if self._probing and now_s < self._probe_until_s:
            return self._probe_until_s - now_s
        if self.in_flight is not None and not self.in_flight.has_room:
            return math.inf
        if self.ramp is not None:
            self._set_rates(now_s)
        wait_s = max(self.requests.bucket.wait_s(now_s), self.tokens.bucket.wait_s(now_s))
        if wait_s > ROUNDING_S:
            return wait_s
        wait_s = max(self.requests.room_in_s(1 / self.share, now_s), self.tokens.room_in_s(tokens / self.share, now_s))
        if wait_s > 0 and self._held_since_s is None:
            self._held_since_s = now_s
        return wait_s

    def admit(self, tokens: float, now_s: float) -> None:
        """Count a request of so many estimated tokens as sent now. Call it only when `wait_s` is 0."""
        held_s = 0.0 if self._held_since_s is None else now_s - self._held_since_s
        self._held_since_s = None
        self.requests.bucket.take(1.0, now_s)
        self.tokens.bucket.take(tokens, now_s, held_s)
        self.requests.sent.add(1 / self.share, now_s, now_s)
        self.tokens.sent.add(tokens / self.share, now_s, now_s)
        self._tokens_mean += (tokens - self._tokens_mean) * (0.05 if self._tokens_mean else 1.0)
        if self.in_flight is not None:
            self.in_flight.open += 1
        if self._probing:
            latency_s = self.in_flight.latency_s if self.in_flight is not None else 0.0
            self._probe_until_s = now_s + max(1.0, 3 * latency_s)
        self.use = self.use.plus(requests=1, now_s=now_s)

    def leave(self) -> None:
        """Note that a request has ended, with any result."""
        if self.in_flight is not None:
            self.in_flight.open -= 1

    def settle(self, estimated: float, actual: float, now_s: float, sent_s: float | None = None) -> None:
        """Replace the token estimate of a request sent at `sent_s` by what the service counted; 0 for a refused request."""
        self.tokens.bucket.settle(actual - estimated)
        self.excess += actual - estimated
        if self.share > 0:
            at_s = now_s if sent_s is None else sent_s
            self.tokens.sent.add((actual - estimated) / self.share, at_s, now_s)
            self.tokens.taken.add(actual / self.share, at_s, now_s)
        self.use = self.use.plus(tokens=actual, now_s=now_s)

    def take_excess(self) -> float:
        """Return the tokens that replies used above their estimates since the last call; negative if they used fewer."""
        excess, self.excess = self.excess, 0.0
        return excess

    def note_answer(
        self,
        pressure: Pressure,
        sent_s: float,
        now_s: float,
        *,
        backoff_s: Callable[[int], float],
        retry_after_s: float | None = None,
    ) -> None:
        """Adapt to one answer, refused or not. `backoff_s` returns the pause after a number of refusals in a row."""
        refused = pressure in (Pressure.RPM, Pressure.TPM)
        if sent_s >= self.paused_until_s:
            if refused:
                self._note_refusal(pressure, now_s, backoff_s, retry_after_s)
            elif pressure is Pressure.NONE:
                self.refusals_in_a_row, self._probing = 0, False
        if not refused and self.share > 0:
            self.requests.taken.add(1 / self.share, sent_s, now_s)
        self._learn(pressure, sent_s, now_s)

    def note_latency(self, latency_s: float) -> None:
        """Adapt to the latency of an answer that was not a refusal."""
        if self.in_flight is not None:
            per_s = self.requests.bucket.per_s
            if self._tokens_mean > 0:
                per_s = min(per_s, self.tokens.bucket.per_s / self._tokens_mean)
            self.in_flight.note_answer(latency_s, per_s)

    def set_share(self, share: float, now_s: float) -> None:
        """Continue with this share of both limits; 0 admits nothing. Debts stay, and unused time is not made up for."""
        if share != self.share:
            self.share = share
            self._set_rates(now_s)

    def pause(self, pause_s: float, now_s: float) -> None:
        """Admit nothing for `pause_s` from `now_s` on. A pause earns no credit, so that no burst follows it."""
        self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        for limit in (self.requests, self.tokens):
            limit.bucket.since_s = self.paused_until_s
        self._held_since_s = None

    def _note_refusal(
        self, pressure: Pressure, now_s: float, backoff_s: Callable[[int], float], retry_after_s: float | None
    ) -> None:
        self.refusals_in_a_row += 1
        limit = self.requests if pressure is Pressure.RPM else self.tokens
        number = self.refusals_in_a_row - limit.control.patience + 1
        if number >= 1:
            pause_s = min(PAUSE_S_MAX, backoff_s(number))
            if retry_after_s is not None and retry_after_s >= RETRY_AFTER_S_MIN:
                pause_s = retry_after_s
            self.pause(pause_s, now_s)
            self._probing, self._probe_until_s = True, -math.inf

    def _learn(self, pressure: Pressure, sent_s: float, now_s: float) -> None:
        changed = False
        for limit, kind in ((self.requests, Pressure.RPM), (self.tokens, Pressure.TPM)):
            limit.taken.forget(now_s)
            changed |= limit.control.note_answer(
                refused=pressure is kind,
                sent_s=sent_s,
                now_s=now_s,
                taken=limit.taken.total / (limit.per_minute * self.headroom),
                dense=self.refusals_in_a_row >= max(DENSE_REFUSALS, limit.control.patience + 1),
            )
        changed |= self.overload.note_answer(refused=pressure is Pressure.OVERLOAD, sent_s=sent_s, now_s=now_s)
        if self.in_flight is not None:
            taken = max(1, self.in_flight.open) / self.in_flight.requests_max
            self.in_flight.control.note_answer(
                refused=pressure is Pressure.IN_FLIGHT, sent_s=sent_s, now_s=now_s, taken=taken
            )
        if changed:
            self._set_rates(now_s)

    def _set_rates(self, now_s: float) -> None:
        tpm = self.tpm if self.ramp is None else min(self.tpm, self.ramp.allow_tpm(now_s))
        for limit, per_minute in ((self.requests, self.rpm), (self.tokens, tpm)):
            rate = per_minute * self.headroom / 60 * self.share * limit.control.factor * self.overload.factor
            limit.bucket.set_rate(rate, now_s)
