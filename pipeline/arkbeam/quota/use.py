"""How a run used its quota: in total, minute by minute, and how far the token estimates were off."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ENTRIES_MAX = 1440
"""A day of minutes. In longer runs an entry covers two minutes, then four, and so on."""
BINS_PER_DOUBLING = 32
"""Bins of the histogram of ratios: each is 2.2 % wide."""
_LIMITS = (("requests", "rpm"), ("tokens", "tpm"))
_BIN_MAX = 8 * BINS_PER_DOUBLING  # 1/256 … 256


@dataclass(frozen=True, slots=True)
class FoundLimits:
    """What the service was seen to allow a minute; None for a limit that is not lower than the configured one."""

    rpm: int | None = None
    tpm: int | None = None

    def merge(self, other: "FoundLimits") -> "FoundLimits":
        """Return the lower of the limits that two processes found."""
        return FoundLimits(
            min((one for one in (self.rpm, other.rpm) if one is not None), default=None),
            min((one for one in (self.tpm, other.tpm) if one is not None), default=None),
        )

    def describe(self, rpm: int, tpm: int) -> Iterator[str]:
        """Yield a sentence for each limit that was found."""
        for found, said, unit in ((self.rpm, rpm, "requests"), (self.tpm, tpm, "tokens")):
            if found is not None:
                yield f"the service allows about {found:,} {unit}/min; the config says {said:,}"


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """How much of the quota was used between the first request (`first_s`) and the last reply (`last_s`)."""

    rpm: int
    tpm: int
    requests: int = 0
    tokens: float = 0
    first_s: float = math.inf
    last_s: float = -math.inf

    def plus(self, *, now_s: float, requests: int = 0, tokens: float = 0) -> "QuotaUse":
        """Return the use after more requests, or after a reply whose tokens are known."""
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
        """Return the same use with its times on another clock."""
        return replace(self, first_s=self.first_s + offset_s, last_s=self.last_s + offset_s)

    @property
    def shares(self) -> tuple[float, float]:
        """The used shares of RPM and TPM, averaged over the time of use; 0 before the first request."""
        minutes = (self.last_s - self.first_s) / 60
        if self.requests == 0 or minutes <= 0:
            return 0.0, 0.0
        return self.requests / minutes / self.rpm, self.tokens / minutes / self.tpm

    @property
    def binding(self) -> str:
        """The limit with the higher used share: `rpm` or `tpm`."""
        requests_share, tokens_share = self.shares
        return "rpm" if requests_share >= tokens_share else "tpm"

    @property
    def utilisation(self) -> float:
        """The used share of the binding limit."""
        return max(self.shares)


def describe_use(quota: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return how far a run used its quota, as a share and what it is a share of; None if nothing was sent.

    `quota` is that of `run.json`. What was sent in less than a minute is compared with what a minute allows: a few requests
    at once are no use above the limit, though their rate is.
    """
    if not quota["binding"]:
        return None
    minutes = quota.get("minutes") or []
    if not minutes or sum(one["seconds"] for one in minutes) >= 60:
        return f"{quota['utilisation']:.1%}", f"of {quota['binding']}"
    share, unit = max((sum(one[unit] for one in minutes) / quota[name], unit) for unit, name in _LIMITS)
    return f"{share:.1%}", f"of the {unit} that a minute allows"


@dataclass(frozen=True, slots=True)
class Minute:
    """One entry: `minute` counts from the start of the run, `minutes` is its length, `seconds` how much of that was in use."""

    minute: int
    minutes: int
    seconds: float
    requests: int
    refused: int
    tokens: int

    def shares(self, rpm: int, tpm: int) -> tuple[float, float]:
        """Return the used shares of RPM and TPM over the seconds in use (at least one)."""
        minutes = max(1.0, self.seconds) / 60
        return self.requests / minutes / rpm, self.tokens / minutes / tpm

    @property
    def refused_share(self) -> float:
        """The share of requests that were refused. A refusal counts in the minute in which it arrived."""
        return min(1.0, self.refused / self.requests) if self.requests else 0.0


