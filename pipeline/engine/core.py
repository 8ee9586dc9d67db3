"""The async engine: one event loop in a thread of its own, shared by all lanes of a process.

Lanes submit encoded requests and collect what came of them, in order of completion. Between the two an item waits for the
budgets, is sent, perhaps waits and is sent again, and ends in the store or as a failure. It carries its fingerprint all the
way, so that no order is ever relied on.
"""

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pipeline.ark.client import ArkClient, new_client_request_id
from pipeline.ark.errors import Action, ApiError, Pressure
from pipeline.ark.wire import Reply
from pipeline.engine.options import LimitsOptions
from pipeline.engine.outcomes import Counts, LaneReport, Sink, Status, Stop, StopKind
from pipeline.engine.recorder import Recorder
from pipeline.errors import ArkbeamError
from pipeline.pacing.budget import EstimateRatio, Pacer, QuotaUse
from pipeline.pacing.retry import RetryPolicy, Tries, backoff_s, next_wait_s
from pipeline.records import Failure, Modality
from pipeline.store.events import Event, EventKind
from pipeline.store.segments import Attempt, Bought

ITEMS_MAX = 2048  # submitted and not yet settled, a process
_STOP_CHECK_S = 0.2  # the longest sleep that a stop can't cut short
_IDLE_CHECK_S = 0.02
_FLUSHES_MAX = 2


@dataclass(slots=True)
class Item:
    """One request on its way: `estimate` in tokens, `body` as it is sent."""

    fingerprint: bytes
    body: bytes
    modality: Modality
    sparse: bool
    estimate: float
    tries: Tries = Tries()
    first_sent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine needs to know beyond its parts."""

    limits: LimitsOptions
    dimensions: int
    stand_in: bool
    flush_rows: int
    flush_s: float


@dataclass(slots=True)
class _Tracked:
    """An item with the lane that waits for it."""

    item: Item
    sink: Sink


@dataclass(slots=True)
class _Room:
    """The bound on what is submitted and not yet settled, in items and bytes."""

    bytes_max: int
    items: int = 0
    bytes: int = 0
    stopped: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, items: int, size: int) -> bool:
        """Wait until there is room; one batch always fits an empty engine. False when the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._fits(items, size))
            if self.stopped:
                return False
            self.items += items
            self.bytes += size
            return True

    def leave(self, size: int) -> None:
        with self._changed:
            self.items -= 1
            self.bytes -= size
            if self.items <= ITEMS_MAX // 2:  # not for every item: waking the lane's thread costs more than a request
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def _fits(self, items: int, size: int) -> bool:
        return self.items == 0 or (self.items + items <= ITEMS_MAX and self.bytes + size <= self.bytes_max)


