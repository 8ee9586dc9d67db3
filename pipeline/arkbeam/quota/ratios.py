"""How far estimates are off, counted over estimated tokens: the ratio that corrects the next ones, and the record of them all."""

import math
from collections import Counter
from dataclasses import dataclass, field

BINS_PER_DOUBLING = 32
"""A bin is 2.2 % wide."""
_BIN_MAX = 8 * BINS_PER_DOUBLING  # 1/256 … 256


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
