"""Count requests, bills and tokens, in total and per second. Tests and benchmarks compare their results with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from arkbeam.base.records import Usage

SECONDS_KEPT = 3_600


@dataclass(slots=True)
class Second:
    """What happened within one second of the clock."""

    received: int = 0
    paid: int = 0
    refused: int = 0
    tokens: int = 0


class Ledger:
    """The counts. `received` = paid + refused + rejected + faults that are not billed + requests not yet decided."""

    def __init__(self) -> None:
        """Start with all counts at 0."""
        self.received = self.paid = self.refused = self.rejected = self.faulted = 0
        self.in_flight = self.in_flight_max = 0
        self._tokens = {"prompt": 0, "total": 0, "text": 0, "image": 0}
        self._paid_hashes: set[int] = set()
        self._first_paid_s: float | None = None
        self._last_paid_s: float | None = None
        self._seconds: dict[int, Second] = {}

    @contextmanager
    def receive(self, now_s: float) -> Iterator[None]:
        """Count a request as received, and as in flight until the end of the block."""
        self.received += 1
        self._second(now_s).received += 1
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def bill(self, usage: Usage, meaning_hash: bytes, now_s: float) -> None:
        """Count a paid request. `meaning_hash` (8 bytes) is equal for requests with the same meaning."""
        self.paid += 1
        self._tokens["prompt"] += usage.prompt_tokens or 0
        self._tokens["total"] += usage.total_tokens or 0
        self._tokens["text"] += usage.text_tokens or 0
        self._tokens["image"] += usage.image_tokens or 0
        self._paid_hashes.add(int.from_bytes(meaning_hash, "big"))
        self._first_paid_s = now_s if self._first_paid_s is None else self._first_paid_s
        self._last_paid_s = now_s
        second = self._second(now_s)
        second.paid += 1
        second.tokens += usage.total_tokens or 0

    def refuse(self, now_s: float) -> None:
        """Count a request that was refused because of a quota or of `stop_after`."""
        self.refused += 1
        self._second(now_s).refused += 1

    def report(self) -> dict[str, Any]:
        """Return all counts, ready for JSON. Times are seconds since 1970."""
        return {
            "received": self.received,
            "paid": self.paid,
            "paid_distinct": len(self._paid_hashes),
            "refused": self.refused,
            "rejected": self.rejected,
            "faulted": self.faulted,
            "in_flight": self.in_flight,
            "in_flight_max": self.in_flight_max,
            "tokens": dict(self._tokens),
            "first_paid_s": self._first_paid_s,
            "last_paid_s": self._last_paid_s,
            "requests_by_second": [
                {"second": at, "received": s.received, "paid": s.paid, "refused": s.refused, "tokens": s.tokens}
                for at, s in self._seconds.items()
            ],
        }

    def _second(self, now_s: float) -> Second:
        at = int(now_s)
        second = self._seconds.get(at)
        if second is None:
            second = self._seconds[at] = Second()
            if len(self._seconds) > SECONDS_KEPT:
                del self._seconds[next(iter(self._seconds))]
        return second
