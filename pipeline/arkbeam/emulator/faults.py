"""Which requests go wrong, and how. Pure: the random number is an argument."""

import dataclasses
from enum import StrEnum
from itertools import accumulate

from arkbeam.emulator.options import FaultShares


class Fault(StrEnum):
    """What can go wrong with an admitted request; named as in `FaultShares`, where each is explained."""

    RATE_429 = "rate_429"
    RATE_429_RETRY_AFTER = "rate_429_retry_after"
    OVERLOAD_429 = "overload_429"
    ERROR_500 = "error_500"
    RESET = "reset"
    HANG = "hang"
    TRUNCATED = "truncated"
    BROKEN_JSON = "broken_json"
    WRONG_LENGTH = "wrong_length"
    NAN = "nan"
    RESET_PAID = "reset_paid"
    HANG_PAID = "hang_paid"

    @property
    def billed(self) -> bool:
        """Whether the work was done, so that the request is paid although its answer is of no use."""
        return self in _BILLED


_BILLED = frozenset(
    {Fault.TRUNCATED, Fault.BROKEN_JSON, Fault.WRONG_LENGTH, Fault.NAN, Fault.RESET_PAID, Fault.HANG_PAID}
)


class FaultChooser:
    """Picks faults by their shares."""

    def __init__(self, shares: FaultShares) -> None:
        """Lay the shares end to end from 0."""
        values = dataclasses.asdict(shares)
        self._bounds = list(zip(accumulate(values[fault] for fault in Fault), Fault, strict=True))
        self.any = any(values.values())

    def choose(self, uniform: float) -> Fault | None:
        """Pick the fault that a number in [0, 1) falls on; None beyond them all."""
        return next((fault for bound, fault in self._bounds if uniform < bound), None)
