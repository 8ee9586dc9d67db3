"""A model of a worker process: the engine's loop around a pacer, and events such as a kill."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.quota.leases import RENEW_S, Membership
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.retry import Tries, backoff_s, next_wait_s

from scripts.simulation.clock import Clock
from scripts.simulation.service import Answer, Service

CHECK_S = 0.2
LATE_S = 0.01  # maximum delay of the event loop
TRANSIT_S = 0.02  # maximum time that a request needs to reach the service
_LIMITS = LimitsOptions()


@dataclass(slots=True)
class SimulatedRequest:
    """A request: its estimated and its real tokens, and its tries so far."""

    estimate: float
    tokens: int
    tries: Tries = Tries()
    first_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """When a worker starts and is killed, and from when to when it stalls or cannot reach the store.

    All are seconds on the scenario's clock, except `starts_s`: seconds after the start of the scenario.
    """

    starts_s: float = 0.0
    killed_s: float = float("inf")
    stalled_s: tuple[float, float] = (float("inf"), float("inf"))
    cut_off_s: tuple[float, float] = (float("inf"), float("inf"))


@dataclass(slots=True)
class MarkStore:
    """A store of marks: the token of each mark by its name, and how long it takes to write one or to list all."""

    write_s: float = 0.05
    list_s: float = 0.05
    marks: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Worker:
    """One worker process.

    `pacer` may be shared with other workers, like a quota in Redis. `store` None: the quota is not shared by leases.
    """

    name: str
    clock: Clock
    service: Service
    pacer: Pacer
    items: Iterator[SimulatedRequest]
    random: Random
    lifecycle: Lifecycle = Lifecycle()
    store: MarkStore | None = None
    membership: Membership | None = None
    done_s: float | None = None
    failed: int = 0
    in_flight_most: int = 0
    _open: int = 0
    _outstanding: int = 0
    _waiting: deque[SimulatedRequest] = field(default_factory=deque)
    _next: SimulatedRequest | None = None
    _wake_s: float = float("inf")

    def start(self) -> None:
        """Begin to send; if the quota is shared by leases, begin to renew the mark as well."""
        if self.store is not None:
            self.membership = Membership(self.name, self.clock.now_s, wait=True)
            self._renew()
        self._next = next(self.items, None)
        self._step()

    @property
    def _alive(self) -> bool:
        return self.clock.now_s < self.lifecycle.killed_s

    def _late_s(self) -> float:
        start_s, end_s = self.lifecycle.stalled_s
        stall_s = end_s - self.clock.now_s if start_s <= self.clock.now_s < end_s else 0.0
        return stall_s + self.random.uniform(0, LATE_S)

    def _step(self) -> None:
        """Send what may be sent now, and schedule the next step."""
        now_s = self.clock.now_s
        if not self._alive or self.done_s is not None:
            return
        if self._late_s() > LATE_S:  # stalled
            self._come_back(now_s + self._late_s())
            return
        while (item := self._waiting[0] if self._waiting else self._next) is not None:
            if self.membership is not None:
                self.pacer.set_share(self.membership.share(now_s), now_s)
            wait_s = self.pacer.wait_s(now_s, item.estimate)
            if wait_s > 0:
                self._come_back(now_s + min(wait_s, CHECK_S) + self._late_s())
                return
            self.pacer.admit(item.estimate, now_s)
            if self._waiting:
                self._waiting.popleft()
            else:
                self._next = next(self.items, None)
            self._send(item, now_s)
        if self._outstanding == 0:
            self.done_s = now_s
            if self.store is not None:
                self.store.marks.pop(self.name, None)

    def _come_back(self, at_s: float) -> None:
        if at_s < self._wake_s:
            self._wake_s = at_s
            self.clock.call_at(at_s, self._woken)

    def _woken(self) -> None:
        if self.clock.now_s >= self._wake_s:
            self._wake_s = float("inf")
            self._step()

    def _send(self, item: SimulatedRequest, now_s: float) -> None:
        item.first_s = now_s if item.first_s is None else item.first_s
        self._open += 1
        self._outstanding += 1
        self.in_flight_most = max(self.in_flight_most, self._open)
        self.clock.call_at(now_s + self.random.uniform(0, TRANSIT_S), lambda: self._arrive(item, now_s))

    def _arrive(self, item: SimulatedRequest, sent_s: float) -> None:
        answer = self.service.receive(item.tokens, self.clock.now_s)
        self.clock.call_at(self.clock.now_s + answer.latency_s, lambda: self._answered(item, sent_s, answer))

    def _answered(self, item: SimulatedRequest, sent_s: float, answer: Answer) -> None:
        if answer.pressure is Pressure.NONE:
            self.service.finish()
        late_s = self._late_s()
        self.clock.call_at(self.clock.now_s + late_s, lambda: self._settle(item, sent_s, answer))

    def _settle(self, item: SimulatedRequest, sent_s: float, answer: Answer) -> None:
        """Count an answer as `engine.accounting` does."""
        if not self._alive:
            return
        now_s, refused = self.clock.now_s, answer.pressure is not Pressure.NONE
        self._open -= 1
        self.pacer.leave()
        self.pacer.settle(item.estimate, 0 if refused else item.tokens, now_s, sent_s)
        if not refused:
            self.pacer.note_latency(now_s - sent_s)
        retry_after_s = self.service.options.retry_after_s if refused else None
        self.pacer.note_answer(answer.pressure, sent_s, now_s, backoff_s=self._backoff_s, retry_after_s=retry_after_s)
        if refused:
            self._try_again(item, answer, now_s, retry_after_s)
        else:
            self._outstanding -= 1
        self._step()

    def _try_again(self, item: SimulatedRequest, answer: Answer, now_s: float, retry_after_s: float | None) -> None:
        error = ApiError("", Action.RETRY, "", answer.pressure, 429, retry_after_s=retry_after_s)
        item.tries = item.tries.plus(error)
        elapsed_s = now_s - (item.first_s or 0.0)
        wait_s = next_wait_s(error, item.tries, elapsed_s, self.random.random(), _LIMITS)
        if wait_s is None:
            self.failed += 1
            self._outstanding -= 1
        else:
            self.clock.call_at(now_s + wait_s, lambda: self._queue_again(item))

    def _queue_again(self, item: SimulatedRequest) -> None:
        self._outstanding -= 1
        self._waiting.append(item)
        self._step()

    def _backoff_s(self, number: int) -> float:
        return backoff_s(number, self.random.random())

    # The thread that keeps the mark: it writes, lists and waits.

    def _reaches_store(self) -> bool:
        return not any(
            start_s <= self.clock.now_s < end_s
            for start_s, end_s in (self.lifecycle.cut_off_s, self.lifecycle.stalled_s)
        )

    def _renew(self) -> None:
        started_s = self.clock.now_s
        if not self._alive or self.done_s is not None or self.store is None:
            return
        if not self._reaches_store():
            self.clock.call_at(started_s + 0.1, self._renew)
            return
        self.clock.call_at(started_s + self.store.write_s, lambda: self._written(started_s))

    def _written(self, started_s: float) -> None:
        if self.store is None or self.membership is None or not self._alive or self.done_s is not None:
            return
        now_s = self.clock.now_s
        self.store.marks[self.name] = f"{started_s}"
        self.membership.note_renewal(started_s, now_s)
        seen = dict(self.store.marks)
        self.clock.call_at(now_s + self.store.list_s, lambda: self._listed(seen, now_s, started_s))

    def _listed(self, seen: dict[str, str], listed_s: float, started_s: float) -> None:
        if self.membership is not None and self._alive and self._reaches_store():
            self.membership.note_listing(seen, self.clock.now_s, listed_s)
        self.clock.call_at(max(started_s + RENEW_S, self.clock.now_s), self._renew)
