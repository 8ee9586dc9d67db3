"""The pacing against models of the service and of worker processes, in virtual time: what the simulator requires."""

from dataclasses import replace

import pytest

from scripts.simulation.scenarios import SCENARIOS, simulate


@pytest.mark.parametrize("name", SCENARIOS)
def test_regime_is_met(name: str) -> None:
    """Utilisation from the second minute on, share of refusals and highest use in any 60 s are as required; no request fails."""
    result = simulate(SCENARIOS[name])
    assert result.meets(SCENARIOS[name]), result
    assert result.failed == 0


def test_equal_seeds_give_equal_outcomes() -> None:
    """A scenario can be repeated exactly."""
    scenario = replace(SCENARIOS["noise"], minutes=2)
    assert simulate(scenario, 5) == simulate(scenario, 5) != simulate(scenario, 6)


@pytest.mark.parametrize(
    ("name", "rpm", "tpm"), [("lower", 360, None), ("lower_calendar", 360, None), ("lower_tokens", None, 77_380)]
)
def test_the_real_limit_is_found(name: str, rpm: int | None, tpm: int | None) -> None:
    """A limit lower than configured is found to within 8 %; a limit that is not lower is not reported."""
    result = simulate(SCENARIOS[name])
    assert result.found_rpm == (rpm and pytest.approx(rpm, rel=0.08))
    assert result.found_tpm == (tpm and pytest.approx(tpm, rel=0.08))


@pytest.mark.parametrize("name", ["sliding", "tokens", "overload", "noise", "spikes", "replaced"])
def test_no_limit_is_found_where_there_is_none(name: str) -> None:
    """Random refusals are not reported as a limit."""
    result = simulate(SCENARIOS[name])
    assert (result.found_rpm, result.found_tpm) == (None, None)


def test_the_simulator_tells_a_run_that_overruns_its_quota() -> None:
    """At a rate above the quota the simulator refuses requests; a rate below it misses the required utilisation."""
    scenario = SCENARIOS["sliding"]
    fast = simulate(replace(scenario, rpm=700))
    assert fast.refused > 0
    assert not simulate(replace(scenario, headroom=0.9)).meets(scenario)


def test_in_flight_is_what_the_rate_needs() -> None:
    """250 requests a second at 300 ms need 75 in flight: about so many are in flight, not the 256 that are allowed."""
    assert 75 <= simulate(replace(SCENARIOS["in_flight_fast"], minutes=1.2)).in_flight_most <= 130
