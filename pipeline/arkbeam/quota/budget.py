"""The most that one run may use: every request reserves what it can cost at most, and settles with what it did cost.

What is in flight is therefore never more than what is left. An answer that never came keeps its reservation, since it may
be billed. Several processes draw shares of one budget: a share counts as used from the moment it is drawn.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from arkbeam.base.errors import ConfigError
from arkbeam.base.records import TokenEstimate, Usage

UNLIMITED = 2**100
_PCNY = 10**12


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """What one run may use at most. The `budget:` section of the config."""

    tokens: int | None = None
    """Tokens that one run may use, retries and lost answers included; the run stops with code 5 at the first request
    that does not fit any more."""
    cny: float | None = None
    """CNY that one run may cost, at `model.prices`; where both are set, both hold."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"budget.tokens is {self.tokens}; it must be at least 1, or absent for no bound")
        if self.cny is not None and not (math.isfinite(self.cny) and self.cny > 0):
            raise ConfigError(f"budget.cny is {self.cny}; it must be above 0, or absent for no bound")

    @property
    def is_set(self) -> bool:
        """Whether there is a bound at all."""
        return self.tokens is not None or self.cny is not None


NO_BUDGET = BudgetOptions()


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens, and their price in CNY / 10^12: whole numbers, so that sums are exact."""

    tokens: int = 0
    pcny: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Add two amounts."""
        return Cost(self.tokens + other.tokens, self.pcny + other.pcny)

    def minus(self, other: "Cost") -> "Cost":
        """Take an amount away; what is left may be negative."""
        return Cost(self.tokens - other.tokens, self.pcny - other.pcny)

    def covers(self, other: "Cost") -> bool:
        """Whether there is as much of both."""
        return self.tokens >= other.tokens and self.pcny >= other.pcny

    @property
    def cny(self) -> float:
        """The price in CNY."""
        return self.pcny / _PCNY


NO_COST = Cost()


@dataclass(frozen=True, slots=True)
class Prices:
    """CNY / 10^12 a token, rounded up."""

    text_pcny: int
    image_pcny: int

    @classmethod
    def per_million(cls, text_cny: float, image_cny: float) -> "Prices":
        """Take prices as the vendor lists them, in CNY for a million tokens."""
        return cls(*(math.ceil(round(cny * 10**6, 3)) for cny in (text_cny, image_cny)))

    def of_bound(self, bound: TokenEstimate) -> Cost:
        """Price the most that a request can use."""
        return Cost(bound.total, bound.text * self.text_pcny + bound.image * self.image_pcny)

    def of_usage(self, usage: Usage | None, bound: Cost) -> Cost:
        """Price what the service counted; where it does not say, the bound stands."""
        if usage is None:
            return bound
        tokens = bound.tokens if usage.total_tokens is None else usage.total_tokens
        if usage.text_tokens is None or usage.image_tokens is None:
            return Cost(tokens, bound.pcny)
        return Cost(tokens, usage.text_tokens * self.text_pcny + usage.image_tokens * self.image_pcny)


def configured_budget(options: BudgetOptions) -> Cost:
    """Return the configured budget; what is not bounded is more than any run can use."""
    return Cost(
        UNLIMITED if options.tokens is None else options.tokens,
        UNLIMITED if options.cny is None else math.floor(round(options.cny * _PCNY, 3)),
    )


def share_used(used: Cost, options: BudgetOptions) -> float:
    """Return the used share of a budget, of whichever of its two bounds is nearer."""
    by_tokens = used.tokens / options.tokens if options.tokens is not None else 0.0
    return max(by_tokens, used.cny / options.cny if options.cny is not None else 0.0)


