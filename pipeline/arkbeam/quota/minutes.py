"""How the quota was used, minute by minute of the run: what shows that a run kept its pace."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

ENTRIES_MAX = 1440
"""A day of minutes; of longer runs two minutes share an entry, then four, and so on."""


@dataclass(frozen=True, slots=True)
class Minute:
    """One entry: `minute` counts from the run's start, `minutes` is the entry's length, `seconds` how much of it was in use."""

    minute: int
    minutes: int
    seconds: float
    requests: int
    refused: int
    tokens: int

    def shares(self, rpm: int, tpm: int) -> tuple[float, float]:
        """Return the used shares of both limits over the time in use, at least a second."""
        minutes = max(1.0, self.seconds) / 60
        return self.requests / minutes / rpm, self.tokens / minutes / tpm

    @property
    def refused_share(self) -> float:
        """The share of requests that were refused; an answer counts in the minute in which it came."""
        return min(1.0, self.refused / self.requests) if self.requests else 0.0


@dataclass(slots=True)
class Minutes:
    """Counts by minute since `start_s`. Those of several processes add up when their starts are the same moment."""

    start_s: float
    width: int = 1
    first_s: float = math.inf
    last_s: float = -math.inf
    requests: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, now_s: float, *, requests: int = 0, refused: int = 0, tokens: int = 0) -> None:
        """Count what happened at `now_s`."""
        age_s = max(0.0, now_s - self.start_s)
        self.first_s, self.last_s = min(self.first_s, age_s), max(self.last_s, age_s)
        while (index := int(age_s / 60) // self.width) >= ENTRIES_MAX:
            self._fold()
        missing = index + 1 - len(self.requests)
        for column, count in ((self.requests, requests), (self.refused, refused), (self.tokens, tokens)):
            if missing > 0:
                column.extend([0] * missing)
            column[index] += count

    def merge(self, other: "Minutes") -> "Minutes":
        """Add two records up, minute by minute of the run."""
        merged, addend = self._copy(), other._copy()
        while merged.width < addend.width:
            merged._fold()
        while addend.width < merged.width:
            addend._fold()
        merged.first_s, merged.last_s = min(self.first_s, other.first_s), max(self.last_s, other.last_s)
        for name in ("requests", "refused", "tokens"):
            setattr(merged, name, _add(getattr(merged, name), getattr(addend, name)))
        return merged

    def entries(self) -> Iterator[Minute]:
        """Give the minutes from the first request to the last reply, those in which nothing happened included."""
        length_s = 60.0 * self.width
        for index, counts in enumerate(zip(self.requests, self.refused, self.tokens, strict=True)):
            start_s = index * length_s
            seconds = min(self.last_s, start_s + length_s) - max(self.first_s, start_s)
            if start_s + length_s > self.first_s:
                yield Minute(index * self.width, self.width, max(0.0, seconds), *counts)

    def _fold(self) -> None:
        """Make entries twice as long."""
        self.width *= 2
        for name in ("requests", "refused", "tokens"):
            column = getattr(self, name)
            setattr(self, name, _add(column[::2], column[1::2]))

    def _copy(self) -> "Minutes":
        columns = (list(self.requests), list(self.refused), list(self.tokens))
        return Minutes(self.start_s, self.width, self.first_s, self.last_s, *columns)


def _add(left: list[int], right: list[int]) -> list[int]:
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    return [count + (shorter[at] if at < len(shorter) else 0) for at, count in enumerate(longer)]
