"""Items on their way through the engine, and the bound on how many there are."""

import threading
from dataclasses import dataclass, field

from arkbeam.base.records import Modality
from arkbeam.engine.outcomes import Sink
from arkbeam.quota.budget import NO_COST, Cost
from arkbeam.quota.retry import Tries

ITEMS_MAX = 2048  # submitted and not yet settled, a process


@dataclass(slots=True)
class Item:
    """One request on its way: `estimate` in tokens, `bound` the most that it can cost, `body` as it is sent."""

    fingerprint: bytes
    body: bytes
    modality: Modality
    sparse: bool
    estimate: float
    bound: Cost = NO_COST
    tries: Tries = Tries()
    first_sent_s: float = 0.0
    reserved: bool = False
    """Its place was taken before it was made (`Engine.reserve`)."""


@dataclass(slots=True)
class Tracked:
    """An item with the lane that waits for it. `is_sent` tells whether its last try's bytes went out."""

    item: Item
    sink: Sink
    is_sent: bool = False


@dataclass(slots=True)
class Room:
    """The bound on what is submitted and not yet settled, in items and bytes."""

    bytes_max: int
    items: int = 0
    bytes: int = 0
    stopped: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, items: int, size: int) -> bool:
        """Wait until there is room; one batch always fits an empty engine. False when the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._fits(items, size))
            if self.stopped:
                return False
            self.items += items
            self.bytes += size
            return True

    def try_enter(self, size: int) -> bool:
        """Take an item's room if there is so much now."""
        with self._changed:
            if self.stopped or not self._fits(1, size):
                return False
            self.items += 1
            self.bytes += size
            return True

    def shrink(self, size: int) -> None:
        """Give back a part of an item's bytes."""
        with self._changed:
            self.bytes -= size
            self._changed.notify()

    def leave(self, size: int) -> None:
        """Give one item's room back."""
        with self._changed:
            self.items -= 1
            self.bytes -= size
            if self.items <= ITEMS_MAX // 2:  # not for every item: waking the lane's thread costs more than a request
                self._changed.notify()

    def close(self) -> None:
        """Let nobody in any more, and those who wait go."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _fits(self, items: int, size: int) -> bool:
        return self.items == 0 or (self.items + items <= ITEMS_MAX and self.bytes + size <= self.bytes_max)
