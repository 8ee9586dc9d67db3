"""Whether a failed request is tried again, and when: policy as data, apart from the call and from the clock."""

from dataclasses import dataclass

from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.quota.options import LimitsOptions

RETRY_AFTER_S_MIN = 0.5
WAIT_S_FIRST = 1.0
WAIT_S_MAX = 30.0


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


def next_wait_s(error: ApiError, tries: Tries, elapsed_s: float, jitter: float, limits: LimitsOptions) -> float | None:
    """Return the seconds to wait before the next try, or None when there is to be none.

    `tries` include the one that has just failed; `jitter` is a random number in [0, 1). The wait doubles from
    `WAIT_S_FIRST` to `WAIT_S_MAX` and is spread over its upper half; the service's own Retry-After wins, unless it is so
    short that it would make a hot loop.
    """
    if error.action is not Action.RETRY or elapsed_s >= limits.elapsed_s_max:
        return None
    if error.paid and tries.paid > limits.retries_paid:
        return None
    if error.lost and tries.lost > limits.retries_lost:
        return None
    own_max = None if error.paid else error.attempts_max  # paid tries have the bound above
    attempts_max = min(limits.attempts_max, own_max or limits.attempts_max)
    if tries.faults >= attempts_max or tries.refusals >= limits.refusals_max:
        return None
    if error.retry_after_s is not None and error.retry_after_s >= RETRY_AFTER_S_MIN:
        return error.retry_after_s
    return backoff_s(max(tries.total, 1), jitter)


def backoff_s(number: int, jitter: float) -> float:
    """Return the wait before the try after the `number`th failed one, without the service's word."""
    doubled = WAIT_S_FIRST * 2.0 ** min(number - 1, 16)
    return min(WAIT_S_MAX, doubled) * (0.5 + jitter / 2)
