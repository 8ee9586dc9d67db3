"""The budget as the admission of requests applies it: they wait for each other, and the first that cannot fit ends the run."""

import asyncio
import random
import time
from collections.abc import Callable

from arkbeam.base.records import Modality
from arkbeam.engine.admission import Admission
from arkbeam.engine.items import Item, Tracked
from arkbeam.engine.outcomes import Sink
from arkbeam.quota.budget import NO_COST, Budget, BudgetGate, Cost, Prices
from arkbeam.quota.pacer import Pacer
from hypothesis import given
from hypothesis import strategies as st

PRICES = Prices(1, 1)


def tokens(count: int) -> Cost:
    """A number of tokens, free of charge."""
    return Cost(count, 0)


def open_admission(gate: BudgetGate, bounds: list[int], on_reached: Callable[[Tracked], None]) -> Admission:
    """An admission that only the budget limits, with one waiting item for each bound."""
    pacer = Pacer(10**9, 10**12, 1.0, time.monotonic())
    admission = Admission(pacer, lambda _: 0.0, gate, on_reached)
    for place, bound in enumerate(bounds):
        item = Item(place.to_bytes(16), b"{}", Modality.TEXT, False, 0.0, tokens(bound))
        admission.add([Tracked(item, Sink())])
    return admission


async def buy_all(gate: BudgetGate, bounds: list[int], at_once: int, chance: random.Random) -> list[int]:
    """Admit and settle as the engine's workers do; return the places of those that were admitted."""
    bought: list[int] = []
    ended = asyncio.Event()
    overspent = False

    def stop(_: Tracked) -> None:
        admission.close()
        ended.set()

    async def work() -> None:
        nonlocal overspent
        while True:
            item = (await admission.take()).tracked.item
            bought.append(int.from_bytes(item.fingerprint))
            await asyncio.sleep(0)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            overspent |= not gate.budget.granted.covers(gate.budget.used.plus(gate.budget.reserved))
            gate.settle(item.bound, tokens(int(item.bound.tokens * chance.choice([0, 0.3, 1]))))
            if len(bought) == len(bounds) and gate.budget.is_idle:
                ended.set()

    admission = open_admission(gate, bounds, stop)
    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    if bounds:
        await asyncio.wait_for(ended.wait(), 20)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert not overspent
    return bought


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 1_000), st.integers(1, 8), st.integers(0, 2**32))
def test_in_order_until_one_does_not_fit(bounds: list[int], budget: int, at_once: int, seed: int) -> None:
    """Requests are admitted in order; the run ends at the first that does not fit while nothing is in flight."""
    gate = BudgetGate(Budget(tokens(budget)), PRICES)
    bought = asyncio.run(buy_all(gate, bounds, at_once, random.Random(seed)))
    assert bought == list(range(len(bought)))
    assert gate.budget.is_idle
    assert gate.is_reached == (len(bought) < len(bounds))
    if gate.is_reached:
        assert gate.budget.used.tokens + bounds[len(bought)] > budget


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 1_000), st.integers(1, 8), st.integers(0, 2**32))
def test_shares_are_drawn_as_they_are_needed(bounds: list[int], budget: int, at_once: int, seed: int) -> None:
    """Draws never exceed the budget, and the run ends only when not enough is left for the next request."""
    left = budget

    def draw(need: Cost) -> Cost | None:
        nonlocal left
        if need.tokens > left:
            return None
        more = max(need.tokens, left // 4)
        left -= more
        return tokens(more)

    returned: list[Cost] = []
    gate = BudgetGate(Budget(NO_COST), PRICES, draw, returned.append)
    bought = asyncio.run(buy_all(gate, bounds, at_once, random.Random(seed)))
    assert gate.budget.granted.tokens + left == budget
    if len(bought) < len(bounds):
        assert gate.is_reached
        assert gate.budget.used.tokens + bounds[len(bought)] > budget
    give: Callable[[], None] = gate.give_back()
    give()
    assert returned[0].plus(gate.budget.used) == tokens(budget - left)


def test_a_run_that_stops_lets_go_who_waits() -> None:
    """An item that waits for the budget is not sent, and the budget does not count as reached."""
    reached: list[Tracked] = []

    async def stop() -> tuple[bool, list[Tracked]]:
        gate = BudgetGate(Budget(tokens(10)), PRICES)
        admission = open_admission(gate, [10, 5], reached.append)
        await admission.take()
        waiting = asyncio.create_task(admission.take())
        await asyncio.sleep(0)
        left = admission.close()
        gate.close()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return gate.is_reached, left

    is_reached, left = asyncio.run(stop())
    assert (is_reached, reached) == (False, [])
    assert [one.item.bound for one in left] == [tokens(5)]
