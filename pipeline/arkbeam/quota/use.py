"""How the quota was used, and what of it was found to be there."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Found:
    """What the service was seen to allow a minute, where that is less than the config says."""

    rpm: int | None = None
    tpm: int | None = None

    def merge(self, other: "Found") -> "Found":
        """Join what two processes found: the lower."""
        return Found(
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
