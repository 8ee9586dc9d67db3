"""What the engine returns: where the vectors are (INDEX tables), failed items (REJECTED tables), reports, and stops.

A stop says why a run ends early. It is data, not an exception.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum

import pyarrow as pa

from arkbeam.base import schema
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Modality
from arkbeam.engine.attempts import Attempt
from arkbeam.quota.retry import Tries
from arkbeam.quota.use import FoundLimits, Minutes, QuotaUse, Ratios

LATENCIES_MAX = 4_096  # latencies that a sink holds until they are taken; of more, the oldest are dropped
HELD_MAX = 16_384  # items that a sink holds for a second try: about 16 MB; those above it fail after the first pass


class StopKind(StrEnum):
    """What ended a run before its work was done. If several apply, the first in this order is reported."""

    INTERRUPTED = "interrupted"
    SERVICE = "service"
    BUDGET = "budget"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run stops: a code for programs, and a message for people that says what to do."""

    kind: StopKind
    code: str
    message: str


def first_stop(stops: Iterable[Stop]) -> Stop | None:
    """Return the stop whose kind comes first in `StopKind`; None if there are none."""
    order = list(StopKind)
    return min(stops, key=lambda stop: (order.index(stop.kind), stop.code, stop.message), default=None)


@dataclass(slots=True)
class Counts:
    """What was done so far. `bought` and `failed` count items, `sent` requests, `refused` answers with 429.

    `expected` counts the items of the whole run. `unusable` counts billed replies without a usable vector,
    `unusable_tokens` their tokens, `lost` requests that were sent and not answered (they may be billed), `unpaid`
    requests that ended without a cost, those that were refused included. `second_tries` counts items that the second pass sent, `recovered` those
    of them that were bought then. `tries_max` and `elapsed_s_max` (from the first try to the end) are the
    highest of any item. `budget_tokens` and `budget_pcny` are what the budget counts: a lost request counts with its
    bound.
    """

    expected: int = 0
    sent: int = 0
    bought: int = 0
    failed: int = 0
    refused: int = 0
    retries: int = 0
    unusable: int = 0
    usage_missing: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    total_tokens: int = 0
    unusable_tokens: int = 0
    lost: int = 0
    unpaid: int = 0
    second_tries: int = 0
    recovered: int = 0
    tries_max: int = 0
    elapsed_s_max: float = 0.0
    budget_tokens: int = 0
    budget_pcny: int = 0

    def plus(self, other: "Counts") -> "Counts":
        """Return the sum of two counts; of `expected` and of the fields that end in `_max`, the larger value."""
        largest = {"expected"} | {f.name for f in fields(self) if f.name.endswith("_max")}
        pairs = ((f.name in largest, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Counts(*(max(mine, theirs) if is_max else mine + theirs for is_max, mine, theirs in pairs))


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a process has done in a run so far, or several processes together."""

    counts: Counts
    use: QuotaUse
    stop: Stop | None = None
    minutes: Minutes = field(default_factory=lambda: Minutes(0.0))
    ratios: Mapping[Modality, Ratios] = field(default_factory=dict)
    found: FoundLimits = FoundLimits()

    def merge(self, other: "RunReport") -> "RunReport":
        """Join the reports of two processes. Of two stops, the one whose kind comes first in `StopKind` is kept."""
        return RunReport(
            self.counts.plus(other.counts),
            self.use.merge(other.use),
            first_stop(stop for stop in (self.stop, other.stop) if stop is not None),
            self.minutes.merge(other.minutes),
            {kind: self._ratios(kind).merge(other._ratios(kind)) for kind in {**self.ratios, **other.ratios}},
            self.found.merge(other.found),
        )

    def _ratios(self, kind: Modality) -> Ratios:
        return self.ratios.get(kind, Ratios())


@dataclass(frozen=True, slots=True)
class Held:
    """An item that failed for a passing reason and may be tried once more: its last error and its tries so far.

    `attempt` names the block in which its row is found again; its body is not kept. `due_s`: the earliest time of its
    second try, by the monotonic clock.
    """

    fingerprint: bytes
    code: str
    message: str
    tries: Tries
    attempt: Attempt
    due_s: float


@dataclass(slots=True, eq=False)
class Sink:
    """The results of one session. The engine's thread delivers them, and the session's thread collects them.

    `latencies_ms`: of the last answers with a vector. `held`: items that are not in the engine and may be submitted once
    more; `fail_held` makes the others failures.
    """

    open_items: int = 0
    latencies_ms: deque[int] = field(default_factory=lambda: deque(maxlen=LATENCIES_MAX))
    held: dict[bytes, Held] = field(default_factory=dict)
    _tables: deque[pa.Table] = field(default_factory=deque)
    _failed: list[tuple[bytes, str, str]] = field(default_factory=list)
    _fault: ArkbeamError | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, count: int) -> None:
        """Note that items are submitted."""
        with self._changed:
            self.open_items += count

    def deliver(self, index: pa.Table) -> None:
        """Deliver INDEX rows of a segment that is written: their items are done."""
        with self._changed:
            self._tables.append(index)
            self._close(index.num_rows)

    def add_failure(self, fingerprint: bytes, code: str, message: str) -> None:
        """Deliver an item that failed."""
        with self._changed:
            self._fail(fingerprint, code, message)
            self._close(1)

    def hold(self, held: Held) -> bool:
        """Keep a failed item for a second try; it is done for now. Return False if `HELD_MAX` items are held."""
        with self._changed:
            if len(self.held) >= HELD_MAX:
                return False
            self.held[held.fingerprint] = held
            self._close(1)
            return True

    def take_held(self, fingerprint: bytes) -> Held | None:
        """Return what is held of an item that is submitted again, and hold it no longer; None if it was not held."""
        with self._changed:
            return self.held.pop(fingerprint, None)

    def fail_held(self) -> int:
        """Deliver the held items as failures, with the errors of their last tries; return their number."""
        with self._changed:
            count = len(self.held)
            for held in list(self.held.values()):
                self._fail(held.fingerprint, held.code, held.message)
            return count

    def drop(self, count: int) -> None:
        """Note items that are not sent because the run stops."""
        with self._changed:
            self._close(count)

    def fail(self, fault: ArkbeamError) -> None:
        """Note an error that prevents results from being stored; `collect` raises it."""
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def collect(self) -> tuple[list[pa.Table], pa.Table]:
        """Return what was delivered since the last call: INDEX tables, and a REJECTED table of the failed items.

        Raise the error that was noted by `fail`, if there is one.
        """
        with self._changed:
            if self._fault is not None:
                raise self._fault
            tables, self._tables = list(self._tables), deque()
            failed, self._failed = self._failed, []
        columns = list(zip(*failed, strict=True)) or [(), (), ()]
        return tables, pa.table(
            [pa.array(c, t.type) for c, t in zip(columns, schema.REJECTED, strict=True)], schema.REJECTED
        )

    def take_latencies(self) -> list[int]:
        """Return the latencies, in ms, of the answers that came since the last call."""
        taken = []
        with suppress(IndexError):
            while True:  # the engine's thread may add some meanwhile
                taken.append(self.latencies_ms.popleft())
        return taken

    def wait_until_done(self, timeout_s: float | None = None) -> bool:
        """Wait until all items are done, or until results cannot be stored; return False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.open_items == 0 or self._fault is not None, timeout_s)

    def _fail(self, fingerprint: bytes, code: str, message: str) -> None:
        self._failed.append((fingerprint, code, message))
        self.held.pop(fingerprint, None)

    def _close(self, count: int) -> None:
        self.open_items -= count
        if self.open_items <= 0:
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Status:
    """The state of an engine at one moment, for the progress display."""

    counts: Counts
    in_flight: int
    paused_s: float
    rpm: int
    tpm: int
    seconds: float
    stop: Stop | None
    found: FoundLimits = FoundLimits()
    held: int = 0
    """Items that wait for their second try."""

    def plus(self, other: "Status") -> "Status":
        """Return the state of two processes' engines together. They share one quota."""
        return Status(
            self.counts.plus(other.counts),
            self.in_flight + other.in_flight,
            max(self.paused_s, other.paused_s),
            self.rpm,
            self.tpm,
            max(self.seconds, other.seconds),
            self.stop or other.stop,
            self.found.merge(other.found),
            self.held + other.held,
        )
