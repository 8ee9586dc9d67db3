"""Admission by two budgets at once: requests and tokens per minute.

Each budget is a virtual scheduler (GCRA: a theoretical arrival time that every cost pushes into the future), because debts,
refunds and costs above any burst are then plain additions. There is no opening burst; `SLACK_S` of catch-up credit makes up
for a busy event loop that comes a little late.
"""

import math
from dataclasses import dataclass, field, replace

from pipeline.errors import ConfigError

SLACK_S = 0.2


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """The account's limits, the `quota:` section of the config."""

    rpm: int | None = None
    """Requests a minute; default: the model's in the vendor's list."""
    tpm: int | None = None
    """Tokens a minute; default: the model's in the vendor's list."""
    headroom: float = 0.95
    """The share of both that a run uses; refused requests count against the quota too."""
    lanes: int = 1
    """Elements that the work is dealt over, for work that one process can't hold."""
    redis_url: str | None = None
    """Not supported yet: a budget shared by many processes."""

    def __post_init__(self) -> None:
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(
                    f"quota.{name} is {limit}; it must be at least 1, or absent for the model's own limit"
                )
        if not 0 < self.headroom <= 1:
            raise ConfigError(f"quota.headroom is {self.headroom}; it must be above 0 and at most 1")
        if self.redis_url is not None:
            raise ConfigError(
                "quota.redis_url is not supported yet: leave it out; each lane then has its share of the quota"
            )
        if self.lanes < 1:
            raise ConfigError(f"quota.lanes is {self.lanes}; it must be at least 1")


@dataclass(slots=True)
class Budget:
    """One rate: `tat_s` is the time at which all that was admitted so far is paid off."""

    per_s: float
    tat_s: float

    def take(self, cost: float, start_s: float) -> None:
        """Book a cost that is spent at `start_s`."""
        self.tat_s = max(self.tat_s, start_s - SLACK_S) + cost / self.per_s

    def settle(self, difference: float) -> None:
        """Book what a request cost above its estimate: a debt delays what follows, a refund (negative) hastens it."""
        self.tat_s += difference / self.per_s


@dataclass(slots=True)
class Pacer:
    """Both budgets, the shared pause, and the record of how the quota was used. One a process, one thread."""

    rpm: int
    tpm: int
    headroom: float
    now_s: float
    requests: Budget = field(init=False)
    tokens: Budget = field(init=False)
    paused_until_s: float = -math.inf
    refusals_in_a_row: int = 0
    use: "QuotaUse" = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Budget(self.rpm * self.headroom / 60, self.now_s)
        self.tokens = Budget(self.tpm * self.headroom / 60, self.now_s)
        self.use = QuotaUse(self.rpm, self.tpm)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the next request may be sent, 0 when it may be now. Books nothing."""
        start_s = max(now_s - SLACK_S, self.requests.tat_s, self.tokens.tat_s, self.paused_until_s)
        return max(0.0, start_s - now_s)

    def admit(self, tokens: float, now_s: float) -> None:
        """Book one request of so many estimated tokens as sent now; call it when `wait_s` is 0."""
        self.requests.take(1, now_s)
        self.tokens.take(tokens, now_s)
        self.use = self.use.plus(requests=1, now_s=now_s)

    def settle(self, estimated: float, actual: float, now_s: float) -> None:
        """Replace an admitted request's estimate by what the service counted; 0 for one that was refused."""
        self.tokens.settle(actual - estimated)
        self.use = self.use.plus(tokens=actual, now_s=now_s)

    def pause(self, pause_s: float, now_s: float) -> None:
        """Admit nothing for a while; what had piled up as credit is gone, so that the end of a pause is no burst."""
        self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        for budget in (self.requests, self.tokens):
            budget.tat_s = max(budget.tat_s, self.paused_until_s)


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
