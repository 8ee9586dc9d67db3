"""Admission: a queue in which the oldest item waits until the pacer, the shared quota and the budget allow it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from arkbeam.engine.items import Tracked
from arkbeam.quota.budget import BudgetGate
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.sharing import Sharing, Unshared

CHECK_S = 0.2  # the longest wait before the limits are checked again


@dataclass(frozen=True, slots=True)
class Admitted:
    """An item that counts as sent at `sent_s`, with its estimate in tokens."""

    tracked: Tracked
    estimate: float
    sent_s: float


@dataclass(slots=True)
class Throttled:
    """For how long requests have waited for the quota. The engine's thread adds, and sessions take whole seconds."""

    _seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, seconds: float) -> None:
        """Add a wait."""
        with self._lock:
            self._seconds += seconds

    def take(self) -> int:
        """Return the whole seconds since the last call; the rest is left for the next one."""
        with self._lock:
            whole = int(self._seconds)
            self._seconds -= whole
            return whole


@dataclass(slots=True)
class Admission:
    """The queue of items to send, used only by the engine's thread. Items to be sent again are first: they are the oldest."""

    pacer: Pacer
    estimate: Callable[[Tracked], float]
    budget_gate: BudgetGate | None = None
    on_reached: Callable[[Tracked], None] | None = None
    """Called with the item that does not fit into the budget any more."""
    sharing: Sharing = field(default_factory=Unshared)
    may_send: Callable[[float], bool] = lambda _: True
    """False if other processes may take this one for dead."""
    on_superseded: Callable[[Tracked], None] | None = None
    """Called with each item that is not sent because a newer attempt at its block has begun."""
    throttled: Throttled = field(default_factory=Throttled)
    """How long the first request of the queue has waited for the pacer or the shared quota."""
    _again: deque[Tracked] = field(default_factory=deque)
    _fresh: deque[Tracked] = field(default_factory=deque)
    _closed: bool = False
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, tracked: Sequence[Tracked]) -> None:
        """Add items at the end of the queue."""
        self._fresh.extend(tracked)
        self._changed.set()

    def add_again(self, tracked: Tracked) -> None:
        """Add an item that is to be sent again, before those that were never sent."""
        self._again.append(tracked)
        self._changed.set()

    def wake(self) -> None:
        """Check the limits again, after an answer or a change of the share."""
        self._changed.set()

    def close(self) -> list[Tracked]:
        """Admit no further item; return those that waited."""
        self._closed = True
        left = [*self._again, *self._fresh]
        self._again.clear()
        self._fresh.clear()
        return left

    def next_items(self, count: int) -> list[Tracked]:
        """Return the first items of the queue, at most `count`."""
        return list(islice(chain(self._again, self._fresh), count))

    async def take(self) -> Admitted:
        """Wait until an item may be sent, count it as sent, and return it. Callers are served one at a time.

        Raise StoreError if a larger share of the budget can't be drawn.
        """
        async with self._turn:
            while True:
                wait_s: float | None = None
                self._drop_superseded()
                queue = self._again or self._fresh
                if queue and not self._closed:
                    now_s = time.monotonic()
                    estimate = self.estimate(queue[0])
                    wait_s = self._wait_s(estimate, now_s)
                    if wait_s <= 0 and not await self._reserve(queue[0]):
                        continue  # another item may be the first by now
                    if wait_s <= 0:
                        self.pacer.admit(estimate, now_s)
                        self.sharing.take(estimate, now_s)
                        return Admitted(queue.popleft(), estimate, now_s)
                await self._nap(wait_s)

    def _drop_superseded(self) -> None:
        """Remove the items at the head of the queue whose attempts are superseded."""
        while (queue := self._again or self._fresh) and queue[0].item.attempt.superseded:
            tracked = queue.popleft()
            if self.on_superseded is not None:
                self.on_superseded(tracked)

    async def _reserve(self, tracked: Tracked) -> bool:
        """Reserve the most that a request can cost. Return False if the call had to wait, or if the budget is reached."""
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
        """Return the seconds to wait. The shared quota is checked last, since its permits should be used at once."""
        if not self.may_send(now_s):
            return CHECK_S
        self.sharing.refresh(now_s)
        wait_s = self.pacer.wait_s(now_s, tokens)
        return wait_s if wait_s > 0 else self.sharing.wait_s(tokens, now_s)

    async def _nap(self, wait_s: float | None) -> None:
        """Sleep until something changes, at most `wait_s` seconds."""
        self._changed.clear()
        if wait_s is None:
            await self._changed.wait()
            return
        start_s = time.monotonic()
        timer = asyncio.get_running_loop().call_later(min(wait_s, CHECK_S), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
            self.throttled.add(time.monotonic() - start_s)
