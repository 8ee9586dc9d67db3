"""The budget as requests meet it: they wait for each other, and the first that can't fit ends the run."""

import asyncio
import random
from collections.abc import Callable

from arkbeam.engine.purse import Purse
from arkbeam.quota.budget import NOTHING, Amount, Prices, Spending
from hypothesis import given
from hypothesis import strategies as st

PRICES = Prices(1, 1)


def tokens(count: int) -> Amount:
    """So many tokens, free of charge."""
    return Amount(count, 0)


async def buy_all(purse: Purse, bounds: list[int], at_once: int, chance: random.Random) -> list[int]:
    """Reserve and settle as the engine's workers do; return the places of those that were let through."""
    bought: list[int] = []
    waiting = list(enumerate(bounds))

    async def work() -> None:
        while waiting:
            place, bound = waiting.pop(0)
            if not await purse.reserve(tokens(bound)):
                return
            bought.append(place)
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            assert purse.spending.granted.covers(purse.spending.used.plus(purse.spending.reserved))
            purse.settle(tokens(bound), tokens(int(bound * chance.choice([0, 0.3, 1]))))

    await asyncio.wait_for(asyncio.gather(*(work() for _ in range(at_once))), 20)
    return bought


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 1_000), st.integers(1, 8), st.integers(0, 2**32))
def test_in_order_until_one_does_not_fit(bounds: list[int], budget: int, at_once: int, seed: int) -> None:
    """Requests go through in their order; the run ends at the first that does not fit when nothing is in flight."""
    purse = Purse(Spending(tokens(budget)), PRICES)
    bought = asyncio.run(buy_all(purse, bounds, at_once, random.Random(seed)))
    assert sorted(bought) == list(range(len(bought)))
    assert purse.spending.is_idle
    assert purse.is_reached == (len(bought) < len(bounds))
    if purse.is_reached:
        assert purse.spending.used.tokens + bounds[len(bought)] > budget


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 1_000), st.integers(1, 8), st.integers(0, 2**32))
def test_shares_are_drawn_as_they_are_needed(bounds: list[int], budget: int, at_once: int, seed: int) -> None:
    """What is drawn is never above the budget, and the run ends only when not even one more request's need is left."""
    left = budget

    def draw(need: Amount) -> Amount | None:
        nonlocal left
        if need.tokens > left:
            return None
        more = max(need.tokens, left // 4)
        left -= more
        return tokens(more)

    returned: list[Amount] = []
    purse = Purse(Spending(NOTHING), PRICES, draw, returned.append)
    bought = asyncio.run(buy_all(purse, bounds, at_once, random.Random(seed)))
    assert purse.spending.granted.tokens + left == budget
    if len(bought) < len(bounds):
        assert purse.is_reached
        assert purse.spending.used.tokens + bounds[len(bought)] > budget
    give: Callable[[], None] = purse.give_back()
    give()
    assert returned[0].plus(purse.spending.used) == tokens(budget - left)


def test_a_run_that_stops_lets_go_who_waits() -> None:
    """Whoever waits for room gets none, and the budget was not reached."""

    async def stop() -> bool:
        purse = Purse(Spending(tokens(10)), PRICES)
        assert await purse.reserve(tokens(10))
        waiting = asyncio.create_task(purse.reserve(tokens(5)))
        await asyncio.sleep(0)
        purse.close()
        assert not await asyncio.wait_for(waiting, 5)
        return purse.is_reached

    assert asyncio.run(stop()) is False
