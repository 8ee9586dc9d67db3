"""Admission by two budgets at once: requests and tokens per minute.

Each budget is a leaky bucket that is sent from while nothing is owed, and then owes what was sent (GCRA in other words):
debts, refunds and costs above any burst are plain additions. There is no opening burst; `SLACK_S` of catch-up credit makes up
for a busy event loop that comes a little late. What bursts that leaves, and large requests, are held by a sliding minute.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, urlsplit

from pipeline.ark.errors import Pressure
from pipeline.errors import ConfigError
from pipeline.pacing.control import Control, InFlight, Ramp
from pipeline.pacing.retry import RETRY_AFTER_S_MIN
from pipeline.pacing.window import Window

SLACK_S = 0.2
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PAUSE_S_MAX = 5.0  # the service is asked again by a single request, so that this costs little
DENSE = 3  # refusals in a row, pauses between them, that chance does not explain
FOUND_SHARE = 0.95  # a limit closer to the config's is not worth telling
ROUNDING_S = 1e-6


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """The account's limits, the `quota:` section of the config."""

    rpm: int | None = None
    """Requests a minute; default: the model's in the vendor's list."""
    tpm: int | None = None
    """Tokens a minute; default: the model's in the vendor's list."""
    headroom: float = 0.95
    """The share of both that a run uses; refused requests count against the quota too."""
    ramp: bool = False
    """Above 3 million tokens a minute, grow by at most 20 % in 3 minutes, as the vendor's burst rule asks for."""
    lanes: int = 1
    """Elements that the work is dealt over, for work that one process can't hold."""
    account: str = "default"
    """Names the account. Runs that share a store, or a Redis, share the quota of the accounts that they name alike."""
    redis_url: str | None = None
    """A Redis that shares the quota out exactly, `redis://host:6379/0` or `rediss://…`; without one, processes share it
    by marks in the store."""
    redis_password_env: str | None = None
    """The environment variable that holds the password of that Redis."""
    unshared_s_max: float = 60.0
    """How long a run waits, sending nothing, for a store or a Redis that the quota can't be shared through; then it stops."""

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"quota.{name} is {limit}; it must be at least 1, or absent for the model's own limit"
                )
        if not 0 < self.headroom <= 1:
            raise ConfigError(f"quota.headroom is {self.headroom}; it must be above 0 and at most 1")
        if not _ACCOUNT.fullmatch(self.account):
            raise ConfigError(
                "quota.account must be 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
            )
        if not self.unshared_s_max > 0:
            raise ConfigError(f"quota.unshared_s_max is {self.unshared_s_max}; it must be above 0")
        _check_redis(self.redis_url, self.redis_password_env)
        if self.lanes < 1:
            raise ConfigError(f"quota.lanes is {self.lanes}; it must be at least 1")


def _check_redis(url: str | None, password_env: str | None) -> None:
    """Refuse an address that can't be one, or that holds a password, without repeating it."""
    if url is None:
        if password_env is not None:
            raise ConfigError("quota.redis_password_env is of no use without quota.redis_url")
        return
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError("quota.redis_url must begin with redis://, rediss:// or unix://")
    if parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True):
        raise ConfigError(
            "quota.redis_url holds a password: take it out, put it into an environment variable, and name that in "
            "quota.redis_password_env"
        )


