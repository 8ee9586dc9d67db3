"""The pacing against models of the service and of its workers, in virtual time: what the simulator's table promises."""

from dataclasses import replace

import pytest

from scripts.simulation.regimes import REGIMES, simulate


@pytest.mark.parametrize("name", REGIMES)
def test_regime_is_met(name: str) -> None:
    """Utilisation from the second minute on, share of refusals and the most in any 60 s are what is asked; no item fails."""
    outcome = simulate(REGIMES[name])
    assert outcome.meets(REGIMES[name]), outcome
    assert outcome.failed == 0


def test_equal_seeds_give_equal_outcomes() -> None:
    """A regime can be replayed."""
    regime = replace(REGIMES["noise"], minutes=2)
    assert simulate(regime, 5) == simulate(regime, 5) != simulate(regime, 6)


@pytest.mark.parametrize(
    ("name", "rpm", "tpm"), [("lower", 360, None), ("lower_calendar", 360, None), ("lower_tokens", None, 77_380)]
)
def test_the_real_limit_is_found(name: str, rpm: int | None, tpm: int | None) -> None:
    """What the service really allows is told to within 8 %; where it allows all, nothing is."""
    outcome = simulate(REGIMES[name])
    assert outcome.found_rpm == (rpm and pytest.approx(rpm, rel=0.08))
    assert outcome.found_tpm == (tpm and pytest.approx(tpm, rel=0.08))


@pytest.mark.parametrize("name", ["sliding", "tokens", "overload", "noise", "spikes", "lanes"])
def test_no_limit_is_found_where_there_is_none(name: str) -> None:
    """Chance is not told as a limit."""
    outcome = simulate(REGIMES[name])
    assert (outcome.found_rpm, outcome.found_tpm) == (None, None)


def test_the_simulator_tells_a_run_that_overruns_its_quota() -> None:
    """A pace above the quota is refused there, and fewer requests than it allows are seen as waste."""
    regime = REGIMES["sliding"]
    fast = simulate(replace(regime, rpm=700))
    assert fast.refused > 0
    assert not simulate(replace(regime, headroom=0.9)).meets(regime)


def test_in_flight_is_what_the_rate_needs() -> None:
    """250 a second at 300 ms are 75; that many are open, and not the 256 that may be."""
    assert 75 <= simulate(replace(REGIMES["in_flight_fast"], minutes=1.2)).in_flight_most <= 130
