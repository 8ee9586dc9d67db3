"""A budget is never exceeded, by one process or by several, in any order of events."""

import random
from fractions import Fraction

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import TokenEstimate, Usage
from arkbeam.quota.budget import (
    NO_COST,
    UNLIMITED,
    Budget,
    BudgetOptions,
    Cost,
    Prices,
    choose_draw,
    configured_budget,
    is_within_budget,
    share_used,
)
from hypothesis import given
from hypothesis import strategies as st

AMOUNTS = st.builds(Cost, st.integers(0, 1_000), st.integers(0, 1_000))
STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "lose", "refuse"]), AMOUNTS, st.randoms()), max_size=80
)


@given(AMOUNTS, STEPS)
def test_what_is_used_and_reserved_is_never_above_what_is_granted(
    granted: Cost, steps: list[tuple[str, Cost, random.Random]]
) -> None:
    """After any reservations, settlements, losses and refusals the budget is not exceeded; `used` is the sum of the settled costs."""
    open_bounds: list[Cost] = []
    budget, used = Budget(granted), NO_COST
    for kind, bound, chance in steps:
        if kind == "reserve":
            fits = granted.covers(used.plus(sum_of(open_bounds)).plus(bound))
            assert budget.reserve(bound) == fits
            open_bounds += [bound] if fits else []
        elif open_bounds:
            reserved = open_bounds.pop(chance.randrange(len(open_bounds)))
            share = {"settle": Fraction(chance.random()), "lose": Fraction(1), "refuse": Fraction(0)}[kind]
            actual = Cost(int(reserved.tokens * share), int(reserved.pcny * share))
            budget.settle(reserved, actual)
            used = used.plus(actual)
        assert (budget.used, budget.reserved) == (used, sum_of(open_bounds))
        assert granted.covers(budget.used.plus(budget.reserved))
        assert budget.lacks(budget.left) == NO_COST


def sum_of(amounts: list[Cost]) -> Cost:
    """Return the sum of costs."""
    total = NO_COST
    for amount in amounts:
        total = total.plus(amount)
    return total


def test_a_reply_above_its_bound_is_booked_as_it_is() -> None:
    """The actual cost counts, so less is left for the next requests."""
    budget = Budget(Cost(100, 100))
    assert budget.reserve(Cost(60, 60))
    budget.settle(Cost(60, 60), Cost(90, 90))
    assert budget.used == Cost(90, 90)
    assert not budget.reserve(Cost(20, 20))
    assert budget.reserve(Cost(10, 10))


def test_what_is_left_is_given_back() -> None:
    """What is used or reserved stays; afterwards no request fits."""
    budget = Budget(Cost(100, 50))
    budget.reserve(Cost(10, 10))
    budget.settle(Cost(10, 10), Cost(5, 5))
    budget.reserve(Cost(20, 20))
    assert budget.give_back() == Cost(75, 25)
    assert not budget.reserve(Cost(1, 0))


@given(
    AMOUNTS,
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 4), AMOUNTS, st.booleans()), max_size=60),
    st.integers(0, 2**32),
)
def test_draws_of_many_never_exceed_the_budget(
    budget: Cost, count: int, steps: list[tuple[int, Cost, bool]], seed: int
) -> None:
    """Each process writes, then lists; these steps interleave in any order. A process that dies keeps what it drew."""
    chance = random.Random(seed)
    files, held = [NO_COST] * count, [NO_COST] * count
    tried: dict[int, Cost] = {}
    for step, need, gives_back in steps:
        who = step % count
        others = [drawn for at, drawn in enumerate(files) if at != who]
        if who in tried:  # it has written its file and now lists
            wanted = held[who].plus(tried.pop(who))
            if is_within_budget(budget, wanted, others):
                held[who] = wanted
            files[who] = held[who]
        elif gives_back:
            share = chance.random()
            held[who] = Cost(int(held[who].tokens * share), int(held[who].pcny * share))
            files[who] = held[who]
        else:
            more = choose_draw(budget, held[who], others, need, count)
            if more is not None:
                assert more.covers(need)
                tried[who] = more
                files[who] = held[who].plus(more)
        assert budget.covers(sum_of(held))


def test_bounds_and_usage_are_priced_exactly() -> None:
    """Costs are integers of CNY / 10^12 at the vendor's prices; a missing count is taken from the bound."""
    prices = Prices.per_million(0.7, 1.8)
    assert prices == Prices(700_000, 1_800_000)
    bound = prices.of_bound(TokenEstimate(text=10, image=100))
    assert bound == Cost(110, 187_000_000)
    assert bound.cny == pytest.approx(187e-6)
    assert prices.of_usage(Usage(9, 9, 4, 5), bound) == Cost(9, 11_800_000)
    assert prices.of_usage(Usage(9, 9, 9, None), bound) == Cost(9, bound.pcny)
    assert prices.of_usage(Usage(), bound) == prices.of_usage(None, bound) == bound
    assert Prices.per_million(1e-7, 0.0) == Prices(1, 0)  # rounded up


def test_what_is_not_bounded_never_binds() -> None:
    """A budget in tokens does not bound the price, nor the other way round."""
    assert configured_budget(BudgetOptions(tokens=5)) == Cost(5, UNLIMITED)
    assert configured_budget(BudgetOptions(cny=0.1)) == Cost(UNLIMITED, 10**11)
    assert not BudgetOptions().is_set


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"cny": 0.0}, {"cny": -1.0}, {"cny": float("nan")}])
def test_what_is_no_budget_is_refused(wrong: dict[str, float]) -> None:
    """The error names the key of the config."""
    with pytest.raises(ConfigError, match=rf"budget\.{next(iter(wrong))}"):
        BudgetOptions(**wrong)  # type: ignore[arg-type]


def test_the_share_that_is_used() -> None:
    """Of two bounds, the nearer one counts."""
    used = Cost(50, 10**12)
    assert share_used(used, BudgetOptions(tokens=100)) == 0.5
    assert share_used(used, BudgetOptions(tokens=100, cny=1.25)) == 0.8
