"""One limit: what is owed to its rate, and what its last minute held.

A budget is a leaky bucket that is sent from while nothing is owed, and then owes what was sent (GCRA in other words): debts,
refunds and costs above any burst are plain additions. There is no opening burst; `SLACK_S` of catch-up credit makes up for a
busy event loop that comes a little late. What bursts that leaves, and large requests, are held by a sliding minute.
"""

import math
from dataclasses import dataclass, field

from arkbeam.quota.control import Control

SLACK_S = 0.2
FOUND_SHARE = 0.95  # a limit closer to the config's is not worth telling
BUCKET_S = 0.1
_BUCKETS = 602
_ROUNDING_S = 0.001
WINDOW_S = (_BUCKETS - 1) * BUCKET_S  # a tenth above a minute, for what is on its way longer than what follows it


@dataclass(slots=True)
class LeakyBucket:
    """One rate and what is owed to it, at `at_s`: what was taken is paid off at `per_s`, and below 0 it is credit.

    Credit is what was earned since `since_s` and in the last `SLACK_S`, no more.
    """

    per_s: float
    at_s: float
    since_s: float
    debt: float = 0.0

    def advance(self, now_s: float) -> None:
        """Pay off what is owed up to now."""
        credit_max = self.per_s * min(SLACK_S, max(0.0, now_s - self.since_s))
        self.debt = max(self.debt - self.per_s * max(0.0, now_s - self.at_s), -credit_max)
        self.at_s = max(self.at_s, now_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until nothing is owed."""
        self.advance(now_s)
        if self.per_s <= 0:
            return math.inf
        return self.debt / self.per_s if self.debt > 0 else 0.0

    def take(self, cost: float, now_s: float, waited_s: float = 0.0) -> None:
        """Book a cost that is spent now. `waited_s`: so long it was held up although nothing was owed, which pays for it."""
        self.advance(now_s)
        self.debt += max(0.0, cost - waited_s * self.per_s)

    def settle(self, difference: float) -> None:
        """Book what a request cost above its estimate: a debt delays what follows, a refund (negative) hastens it."""
        self.debt += difference

    def set_rate(self, per_s: float, now_s: float) -> None:
        """Go on at another rate; debts stay, and credit is not earned backwards."""
        self.advance(now_s)
        self.per_s = per_s


@dataclass(slots=True)
class SlidingWindow:
    """A sum over the last 60.1 to 60.2 s, in a ring of buckets. Times must not go back, those of amounts may."""

    total: float = 0.0
    _newest: int = 0
    _amounts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)

    def forget(self, now_s: float) -> None:
        """Drop what is older than the window."""
        current = int(now_s / BUCKET_S)
        if current - self._newest >= _BUCKETS:
            self._amounts, self.total = [0.0] * _BUCKETS, 0.0
            self._newest = current
        while self._newest < current:
            self._newest += 1
            place = self._newest % _BUCKETS
            self.total -= self._amounts[place]
            self._amounts[place] = 0.0

    def add(self, amount: float, at_s: float, now_s: float) -> None:
        """Count an amount, negative to take back, that was used at `at_s`; what is too old changes nothing."""
        self.forget(now_s)
        number = int(at_s / BUCKET_S)
        if number > self._newest - _BUCKETS:
            self._amounts[number % _BUCKETS] += amount
            self.total += amount

    def drop_in_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until at least so much has left the window, if nothing comes."""
        self.forget(now_s)
        oldest = self._newest - _BUCKETS + 1
        for number in range(oldest, self._newest + 1):
            if amount <= 0:
                return max(0.0, (number - 1 + _BUCKETS) * BUCKET_S - now_s) + _ROUNDING_S
            amount -= self._amounts[number % _BUCKETS]
        return (self._newest + _BUCKETS) * BUCKET_S - now_s + _ROUNDING_S


@dataclass(slots=True)
class RateLimit:
    """One limit: the budget that spreads it evenly, and the last minute, which never holds more than the limit.

    `sent` is in units of the whole quota: what a process sent while it had a fourth of it counts four times. So the minute
    that lies behind means the same after a change of the share. `taken` is what the service did not refuse, likewise.
    """

    per_minute: float
    bucket: LeakyBucket
    control: Control
    sent: SlidingWindow = field(default_factory=SlidingWindow)
    taken: SlidingWindow = field(default_factory=SlidingWindow)

    def room_in_s(self, cost: float, now_s: float) -> float:
        """Return the seconds until a cost fits into the minute. A very large one needs half of it to be free, no more."""
        limit = self.per_minute * max(self.control.factor, self.control.ceiling)
        self.sent.forget(now_s)
        excess = self.sent.total + min(cost, limit / 2) - limit
        return self.sent.drop_in_s(excess, now_s) if excess > limit * 1e-9 else 0.0

    @property
    def found(self) -> int | None:
        """What the service was seen to allow a minute, when that is clearly less than the limit."""
        allowed = self.per_minute * self.control.ceiling
        return round(allowed) if self.control.is_limited and allowed < FOUND_SHARE * self.per_minute else None
