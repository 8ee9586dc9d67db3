"""The budget of a run. Every request reserves its bound (the most that it can cost) before it is sent.

The reservation is later replaced by the actual cost, so the requests in flight never cost more than what is left. A
request without a reply is charged its bound, since it may be billed. Several processes draw shares of one budget; a
share counts as used from the moment it is drawn (see `quota.draws`).
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
    """The limits of what one run may use. The `budget:` section of the config."""

    tokens: int | None = None
    """Maximum tokens of one run, including retries and requests without a reply. The run stops with exit code 5 at the
    first request that does not fit."""
    cny: float | None = None
    """Maximum cost of one run in CNY, at the prices in `model.prices`. If `tokens` is set too, both limits apply."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"budget.tokens is {self.tokens}; it must be at least 1, or absent for no limit")
        if self.cny is not None and not (math.isfinite(self.cny) and self.cny > 0):
            raise ConfigError(f"budget.cny is {self.cny}; it must be above 0, or absent for no limit")

    @property
    def is_set(self) -> bool:
        """True if there is a limit."""
        return self.tokens is not None or self.cny is not None


NO_BUDGET = BudgetOptions()


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens, and their price in pCNY (CNY / 10^12): integers, so that sums are exact."""

    tokens: int = 0
    pcny: int = 0

    def plus(self, other: "Cost") -> "Cost":
        """Return the sum of two costs."""
        return Cost(self.tokens + other.tokens, self.pcny + other.pcny)

    def minus(self, other: "Cost") -> "Cost":
        """Return the difference of two costs; it may be negative."""
        return Cost(self.tokens - other.tokens, self.pcny - other.pcny)

    def covers(self, other: "Cost") -> bool:
        """True if neither the tokens nor the price of `other` are higher."""
        return self.tokens >= other.tokens and self.pcny >= other.pcny

    @property
    def cny(self) -> float:
        """The price in CNY."""
        return self.pcny / _PCNY


NO_COST = Cost()


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of text and image tokens, in pCNY (CNY / 10^12) a token, rounded up."""

    text_pcny: int
    image_pcny: int

    @classmethod
    def per_million(cls, text_cny: float, image_cny: float) -> "Prices":
        """Convert prices as the vendor lists them, in CNY for a million tokens."""
        return cls(*(math.ceil(round(cny * 10**6, 3)) for cny in (text_cny, image_cny)))

    def of_bound(self, bound: TokenEstimate) -> Cost:
        """Return the cost of the most tokens that a request can use."""
        return Cost(bound.total, bound.text * self.text_pcny + bound.image * self.image_pcny)

    def of_usage(self, usage: Usage | None, bound: Cost) -> Cost:
        """Return the cost of what the service counted; counts that are missing are taken from the bound."""
        if usage is None:
            return bound
        tokens = bound.tokens if usage.total_tokens is None else usage.total_tokens
        if usage.text_tokens is None or usage.image_tokens is None:
            return Cost(tokens, bound.pcny)
        return Cost(tokens, usage.text_tokens * self.text_pcny + usage.image_tokens * self.image_pcny)


def configured_budget(options: BudgetOptions) -> Cost:
    """Return the configured budget. A missing limit is replaced by `UNLIMITED`, more than any run can use."""
    return Cost(
        UNLIMITED if options.tokens is None else options.tokens,
        UNLIMITED if options.cny is None else math.floor(round(options.cny * _PCNY, 3)),
    )


def share_used(used: Cost, options: BudgetOptions) -> float:
    """Return the used share of a budget: of its two limits, the share of the one that is nearer to being reached."""
    by_tokens = used.tokens / options.tokens if options.tokens is not None else 0.0
    return max(by_tokens, used.cny / options.cny if options.cny is not None else 0.0)


