"""The async engine: one event loop in its own thread, shared by all sessions of a process.

A session sends what one bundle of Beam holds; it runs in a thread of Beam. It submits encoded requests, and collects
the results in order of completion from its sink. In between, an item waits for the quota and the budget, is
sent, may be sent again, and ends in the store or as a failure. It carries its fingerprint all the way, so that nothing
depends on the order.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from arkbeam.ark.client import ArkClient, new_client_request_id
from arkbeam.ark.errors import advise
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Failure
from arkbeam.base.replies import Action, ApiError
from arkbeam.engine.accounting import NOT_SENT, Accounting, may_be_billed
from arkbeam.engine.admission import Admission, Admitted
from arkbeam.engine.announcing import Announcer
from arkbeam.engine.attempts import Attempts
from arkbeam.engine.items import Item, Room, Tracked
from arkbeam.engine.loop_thread import CHECK_S, LoopThread
from arkbeam.engine.outcomes import Counts, Held, RunReport, Sink, Status, Stop, StopKind
from arkbeam.engine.own_items import OwnItems
from arkbeam.engine.recorder import Batch, Flusher, Recorder
from arkbeam.engine.stopping import FirstRejections, ReplyCheck, stop_if_all_rejected, stop_if_service_fails
from arkbeam.quota.budget import BudgetGate
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.retry import next_wait_s, second_pass_wait_s
from arkbeam.quota.sharing import Sharing, Unshared
from arkbeam.quota.use import Minutes
from arkbeam.store.journal import TakenOver
from arkbeam.store.segments import Bought


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Settings of an engine. `multi` asks for per-token vectors; `flush_timeout_s` bounds one write to the store."""

    limits: LimitsOptions
    dimensions: int
    flush_rows: int
    flush_s: float
    multi: bool = False
    started_s: float | None = None
    """When the run began, in seconds since 1970: minutes are counted from then. None: from the start of the engine."""
    flush_timeout_s: float = 300.0


