"""Permits that a process holds of a quota which is kept elsewhere: how many it asks for at once, and when they count.

They are asked for in blocks, of about `BLOCK_S` of the whole quota, so that a call is made for many requests and yet no
process holds much that others wait for. What is not used in time is lost: later it would come on top of what others were given
since. What replies cost above or below their estimates is settled with the next block.
"""

import math
from dataclasses import dataclass

BLOCK_S = 0.1
LATE_S = 0.3
_MEAN_WEIGHT = 0.05  # of one request in the running mean of tokens: about the last 20 count


@dataclass(frozen=True, slots=True)
class PermitBlock:
    """So many requests, and tokens for them; negative: given back."""

    requests: float
    tokens: float


@dataclass(slots=True)
class Permits:
    """What one process may send. The rates are those of the whole quota."""

    requests_per_s: float
    tokens_per_s: float
    requests: float = 0.0
    tokens: float = 0.0
    ready_s: float = -math.inf
    _mean_tokens: float | None = None

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return the seconds until a request of so many tokens may go: 0 is now, infinity is not with this block."""
        if now_s - self.ready_s > BLOCK_S + LATE_S:
            self.requests, self.tokens = 0.0, min(0.0, self.tokens)
        if self.requests < 1 or self.tokens < tokens:
            return math.inf
        return max(0.0, self.ready_s - now_s)

    def take(self, tokens: float) -> None:
        """Use up one request of so many tokens; call it when `wait_s` is 0."""
        self.requests -= 1
        self.tokens -= tokens
        before = tokens if self._mean_tokens is None else self._mean_tokens
        self._mean_tokens = before + _MEAN_WEIGHT * (tokens - before)

    def settle(self, difference: float) -> None:
        """Book what requests cost above their estimates."""
        self.tokens -= difference

    def choose_block(self, tokens: float) -> PermitBlock:
        """Return what to ask for when a request of so many tokens waits: with what is held it is about one block."""
        mean = max(1.0, tokens if self._mean_tokens is None else self._mean_tokens)
        requests = max(1.0, math.floor(min(self.requests_per_s, self.tokens_per_s / mean) * BLOCK_S))
        wanted = max(tokens, requests * mean)
        return PermitBlock(max(0.0, requests - self.requests), max(0.0, wanted - self.tokens))

    def grant(self, block: PermitBlock, ready_s: float) -> None:
        """Take a block in; it counts from `ready_s` on."""
        self.requests += block.requests
        self.tokens += block.tokens
        self.ready_s = max(self.ready_s, ready_s)

    def take_back(self) -> PermitBlock | None:
        """Take all that is held, or owed, out of here, to be booked there; None when there is nothing."""
        if self.requests == 0 and self.tokens == 0:
            return None
        block = PermitBlock(-self.requests, -self.tokens)
        self.requests, self.tokens = 0.0, 0.0
        return block
