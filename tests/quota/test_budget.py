"""A budget is never passed, by one process or by many, whatever the order of things."""

import random
from fractions import Fraction

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import TokenEstimate, Usage
from arkbeam.quota.budget import (
    NOTHING,
    UNLIMITED,
    Amount,
    BudgetOptions,
    Prices,
    Spending,
    budget_amount,
    choose_draw,
    holds,
    share_used,
)
from hypothesis import given
from hypothesis import strategies as st

AMOUNTS = st.builds(Amount, st.integers(0, 1_000), st.integers(0, 1_000))
STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "lose", "refuse"]), AMOUNTS, st.randoms()), max_size=80
)


@given(AMOUNTS, STEPS)
def test_what_is_used_and_reserved_is_never_above_what_is_granted(
    granted: Amount, steps: list[tuple[str, Amount, random.Random]]
) -> None:
    """Whatever is reserved, settled, lost or refused, in whatever order; and what is used is the sum of what was settled."""
    open_bounds: list[Amount] = []
    spending, used = Spending(granted), NOTHING
    for kind, bound, chance in steps:
        if kind == "reserve":
            fits = granted.covers(used.plus(sum_of(open_bounds)).plus(bound))
            assert spending.reserve(bound) == fits
            open_bounds += [bound] if fits else []
        elif open_bounds:
            reserved = open_bounds.pop(chance.randrange(len(open_bounds)))
            share = {"settle": Fraction(chance.random()), "lose": Fraction(1), "refuse": Fraction(0)}[kind]
            actual = Amount(int(reserved.tokens * share), int(reserved.pcny * share))
            spending.settle(reserved, actual)
            used = used.plus(actual)
        assert (spending.used, spending.reserved) == (used, sum_of(open_bounds))
        assert granted.covers(spending.used.plus(spending.reserved))
        assert spending.lacks(spending.left) == NOTHING


def sum_of(amounts: list[Amount]) -> Amount:
    """Add amounts up."""
    total = NOTHING
    for amount in amounts:
        total = total.plus(amount)
    return total


def test_a_reply_above_its_bound_is_booked_as_it_is() -> None:
    """It can't be undone; what comes after it gets less."""
    spending = Spending(Amount(100, 100))
    assert spending.reserve(Amount(60, 60))
    spending.settle(Amount(60, 60), Amount(90, 90))
    assert spending.used == Amount(90, 90)
    assert not spending.reserve(Amount(20, 20))
    assert spending.reserve(Amount(10, 10))


def test_what_is_left_is_given_back() -> None:
    """Neither what is used nor what is reserved; afterwards nothing more fits."""
    spending = Spending(Amount(100, 50))
    spending.reserve(Amount(10, 10))
    spending.settle(Amount(10, 10), Amount(5, 5))
    spending.reserve(Amount(20, 20))
    assert spending.give_back() == Amount(75, 25)
    assert not spending.reserve(Amount(1, 0))


@given(
    AMOUNTS,
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 4), AMOUNTS, st.booleans()), max_size=60),
    st.integers(0, 2**32),
)
def test_draws_of_many_never_exceed_the_budget(
    budget: Amount, count: int, steps: list[tuple[int, Amount, bool]], seed: int
) -> None:
    """Each writes, then lists, in steps that interleave with the others' in any order; those that die keep what they drew."""
    chance = random.Random(seed)
    files, held = [NOTHING] * count, [NOTHING] * count
    tried: dict[int, Amount] = {}
    for step, need, gives_back in steps:
        who = step % count
        others = [drawn for at, drawn in enumerate(files) if at != who]
        if who in tried:  # it has written, and lists now
            wanted = held[who].plus(tried.pop(who))
            if holds(budget, wanted, others):
                held[who] = wanted
            files[who] = held[who]
        elif gives_back:
            share = chance.random()
            held[who] = Amount(int(held[who].tokens * share), int(held[who].pcny * share))
            files[who] = held[who]
        else:
            more = choose_draw(budget, held[who], others, need, count)
            if more is not None:
                assert more.covers(need)
                tried[who] = more
                files[who] = held[who].plus(more)
        assert budget.covers(sum_of(held))


def test_bounds_and_usage_are_priced_exactly() -> None:
    """In whole CNY / 10^12 at the vendor's prices; where the service does not count, the bound stands."""
    prices = Prices.per_million(0.7, 1.8)
    assert prices == Prices(700_000, 1_800_000)
    bound = prices.of_bound(TokenEstimate(text=10, image=100))
    assert bound == Amount(110, 187_000_000)
    assert bound.cny == pytest.approx(187e-6)
    assert prices.of_usage(Usage(9, 9, 4, 5), bound) == Amount(9, 11_800_000)
    assert prices.of_usage(Usage(9, 9, 9, None), bound) == Amount(9, bound.pcny)
    assert prices.of_usage(Usage(), bound) == prices.of_usage(None, bound) == bound
    assert Prices.per_million(1e-7, 0.0) == Prices(1, 0)  # rounded up


def test_what_is_not_bounded_never_binds() -> None:
    """A budget in one unit says nothing about the other."""
    assert budget_amount(BudgetOptions(tokens=5)) == Amount(5, UNLIMITED)
    assert budget_amount(BudgetOptions(cny=0.1)) == Amount(UNLIMITED, 10**11)
    assert not BudgetOptions().is_set


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"cny": 0.0}, {"cny": -1.0}, {"cny": float("nan")}])
def test_what_is_no_budget_is_refused(wrong: dict[str, float]) -> None:
    """And the key is named."""
    with pytest.raises(ConfigError, match=rf"budget\.{next(iter(wrong))}"):
        BudgetOptions(**wrong)  # type: ignore[arg-type]


def test_the_share_that_is_used() -> None:
    """Of whichever bound is nearer."""
    used = Amount(50, 10**12)
    assert share_used(used, BudgetOptions(tokens=100)) == 0.5
    assert share_used(used, BudgetOptions(tokens=100, cny=1.25)) == 0.8
