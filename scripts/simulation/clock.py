"""Virtual time: what is to happen when, in order."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class Clock:
    """A queue of events; time jumps from one to the next. Equal times keep the order in which they were asked for."""

    now_s: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "count[int]" = field(default_factory=count)

    def call_at(self, at_s: float, function: Callable[[], None]) -> None:
        """Have something happen at a time, now if that is past."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._numbers), function))

    def run(self, until_s: float) -> None:
        """Let everything happen up to a time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, function = heapq.heappop(self._events)
            function()
        self.now_s = until_s
