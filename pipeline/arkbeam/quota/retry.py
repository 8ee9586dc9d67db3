"""Whether a failed request is tried again, and when: policy as data, apart from the call and from the clock."""

from dataclasses import dataclass

from arkbeam.base.errors import ConfigError
from arkbeam.base.replies import Action, ApiError, Pressure

RETRY_AFTER_S_MIN = 0.5


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds on the tries of one item. Refusals have a bound of their own: they say nothing about the item."""

    attempts_max: int = 6
    refusals_max: int = 60
    elapsed_s_max: float = 900.0
    wait_s_first: float = 1.0
    wait_s_max: float = 30.0
    retries_paid_max: int = 2
    retries_lost_max: int = 2

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise ConfigError(f"limits.attempts_max is {self.attempts_max}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Tries:
    """What one item has behind it.

    `faults` are answers that count as tries, `refusals` are 429s, `paid` unusable 200s, `lost` requests that went out and
    brought no answer: they may be billed.
    """

    faults: int = 0
    refusals: int = 0
    paid: int = 0
    lost: int = 0

    def plus(self, error: ApiError) -> "Tries":
        """Return the tries after one more that ended in this error."""
        refused = error.pressure is not Pressure.NONE
        return Tries(
            self.faults + (not refused), self.refusals + refused, self.paid + error.paid, self.lost + error.lost
        )

    @property
    def total(self) -> int:
        """All requests sent for the item so far."""
        return self.faults + self.refusals


def next_wait_s(error: ApiError, tries: Tries, elapsed_s: float, jitter: float, policy: RetryPolicy) -> float | None:
    """Return the seconds to wait before the next try, or None when there is to be none.

    `tries` include the one that has just failed; `jitter` is a random number in [0, 1). The wait doubles from
    `wait_s_first` to `wait_s_max` and is spread over its upper half; the service's own Retry-After wins, unless it is so
    short that it would make a hot loop.
    """
    if error.action is not Action.RETRY or elapsed_s >= policy.elapsed_s_max:
        return None
    if error.paid and tries.paid > policy.retries_paid_max:
        return None
    if error.lost and tries.lost > policy.retries_lost_max:
        return None
    own_max = None if error.paid else error.attempts_max  # paid tries have the bound above
    attempts_max = min(policy.attempts_max, own_max or policy.attempts_max)
    if tries.faults >= attempts_max or tries.refusals >= policy.refusals_max:
        return None
    if error.retry_after_s is not None and error.retry_after_s >= RETRY_AFTER_S_MIN:
        return error.retry_after_s
    return backoff_s(max(tries.total, 1), jitter, policy)


def backoff_s(number: int, jitter: float, policy: RetryPolicy) -> float:
    """Return the wait before the try after the `number`th failed one, without the service's word."""
    doubled = policy.wait_s_first * 2.0 ** min(number - 1, 16)
    return min(policy.wait_s_max, doubled) * (0.5 + jitter / 2)
