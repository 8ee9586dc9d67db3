"""The items in the engine, and the bound on how many there are."""

import threading
from dataclasses import dataclass, field

from arkbeam.base.records import Modality
from arkbeam.engine.attempts import Attempt
from arkbeam.engine.outcomes import Held, Sink
from arkbeam.quota.budget import NO_COST, Cost
from arkbeam.quota.retry import Tries

ITEMS_MAX = 2048  # submitted and not yet settled, for each process
AHEAD_S = 30.0  # most seconds of the whole quota that submitted items take: so long a bundle may take to end


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
    quota_s: float = 0.0
    """Seconds of the whole quota that its request takes, by estimate."""
    attempt: Attempt = field(default_factory=Attempt)
    """The attempt at the block of its row; a newer one may take the item over."""
    again: Held | None = None
    """In the second pass, what was held of the item; None in the first pass."""

    def resume(self, held: Held | None) -> None:
        """Begin the second try of an item that was held. None: this is the first try."""
        if held is not None:
            self.again, self.tries = held, held.tries


@dataclass(slots=True)
class Tracked:
    """An item with the sink that gets its result. `is_sent` is True if the bytes of its last try were sent.

    `client_id` is the id of its next try, if that is announced in the journal, and `is_announced` is True once the
    announcement is stored.
    """

    item: Item
    sink: Sink
    is_sent: bool = False
    client_id: str = ""
    is_announced: bool = False

    def take_over(self, newer: "Tracked") -> None:
        """Give the result to the sink of a newer attempt. The older sink gets nothing: its attempt is superseded."""
        self.sink.drop(1)
        self.item.attempt.items -= 1
        self.sink, self.item.attempt = newer.sink, newer.item.attempt
        self.item.attempt.items += 1


@dataclass(slots=True)
class Room:
    """The bound on the items that are submitted and not yet settled. Safe to use from several threads.

    It bounds their number, their bytes, and the seconds of the quota that they take.
    """

    bytes_max: int
    items: int = 0
    bytes: int = 0
    ahead_s: float = 0.0
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

    def queue(self, seconds: float) -> bool:
        """Wait until less than `AHEAD_S` seconds of the quota are queued, then add to them; return False if the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self.ahead_s < AHEAD_S)
            if self.stopped:
                return False
            self.ahead_s += seconds
            return True

    def unqueue(self, seconds: float) -> None:
        """Release seconds of the quota that `queue` added."""
        with self._changed:
            before_s = self.ahead_s
            self.ahead_s -= seconds
            if self.ahead_s < AHEAD_S <= before_s:
                self._changed.notify_all()

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
            # Not for every item: waking a session's thread costs more than a request.
            if self.items <= ITEMS_MAX // 2:
                self._changed.notify()

    def close(self) -> None:
        """Let no further item in; waiting callers return False."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _fits(self, items: int, size: int) -> bool:
        return self.items == 0 or (self.items + items <= ITEMS_MAX and self.bytes + size <= self.bytes_max)
