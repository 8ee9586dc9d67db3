"""Whether a failed request is tried again, and when. Pure functions: the caller passes the time and the random number."""

from dataclasses import dataclass

from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.quota.options import LimitsOptions

RETRY_AFTER_S_MIN = 0.5  # a shorter Retry-After is ignored: requests would be repeated too fast
WAIT_S_FIRST = 1.0
WAIT_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Tries:
    """The failed tries of one item so far, by kind, each with its bound.

    | count | of | bound |
    |---|---|---|
    | `faults` | all but refusals | `limits.attempts_max` |
    | `refusals` | 429 replies | `limits.refusals_max` |
    | `paid` | faults: unusable 200 replies, which are billed | 1 + `limits.retries_paid` |
    | `lost` | faults: requests that were sent and got no reply, which may be billed | 1 + `limits.retries_lost` |
    | `errors_500` | faults: replies with status 500 | `limits.attempts_500` |
    | `bounded` | faults: errors with a bound of their own, such as a medium that the service could not download | `ApiError.attempts_max` |

    A try counts in `faults` or in `refusals`, and a fault in at most one of the other counts. The bound of `faults`
    applies to every fault, each other bound only to an error of its own kind.
    """

    faults: int = 0
    refusals: int = 0
    paid: int = 0
    lost: int = 0
    errors_500: int = 0
    bounded: int = 0

    def plus(self, error: ApiError) -> "Tries":
        """Return the tries after one more, which ended with this error."""
        refused = error.pressure is not Pressure.NONE
        return Tries(
            self.faults + (not refused),
            self.refusals + refused,
            self.paid + error.paid,
            self.lost + error.lost,
            self.errors_500 + _is_500(error),
            self.bounded + (error.attempts_max is not None),
        )

    @property
    def total(self) -> int:
        """The number of requests sent for the item so far."""
        return self.faults + self.refusals


def next_wait_s(
    error: ApiError,
    tries: Tries,
    elapsed_s: float,
    jitter: float,
    limits: LimitsOptions,
    *,
    is_second_pass: bool = False,
) -> float | None:
    """Return the seconds to wait before the next try, or None if the item must not be tried again in this pass.

    `tries` includes the try that has just failed, `elapsed_s` counts from the item's first try in this pass, and
    `jitter` is a random number in [0, 1). In the second pass only a refusal is tried again. A Retry-After of the
    service is used as it is, unless it is shorter than `RETRY_AFTER_S_MIN`; otherwise see `backoff_s`.
    """
    if error.action is not Action.RETRY or elapsed_s >= limits.elapsed_s_max:
        return None
    if _is_exhausted(error, tries, limits) or (is_second_pass and error.pressure is Pressure.NONE):
        return None
    if error.retry_after_s is not None and error.retry_after_s >= RETRY_AFTER_S_MIN:
        return error.retry_after_s
    return backoff_s(max(tries.total, 1), jitter)


def second_pass_wait_s(error: ApiError, tries: Tries, limits: LimitsOptions) -> float | None:
    """Return the seconds after which an item that was given up is tried once more, or None if it is not.

    `error` ended its last try. Only a passing reason counts, and only if one more paid or lost try is within bounds.
    """
    if limits.second_pass_s <= 0 or error.action is not Action.RETRY:
        return None
    if tries.paid > limits.retries_paid or tries.lost > limits.retries_lost:
        return None
    return max(limits.second_pass_s, error.retry_after_s or 0.0)


def backoff_s(number: int, jitter: float) -> float:
    """Return the seconds to wait after the `number`th failed try, if the service sends no Retry-After.

    The wait doubles from `WAIT_S_FIRST` to `WAIT_S_MAX`, and the jitter spreads it over its upper half.
    """
    doubled = WAIT_S_FIRST * 2.0 ** min(number - 1, 16)
    return min(WAIT_S_MAX, doubled) * (0.5 + jitter / 2)


def _is_exhausted(error: ApiError, tries: Tries, limits: LimitsOptions) -> bool:
    """True if the tries have reached a bound that applies to this error (see `Tries`)."""
    if error.pressure is not Pressure.NONE:
        return tries.refusals >= limits.refusals_max
    return (
        tries.faults >= limits.attempts_max
        or (error.paid and tries.paid > limits.retries_paid)
        or (error.lost and tries.lost > limits.retries_lost)
        or (_is_500(error) and tries.errors_500 >= limits.attempts_500)
        or (error.attempts_max is not None and tries.bounded >= error.attempts_max)
    )


def _is_500(error: ApiError) -> bool:
    return error.status == 500
