"""Whether a failed request is tried again, and when."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.retry import RETRY_AFTER_S_MIN, Tries, backoff_s, next_wait_s, second_pass_wait_s
from hypothesis import given
from hypothesis import strategies as st

LIMITS = LimitsOptions(attempts_max=4, refusals_max=7, elapsed_s_max=100)
FAULT = ApiError("x", Action.RETRY, "code")


def _error(**fields: Any) -> ApiError:
    return ApiError(**({"message": "x", "action": Action.RETRY, "code": "code"} | fields))


def _wait(error: ApiError, tries: Tries, elapsed_s: float = 0.0, jitter: float = 0.0) -> float | None:
    return next_wait_s(error, tries, elapsed_s, jitter, LIMITS)


@pytest.mark.parametrize("pressure", Pressure)
@pytest.mark.parametrize("action", Action)
def test_only_what_may_work_later_is_tried_again(action: Action, pressure: Pressure) -> None:
    """A rejected row and a stopped job are not tried again, whatever else the error says."""
    error = _error(action=action, pressure=pressure, retry_after_s=3.0)
    assert _wait(error, Tries().plus(error)) == (3.0 if action is Action.RETRY else None)


@pytest.mark.parametrize("pressure", Pressure)
def test_tries_are_counted_by_their_kind(pressure: Pressure) -> None:
    """A refusal is not a fault of the item; an unusable paid reply is a fault and counts as paid."""
    error = _error(pressure=pressure, paid=pressure is Pressure.NONE)
    tries = Tries(1, 1, 1).plus(error)
    assert tries == (Tries(2, 1, 2) if pressure is Pressure.NONE else Tries(1, 2, 1))
    assert tries.total == 3


def test_faults_are_bounded() -> None:
    """An item is sent at most `attempts_max` times; refusals do not count."""
    waits = [_wait(FAULT, Tries(faults=number, refusals=5)) for number in (1, 2, 3, 4, 5)]
    assert [wait is None for wait in waits] == [False, False, False, True, True]


def test_refusals_have_a_bound_of_their_own() -> None:
    """Refusals do not count as tries, and have their own limit."""
    refused = _error(pressure=Pressure.RPM)
    waits = [_wait(refused, Tries(faults=3, refusals=number)) for number in (1, 6, 7)]
    assert [wait is None for wait in waits] == [False, False, True]


def _count_tries(errors: Iterable[ApiError], limits: LimitsOptions) -> int:
    """Return how many tries an item gets that ends with one error after the other."""
    tries = Tries()
    for number, error in enumerate(errors, 1):
        tries = tries.plus(error)
        if next_wait_s(error, tries, 0.0, 0.0, limits) is None:
            return number
    raise AssertionError("the errors do not suffice")


@pytest.mark.parametrize(
    ("fields", "limits", "alone"),
    [
        ({"status": 500}, {"attempts_500": 3}, 3),
        ({"status": 400, "attempts_max": 3}, {}, 3),
        ({"paid": True}, {"retries_paid": 2}, 3),
        ({"lost": True}, {"retries_lost": 2}, 3),
        ({"pressure": Pressure.OVERLOAD}, {"refusals_max": 3}, 3),
        ({"status": 503}, {"attempts_500": 1, "retries_paid": 0, "retries_lost": 0}, 20),
    ],
)
def test_each_kind_of_error_has_a_bound_of_its_own(fields: Any, limits: Any, alone: int) -> None:
    """A bound counts the errors of its kind alone: other faults do not count, and end an item only at `attempts_max`."""
    error, bounds = _error(**fields), LimitsOptions(**{"attempts_max": 20, **limits})
    assert _count_tries(repeat(error), bounds) == alone
    mixed = chain.from_iterable(zip(repeat(FAULT), repeat(error)))
    assert _count_tries(mixed, bounds) == min(alone * 2, 20)
    few = LimitsOptions(**{**limits, "attempts_max": 2})
    assert _count_tries(chain([FAULT], repeat(error)), few) == (2 if error.pressure is Pressure.NONE else 1 + alone)


def test_no_refusals_is_no_bound_on_faults() -> None:
    """With `refusals_max: 0` a refusal ends an item, and another fault does not."""
    limits = LimitsOptions(refusals_max=0)
    assert next_wait_s(FAULT, Tries(faults=1), 0.0, 0.0, limits) is not None
    assert next_wait_s(_error(pressure=Pressure.RPM), Tries(refusals=1), 0.0, 0.0, limits) is None


@pytest.mark.parametrize(
    ("fields", "tries", "wait_s"),
    [
        ({"status": 500}, Tries(faults=6, errors_500=6), 30.0),
        ({"lost": True}, Tries(faults=4, lost=2), 30.0),
        ({"lost": True}, Tries(faults=4, lost=3), None),
        ({"status": 500}, Tries(faults=4, lost=3), None),
        ({"paid": True}, Tries(faults=4, paid=2), 30.0),
        ({"paid": True}, Tries(faults=4, paid=3), None),
        ({"pressure": Pressure.OVERLOAD}, Tries(refusals=60), 30.0),
        ({"status": 503, "retry_after_s": 45.0}, Tries(faults=6), 45.0),
        ({"action": Action.REJECT, "status": 400}, Tries(faults=1), None),
    ],
)
def test_the_second_pass_takes_what_may_pass(fields: Any, tries: Tries, wait_s: float | None) -> None:
    """A passing error is tried again after the time that is set, or that the service asks for, if no bound on paid and lost tries is reached."""
    error = _error(**fields)
    assert second_pass_wait_s(error, tries, LimitsOptions()) == wait_s
    assert second_pass_wait_s(error, tries, LimitsOptions(second_pass_s=0)) is None


def test_the_second_pass_is_one_try() -> None:
    """In the second pass an item that fails is not tried again, and one that is refused is, within `refusals_max`."""
    refused = _error(pressure=Pressure.OVERLOAD)
    for error, tries, again in ((FAULT, 1, False), (refused, 6, True), (refused, 7, False)):
        wait_s = next_wait_s(error, Tries(refusals=tries), 0.0, 0.0, LIMITS, is_second_pass=True)
        assert (wait_s is not None) == again


@pytest.mark.parametrize("seconds", [-1.0, 3_601.0, float("inf"), float("nan")])
def test_the_time_before_the_second_pass_has_bounds(seconds: float) -> None:
    """A run waits neither for ever nor a negative time; the error names the key."""
    with pytest.raises(ConfigError, match=r"limits\.second_pass_s"):
        LimitsOptions(second_pass_s=seconds)


def test_paid_answers_are_bounded() -> None:
    """Unusable replies cost money: there are at most `retries_paid` tries after the first."""
    limits = replace(LIMITS, attempts_max=50, retries_paid=2)
    paid = _error(paid=True)
    waits = [next_wait_s(paid, Tries(faults=number, paid=number), 0, 0, limits) for number in (1, 2, 3)]
    assert [wait is None for wait in waits] == [False, False, True]
    unpaid = next_wait_s(FAULT, Tries(faults=4, paid=3), 0, 0, limits)
    assert unpaid is not None  # bounded by `attempts_max` only


def test_time_is_bounded() -> None:
    """After `elapsed_s_max` nothing is tried again, even with a Retry-After."""
    assert _wait(FAULT, Tries(1), elapsed_s=99.9) is not None
    assert _wait(_error(retry_after_s=1.0), Tries(1), elapsed_s=100) is None


@given(st.floats(RETRY_AFTER_S_MIN, 60), st.integers(1, 3), st.floats(0, 1, exclude_max=True))
def test_the_service_is_taken_at_its_word(retry_after_s: float, faults: int, jitter: float) -> None:
    """A Retry-After replaces our own wait, whether shorter or longer."""
    assert _wait(_error(retry_after_s=retry_after_s), Tries(faults), jitter=jitter) == retry_after_s


@pytest.mark.parametrize("retry_after_s", [0.0, 0.1])
def test_a_retry_after_of_nothing_is_no_hot_loop(retry_after_s: float) -> None:
    """A Retry-After below 0.5 s is treated as none."""
    waits = [_wait(_error(retry_after_s=retry_after_s), Tries(1, refusals)) for refusals in range(3)]
    assert waits == [_wait(_error(), Tries(1, refusals)) for refusals in range(3)] == [0.5, 1, 2]


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_waits_double_within_their_bounds(number: int, jitter: float) -> None:
    """The wait is in the upper half of first x 2^(n-1), or of the longest wait."""
    full = min(30.0, 2.0 ** min(number - 1, 40))
    assert full / 2 <= backoff_s(number, jitter) <= full


def test_waits_grow_with_all_tries() -> None:
    """Refusals lengthen the wait as faults do: 1, 2, 4, … seconds, at most 30."""
    refused = _error(pressure=Pressure.OVERLOAD)
    waits = [_wait(refused, Tries(faults=1, refusals=number), jitter=0.0) for number in range(6)]
    assert waits == [0.5, 1, 2, 4, 8, 15]


def test_a_policy_without_tries_is_refused() -> None:
    """The error names the key of the config."""
    with pytest.raises(ConfigError, match=r"limits\.attempts_max"):
        LimitsOptions(attempts_max=0)


def test_requests_that_may_be_billed_have_a_bound_of_their_own() -> None:
    """A service that never answers is sent a row three times, not `attempts_max` times; tries that were not sent do not count."""
    lost = _error(lost=True)
    tries = [Tries().plus(lost)]
    for _ in range(2):
        tries.append(tries[-1].plus(lost))
    assert [one.lost for one in tries] == [1, 2, 3]
    assert [_wait(lost, one) is None for one in tries] == [False, False, True]
    assert _wait(FAULT, Tries(faults=3, lost=2)) is not None
