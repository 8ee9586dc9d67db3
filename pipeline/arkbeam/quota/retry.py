"""Whether a failed request is tried again, and when. Pure functions: the caller passes the time and the random number."""

from dataclasses import dataclass

from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.quota.options import LimitsOptions

RETRY_AFTER_S_MIN = 0.5  # a shorter Retry-After is ignored: requests would be repeated too fast
WAIT_S_FIRST = 1.0
WAIT_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Tries:
    """The tries of one item so far.

    `faults` counts all failed tries except refusals, `refusals` the 429 replies. Of the faults, `paid` counts unusable
    200 replies, and `lost` requests that were sent and got no reply, which may be billed.
    """

    faults: int = 0
    refusals: int = 0
    paid: int = 0
    lost: int = 0

    def plus(self, error: ApiError) -> "Tries":
        """Return the tries after one more, which ended with this error."""
        refused = error.pressure is not Pressure.NONE
        return Tries(
            self.faults + (not refused), self.refusals + refused, self.paid + error.paid, self.lost + error.lost
        )

    @property
    def total(self) -> int:
        """The number of requests sent for the item so far."""
        return self.faults + self.refusals


def next_wait_s(error: ApiError, tries: Tries, elapsed_s: float, jitter: float, limits: LimitsOptions) -> float | None:
    """Return the seconds to wait before the next try, or None if the item must not be tried again.

    `tries` includes the try that has just failed, `elapsed_s` counts from the item's first try, and `jitter` is a
    random number in [0, 1). A Retry-After of the service is used as it is, unless it is shorter than
    `RETRY_AFTER_S_MIN`; otherwise see `backoff_s`.
    """
    if error.action is not Action.RETRY or elapsed_s >= limits.elapsed_s_max:
        return None
    if error.paid and tries.paid > limits.retries_paid:
        return None
    if error.lost and tries.lost > limits.retries_lost:
        return None
    attempts_max = min(limits.attempts_max, error.attempts_max or limits.attempts_max)
    if tries.faults >= attempts_max or tries.refusals >= limits.refusals_max:
        return None
    if error.retry_after_s is not None and error.retry_after_s >= RETRY_AFTER_S_MIN:
        return error.retry_after_s
    return backoff_s(max(tries.total, 1), jitter)


def backoff_s(number: int, jitter: float) -> float:
    """Return the seconds to wait after the `number`th failed try, if the service sends no Retry-After.

    The wait doubles from `WAIT_S_FIRST` to `WAIT_S_MAX`, and the jitter spreads it over its upper half.
    """
    doubled = WAIT_S_FIRST * 2.0 ** min(number - 1, 16)
    return min(WAIT_S_MAX, doubled) * (0.5 + jitter / 2)
