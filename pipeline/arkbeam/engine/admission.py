"""The gate that every request passes: the oldest item waits here until the pacer has room for it, and the others behind it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from arkbeam.engine.items import Tracked
from arkbeam.quota.budget import BudgetGate
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.sharing import Sharing, Unshared

CHECK_S = 0.2  # the longest sleep that nothing but a stop or an answer cuts short


@dataclass(frozen=True, slots=True)
class Admitted:
    """An item that is booked as sent at `sent_s`, at an estimate in tokens."""

    tracked: Tracked
    estimate: float
    sent_s: float


@dataclass(slots=True)
class Admission:
    """Used by the engine's thread alone. Items that were sent before go first: they are the oldest."""

    pacer: Pacer
    estimate: Callable[[Tracked], float]
    budget_gate: BudgetGate | None = None
    on_reached: Callable[[Tracked], None] | None = None
    """Told of the item that the budget has no room for any more."""
    sharing: Sharing = field(default_factory=Unshared)
    _again: deque[Tracked] = field(default_factory=deque)
    _fresh: deque[Tracked] = field(default_factory=deque)
    _closed: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, tracked: Sequence[Tracked]) -> None:
        """Let items wait behind all others."""
        self._fresh.extend(tracked)
        self._changed.set()

    def add_again(self, tracked: Tracked) -> None:
        """Let an item that is to be sent once more wait, before those that were never sent."""
        self._again.append(tracked)
        self._changed.set()

    def wake(self) -> None:
        """Look again: an answer came, or the share changed."""
        self._changed.set()

    def close(self) -> list[Tracked]:
        """Let nothing more through; return what waited."""
        self._closed = True
        left = [*self._again, *self._fresh]
        self._again.clear()
        self._fresh.clear()
        return left

    async def take(self) -> Admitted:
        """Wait for an item and for room, book it and return it. One caller waits at the gate, the others for the gate.

        Raises: StoreError when shares of the budget can't be drawn.
        """
        async with self._turn:
            while True:
                wait_s: float | None = None
                queue = self._again or self._fresh
                if queue and not self._closed:
                    now_s = time.monotonic()
                    estimate = self.estimate(queue[0])
                    wait_s = self._wait_s(estimate, now_s)
                    if wait_s <= 0 and not await self._reserve(queue[0]):
                        continue  # meanwhile there may be another to go first
                    if wait_s <= 0:
                        self.pacer.admit(estimate, now_s)
                        self.sharing.take(estimate, now_s)
                        return Admitted(queue.popleft(), estimate, now_s)
                await self._nap(wait_s)

    async def _reserve(self, tracked: Tracked) -> bool:
        """Set aside the most that a request can cost. False when that took a while, or when there is no room any more."""
        if self.budget_gate is None or self.budget_gate.budget.reserve(tracked.item.bound):
            return True
        if (
            not await self.budget_gate.make_room(tracked.item.bound)
            and self.budget_gate.is_reached
            and self.on_reached is not None
        ):
            self.on_reached(tracked)
        return False

    def _wait_s(self, tokens: float, now_s: float) -> float:
        """Ask the others last: what they give is meant to be used at once."""
        self.sharing.refresh(now_s)
        wait_s = self.pacer.wait_s(now_s, tokens)
        return wait_s if wait_s > 0 else self.sharing.wait_s(tokens, now_s)

    async def _nap(self, wait_s: float | None) -> None:
        """Sleep until something changes, at most so long."""
        self._changed.clear()
        if wait_s is None:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(min(wait_s, CHECK_S), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
