"""The budget, as the engine asks for it: a request that does not fit waits for those in flight to settle, or ends the run."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from arkbeam.quota.budget import Amount, Prices, Spending


@dataclass(slots=True)
class Purse:
    """Used by the engine's thread alone. `draw` gets more of a budget that processes share: it blocks, in a thread.

    None: all of the budget is granted to this process.
    """

    spending: Spending
    prices: Prices
    draw: Callable[[Amount], Amount | None] | None = None
    give: Callable[[Amount], None] | None = None
    is_reached: bool = False
    _is_closed: bool = False
    _was_refused: bool = False
    _gate: asyncio.Lock = field(default_factory=asyncio.Lock)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def reserve(self, bound: Amount) -> bool:
        """Set a request's bound aside, first come, first served; False when the run stops or the budget is reached.

        Raises: StoreError when shares can't be drawn.
        """
        async with self._gate:
            while not self._is_closed:
                if self.spending.reserve(bound):
                    return True
                if not await self.make_room(bound):
                    return False
            return False

    async def make_room(self, bound: Amount) -> bool:
        """Wait until a bound that did not fit may fit now; False when the run stops, or when it never will: it is reached.

        To be called at once after `spending.reserve` has failed, and by one task at a time.
        """
        nothing_in_flight = self.spending.is_idle
        self._settled.clear()
        if await self._draw_more(bound):
            return True
        if nothing_in_flight:
            self.is_reached = self._is_closed = True
            return False
        await self._settled.wait()
        return not self._is_closed

    def settle(self, bound: Amount, actual: Amount) -> None:
        """Replace a reservation by what the request cost."""
        self.spending.settle(bound, actual)
        self._settled.set()

    def close(self) -> None:
        """Let nothing more through."""
        self._is_closed = True
        self._settled.set()

    def describe(self, bound: Amount) -> str:
        """Say what is used, and what did not fit."""
        used = self.spending.used
        return (
            f"the budget is reached: {used.tokens:,} tokens ({used.cny:,.4f} CNY) are used here, and the next request may "
            f"use {bound.tokens:,} ({bound.cny:,.4f} CNY); each run has a budget of its own"
        )

    def give_back(self) -> Callable[[], None]:
        """Take what is left of a shared budget; return a function that puts it back, which blocks."""
        give = self.give
        if give is None:
            return lambda: None
        amount = self.spending.give_back()
        self._was_refused = False
        return lambda: give(amount)

    async def _draw_more(self, bound: Amount) -> bool:
        """Draw when there is a chance: once refused, not again before all that is in flight has settled."""
        if self.draw is None or (self._was_refused and not self.spending.is_idle):
            return False
        more = await asyncio.to_thread(self.draw, self.spending.lacks(bound))
        if more is None:
            self._was_refused = True
            return False
        self.spending.granted = self.spending.granted.plus(more)
        return True
