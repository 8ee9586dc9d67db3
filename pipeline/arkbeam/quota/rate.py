"""One limit of the quota, requests or tokens a minute: a leaky bucket for the rate, and a sliding window for the last minute.

The leaky bucket admits a request while its debt is not positive, and adds the cost of the request to the debt (the GCRA
algorithm in other words). Costs above an estimate, refunds and costs above any burst are therefore plain additions.
There is no burst at the start. `SLACK_S` seconds of credit make up for a busy event loop that runs a little late. The
sliding window bounds the small bursts that remain, and very large requests.
"""

import math
from dataclasses import dataclass, field

from arkbeam.quota.control import Control

SLACK_S = 0.2
FOUND_SHARE = 0.95  # a limit that is closer to the configured one is not reported
BUCKET_S = 0.1
_BUCKETS = 602
_ROUNDING_S = 0.001
WINDOW_S = (_BUCKETS - 1) * BUCKET_S  # 60.1 s: a request may take up to 0.1 s longer to arrive than a later one


@dataclass(slots=True)
class LeakyBucket:
    """The debt to one rate, as of `at_s`. It falls by `per_s` a second; below 0 it is credit.

    Credit is at most what `per_s` gives in `SLACK_S`, and only time after `since_s` counts.
    """

    per_s: float
    at_s: float
    since_s: float
    debt: float = 0.0

    def advance(self, now_s: float) -> None:
        """Reduce the debt by the time that has passed."""
        credit_max = self.per_s * min(SLACK_S, max(0.0, now_s - self.since_s))
        self.debt = max(self.debt - self.per_s * max(0.0, now_s - self.at_s), -credit_max)
        self.at_s = max(self.at_s, now_s)

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until the debt is paid off."""
        self.advance(now_s)
        if self.per_s <= 0:
            return math.inf
        return self.debt / self.per_s if self.debt > 0 else 0.0

    def take(self, cost: float, now_s: float, waited_s: float = 0.0) -> None:
        """Add the cost of a request that is sent now.

        `waited_s` is the time for which the sliding window held the request back although there was no debt. It is
        subtracted.
        """
        self.advance(now_s)
        self.debt += max(0.0, cost - waited_s * self.per_s)

    def settle(self, difference: float) -> None:
        """Add what a request cost above its estimate: it delays the next requests. A negative difference is a refund."""
        self.debt += difference

    def set_rate(self, per_s: float, now_s: float) -> None:
        """Continue at another rate. The debt stays; time before `now_s` counts at the old rate."""
        self.advance(now_s)
        self.per_s = per_s


@dataclass(slots=True)
class SlidingWindow:
    """The sum of what was used in the last 60.1 to 60.2 s, in a ring of buckets of 0.1 s.

    It counts a minute as a service with a sliding window does. `now_s` must never decrease; `at_s` of an amount may.
    """

    total: float = 0.0
    _newest: int = 0
    _amounts: list[float] = field(default_factory=lambda: [0.0] * _BUCKETS)

    def forget(self, now_s: float) -> None:
        """Remove what is older than the window."""
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
        """Add an amount that was used at `at_s`; a negative amount is subtracted. Amounts older than the window are ignored."""
        self.forget(now_s)
        number = int(at_s / BUCKET_S)
        if number > self._newest - _BUCKETS:
            self._amounts[number % _BUCKETS] += amount
            self.total += amount

    def drop_in_s(self, amount: float, now_s: float) -> float:
        """Return the seconds until at least this amount has left the window, if nothing is added."""
        self.forget(now_s)
        oldest = self._newest - _BUCKETS + 1
        for number in range(oldest, self._newest + 1):
            if amount <= 0:
                return max(0.0, (number - 1 + _BUCKETS) * BUCKET_S - now_s) + _ROUNDING_S
            amount -= self._amounts[number % _BUCKETS]
        return (self._newest + _BUCKETS) * BUCKET_S - now_s + _ROUNDING_S


@dataclass(slots=True)
class RateLimit:
    """One limit: a leaky bucket that spreads it evenly, and a last minute that never holds more than `per_minute`.

    `sent` is scaled to the whole quota: what a process sends while its share is a fourth counts four times, so the last
    minute stays comparable when the share changes. `taken` is what the service did not refuse, scaled in the same way.
    """

    per_minute: float
    bucket: LeakyBucket
    control: Control
    sent: SlidingWindow = field(default_factory=SlidingWindow)
    taken: SlidingWindow = field(default_factory=SlidingWindow)

    def room_in_s(self, cost: float, now_s: float) -> float:
        """Return the seconds until a cost fits into the last minute. A cost above half the limit needs room for half."""
        limit = self.per_minute * max(self.control.factor, self.control.ceiling)
        self.sent.forget(now_s)
        excess = self.sent.total + min(cost, limit / 2) - limit
        return self.sent.drop_in_s(excess, now_s) if excess > limit * 1e-9 else 0.0

    @property
    def found(self) -> int | None:
        """What the service was seen to allow a minute, if that is clearly less than the configured limit, else None."""
        allowed = self.per_minute * self.control.ceiling
        return round(allowed) if self.control.is_limited and allowed < FOUND_SHARE * self.per_minute else None