@dataclass(slots=True)
class Budget:
    """What one process may use, has used, and has reserved for what is in flight.

    Used plus reserved is never above `granted`, unless a reply costs more than its bound, which is then booked as it is.
    """

    granted: Cost
    used: Cost = NO_COST
    reserved: Cost = NO_COST

    @property
    def left(self) -> Cost:
        """What may still be reserved."""
        return self.granted.minus(self.used).minus(self.reserved)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight: what does not fit now never will."""
        return self.reserved == NO_COST

    def lacks(self, bound: Cost) -> Cost:
        """Return how much more must be granted until a bound fits."""
        missing = bound.minus(self.left)
        return Cost(max(0, missing.tokens), max(0, missing.pcny))

    def reserve(self, bound: Cost) -> bool:
        """Set a request's bound aside; False when it does not fit."""
        if not self.left.covers(bound):
            return False
        self.reserved = self.reserved.plus(bound)
        return True

    def settle(self, bound: Cost, actual: Cost) -> None:
        """Replace a reservation by what the request cost: nothing for one that was refused, the bound for a lost answer."""
        self.reserved = self.reserved.minus(bound)
        self.used = self.used.plus(actual)

    def give_back(self) -> Cost:
        """Return what is neither used nor reserved, and have it no more."""
        left = Cost(max(0, self.left.tokens), max(0, self.left.pcny))
        self.granted = self.granted.minus(left)
        return left


@dataclass(slots=True)
class BudgetGate:
    """Used by the engine's thread alone. `draw` gets more of a budget that processes share: it blocks, in a thread.

    None: all of the budget is granted to this process.
    """

    budget: Budget
    prices: Prices
    draw: Callable[[Cost], Cost | None] | None = None
    give: Callable[[Cost], None] | None = None
    is_reached: bool = False
    _is_closed: bool = False
    _was_refused: bool = False
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    async def make_room(self, bound: Cost) -> bool:
        """Wait until a bound that did not fit may fit now; False when the run stops, or when it never will: it is reached.

        To be called at once after `budget.reserve` has failed, and by one task at a time.
        """
        nothing_in_flight = self.budget.is_idle
        self._settled.clear()
        if await self._draw_more(bound):
            return True
        if nothing_in_flight:
            self.is_reached = self._is_closed = True
            return False
        await self._settled.wait()
        return not self._is_closed

    def settle(self, bound: Cost, actual: Cost) -> None:
        """Replace a reservation by what the request cost."""
        self.budget.settle(bound, actual)
        self._settled.set()

    def close(self) -> None:
        """Let nothing more through."""
        self._is_closed = True
        self._settled.set()

    def describe(self, bound: Cost) -> str:
        """Say what is used, and what did not fit."""
        used = self.budget.used
        return (
            f"the budget is reached: {used.tokens:,} tokens ({used.cny:,.4f} CNY) are used here, and the next request may "
            f"use {bound.tokens:,} ({bound.cny:,.4f} CNY); each run has a budget of its own"
        )

    def give_back(self) -> Callable[[], None]:
        """Take what is left of a shared budget; return a function that puts it back, which blocks."""
        give = self.give
        if give is None:
            return lambda: None
        amount = self.budget.give_back()
        self._was_refused = False
        return lambda: give(amount)

    async def _draw_more(self, bound: Cost) -> bool:
        """Draw when there is a chance: once refused, not again before all that is in flight has settled."""
        if self.draw is None or (self._was_refused and not self.budget.is_idle):
            return False
        more = await asyncio.to_thread(self.draw, self.budget.lacks(bound))
        if more is None:
            self._was_refused = True
            return False
        self.budget.granted = self.budget.granted.plus(more)
        return True


def choose_draw(budget: Cost, own: Cost, others: Iterable[Cost], need: Cost, lanes: int) -> Cost | None:
    """Return how much more a process may try to draw: a quarter of its even part of what is left, at least what it needs.

    Ever smaller draws leave little unused when the budget ends. None: what it needs is not left.
    """
    left = budget.minus(own)
    for other in others:
        left = left.minus(other)
    if not left.covers(need):
        return None
    parts = 4 * lanes
    return Cost(max(need.tokens, left.tokens // parts), max(need.pcny, left.pcny // parts))


def is_within_budget(budget: Cost, own: Cost, others: Iterable[Cost]) -> bool:
    """Whether a draw stands: all draws together, seen after our own was written, are within the budget."""
    total = own
    for other in others:
        total = total.plus(other)
    return budget.covers(total)