class Engine:
    """The engine that the module describes. Public methods may be called from any thread.

    `make_client` and `make_pacer` (called with the time of the monotonic clock) are called in the constructor.
    """

    def __init__(
        self,
        options: EngineOptions,
        make_client: Callable[[], ArkClient],
        make_pacer: Callable[[float], Pacer],
        recorder: Recorder,
        reply_check: ReplyCheck,
        budget_gate: BudgetGate | None = None,
        make_sharing: Callable[[Pacer], Sharing] | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self.attempts: Attempts = attempts or Attempts()
        self._options = options
        self._recorder = recorder
        self._reply_check = reply_check
        self._random = random.Random()
        self._client = make_client()  # here, not in the thread, so that the caller gets the error
        self._pacer = make_pacer(time.monotonic())
        self._budget_gate = budget_gate
        self._clock_offset_s = time.time() - time.monotonic()  # monotonic clocks of machines start at different times
        age_s = 0.0 if options.started_s is None else time.time() - options.started_s
        self._accounting = Accounting(
            self._pacer,
            recorder,
            self._random,
            budget_gate,
            rejections=FirstRejections(options.limits.rows_rejected_first_max),
            minutes=Minutes(time.monotonic() - age_s),
        )
        self._sharing = Unshared() if make_sharing is None else make_sharing(self._pacer)
        self._admission = Admission(
            self._pacer,
            self._accounting.estimate,
            budget_gate,
            self._stop_at_budget,
            self._sharing,
            self.attempts.may_send,
            on_superseded=lambda tracked: self._drop([tracked]),
        )
        self._room = Room(options.limits.bytes_in_flight)
        self._waiting: dict[int, tuple[asyncio.TimerHandle, Tracked]] = {}
        self._own = OwnItems()
        self._taken, self._taken_lock = Counts(), threading.Lock()
        self._in_flight = 0
        self._started_s: float | None = None
        self._stop: Stop | None = None
        self._fault: ArkbeamError | None = None
        self._sinks: set[Sink] = set()
        self._quit = asyncio.Event()
        self._stopping = threading.Event()  # set with `_stop`, for threads that wait
        self._thread = LoopThread("arkbeam-engine", self._serve)
        self._announcer = Announcer(
            recorder, self._next_items, self._new_client_id, lambda: self._accounting.counts.sent
        )
        self._flusher = Flusher(
            recorder,
            options.flush_rows,
            options.flush_s,
            options.flush_timeout_s,
            self._thread.loop,
            self._note_stored,
            self._fail,
        )
        self._thread.start()

    # Called by sessions, the command line and the progress display.

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Take part in the quota for the length of the block."""
        self._thread.call(self._sharing.join)
        try:
            yield
        finally:
            self._thread.call(self._sharing.leave)

    def expect(self, items: int) -> None:
        """Set the number of items of the whole run, for the progress display."""
        self._accounting.counts.expected = items

    def fail(self, fingerprint: bytes, failure: Failure, sink: Sink) -> None:
        """Deliver an item that can't be sent as a failure."""
        sink.add(1)
        sink.add_failure(fingerprint, failure.code, failure.message)
        self._thread.call(self._count_failed, 1)

    def submit(self, items: Sequence[Item], sink: Sink) -> bool:
        """Submit a batch; wait while the engine is full. Return False if the run stops and nothing was accepted.

        An item that the sink holds is sent for its second try.
        """
        new = [len(item.body) for item in items if not item.reserved]
        if new and not self._room.enter(len(new), sum(new)):
            return False
        if not self._room.queue(sum(item.quota_s for item in items)):
            return False
        sink.add(len(items))
        if sink.held:
            for item in items:
                item.resume(sink.take_held(item.fingerprint))
        tracked = [Tracked(item, sink) for item in items]
        if not self._thread.call(self._accept, tracked):
            self._drop(tracked)
        return True

    def reserve(self, size: int, *, wait: bool) -> bool:
        """Take the room of one item of `size` bytes before it is made. Return False if the run stops.

        Without `wait`, return False as well if there is no room now.
        """
        return self._room.enter(1, size) if wait else self._room.try_enter(size)

    def fill(self, item: Item, size: int) -> Item:
        """Mark an item whose room of `size` bytes was taken by `reserve`, and release the bytes that it does not need."""
        item.reserved = True
        self._room.shrink(size - len(item.body))
        return item

    def give_back(self, size: int) -> None:
        """Release the room that was taken for an item which was not made."""
        self._room.leave(size)

    def quota_s(self, tokens: float) -> float:
        """Return the seconds of the whole quota that a request of so many tokens takes."""
        return 60.0 * max(1.0 / self._pacer.rpm, tokens / self._pacer.tpm)

    def settle(self, sink: Sink) -> None:
        """Wait until all items of a sink are stored, failed or held for a second try."""
        while not sink.wait_until_done(timeout_s=CHECK_S):
            self._thread.call(self._flush_idle)

    def pause(self, seconds: float) -> bool:
        """Wait, without open items; return False as soon as the run stops. Other processes can use its budget."""
        if seconds > 0:
            self._thread.call_and_wait(self._take_leftovers)()
        return not self._stopping.wait(max(0.0, seconds))

    def finish(self, sink: Sink) -> RunReport:
        """Wait until all items of a sink are settled and stored. Held items become failures.

        Return what the process has done so far, for all sinks.
        """
        self.settle(sink)
        flushes = self._thread.call_and_wait(self._start_flush)  # events are flushed too, though no sink waits for them
        while self._thread.is_alive() and not all(flush.done() for flush in flushes):
            time.sleep(CHECK_S)
        report = self._thread.call_and_wait(lambda: self._end(sink))
        self._thread.call_and_wait(self._take_leftovers)()
        return report

    def stop(self, stop: Stop) -> None:
        """Send nothing more; requests in flight may finish within `drain_s`. Later stops do not replace the first one."""
        self._thread.call(self._begin_stop, stop)

    def status(self) -> Status:
        """Return the current state."""
        now_s = time.monotonic()
        seconds = now_s - self._started_s if self._started_s is not None else 0.0
        paused_s = max(0.0, self._pacer.paused_until_s - now_s)
        counts = replace(self._accounting.counts)
        pacer = self._pacer
        held = sum(len(sink.held) for sink in list(self._sinks))
        return Status(counts, self._in_flight, paused_s, pacer.rpm, pacer.tpm, seconds, self._stop, pacer.found, held)

    def report(self) -> RunReport:
        """Return what the process has done so far."""
        return self._thread.call_and_wait(self._report)

    @property
    def is_running(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def take_counts(self) -> tuple[Counts, Counts]:
        """Return what the process had counted at the last call, and what it has counted so far."""
        with self._taken_lock:
            before, self._taken = self._taken, replace(self._accounting.counts)
            return before, self._taken

    def take_throttled_s(self) -> int:
        """Return for how many seconds requests of this process have waited for the quota since the last call."""
        return self._admission.throttled.take()

    @property
    def has_lost_journal(self) -> bool:
        """True if another process took this one for dead and recovered its journal: the engine can't go on."""
        return isinstance(self._fault, TakenOver)

    def close(self) -> None:
        """End the thread. Requests in flight are cancelled, results are flushed."""
        self.attempts.close()
        self._thread.call(self._leave_loop)
        ended = self._thread.join(self._options.limits.drain_s + self._options.flush_timeout_s)
        self._flusher.close()
        self._recorder.close(complete=ended and self._fault is None)

    # Called in the loop's thread.

    def _leave_loop(self) -> None:
        """End the loop. Sessions that still wait (another stage has failed) return."""
        self._begin_stop(Stop(StopKind.FAULT, "closed", "the engine was closed before the work was done"))
        self._quit.set()

    async def _serve(self) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(self._options.limits.requests_in_flight)]
        timer = asyncio.create_task(self._flusher.keep_time())
        sharing = asyncio.create_task(self._share())
        announcer = asyncio.create_task(self._announcer.run(self._fail))
        try:
            await self._quit.wait()
        finally:
            for task in (*workers, timer, sharing, announcer):
                task.cancel()
            await asyncio.gather(*workers, timer, sharing, announcer, return_exceptions=True)
            await self._flusher.finish()
            await self._client.aclose()

    async def _share(self) -> None:
        try:
            await self._sharing.run(self._admission.wake, self._stop_unshared)
        except Exception as error:  # noqa: BLE001 - without sharing nothing would be sent again
            self._fail(ArkbeamError(f"fault in the sharing of the quota: {type(error).__name__}: {error}"))

    def _stop_unshared(self, message: str) -> None:
        self._begin_stop(Stop(StopKind.SERVICE, "quota_not_shared", message))

    def _accept(self, tracked: list[Tracked]) -> None:
        if self._stop is not None:
            self._drop(tracked)
            return
        for one in tracked:
            one.item.attempt.items -= one.item.again is not None
        outdated = [one for one in tracked if one.item.attempt.superseded]
        if outdated:
            self._drop(outdated)
            tracked = [one for one in tracked if not one.item.attempt.superseded]
        if any(one.item.attempt.is_repeated for one in tracked):
            tracked = self._join(tracked)
        self._own.add(tracked)
        self._admission.add(tracked)

    def _join(self, tracked: Sequence[Tracked]) -> list[Tracked]:
        """Give items that the engine holds, or has bought, to the newer attempt; return those that are to be sent."""
        left = []
        for one, found in zip(tracked, self._own.find(tracked), strict=True):
            if found is None:
                left.append(one)
                continue
            self._release(one)
            if isinstance(found, Tracked):
                found.take_over(one)
                self._sinks.add(one.sink)
            else:
                one.sink.deliver(found)
        return left

    def _count_failed(self, items: int) -> None:
        self._accounting.counts.failed += items

    def _note_stored(self, batch: Batch, index: pa.Table) -> None:
        self._own.note_stored([tracked for _, tracked in batch.bought if tracked is not None], index)

    async def _work(self) -> None:
        while True:
            try:
                admitted = await self._admission.take()
            except ArkbeamError as fault:  # a larger share of the budget cannot be drawn
                self._fail(fault)
                continue
            tracked = admitted.tracked
            self._sinks.add(tracked.sink)
            try:
                await self._announcer.wait_for(tracked)
                await self._send(admitted)
            except ApiError as error:
                self._settle_error(tracked, error)
            except asyncio.CancelledError:
                self._drop([tracked])
                raise
            except ArkbeamError as fault:
                self._fail(fault)
            except Exception as error:  # noqa: BLE001 - a bug must end the run, not one worker
                self._fail(ArkbeamError(f"fault in the engine: {type(error).__name__}: {error}"))
            await self._flusher.wait_for_room()

    async def _send(self, admitted: Admitted) -> None:
        """Send a request once. Raise ApiError if it fails, as the client does."""
        tracked, estimate, sent_s = admitted.tracked, admitted.estimate, admitted.sent_s
        item, accounting = tracked.item, self._accounting
        item.first_sent_s = item.first_sent_s or sent_s
        self._started_s = self._started_s or sent_s
        client_id = tracked.client_id or self._new_client_id()
        attempt = accounting.record_sent(tracked, client_id, sent_s)
        tracked.is_sent = False
        self._in_flight += 1
        try:
            reply = await self._client.embed(
                item.body,
                modality=item.modality,
                client_request_id=client_id,
                dimensions=self._options.dimensions,
                sparse=item.sparse,
                multi=self._options.multi,
                on_sending=partial(self._note_sent, tracked, client_id),
            )
        except ApiError as error:
            now_s = time.monotonic()
            error.lost = may_be_billed(tracked, error)
            accounting.settle_budget_of_error(tracked, error)
            accounting.record_error(
                tracked, replace(attempt, latency_ms=(now_s - sent_s) * 1000), error, estimate, now_s
            )
            raise
        except asyncio.CancelledError:
            accounting.record_abandoned(tracked, replace(attempt, latency_ms=(time.monotonic() - sent_s) * 1000))
            raise
        finally:
            tracked.client_id, tracked.is_announced = "", False
            self._in_flight -= 1
            self._pacer.leave()
            self._admission.wake()
        now_s = time.monotonic()
        bought = Bought(replace(attempt, latency_ms=(now_s - sent_s) * 1000), reply)
        accounting.settle_budget(tracked, reply.usage)
        self._settle_reply(tracked, bought, estimate, now_s)

    def _new_client_id(self) -> str:
        return new_client_request_id(time.time(), self._random)

    def _next_items(self, count: int) -> list[Tracked]:
        """Return the items that are probably sent next: those that wait to be sent again, then the first of the queue."""
        return [*(tracked for _, tracked in self._waiting.values()), *self._admission.next_items(count)]

    def _note_sent(self, tracked: Tracked, client_id: str) -> None:
        """Note that the bytes are written next. Raise ApiError if another process may send the item by now."""
        if tracked.item.attempt.superseded or not self.attempts.may_send(time.monotonic()):
            raise ApiError("this process could not renew its mark in time", Action.RETRY, NOT_SENT)
        tracked.is_sent = True
        self._recorder.note_sent(client_id, tracked.item.fingerprint)

    def _stop_at_budget(self, tracked: Tracked) -> None:
        """Stop the run: the budget does not cover the most that the next request can cost."""
        if self._budget_gate is not None:
            self._begin_stop(Stop(StopKind.BUDGET, "budget_reached", self._budget_gate.describe(tracked.item.bound)))

    def _settle_reply(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        """Record a result. A reply from an unexpected model or service is recorded too, and stops the run."""
        fault = self._reply_check.find_fault(bought.reply)
        if fault is not None:
            self._accounting.record_mismatch(tracked, bought, fault, estimate, now_s)
            self._drop([tracked])
            self._begin_stop(Stop(StopKind.SERVICE, fault.code, fault.message))
            return
        self._accounting.record_result(tracked, bought, estimate, now_s)
        self._release(tracked)
        self._flusher.note_result()

    def _settle_error(self, tracked: Tracked, error: ApiError) -> None:
        """Handle an item whose try failed: send it again later, record a failure, or stop the run."""
        item = tracked.item
        if error.action is Action.STOP:
            self._drop([tracked])
            self._begin_stop(Stop(StopKind.SERVICE, error.code, f"{error.message} ({advise(error)})"))
            return
        item.tries = item.tries.plus(error)
        elapsed_s = time.monotonic() - item.first_sent_s
        limits, jitter = self._options.limits, self._random.random()
        wait_s = next_wait_s(error, item.tries, elapsed_s, jitter, limits, is_second_pass=item.again is not None)
        if wait_s is None:
            self._give_up(tracked, error)
        elif self._stop is not None:
            self._drop([tracked])
        else:
            handle = self._thread.loop.call_later(wait_s, self._retry, id(tracked))
            self._waiting[id(tracked)] = (handle, tracked)

    def _retry(self, key: int) -> None:
        _, tracked = self._waiting.pop(key)
        self._admission.add_again(tracked)

    def _give_up(self, tracked: Tracked, error: ApiError) -> None:
        """End the tries of an item in this pass: it fails, or is held for the second pass."""
        self._release(tracked)
        self._own.remove(tracked)
        if self._hold(tracked, error):
            tracked.item.attempt.items += 1
            self._accounting.failed_in_a_row += 1
        else:
            self._accounting.record_failure(tracked, error)
            tracked.sink.add_failure(tracked.item.fingerprint, error.code, error.message)
        limits, accounting = self._options.limits, self._accounting
        for stop in (
            stop_if_service_fails(accounting.failed_in_a_row, limits.rows_failed_in_a_row_max, error),
            stop_if_all_rejected(accounting.rejections, error),
        ):
            if stop is not None:
                self._begin_stop(stop)

    def _hold(self, tracked: Tracked, error: ApiError) -> bool:
        item = tracked.item
        wait_s = second_pass_wait_s(error, item.tries, self._options.limits) if item.again is None else None
        if wait_s is None:
            return False
        due_s = time.monotonic() + wait_s
        return tracked.sink.hold(Held(item.fingerprint, error.code, error.message, item.tries, item.attempt, due_s))

    # Stopping and flushing.

    def _begin_stop(self, stop: Stop) -> None:
        if self._stop is not None:
            return
        self._stop = stop
        self._stopping.set()
        unsent = self._admission.close()
        if self._budget_gate is not None:
            self._budget_gate.close()
        self._room.close()
        for handle, _ in self._waiting.values():
            handle.cancel()
        self._drop([*unsent, *(tracked for _, tracked in self._waiting.values())])
        self._waiting.clear()
        self._flusher.start()
        self._thread.loop.call_later(self._options.limits.drain_s, self._quit.set)

    def _fail(self, fault: ArkbeamError) -> None:
        """Stop the run because of a bug or a storage error, and report it to every sink."""
        self._fault = self._fault or fault
        for sink in self._sinks:
            sink.fail(self._fault)
        self._begin_stop(Stop(StopKind.FAULT, "fault", str(self._fault)))

    def _end(self, sink: Sink) -> RunReport:
        self._sinks.discard(sink)
        self._count_failed(sink.fail_held())
        return self._report()

    def _report(self) -> RunReport:
        return self._accounting.report(self._stop, self._clock_offset_s)

    def _take_leftovers(self) -> Callable[[], None]:
        """If no sink has open items, take the unused share of the budget; return a function that gives it back in the store."""
        if self._budget_gate is None or any(sink.open_items for sink in self._sinks):
            return lambda: None
        return self._budget_gate.give_back()

    def _drop(self, tracked: Sequence[Tracked]) -> None:
        for one in tracked:
            self._release(one)
            self._own.remove(one)
            if one.client_id:  # it is announced and will not be sent
                self._recorder.note_unpaid(one.client_id)
            held = one.item.again
            if held is None:
                one.sink.drop(1)
            else:  # its first failure counts
                self._count_failed(1)
                one.sink.add_failure(held.fingerprint, held.code, held.message)

    def _release(self, tracked: Tracked) -> None:
        """Release the room of a settled item. Other references keep the item alive, so drop its body now."""
        self._room.leave(len(tracked.item.body))
        self._room.unqueue(tracked.item.quota_s)
        tracked.item.body, tracked.item.quota_s = b"", 0.0

    def _flush_idle(self) -> None:
        """Flush if no submitted item is left that could fill the buffer."""
        if self._room.items == 0:
            self._flusher.start()

    def _start_flush(self) -> list[asyncio.Task[None]]:
        """Flush the buffer; return all flushes that are running.

        If the last session finished normally, the rejected rows are at fault, not the config, so their rejections are
        stored.
        """
        if self._stop is None and len(self._sinks) <= 1:
            self._accounting.record_rejections()
        return self._flusher.start()
