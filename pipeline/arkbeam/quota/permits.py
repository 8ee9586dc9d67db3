"""Permits: the part of a quota in Redis that this process may use. How many to ask for, and when they become valid.

A process asks for permits in blocks of about `BLOCK_S` seconds of the whole quota: one call then covers many requests,
and no process holds many permits that others wait for. Permits that are not used in time expire: used later, they would
add to permits that other processes were granted in the meantime. What replies cost above or below their estimates is
settled with the next block.
"""

import math
from dataclasses import dataclass

BLOCK_S = 0.1
LATE_S = 0.3  # permits expire so long after the end of their block
_MEAN_WEIGHT = 0.05  # of one request in the running mean of tokens: it covers about the last 20


@dataclass(frozen=True, slots=True)
class PermitBlock:
    """A number of requests and of tokens that is asked for; negative numbers are returned."""

    requests: float
    tokens: float


@dataclass(slots=True)
class Permits:
    """The permits that one process holds. The rates are those of the whole quota; `ready_s` is when the permits become valid."""

    requests_per_s: float
    tokens_per_s: float
    requests: float = 0.0
    tokens: float = 0.0
    ready_s: float = -math.inf
    _mean_tokens: float | None = None

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return the seconds until a request of so many tokens may be sent; infinity if the held permits do not cover it."""
        if now_s - self.ready_s > BLOCK_S + LATE_S:
            self.requests, self.tokens = 0.0, min(0.0, self.tokens)
        if self.requests < 1 or self.tokens < tokens:
            return math.inf
        return max(0.0, self.ready_s - now_s)

    def take(self, tokens: float) -> None:
        """Use the permit for one request of so many tokens. Call it only when `wait_s` is 0."""
        self.requests -= 1
        self.tokens -= tokens
        before = tokens if self._mean_tokens is None else self._mean_tokens
        self._mean_tokens = before + _MEAN_WEIGHT * (tokens - before)

    def settle(self, difference: float) -> None:
        """Subtract what requests cost above their estimates."""
        self.tokens -= difference

    def choose_block(self, tokens: float) -> PermitBlock:
        """Return what to ask for while a request of so many tokens waits. Together with the held permits it is about one block."""
        mean = max(1.0, tokens if self._mean_tokens is None else self._mean_tokens)
        requests = max(1.0, math.floor(min(self.requests_per_s, self.tokens_per_s / mean) * BLOCK_S))
        wanted = max(tokens, requests * mean)
        return PermitBlock(max(0.0, requests - self.requests), max(0.0, wanted - self.tokens))

    def grant(self, block: PermitBlock, ready_s: float) -> None:
        """Add a block of permits, valid from `ready_s` on."""
        self.requests += block.requests
        self.tokens += block.tokens
        self.ready_s = max(self.ready_s, ready_s)

    def take_back(self) -> PermitBlock | None:
        """Remove all permits, or the debt, and return them as a block to be settled in Redis; None if there are none."""
        if self.requests == 0 and self.tokens == 0:
            return None
        block = PermitBlock(-self.requests, -self.tokens)
        self.requests, self.tokens = 0.0, 0.0
        return block