class Engine:
    """See the module. Public methods may be called from any thread."""

    def __init__(
        self,
        options: EngineOptions,
        make_client: Callable[[], ArkClient],
        make_pacer: Callable[[float], Pacer],
        recorder: Recorder,
    ) -> None:
        self._options = options
        self._policy: RetryPolicy = options.limits.retry_policy
        self._recorder = recorder
        self._random = random.Random()
        self._make_client = make_client
        self._pacer = make_pacer(time.monotonic())
        self._ratios = {modality: EstimateRatio() for modality in Modality}
        self._room = _Room(options.limits.bytes_in_flight)
        self._fresh: deque[_Tracked] = deque()
        self._again: deque[_Tracked] = deque()
        self._waiting: dict[int, tuple[asyncio.TimerHandle, _Tracked]] = {}
        self._failed_in_a_row = 0
        self._in_flight = 0
        self._counts = Counts()
        self._started_s: float | None = None
        self._stop: Stop | None = None
        self._fault: ArkbeamError | None = None
        self._sinks: set[Sink] = set()
        self._flush_pool = ThreadPoolExecutor(1, thread_name_prefix="arkbeam-flush")
        self._flushing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="arkbeam-engine", daemon=True)
        self._thread.start()

    # What lanes and the command line call.

    def expect(self, items: int) -> None:
        """Say how many items a lane is going to submit, for the progress display."""
        self._counts.expected += items

    def submit(self, items: Sequence[Item], sink: Sink) -> bool:
        """Hand over a batch; waits while the engine is full. False when the run stops and nothing was taken."""
        if not self._room.enter(len(items), sum(len(item.body) for item in items)):
            return False
        sink.add(len(items))
        tracked = [_Tracked(item, sink) for item in items]
        if not self._call(self._accept, tracked):
            self._drop(tracked)
        return True

    def finish(self, sink: Sink) -> LaneReport:
        """Wait until a lane's items are all settled and stored; return its report."""
        while not sink.wait_until_done(timeout_s=_IDLE_CHECK_S):
            self._call(self._flush_idle)
        try:
            return asyncio.run_coroutine_threadsafe(self._report(sink), self._loop).result()
        except RuntimeError:  # the loop has ended with a stop
            return LaneReport(sink.counts, QuotaUse(self._pacer.rpm, self._pacer.tpm), self._stop)

    def stop(self, stop: Stop) -> None:
        """Admit nothing more; what is in flight may finish within `drain_s`. The first reason stays."""
        self._call(self._begin_stop, stop)

    def status(self) -> Status:
        """Return this moment's numbers."""
        now_s = time.monotonic()
        seconds = now_s - self._started_s if self._started_s is not None else 0.0
        paused_s = max(0.0, self._pacer.paused_until_s - now_s)
        counts = replace(self._counts)
        return Status(counts, self._in_flight, paused_s, self._pacer.rpm, self._pacer.tpm, seconds, self._stop)

    def close(self) -> None:
        """End the thread. What is open is cancelled, what is bought is flushed."""
        self._call(lambda: self._quit.set())
        self._thread.join(timeout=self._options.limits.drain_s)
        self._flush_pool.shutdown(wait=True)
        self._recorder.close(complete=self._fault is None and self._in_flight == 0)

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Run a function in the loop's thread; False when the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    # The loop's thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._quit = asyncio.Event()
        self._more = asyncio.Event()
        self._gate = asyncio.Lock()
        self._client = self._make_client()
        workers = [asyncio.create_task(self._work()) for _ in range(self._options.limits.requests_in_flight)]
        timer = asyncio.create_task(self._flush_in_time())
        try:
            await self._quit.wait()
        finally:
            for task in (*workers, timer):
                task.cancel()
            await asyncio.gather(*workers, timer, return_exceptions=True)
            self._flush_soon()
            await asyncio.gather(*self._flushing, return_exceptions=True)
            await self._client.aclose()

    def _accept(self, tracked: list[_Tracked]) -> None:
        if self._stop is not None:
            self._drop(tracked)
            return
        self._fresh.extend(tracked)
        self._more.set()

    async def _work(self) -> None:
        while True:
            while not (self._again or self._fresh):
                self._more.clear()
                await self._more.wait()
            tracked = self._again.popleft() if self._again else self._fresh.popleft()
            self._sinks.add(tracked.sink)
            try:
                await self._try(tracked)
            except ApiError as error:
                self._settle_error(tracked, error)
            except asyncio.CancelledError:
                self._drop([tracked])
                raise
            except Exception as error:  # a fault of ours must end the run, not one worker
                self._fail(ArkbeamError(f"fault in the engine: {type(error).__name__}: {error}"))
            while len(self._flushing) > _FLUSHES_MAX:  # the store is slower than the service: hold no more
                await asyncio.wait(self._flushing, return_when=asyncio.FIRST_COMPLETED)

    async def _try(self, tracked: _Tracked) -> None:
        """Send one request once. Raises ApiError as the client does."""
        item, counts = tracked.item, tracked.sink.counts
        estimate = self._ratios[item.modality].correct(item.estimate)
        if not await self._admit(estimate):
            self._drop([tracked])
            return
        sent_s = time.monotonic()
        item.first_sent_s = item.first_sent_s or sent_s
        self._started_s = self._started_s or sent_s
        client_id = new_client_request_id(time.time(), self._random)
        self._recorder.sent(client_id, item.fingerprint)
        for sums in (counts, self._counts):
            sums.sent += 1
            sums.retries += item.tries.total > 0
        self._in_flight += 1
        attempt = Attempt(item.fingerprint, client_id, item.tries.total + 1, 0.0)
        try:
            reply = await self._client.embed(
                item.body,
                modality=item.modality,
                client_request_id=client_id,
                dimensions=self._options.dimensions,
                sparse=item.sparse,
            )
        except ApiError as error:
            self._book_error(tracked, replace(attempt, latency_ms=(time.monotonic() - sent_s) * 1000), error, estimate)
            raise
        finally:
            self._in_flight -= 1
        now_s = time.monotonic()
        self._settle_tokens(item, estimate, reply.usage.total_tokens, now_s)
        self._keep(tracked, Bought(replace(attempt, latency_ms=(now_s - sent_s) * 1000), reply))

    async def _admit(self, tokens: float) -> bool:
        """Wait for both budgets, in order of arrival; False when the run stops meanwhile."""
        async with self._gate:
            while self._stop is None:
                now_s = time.monotonic()
                wait_s = self._pacer.wait_s(now_s)
                if wait_s <= 0:
                    self._pacer.admit(tokens, now_s)
                    return True
                await asyncio.sleep(min(wait_s, _STOP_CHECK_S))
            return False

    def _keep(self, tracked: _Tracked, bought: Bought) -> None:
        """Put a result into the open buffer; a stand-in where a real service is meant, or the reverse, stops the run."""
        reply = bought.reply
        self._count_usage(tracked, reply)
        if reply.stand_in != self._options.stand_in:
            self._reject_service(tracked, bought)
            return
        self._failed_in_a_row = 0
        self._recorder.bought(bought, tracked.sink)
        for sums in (tracked.sink.counts, self._counts):
            sums.bought += 1
        self._room.leave(len(tracked.item.body))
        if self._recorder.rows >= self._options.flush_rows:
            self._flush_soon()

    def _reject_service(self, tracked: _Tracked, bought: Bought) -> None:
        answered, meant = ("a stand-in", "a real service") if bought.reply.stand_in else ("a real service", "a stand-in")
        failure = Failure("wrong_service", f"{answered} answered where {meant} was expected")
        self._recorder.event(_event(EventKind.UNUSABLE, bought.attempt, failure, bought.reply))
        self._drop([tracked])
        hint = "check api.base_url"
        self._begin_stop(Stop(StopKind.SERVICE, failure.code, f"{failure.message}: {hint}"))

    def _book_error(self, tracked: _Tracked, attempt: Attempt, error: ApiError, estimate: float) -> None:
        """Book what a failed request cost, in tokens and in pace."""
        now_s = time.monotonic()
        refused = error.pressure is not Pressure.NONE
        for sums in (tracked.sink.counts, self._counts):
            sums.refused += refused
            sums.unusable += error.paid
        if error.paid:
            usage = error.usage
            self._recorder.event(_unusable(attempt, error))
            self._settle_tokens(tracked.item, estimate, usage.total_tokens if usage else None, now_s)
            if usage is not None:
                self._count_tokens(tracked, usage.text_tokens, usage.image_tokens, usage.total_tokens)
        else:
            self._recorder.unpaid(attempt.client_request_id)
            self._pacer.settle(estimate, 0.0, now_s)
        if error.pressure in (Pressure.RPM, Pressure.TPM):
            self._pause(error, now_s)
        elif not refused:
            self._pacer.refusals_in_a_row = 0

    def _pause(self, error: ApiError, now_s: float) -> None:
        """Hold everybody back after a refusal by a rate limit, longer when refusals follow each other."""
        if now_s < self._pacer.paused_until_s:
            return  # sent before the pause began
        self._pacer.refusals_in_a_row += 1
        own_s = backoff_s(self._pacer.refusals_in_a_row, self._random.random(), self._policy)
        self._pacer.pause(own_s if error.retry_after_s is None else error.retry_after_s, now_s)

    def _settle_error(self, tracked: _Tracked, error: ApiError) -> None:
        """Decide what becomes of an item whose try failed: again, a failure, or the end of the run."""
        item = tracked.item
        if error.action is Action.STOP:
            self._drop([tracked])
            self._begin_stop(Stop(StopKind.SERVICE, error.code, error.message))
            return
        item.tries = item.tries.plus(error)
        elapsed_s = time.monotonic() - item.first_sent_s
        wait_s = next_wait_s(error, item.tries, elapsed_s, self._random.random(), self._policy)
        if wait_s is None:
            self._give_up(tracked, error)
        elif self._stop is not None:
            self._drop([tracked])
        else:
            handle = self._loop.call_later(wait_s, self._retry, id(tracked))
            self._waiting[id(tracked)] = (handle, tracked)

    def _retry(self, key: int) -> None:
        _, tracked = self._waiting.pop(key)
        self._again.append(tracked)
        self._more.set()

    def _give_up(self, tracked: _Tracked, error: ApiError) -> None:
        item = tracked.item
        if error.action is Action.REJECT:
            attempt = Attempt(item.fingerprint, "", item.tries.total, 0.0)
            failure = Failure(error.code, error.message)
            self._recorder.event(Event(EventKind.REFUSED, attempt, failure, request_id=error.request_id))
        else:
            self._failed_in_a_row += 1
        for sums in (tracked.sink.counts, self._counts):
            sums.failed += 1
        self._room.leave(len(item.body))
        tracked.sink.refuse(item.fingerprint, error.code, error.message)
        if self._failed_in_a_row >= self._options.limits.rows_failed_in_a_row_max:
            message = f"{self._failed_in_a_row} rows in a row failed after all their tries, the last with: {error.message}"
            self._begin_stop(Stop(StopKind.SERVICE, "service_unavailable", message))

    def _settle_tokens(self, item: Item, estimate: float, actual: int | None, now_s: float) -> None:
        if actual is None:
            self._pacer.settle(estimate, estimate, now_s)
            return
        self._pacer.settle(estimate, actual, now_s)
        self._ratios[item.modality].learn(item.estimate, actual)

    def _count_usage(self, tracked: _Tracked, reply: Reply) -> None:
        usage = reply.usage
        self._count_tokens(tracked, usage.text_tokens, usage.image_tokens, usage.total_tokens)
        for sums in (tracked.sink.counts, self._counts):
            sums.usage_missing += usage.total_tokens is None

    def _count_tokens(self, tracked: _Tracked, text: int | None, image: int | None, total: int | None) -> None:
        for sums in (tracked.sink.counts, self._counts):
            sums.text_tokens += text or 0
            sums.image_tokens += image or 0
            sums.total_tokens += total or 0

    # Stopping and flushing.

    def _begin_stop(self, stop: Stop) -> None:
        if self._stop is not None:
            return
        self._stop = stop
        self._room.close()
        for handle, _ in self._waiting.values():
            handle.cancel()
        self._drop([*self._fresh, *self._again, *(tracked for _, tracked in self._waiting.values())])
        for queue in (self._fresh, self._again, self._waiting):
            queue.clear()
        self._flush_soon()
        self._loop.call_later(self._options.limits.drain_s, self._quit.set)

    def _fail(self, fault: ArkbeamError) -> None:
        """End the run for a fault of ours or of storage: every lane hears of it."""
        self._fault = self._fault or fault
        for sink in self._sinks:
            sink.fail(self._fault)
        self._begin_stop(Stop(StopKind.FAULT, "fault", str(self._fault)))

    async def _report(self, sink: Sink) -> LaneReport:
        self._sinks.discard(sink)
        offset_s = time.time() - time.monotonic()  # the clocks of other machines begin elsewhere
        use, self._pacer.use = self._pacer.use, QuotaUse(self._pacer.rpm, self._pacer.tpm)
        return LaneReport(sink.counts, use.shift(offset_s), self._stop)

    def _drop(self, tracked: Sequence[_Tracked]) -> None:
        for one in tracked:
            self._room.leave(len(one.item.body))
            one.sink.drop(1)

    async def _flush_in_time(self) -> None:
        while True:
            await asyncio.sleep(self._options.flush_s / 4)
            if self._recorder.age_s(time.monotonic()) >= self._options.flush_s * 3 / 4:
                self._flush_soon()

    def _flush_idle(self) -> None:
        """Flush when nothing that could fill the buffer is under way."""
        if not (self._in_flight or self._fresh or self._again or self._waiting):
            self._flush_soon()

    def _flush_soon(self) -> None:
        batch = self._recorder.take()
        if batch is not None:
            task = self._loop.create_task(self._flush(batch.write))
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)

    async def _flush(self, write: Callable[[], None]) -> None:
        try:
            await self._loop.run_in_executor(self._flush_pool, write)
        except ArkbeamError as fault:
            self._fail(fault)
        except Exception as error:
            self._fail(ArkbeamError(f"fault in a flush: {type(error).__name__}: {error}"))


def _event(kind: EventKind, attempt: Attempt, failure: Failure, reply: Reply) -> Event:
    return Event(kind, attempt, failure, reply.usage, reply.id, reply.model, reply.created)


def _unusable(attempt: Attempt, error: ApiError) -> Event:
    failure = Failure(error.code, error.message)
    if error.usage is None:
        return Event(EventKind.UNUSABLE, attempt, failure, request_id=error.request_id)
    return Event(EventKind.UNUSABLE, attempt, failure, error.usage, error.request_id)
