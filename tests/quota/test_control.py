"""Adaptation to refusals, on a simulated clock. test_simulation tests it against models of the service."""

from itertools import pairwise
from random import Random

import pytest
from arkbeam.quota.control import FACTOR_MIN, RAMP_FREE_TPM, Control, InFlight, Ramp, needed_in_flight
from hypothesis import given
from hypothesis import strategies as st


def _feed(control: Control, until_s: float, share: float, *, start_s: float = 0.0, dense: bool = False) -> list[float]:
    """Answer ten requests a second, a share of them refused at random; return the factor after each answer."""
    chance = Random(3)
    factors = []
    for number in range(round((until_s - start_s) * 10)):
        now_s = start_s + number / 10
        control.note_answer(refused=chance.random() < share, sent_s=now_s - 0.05, now_s=now_s, dense=dense)
        factors.append(control.factor)
    return factors


_ANSWERS = st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.floats(0, 2), st.booleans()), max_size=300)


@given(_ANSWERS, st.booleans())
def test_it_stays_within_its_bounds_and_slows_down_once_in_ten_seconds(
    answers: list[tuple[float, bool, float, bool]], bold: bool
) -> None:
    """For any answers, the factor is above 0 and at most 1, and decreases are at least 10 s apart."""
    control, now_s, lowered = Control(tolerance=0.002, bold=bold), 0.0, []
    for later_s, refused, taken, dense in answers:
        now_s += later_s
        before = control.factor
        control.note_answer(refused=refused, sent_s=now_s, now_s=now_s, taken=taken, dense=dense)
        assert FACTOR_MIN <= control.factor <= 1
        assert 1 <= control.patience <= 20
        if control.factor < before:
            lowered.append(now_s)
    assert all(later - earlier >= 10 - 1e-9 for earlier, later in pairwise(lowered))


def test_a_run_without_refusals_is_left_alone() -> None:
    """Answers without refusals leave the factor at 1."""
    control = Control(tolerance=0.002)
    assert set(_feed(control, 600, 0.0)) == {1.0}


def test_refusals_that_do_not_fall_are_noise() -> None:
    """If 10 % are refused at any rate, the first decrease is undone and not repeated for the same reason."""
    control = Control(tolerance=0.002)
    factors = _feed(control, 120, 0.1)
    assert min(factors) < 1
    assert control.factor > 0.9
    assert 0.03 < control.noise < 0.3
    assert control.patience > 2
    assert not control.is_limited
    assert min(_feed(control, 600, 0.1, start_s=120)[1_200:]) > 0.8


def test_refusals_that_fall_were_a_limit() -> None:
    """The control stays below the limit, reports it, and recovers in small steps after the refusals end."""
    control = Control(tolerance=0.002)
    _feed(control, 10.1, 0.4)
    assert 0.5 <= control.factor < 0.7
    factors = _feed(control, 40, 0.0, start_s=10.1)
    assert control.is_limited
    assert all(0 <= later - earlier <= 0.02 + 1e-9 for earlier, later in pairwise(factors))
    _feed(control, 1_200, 0.0, start_s=40)
    assert control.factor == 1
    assert not control.is_limited


def test_what_the_service_took_is_where_it_goes() -> None:
    """The factor falls to just below what the service accepted before a refusal, at most by half in one step."""
    for taken, factor in ((0.6, 0.588), (0.3, 0.5)):
        control = Control(tolerance=0.002)
        for number in range(101):
            control.note_answer(refused=number == 50, sent_s=number / 10, now_s=number / 10, taken=taken)
        assert control.factor == pytest.approx(factor)


def test_random_refusals_that_are_dense_are_a_limit() -> None:
    """Refusals that follow each other even after pauses are never treated as noise."""
    control = Control(tolerance=0.002)
    _feed(control, 200, 0.5, dense=True)
    assert control.noise == 0
    assert control.factor < 0.5


def test_answers_to_what_was_sent_before_do_not_count() -> None:
    """Only requests sent after a decision show its effect."""
    control = Control(tolerance=0.002)
    _feed(control, 11, 0.4)
    lowered = control.factor
    for number in range(100):
        control.note_answer(refused=True, sent_s=5.0, now_s=12 + number / 10)
    assert control.factor == lowered


def test_few_refusals_are_borne_by_an_overloaded_service() -> None:
    """A share of 10 % does not slow the run down; 50 % does."""
    control = Control(tolerance=0.2)
    assert set(_feed(control, 300, 0.1)) == {1.0}
    assert min(_feed(control, 320, 0.5, start_s=300)) < 1


@given(st.floats(0.1, 1_000), st.floats(0.01, 10), st.integers(1, 300))
def test_in_flight_approaches_what_the_rate_needs(per_s: float, latency_s: float, most: int) -> None:
    """The limit grows by at most 1 with each answer, and ends at what the rate needs, or at the bound."""
    flight = InFlight(most)
    for _ in range(400):
        before = flight.limit
        flight.note_answer(latency_s, per_s)
        assert flight.limit <= before + 1
    assert flight.limit == pytest.approx(max(1, min(most, needed_in_flight(per_s, latency_s))), rel=0.01)
    assert flight.limit >= min(most, per_s * latency_s)


def test_latency_that_rises_and_falls_is_followed() -> None:
    """If the latency rises tenfold, the limit follows within some round trips, and falls again later."""
    flight = InFlight(256)
    for latency_s, low, high in ((0.2, 5, 8), (2.0, 25, 40), (0.2, 5, 12)):
        for _ in range(120):
            flight.note_answer(latency_s, 10.0)
        assert low <= flight.limit <= high


def test_no_more_are_open_than_the_limit() -> None:
    """Requests are sent up to the limit; a service that accepts fewer lowers it within a few refusals."""
    flight = InFlight(100)
    flight.limit = 50.0
    flight.open = 49
    assert flight.has_room
    flight.open = 50
    assert not flight.has_room
    for number in range(4):
        flight.control.note_answer(refused=True, sent_s=1.0, now_s=1 + number / 10, taken=0.05)
    flight.open = 5
    assert not flight.has_room
    flight.open = 4
    assert flight.has_room


def test_the_ramp_is_a_fifth_in_three_minutes() -> None:
    """Above 3 million tokens a minute it grows by 20 % in 3 minutes; after a minute without use it starts again."""
    ramp = Ramp()
    allowed = {now_s: ramp.allow_tpm(float(now_s)) for now_s in range(1_000, 2_000)}
    assert allowed[1_000] == RAMP_FREE_TPM
    assert all(allowed[at_s + 180] == pytest.approx(1.2 * allowed[at_s]) for at_s in range(1_000, 1_820))
    assert ramp.allow_tpm(2_061.0) == RAMP_FREE_TPM
