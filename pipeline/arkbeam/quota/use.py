"""How the quota was used, and what of it was found to be there."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

ENTRIES_MAX = 1440
"""A day of minutes; of longer runs two minutes share an entry, then four, and so on."""
BINS_PER_DOUBLING = 32
"""A bin is 2.2 % wide."""
_BIN_MAX = 8 * BINS_PER_DOUBLING  # 1/256 … 256


@dataclass(frozen=True, slots=True)
class FoundLimits:
    """What the service was seen to allow a minute, where that is less than the config says."""

    rpm: int | None = None
    tpm: int | None = None

    def merge(self, other: "FoundLimits") -> "FoundLimits":
        """Join what two processes found: the lower."""
        return FoundLimits(
            min((one for one in (self.rpm, other.rpm) if one is not None), default=None),
            min((one for one in (self.tpm, other.tpm) if one is not None), default=None),
        )

    def describe(self, rpm: int, tpm: int) -> Iterator[str]:
        """Say it for each limit that was found."""
        for found, said, unit in ((self.rpm, rpm, "requests"), (self.tpm, tpm, "tokens")):
            if found is not None:
                yield f"the service allows about {found:,} {unit}/min; the config says {said:,}"


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """How much of the quota was used between the first request and the last reply."""

    rpm: int
    tpm: int
    requests: int = 0
    tokens: float = 0
    first_s: float = math.inf
    last_s: float = -math.inf

    def plus(self, *, now_s: float, requests: int = 0, tokens: float = 0) -> "QuotaUse":
        """Return the use after one more request or settled reply."""
        return QuotaUse(
            self.rpm,
            self.tpm,
            self.requests + requests,
            self.tokens + tokens,
            min(self.first_s, now_s),
            max(self.last_s, now_s),
        )

    def merge(self, other: "QuotaUse") -> "QuotaUse":
        """Add another process's use of the same quota."""
        return QuotaUse(
            self.rpm,
            self.tpm,
            self.requests + other.requests,
            self.tokens + other.tokens,
            min(self.first_s, other.first_s),
            max(self.last_s, other.last_s),
        )

    def shift(self, offset_s: float) -> "QuotaUse":
        """Return the same use on another clock."""
        return replace(self, first_s=self.first_s + offset_s, last_s=self.last_s + offset_s)

    @property
    def shares(self) -> tuple[float, float]:
        """The used shares of the request and the token quota over the time of use, 0 before any."""
        minutes = (self.last_s - self.first_s) / 60
        if self.requests == 0 or minutes <= 0:
            return 0.0, 0.0
        return self.requests / minutes / self.rpm, self.tokens / minutes / self.tpm

    @property
    def binding(self) -> str:
        """Which limit was nearer: `rpm` or `tpm`."""
        requests_share, tokens_share = self.shares
        return "rpm" if requests_share >= tokens_share else "tpm"

    @property
    def utilisation(self) -> float:
        """The used share of the nearer limit."""
        return max(self.shares)


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


@dataclass(slots=True)
class Ratios:
    """Ratios of counted to estimated tokens. Those of several processes add up."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, estimated: float, actual: float) -> None:
        """Take one reply's ratio in; beyond 1/256 … 256 it counts as the end of that range."""
        if estimated > 0 and actual > 0:
            number = round(math.log2(actual / estimated) * BINS_PER_DOUBLING)
            self.counts[max(-_BIN_MAX, min(_BIN_MAX, number))] += 1

    def merge(self, other: "Ratios") -> "Ratios":
        """Add another record of the same kind."""
        return Ratios(self.counts + other.counts)

    @property
    def replies(self) -> int:
        """How many ratios there are."""
        return self.counts.total()

    def quantile(self, share: float) -> float:
        """Return the ratio that `share` of all are at or below, to 1.1 %; 1 of none."""
        wanted, seen = share * self.replies, 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= wanted:
                return float(2 ** (number / BINS_PER_DOUBLING))
        return 1.0


@dataclass(slots=True)
class EstimateRatio:
    """The running ratio of counted to estimated tokens of one modality, which corrects the next estimates."""

    ratio: float = 1.0
    weight: float = 0.05  # of one reply: about the last 20 count

    def correct(self, estimate: float) -> float:
        """Return the estimate as the replies so far suggest it."""
        return estimate * self.ratio

    def learn(self, estimate: float, actual: float) -> None:
        """Take one reply's count in; a single odd one moves the ratio little, and never beyond 1/8 … 8."""
        if estimate > 0 and actual > 0:
            observed = min(8.0, max(0.125, actual / estimate))
            self.ratio += self.weight * (observed - self.ratio)
