"""Virtual time: a queue of events."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class Clock:
    """A queue of events; time jumps from one event to the next. Events of equal times run in the order of `call_at`."""

    now_s: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    def call_at(self, at_s: float, function: Callable[[], None]) -> None:
        """Call a function at a time, or now if that time is past."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._numbers), function))

    def run(self, until_s: float) -> None:
        """Run all events up to a time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, function = heapq.heappop(self._events)
            function()
        self.now_s = until_s