@dataclass(slots=True)
class Budget:
    """What one process may use (`granted`), has used, and has reserved for requests in flight.

    Used plus reserved never exceeds `granted`, except when a reply costs more than its bound: the actual cost is
    counted then.
    """

    granted: Cost
    used: Cost = NO_COST
    reserved: Cost = NO_COST

    @property
    def left(self) -> Cost:
        """What can still be reserved."""
        return self.granted.minus(self.used).minus(self.reserved)

    @property
    def is_idle(self) -> bool:
        """True if nothing is in flight: a request that does not fit now will never fit."""
        return self.reserved == NO_COST

    def lacks(self, bound: Cost) -> Cost:
        """Return how much more must be granted so that a bound fits."""
        missing = bound.minus(self.left)
        return Cost(max(0, missing.tokens), max(0, missing.pcny))

    def reserve(self, bound: Cost) -> bool:
        """Reserve the bound of a request; return False if it does not fit."""
        if not self.left.covers(bound):
            return False
        self.reserved = self.reserved.plus(bound)
        return True

    def settle(self, bound: Cost, actual: Cost) -> None:
        """Replace a reservation by the actual cost: 0 for a refused request, the bound for a request without a reply."""
        self.reserved = self.reserved.minus(bound)
        self.used = self.used.plus(actual)

    def give_back(self) -> Cost:
        """Reduce `granted` by what is neither used nor reserved, and return that amount."""
        left = Cost(max(0, self.left.tokens), max(0, self.left.pcny))
        self.granted = self.granted.minus(left)
        return left


@dataclass(slots=True)
class BudgetGate:
    """The budget for asynchronous callers: a request that does not fit waits, or ends the run. Used by one event loop.

    For a budget that processes share, `draw` gets a larger share and `give` returns a part of it. Both block; `draw` is
    run in a thread. Without them the whole budget is granted to this process. `is_reached` is True once a request can
    never fit.
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
        """Wait until a bound that did not fit may fit. Return False if the run stops, or if the bound will never fit.

        Call this directly after `budget.reserve` has failed, from one task at a time. Raise StoreError if a larger
        share can't be drawn.
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
        """Replace a reservation by the actual cost."""
        self.budget.settle(bound, actual)
        self._settled.set()

    def close(self) -> None:
        """Admit no further request."""
        self._is_closed = True
        self._settled.set()

    def describe(self, bound: Cost) -> str:
        """Return a message that says how much is used and which bound did not fit."""
        used = self.budget.used
        return (
            f"the budget is reached: {used.tokens:,} tokens ({used.cny:,.4f} CNY) are used in this process, and the "
            f"next request may use {bound.tokens:,} ({bound.cny:,.4f} CNY); each run has its own budget"
        )

    def give_back(self) -> Callable[[], None]:
        """Take from this process what it has left of a shared budget; return a blocking function that gives it back."""
        give = self.give
        if give is None:
            return lambda: None
        amount = self.budget.give_back()
        self._was_refused = False
        return lambda: give(amount)

    async def _draw_more(self, bound: Cost) -> bool:
        """Draw a larger share. After a refusal do not try again before all requests in flight are settled."""
        if self.draw is None or (self._was_refused and not self.budget.is_idle):
            return False
        more = await asyncio.to_thread(self.draw, self.budget.lacks(bound))
        if more is None:
            self._was_refused = True
            return False
        self.budget.granted = self.budget.granted.plus(more)
        return True


def choose_draw(budget: Cost, own: Cost, others: Iterable[Cost], need: Cost, processes: int) -> Cost | None:
    """Return how much more a process may try to draw, or None if less than `need` is left.

    The amount is a quarter of one process's equal part of what is left, but at least `need`. So draws become smaller and
    smaller, and little is left unused in other processes when the budget ends.
    """
    left = budget.minus(own)
    for other in others:
        left = left.minus(other)
    if not left.covers(need):
        return None
    parts = 4 * processes
    return Cost(max(need.tokens, left.tokens // parts), max(need.pcny, left.pcny // parts))


def is_within_budget(budget: Cost, own: Cost, others: Iterable[Cost]) -> bool:
    """True if a draw is valid: all draws, listed after `own` was written, add up to no more than the budget."""
    total = own
    for other in others:
        total = total.plus(other)
    return budget.covers(total)
