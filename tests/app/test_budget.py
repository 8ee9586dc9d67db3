"""A run with a budget never exceeds it and publishes all that it bought; the next run buys the rest."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.emulator.options import EmulatorOptions, FaultShares

from tests.places import Place, run_emulator
from tests.warm import WarmProcess

ROWS = 300
FAST = {"limits.requests_in_flight": 64}


def cost_of(stats: dict[str, Any]) -> float:
    """Return the emulator's bill in CNY, at the list prices."""
    return (stats["tokens"]["text"] * 0.7 + stats["tokens"]["image"] * 1.8) / 1e6


@pytest.fixture(scope="module")
def row_tokens(warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> float:
    """The tokens that a row of `write_texts` costs, measured by a run of one row."""
    with run_emulator(warm, EmulatorOptions()) as emulator:
        place = Place(tmp_path_factory.mktemp("row"), emulator.url)
        place.write_texts(1)
        place.run()
        return float(emulator.stats["tokens"]["total"])


@pytest.mark.parametrize("unit", ["tokens", "cny"])
def test_a_budget_is_not_passed(
    make_emulator: Any, make_place: Any, call: Callable[..., Any], assert_bill: Any, row_tokens: float, unit: str
) -> None:
    """With 64 requests in flight, the bill stays within the budget. The run publishes what it bought; the next run buys the rest."""
    emulator = make_emulator(latency_ms=5, jitter_ms=20)
    place = make_place(emulator.url)
    place.write_texts(ROWS)
    budget = {"tokens": int(row_tokens * ROWS / 2), "cny": row_tokens * ROWS / 2 * 0.7e-6}[unit]

    ended = call(*place.arguments("run", FAST | {f"budget.{unit}": budget}))
    stats, note = emulator.stats, place.note
    billed = {"tokens": stats["tokens"]["total"], "cny": cost_of(stats)}
    assert ended.code == 5
    assert "the budget is reached" in ended.err
    assert 0.85 * budget <= billed[unit] <= budget
    assert note["budget"][f"{unit}_used"] == pytest.approx(billed[unit], rel=1e-6)
    assert note["rows"] == ROWS == note["published"] + note["failed"]
    assert note["failed"] > 0
    assert set(place.read("failures")["code"].to_pylist()) == {"not_bought"}
    assert_bill(place, stats)

    assert call(*place.arguments("run", FAST | {f"budget.{unit}": budget * 3})).code == 0
    assert (place.note["published"], place.note["failed"]) == (ROWS, 0)
    assert emulator.stats["paid"] == emulator.stats["paid_distinct"] == ROWS
    assert place.leftovers == []


def test_tries_that_bring_nothing_count(make_emulator: Any, make_place: Any, assert_bill: Any) -> None:
    """Unusable replies count against the budget, and `run.json` has their number and tokens."""
    emulator = make_emulator(faults=FaultShares(nan=0.3, wrong_length=0.2), latency_ms=5, seed=1)
    place = make_place(emulator.url)
    place.write_texts(60)
    note = place.run(FAST | {"budget.tokens": 2_000, "limits.retries_paid": 5, "limits.attempts_max": 9})
    stats = emulator.stats
    assert note["stopped"]["kind"] == "budget"
    assert stats["tokens"]["total"] <= note["budget"]["tokens_used"] <= 2_000
    assert note["unusable"] > 0
    assert note["unusable_tokens"] > 0
    assert note["requests_paid"] == stats["paid"]
    assert (note["retries"] > 0, note["tries_max"] > 1, note["row_s_max"] > 0.5) == (True, True, True)
    assert note["published"] + note["failed"] == 60
    assert_bill(place, stats)


def test_an_answer_that_never_came_keeps_its_reservation(make_emulator: Any, make_place: Any) -> None:
    """A lost request may be billed: a service that only breaks connections uses up the budget, although it bills nothing."""
    emulator = make_emulator(faults=FaultShares(reset=1.0))
    place = make_place(emulator.url)
    place.write_texts(20)
    note = place.run({"budget.tokens": 1_000})
    assert note["stopped"]["kind"] == "budget"
    assert 0 < note["budget"]["tokens_used"] <= 1_000
    assert note["lost"] == emulator.stats["received"] > 0
    assert (note["published"], note["failed"]) == (0, 20)


def test_refusals_cost_nothing(make_emulator: Any, make_place: Any) -> None:
    """The tokens reserved for a refused request are available again."""
    emulator = make_emulator(faults=FaultShares(rate_429_retry_after=0.3), retry_after_s=0, seed=2)
    place = make_place(emulator.url)
    place.write_texts(30)
    note = place.run({"budget.tokens": 30 * 40})
    assert (note["stopped"], note["published"]) == (None, 30)
    assert note["refused"] > 0
    assert note["budget"]["tokens_used"] == emulator.stats["tokens"]["total"]


@pytest.mark.slow
def test_processes_share_a_budget(
    make_emulator: Any, make_place: Any, start: Any, assert_bill: Any, row_tokens: float
) -> None:
    """Two processes together stay within the budget, and use most of it."""
    emulator = make_emulator(latency_ms=10)
    place = make_place(emulator.url)
    for number in range(8):  # enough shards to give both work
        place.write_rows([{"text": f"row number {number} {at}"} for at in range(100)], f"many-{number}.jsonl")
    budget = int(row_tokens * 400)
    settings = {"budget.tokens": budget, "manifest.uris": [str(place.folder / "many-*.jsonl")]}
    beam = ["--", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    ended = start(*place.arguments("run", settings, *beam)).wait()
    assert ended.code == 5, ended.err
    stats, note = emulator.stats, place.note
    assert 0.7 * budget <= stats["tokens"]["total"] <= note["budget"]["tokens_used"] <= budget
    assert note["published"] + note["failed"] == 800
    assert_bill(place, stats)


def test_the_plan_says_how_far_it_reaches(place: Any, call: Callable[..., Any]) -> None:
    """The plan says which share of the missing vectors the budget covers, in tokens or in money, at the config's prices."""
    place.write_texts(100)
    totals = place.plan()
    half, third = totals.tokens // 2, totals.tokens * 2e-6 / 3
    settings = {"budget.tokens": half, "budget.cny": third, "model.prices.text_cny_per_million": 2}
    ended = call(*place.arguments("plan", settings))
    assert ended.code == 0
    assert "covers about 33% of what is missing" in ended.out
    ended = call(*place.arguments("plan", {"budget.tokens": half}))
    assert "covers about 50% of what is missing" in ended.out


def test_prices_are_the_accounts(place: Any, emulator: Any) -> None:
    """A price in the config replaces the list price in `usage/` and `run.json`."""
    place.write_texts(10)
    note = place.run({"model.prices.text_cny_per_million": 7})
    assert note["cost_cny"] == pytest.approx(emulator.stats["tokens"]["text"] * 7e-6)
    assert note["prices"] == {"text_cny_per_million": 7.0, "image_cny_per_million": 1.8}
    assert sum(place.read("usage")["cost_cny"].to_pylist()) == pytest.approx(note["cost_cny"])


@pytest.fixture
def rejecting(make_emulator: Any) -> Any:
    """A service that rejects every row with one code."""
    return make_emulator(poison="row", latency_ms=5)


def test_a_wrong_config_is_found_early(
    rejecting: Any, make_emulator: Any, make_place: Any, call: Callable[..., Any]
) -> None:
    """If the first rows are all rejected, the run stops with 4; the next run sends them again."""
    place = make_place(rejecting.url)
    place.write_texts(5_000)
    settings = {"limits.rows_rejected_first_max": 20, "limits.requests_in_flight": 8}
    ended = call(*place.arguments("run", settings))
    assert ended.code == 4
    assert "the config is likely wrong" in ended.err
    assert 20 <= rejecting.stats["received"] <= 20 + 8
    assert not (place.output / "_SUCCESS").exists()

    place.write_texts(100)
    place.url = make_emulator().url
    note = place.run()
    assert (note["published"], note["requests_sent"]) == (100, 100)


def test_a_few_bad_rows_are_their_own_fault(rejecting: Any, make_place: Any) -> None:
    """If all rows are rejected but are fewer than the bound, they become failure rows and are not sent again."""
    place = make_place(rejecting.url)
    place.write_texts(10)
    assert place.run()["failed"] == 10
    assert place.run()["requests_sent"] == 0


def test_rejections_after_a_vector_are_the_rows(rejecting: Any, make_place: Any) -> None:
    """After a vector was bought, the bound on first rejections no longer applies."""
    place = make_place(rejecting.url)
    place.write_rows([{"text": "good"}, *({"text": f"row {number}"} for number in range(30))])
    note = place.run({"limits.rows_rejected_first_max": 5, "limits.requests_in_flight": 1})
    assert (note["published"], note["failed"], note["stopped"]) == (1, 30, None)
    assert place.run()["requests_sent"] == 0


def test_the_summary_shows_pace_and_estimates(place: Any, emulator: Any, call: Callable[..., Any]) -> None:
    """The minutes add up to what was sent and billed; there are ratios of billed to estimated tokens for each modality."""
    place.write_texts(50)
    ended = call(*place.arguments("run"))
    quota, stats = place.note["quota"], emulator.stats
    assert sum(one["requests"] for one in quota["minutes"]) == stats["received"]
    assert sum(one["tokens"] for one in quota["minutes"]) == stats["tokens"]["total"]
    assert all(one["refused_share"] == 0 and math.isfinite(one["utilisation"]) for one in quota["minutes"])
    ratios = quota["estimates"]["text"]
    assert ratios["replies"] == 50
    assert 0 < ratios["ratio_p05"] <= ratios["ratio_median"] <= ratios["ratio_p95"]
    assert "billed / estimated" in ended.out