@dataclass(slots=True)
class Minutes:
    """Counts by minute since `start_s`. Counts of several processes can be merged if `start_s` is the same moment in all."""

    start_s: float
    width: int = 1
    first_s: float = math.inf
    last_s: float = -math.inf
    requests: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, now_s: float, *, requests: int = 0, refused: int = 0, tokens: int = 0) -> None:
        """Add counts to the minute of `now_s`."""
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
        """Return the sum of two records, minute by minute of the run."""
        merged, addend = self.copy(), other.copy()
        while merged.width < addend.width:
            merged._fold()
        while addend.width < merged.width:
            addend._fold()
        merged.first_s, merged.last_s = min(self.first_s, other.first_s), max(self.last_s, other.last_s)
        for name in ("requests", "refused", "tokens"):
            setattr(merged, name, _add(getattr(merged, name), getattr(addend, name)))
        return merged

    def entries(self) -> Iterator[Minute]:
        """Yield the minutes from the first request to the last reply, including those without any request."""
        length_s = 60.0 * self.width
        for index, counts in enumerate(zip(self.requests, self.refused, self.tokens, strict=True)):
            start_s = index * length_s
            seconds = min(self.last_s, start_s + length_s) - max(self.first_s, start_s)
            if start_s + length_s > self.first_s:
                yield Minute(index * self.width, self.width, max(0.0, seconds), *counts)

    def _fold(self) -> None:
        """Double the length of the entries, and add up their counts in pairs."""
        self.width *= 2
        for name in ("requests", "refused", "tokens"):
            column = getattr(self, name)
            setattr(self, name, _add(column[::2], column[1::2]))

    def copy(self) -> "Minutes":
        """Return a record that no longer changes with this one."""
        columns = (list(self.requests), list(self.refused), list(self.tokens))
        return Minutes(self.start_s, self.width, self.first_s, self.last_s, *columns)


def _add(left: list[int], right: list[int]) -> list[int]:
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    return [count + (shorter[at] if at < len(shorter) else 0) for at, count in enumerate(longer)]


@dataclass(slots=True)
class Ratios:
    """A histogram of the ratios of counted to estimated tokens. Histograms of several processes can be merged."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, estimated: float, actual: float) -> None:
        """Add the ratio of one reply. A ratio outside 1/256 … 256 counts as the nearest end of that range."""
        if estimated > 0 and actual > 0:
            number = round(math.log2(actual / estimated) * BINS_PER_DOUBLING)
            self.counts[max(-_BIN_MAX, min(_BIN_MAX, number))] += 1

    def merge(self, other: "Ratios") -> "Ratios":
        """Return the sum of two histograms."""
        return Ratios(self.counts + other.counts)

    @property
    def replies(self) -> int:
        """The number of ratios."""
        return self.counts.total()

    def quantile(self, share: float) -> float:
        """Return the quantile at `share` (0 to 1), accurate to 1.1 %; 1 if there are no ratios."""
        wanted, seen = share * self.replies, 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= wanted:
                return float(2 ** (number / BINS_PER_DOUBLING))
        return 1.0


@dataclass(slots=True)
class EstimateRatio:
    """The running mean of counted over estimated tokens of one modality. It corrects the next estimates."""

    ratio: float = 1.0
    weight: float = 0.05  # of one reply: the mean covers about the last 20

    def correct(self, estimate: float) -> float:
        """Return an estimate multiplied by the ratio of the replies so far."""
        return estimate * self.ratio

    def learn(self, estimate: float, actual: float) -> None:
        """Include the count of one reply. A single outlier changes the ratio little; the ratio stays within 1/8 … 8."""
        if estimate > 0 and actual > 0:
            observed = min(8.0, max(0.125, actual / estimate))
            self.ratio += self.weight * (observed - self.ratio)