@dataclass(slots=True)
class Budget:
    """One rate and what is owed to it, at `at_s`: what was taken is paid off at `per_s`, and below 0 it is credit.

    Credit is what was earned since `since_s` and in the last `SLACK_S`, no more.
    """

    per_s: float
    at_s: float
    since_s: float
    owed: float = 0.0

    def advance(self, now_s: float) -> None:
        """Pay off what is owed up to now."""
        credit_max = self.per_s * min(SLACK_S, max(0.0, now_s - self.since_s))
        self.owed = max(self.owed - self.per_s * max(0.0, now_s - self.at_s), -credit_max)
        self.at_s = max(self.at_s, now_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until nothing is owed."""
        self.advance(now_s)
        if self.per_s <= 0:
            return math.inf
        return self.owed / self.per_s if self.owed > 0 else 0.0

    def take(self, cost: float, now_s: float, waited_s: float = 0.0) -> None:
        """Book a cost that is spent now. `waited_s`: so long it was held up although nothing was owed, which pays for it."""
        self.advance(now_s)
        self.owed += max(0.0, cost - waited_s * self.per_s)

    def settle(self, difference: float) -> None:
        """Book what a request cost above its estimate: a debt delays what follows, a refund (negative) hastens it."""
        self.owed += difference

    def set_rate(self, per_s: float, now_s: float) -> None:
        """Go on at another rate; debts stay, and credit is not earned backwards."""
        self.advance(now_s)
        self.per_s = per_s


@dataclass(slots=True)
class Meter:
    """One limit: the budget that spreads it evenly, and the last minute, which never holds more than the limit.

    `sent` is in units of the whole quota: what a process sent while it had a fourth of it counts four times. So the minute
    that lies behind means the same after a change of the share. `taken` is what the service did not refuse, likewise.
    """

    limit: float  # a minute
    budget: Budget
    control: Control
    sent: Window = field(default_factory=Window)
    taken: Window = field(default_factory=Window)

    def room_in_s(self, cost: float, now_s: float) -> float:
        """Return the seconds until a cost fits into the minute. A very large one needs half of it to be free, no more."""
        limit = self.limit * max(self.control.factor, self.control.ceiling)
        self.sent.forget(now_s)
        excess = self.sent.total + min(cost, limit / 2) - limit
        return self.sent.drop_in_s(excess, now_s) if excess > limit * 1e-9 else 0.0

    @property
    def found(self) -> int | None:
        """What the service was seen to allow a minute, when that is clearly less than the limit."""
        allowed = self.limit * self.control.ceiling
        return round(allowed) if self.control.is_limited and allowed < FOUND_SHARE * self.limit else None


@dataclass(frozen=True, slots=True)
class Found:
    """What the service was seen to allow a minute, where that is less than the config says."""

    rpm: int | None = None
    tpm: int | None = None

    def merge(self, other: "Found") -> "Found":
        """Join what two processes found: the lower."""
        return Found(
            min((one for one in (self.rpm, other.rpm) if one is not None), default=None),
            min((one for one in (self.tpm, other.tpm) if one is not None), default=None),
        )

    def describe(self, rpm: int, tpm: int) -> Iterator[str]:
        """Say it for each limit that was found."""
        for found, said, unit in ((self.rpm, rpm, "requests"), (self.tpm, tpm, "tokens")):
            if found is not None:
                yield f"the service allows about {found:,} {unit}/min; the config says {said:,}"


@dataclass(slots=True)
class Pacer:
    """Both limits, the shared pause, what refusals taught, and the record of how the quota was used.

    One a process, one thread. Without `in_flight` any number of requests may be open.
    """

    rpm: int
    tpm: int
    headroom: float
    now_s: float
    in_flight: InFlight | None = None
    ramp: Ramp | None = None
    requests: Meter = field(init=False)
    tokens: Meter = field(init=False)
    overload: Control = field(default_factory=lambda: Control(tolerance=0.2))
    share: float = 1.0
    excess: float = 0.0
    paused_until_s: float = -math.inf
    refusals_in_a_row: int = 0
    use: "QuotaUse" = field(init=False)
    _probing: bool = False
    _probe_until_s: float = -math.inf
    _held_since_s: float | None = None
    _tokens_mean: float = 0.0

    def __post_init__(self) -> None:
        self.requests, self.tokens = (
            Meter(limit, Budget(limit * self.headroom / 60, self.now_s, self.now_s), Control(tolerance=0.002))
            for limit in (self.rpm, self.tpm)
        )
        self.use = QuotaUse(self.rpm, self.tpm)

    @property
    def found(self) -> Found:
        """What the service was seen to allow, where that is less than the config says."""
        return Found(self.requests.found, self.tokens.found)

    def wait_s(self, now_s: float, tokens: float = 0.0) -> float:
        """Return the seconds until a request of so many tokens may be sent, 0 when it may be now.

        Infinite while only an answer, or a new share, can change that. Books nothing.
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
        wait_s = max(self.requests.budget.wait_s(now_s), self.tokens.budget.wait_s(now_s))
        if wait_s > ROUNDING_S:
            return wait_s
        wait_s = max(self.requests.room_in_s(1 / self.share, now_s), self.tokens.room_in_s(tokens / self.share, now_s))
        if wait_s > 0 and self._held_since_s is None:
            self._held_since_s = now_s
        return wait_s

    def admit(self, tokens: float, now_s: float) -> None:
        """Book one request of so many estimated tokens as sent now; call it when `wait_s` is 0."""
        held_s = 0.0 if self._held_since_s is None else now_s - self._held_since_s
        self._held_since_s = None
        self.requests.budget.take(1.0, now_s)
        self.tokens.budget.take(tokens, now_s, held_s)
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
        """Note that a request is not open any more, whatever became of it."""
        if self.in_flight is not None:
            self.in_flight.open -= 1

    def settle(self, estimated: float, actual: float, now_s: float, sent_s: float | None = None) -> None:
        """Replace the estimate of a request, sent at `sent_s`, by what the service counted; 0 for one that was refused."""
        self.tokens.budget.settle(actual - estimated)
        self.excess += actual - estimated
        if self.share > 0:
            at_s = now_s if sent_s is None else sent_s
            self.tokens.sent.add((actual - estimated) / self.share, at_s, now_s)
            self.tokens.taken.add(actual / self.share, at_s, now_s)
        self.use = self.use.plus(tokens=actual, now_s=now_s)

    def take_excess(self) -> float:
        """Take what replies cost above their estimates since this was last asked."""
        excess, self.excess = self.excess, 0.0
        return excess

    def answered(
        self,
        pressure: Pressure,
        sent_s: float,
        now_s: float,
        *,
        backoff_s: Callable[[int], float],
        retry_after_s: float | None = None,
    ) -> None:
        """Learn from one answer, a refusal or not. `backoff_s` gives the pause after so many refusals in a row."""
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
        """Take in how long the service took for an answer that was no refusal."""
        if self.in_flight is not None:
            per_s = self.requests.budget.per_s
            if self._tokens_mean > 0:
                per_s = min(per_s, self.tokens.budget.per_s / self._tokens_mean)
            self.in_flight.answered(latency_s, per_s)

    def set_share(self, share: float, now_s: float) -> None:
        """Go on with this share of both limits, 0 to admit nothing. Debts stay, and nothing is caught up."""
        if share != self.share:
            self.share = share
            self._set_rates(now_s)

    def pause(self, pause_s: float, now_s: float) -> None:
        """Admit nothing for a while, and one request after it whose answer decides; the end of a pause is no burst."""
        self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        for meter in (self.requests, self.tokens):
            meter.budget.since_s = self.paused_until_s
        self._held_since_s = None

    def _note_refusal(
        self, pressure: Pressure, now_s: float, backoff_s: Callable[[int], float], retry_after_s: float | None
    ) -> None:
        self.refusals_in_a_row += 1
        meter = self.requests if pressure is Pressure.RPM else self.tokens
        number = self.refusals_in_a_row - meter.control.patience + 1
        if number >= 1:
            own_s = min(PAUSE_S_MAX, backoff_s(number))
            told = retry_after_s is not None and retry_after_s >= RETRY_AFTER_S_MIN
            self.pause(retry_after_s if told and retry_after_s is not None else own_s, now_s)
            self._probing, self._probe_until_s = True, -math.inf

    def _learn(self, pressure: Pressure, sent_s: float, now_s: float) -> None:
        changed = False
        for meter, kind in ((self.requests, Pressure.RPM), (self.tokens, Pressure.TPM)):
            meter.taken.forget(now_s)
            changed |= meter.control.answered(
                refused=pressure is kind,
                sent_s=sent_s,
                now_s=now_s,
                taken=meter.taken.total / (meter.limit * self.headroom),
                dense=self.refusals_in_a_row >= max(DENSE, meter.control.patience + 1),
            )
        changed |= self.overload.answered(refused=pressure is Pressure.OVERLOAD, sent_s=sent_s, now_s=now_s)
        if self.in_flight is not None:
            taken = max(1, self.in_flight.open) / self.in_flight.most
            self.in_flight.control.answered(
                refused=pressure is Pressure.IN_FLIGHT, sent_s=sent_s, now_s=now_s, taken=taken
            )
        if changed:
            self._set_rates(now_s)

    def _set_rates(self, now_s: float) -> None:
        tpm = self.tpm if self.ramp is None else min(self.tpm, self.ramp.allow_tpm(now_s))
        for meter, limit in ((self.requests, self.rpm), (self.tokens, tpm)):
            rate = limit * self.headroom / 60 * self.share * meter.control.factor * self.overload.factor
            meter.budget.set_rate(rate, now_s)


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """How much of the quota was used between the first request and the last reply."""

    rpm: int
    tpm: int
    requests: int = 0
    tokens: float = 0
    first_s: float = math.inf
    last_s: float = -math.inf

    def plus(self, *, now_s: float, requests: int = 0, tokens: float = 0) -> "QuotaUse":
        """Return the use after one more request or settled reply."""
        return QuotaUse(
            self.rpm,
            self.tpm,
            self.requests + requests,
            self.tokens + tokens,
            min(self.first_s, now_s),
            max(self.last_s, now_s),
        )

    def merge(self, other: "QuotaUse") -> "QuotaUse":
        """Add another process's use of the same quota."""
        return QuotaUse(
            self.rpm,
            self.tpm,
            self.requests + other.requests,
            self.tokens + other.tokens,
            min(self.first_s, other.first_s),
            max(self.last_s, other.last_s),
        )

    def shift(self, offset_s: float) -> "QuotaUse":
        """Return the same use on another clock."""
        return replace(self, first_s=self.first_s + offset_s, last_s=self.last_s + offset_s)

    @property
    def shares(self) -> tuple[float, float]:
        """The used shares of the request and the token quota over the time of use, 0 before any."""
        minutes = (self.last_s - self.first_s) / 60
        if self.requests == 0 or minutes <= 0:
            return 0.0, 0.0
        return self.requests / minutes / self.rpm, self.tokens / minutes / self.tpm

    @property
    def binding(self) -> str:
        """Which limit was nearer: `rpm` or `tpm`."""
        requests_share, tokens_share = self.shares
        return "rpm" if requests_share >= tokens_share else "tpm"

    @property
    def utilisation(self) -> float:
        """The used share of the nearer limit."""
        return max(self.shares)


@dataclass(slots=True)
class EstimateRatio:
    """The running ratio of counted to estimated tokens of one modality, which corrects the next estimates."""

    ratio: float = 1.0
    weight: float = 0.05  # of one reply: about the last 20 count

    def correct(self, estimate: float) -> float:
        """Return the estimate as the replies so far suggest it."""
        return estimate * self.ratio

    def learn(self, estimate: float, actual: float) -> None:
        """Take one reply's count in; a single odd one moves the ratio little, and never beyond 1/8 … 8."""
        if estimate > 0 and actual > 0:
            observed = min(8.0, max(0.125, actual / estimate))
            self.ratio += self.weight * (observed - self.ratio)
