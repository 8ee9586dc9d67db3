"""The items in the engine, and the bound on how many there are."""

import threading
from dataclasses import dataclass, field

from arkbeam.base.records import Modality
from arkbeam.engine.outcomes import Held, Sink
from arkbeam.quota.budget import NO_COST, Cost
from arkbeam.quota.retry import Tries

ITEMS_MAX = 2048  # submitted and not yet settled, for each process


@dataclass(slots=True)
class Item:
    """One request: `body` as it is sent, `estimate` in tokens, `bound` the most that it can cost."""

    fingerprint: bytes
    body: bytes
    modality: Modality
    sparse: bool
    estimate: float
    bound: Cost = NO_COST
    tries: Tries = Tries()
    first_sent_s: float = 0.0
    reserved: bool = False
    """True if its room was taken before it was made, by `Engine.reserve`."""
    block: tuple[int, int] = (0, 0)
    """Where the lane finds the row for a second try (see `Held`)."""
    again: Held | None = None
    """In the second pass, what was held of the item; None in the first pass."""

    def resume(self, held: Held | None) -> None:
        """Begin the second try of an item that was held. None: this is the first try."""
        if held is not None:
            self.again, self.tries = held, held.tries


@dataclass(slots=True)
class Tracked:
    """An item with the sink of its lane. `is_sent` is True if the bytes of its last try were sent.

    `client_id` is the id of its next try, if that is announced in the journal, and `is_announced` is True once the
    announcement is stored.
    """

    item: Item
    sink: Sink
    is_sent: bool = False
    client_id: str = ""
    is_announced: bool = False


@dataclass(slots=True)
class Room:
    """The bound on the items that are submitted and not yet settled, in number and bytes. Safe to use from several threads."""

    bytes_max: int
    items: int = 0
    bytes: int = 0
    stopped: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, items: int, size: int) -> bool:
        """Wait until there is room; return False if the engine stops. A batch above the bound enters when there are no items."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._fits(items, size))
            if self.stopped:
                return False
            self.items += items
            self.bytes += size
            return True

    def try_enter(self, size: int) -> bool:
        """Take the room of one item without waiting; return False if there is not enough."""
        with self._changed:
            if self.stopped or not self._fits(1, size):
                return False
            self.items += 1
            self.bytes += size
            return True

    def shrink(self, size: int) -> None:
        """Release a part of the bytes of an item."""
        with self._changed:
            self.bytes -= size
            self._changed.notify()

    def leave(self, size: int) -> None:
        """Release the room of one item."""
        with self._changed:
            self.items -= 1
            self.bytes -= size
            # Not for every item: waking the thread of a lane costs more than a request.
            if self.items <= ITEMS_MAX // 2:
                self._changed.notify()

    def close(self) -> None:
        """Let no further item in; waiting callers return False."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _fits(self, items: int, size: int) -> bool:
        return self.items == 0 or (self.items + items <= ITEMS_MAX and self.bytes + size <= self.bytes_max)
