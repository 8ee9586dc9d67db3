"""The part of the engine that runs in its thread: from submitted items to results in the store.

An item waits for the quota and the budget, is sent, may be sent again, and ends in the store or as a failure. It carries
its fingerprint all the way, so that nothing depends on the order.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from arkbeam.ark.client import ArkClient, new_client_request_id
from arkbeam.ark.errors import advise
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.replies import Action, ApiError
from arkbeam.engine.accounting import NOT_SENT, Accounting, may_be_billed
from arkbeam.engine.admission import Admission, Admitted
from arkbeam.engine.announcing import Announcer
from arkbeam.engine.attempts import Attempts
from arkbeam.engine.items import Room, Tracked
from arkbeam.engine.outcomes import Held, RunReport, Sink, Status, Stop, StopKind
from arkbeam.engine.own_items import OwnItems
from arkbeam.engine.recorder import Batch, Flusher, Recorder
from arkbeam.engine.stopping import FirstRejections, ReplyCheck, stop_if_all_rejected, stop_if_service_fails
from arkbeam.quota.budget import BudgetGate
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.retry import next_wait_s, second_pass_wait_s
from arkbeam.quota.sharing import Sharing, Unshared
from arkbeam.quota.use import Minutes
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


class Sender:
    """Sends the items of all sessions of a process. Methods run in the loop's thread, except `status` and `close`.

    Other threads may read `fault`, the limits of `pacer` and the counts of `accounting`, wait for `stopping`, take from
    `admission.throttled`, and use `room` and `attempts`.

    `make_client` and `make_pacer` (called with the time of the monotonic clock) are called in the constructor, not in
    the loop, so that the caller gets their errors.
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
        self.room = Room(options.limits.bytes_in_flight)
        self.end_s = (
            options.limits.drain_s + options.flush_timeout_s
        )  # the longest time from a stop to the end of the loop
        self.stopping = threading.Event()  # set as soon as the run stops
        self.fault: ArkbeamError | None = None
        self._options = options
        self._recorder = recorder
        self._reply_check = reply_check
        self._random = random.Random()
        self._client = make_client()
        self.pacer = make_pacer(time.monotonic())
        self._budget_gate = budget_gate
        self._clock_offset_s = time.time() - time.monotonic()  # monotonic clocks of machines start at different times
        age_s = 0.0 if options.started_s is None else time.time() - options.started_s
        self.accounting = Accounting(
            self.pacer,
            recorder,
            self._random,
            budget_gate,
            rejections=FirstRejections(options.limits.rows_rejected_first_max),
            minutes=Minutes(time.monotonic() - age_s),
        )
        self.sharing = Unshared() if make_sharing is None else make_sharing(self.pacer)
        self.admission = Admission(
            self.pacer,
            self.accounting.estimate,
            budget_gate,
            self._stop_at_budget,
            self.sharing,
            self.attempts.may_send,
            on_superseded=lambda tracked: self.drop([tracked]),
        )
        self._waiting: dict[int, tuple[asyncio.TimerHandle, Tracked]] = {}
        self._own = OwnItems()
        self._in_flight = 0
        self._started_s: float | None = None
        self._stop: Stop | None = None
        self._sinks: set[Sink] = set()
        self._quit = asyncio.Event()
        self._announcer = Announcer(
            recorder, self._next_items, self._new_client_id, lambda: self.accounting.counts.sent
        )
        self._flusher = Flusher(
            recorder, options.flush_rows, options.flush_s, options.flush_timeout_s, self._note_stored, self._fail
        )

    def status(self) -> Status:
        """Return the current state. Any thread may call this."""
        now_s = time.monotonic()
        seconds = now_s - self._started_s if self._started_s is not None else 0.0
        pacer, counts = self.pacer, replace(self.accounting.counts)
        paused_s = max(0.0, pacer.paused_until_s - now_s)
        held = sum(len(sink.held) for sink in list(self._sinks))
        return Status(counts, self._in_flight, paused_s, pacer.rpm, pacer.tpm, seconds, self._stop, pacer.found, held)

    async def serve(self) -> None:
        """Send what is accepted, until `leave` or the end of a stop; then write what is left to the store."""
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

    def accept(self, tracked: list[Tracked]) -> None:
        """Queue submitted items. Those of superseded attempts, and all after a stop, are dropped."""
        if self._stop is not None:
            self.drop(tracked)
            return
        for one in tracked:
            one.item.attempt.items -= one.item.again is not None
        outdated = [one for one in tracked if one.item.attempt.superseded]
        if outdated:
            self.drop(outdated)
            tracked = [one for one in tracked if not one.item.attempt.superseded]
        if any(one.item.attempt.is_repeated for one in tracked):
            tracked = self._join(tracked)
        self._own.add(tracked)
        self.admission.add(tracked)

    def drop(self, tracked: Sequence[Tracked]) -> None:
        """Give up items that are not sent, or whose reply is not used. Of one in its second pass, the first failure counts."""
        for one in tracked:
            self._release(one)
            self._own.remove(one)
            if one.client_id:  # it is announced and will not be sent
                self._recorder.note_unpaid(one.client_id)
            held = one.item.again
            if held is None:
                one.sink.drop(1)
            else:
                self.count_failed(1)
                one.sink.add_failure(held.fingerprint, held.code, held.message)

    def count_failed(self, items: int) -> None:
        """Count items that failed without a request."""
        self.accounting.counts.failed += items

    def flush_idle(self) -> None:
        """Flush if no submitted item is left that could fill the buffer."""
        if self.room.items == 0:
            self._flusher.start()

    def start_flush(self) -> list[asyncio.Task[None]]:
        """Flush the buffer; return all flushes that are running.

        If the last session finished normally, the rejected rows are at fault, not the config, so their rejections are
        stored.
        """
        if self._stop is None and len(self._sinks) <= 1:
            self.accounting.record_rejections()
        return self._flusher.start()

    def take_leftovers(self) -> Callable[[], None]:
        """If no sink has open items, take the unused share of the budget; return a function that gives it back in the store."""
        if self._budget_gate is None or any(sink.open_items for sink in self._sinks):
            return lambda: None
        return self._budget_gate.give_back()

    def end(self, sink: Sink) -> RunReport:
        """Forget a sink, whose held items become failures; return what the process has done so far."""
        self._sinks.discard(sink)
        self.count_failed(sink.fail_held())
        return self.report()

    def report(self) -> RunReport:
        """Return what the process has done so far."""
        return self.accounting.report(self._stop, self._clock_offset_s)

    def begin_stop(self, stop: Stop) -> None:
        """Send nothing more, and end the loop after `drain_s`. Later stops do not replace the first one."""
        if self._stop is not None:
            return
        self._stop = stop
        self.stopping.set()
        unsent = self.admission.close()
        if self._budget_gate is not None:
            self._budget_gate.close()
        self.room.close()
        for handle, _ in self._waiting.values():
            handle.cancel()
        self.drop([*unsent, *(tracked for _, tracked in self._waiting.values())])
        self._waiting.clear()
        self._flusher.start()
        asyncio.get_running_loop().call_later(self._options.limits.drain_s, self._quit.set)

    def leave(self) -> None:
        """End the loop. Sessions that still wait (another stage has failed) return."""
        self.begin_stop(Stop(StopKind.FAULT, "closed", "the engine was closed before the work was done"))
        self._quit.set()

    def close(self, *, has_left: bool) -> None:
        """End the threads that write, and the journal. Called by another thread after `leave`; `has_left`: the loop has ended."""
        self._flusher.close()
        self._recorder.close(complete=has_left and self.fault is None)

    async def _share(self) -> None:
        try:
            await self.sharing.run(self.admission.wake, self._stop_unshared)
        except Exception as error:  # noqa: BLE001 - without sharing nothing would be sent again
            self._fail(ArkbeamError(f"fault in the sharing of the quota: {type(error).__name__}: {error}"))

    def _stop_unshared(self, message: str) -> None:
        self.begin_stop(Stop(StopKind.SERVICE, "quota_not_shared", message))

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

    def _note_stored(self, batch: Batch, index: pa.Table) -> None:
        self._own.note_stored([tracked for _, tracked in batch.bought if tracked is not None], index)

    async def _work(self) -> None:
        while True:
            try:
                admitted = await self.admission.take()
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
                self.drop([tracked])
                raise
            except ArkbeamError as fault:
                self._fail(fault)
            except Exception as error:  # noqa: BLE001 - a bug must end the run, not one worker
                self._fail(ArkbeamError(f"fault in the engine: {type(error).__name__}: {error}"))
            await self._flusher.wait_for_room()

    async def _send(self, admitted: Admitted) -> None:
        """Send a request once. Raise ApiError if it fails, as the client does."""
        tracked, estimate, sent_s = admitted.tracked, admitted.estimate, admitted.sent_s
        item, accounting = tracked.item, self.accounting
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
            self.pacer.leave()
            self.admission.wake()
        now_s = time.monotonic()
        bought = Bought(replace(attempt, latency_ms=(now_s - sent_s) * 1000), reply)
        accounting.settle_budget(tracked, reply.usage)
        self._settle_reply(tracked, bought, estimate, now_s)

    def _new_client_id(self) -> str:
        return new_client_request_id(time.time(), self._random)

    def _next_items(self, count: int) -> list[Tracked]:
        """Return the items that are probably sent next: those that wait to be sent again, then the first of the queue."""
        return [*(tracked for _, tracked in self._waiting.values()), *self.admission.next_items(count)]

    def _note_sent(self, tracked: Tracked, client_id: str) -> None:
        """Note that the bytes are written next. Raise ApiError if another process may send the item by now."""
        if tracked.item.attempt.superseded or not self.attempts.may_send(time.monotonic()):
            raise ApiError("this process could not renew its mark in time", Action.RETRY, NOT_SENT)
        tracked.is_sent = True
        self._recorder.note_sent(client_id, tracked.item.fingerprint)

    def _stop_at_budget(self, tracked: Tracked) -> None:
        """Stop the run: the budget does not cover the most that the next request can cost."""
        if self._budget_gate is not None:
            self.begin_stop(Stop(StopKind.BUDGET, "budget_reached", self._budget_gate.describe(tracked.item.bound)))

    def _settle_reply(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        """Record a result. A reply from an unexpected model or service is recorded too, and stops the run."""
        fault = self._reply_check.find_fault(bought.reply)
        if fault is not None:
            self.accounting.record_mismatch(tracked, bought, fault, estimate, now_s)
            self.drop([tracked])
            self.begin_stop(Stop(StopKind.SERVICE, fault.code, fault.message))
            return
        self.accounting.record_result(tracked, bought, estimate, now_s)
        self._release(tracked)
        self._flusher.note_result()

    def _settle_error(self, tracked: Tracked, error: ApiError) -> None:
        """Handle an item whose try failed: send it again later, record a failure, or stop the run."""
        item = tracked.item
        if error.action is Action.STOP:
            self.drop([tracked])
            self.begin_stop(Stop(StopKind.SERVICE, error.code, f"{error.message} ({advise(error)})"))
            return
        item.tries = item.tries.plus(error)
        elapsed_s = time.monotonic() - item.first_sent_s
        limits, jitter = self._options.limits, self._random.random()
        wait_s = next_wait_s(error, item.tries, elapsed_s, jitter, limits, is_second_pass=item.again is not None)
        if wait_s is None:
            self._give_up(tracked, error)
        elif self._stop is not None:
            self.drop([tracked])
        else:
            handle = asyncio.get_running_loop().call_later(wait_s, self._retry, id(tracked))
            self._waiting[id(tracked)] = (handle, tracked)

    def _retry(self, key: int) -> None:
        _, tracked = self._waiting.pop(key)
        self.admission.add_again(tracked)

    def _give_up(self, tracked: Tracked, error: ApiError) -> None:
        """End the tries of an item in this pass: it fails, or is held for the second pass."""
        self._release(tracked)
        self._own.remove(tracked)
        if self._hold(tracked, error):
            tracked.item.attempt.items += 1
            self.accounting.failed_in_a_row += 1
        else:
            self.accounting.record_failure(tracked, error)
            tracked.sink.add_failure(tracked.item.fingerprint, error.code, error.message)
        limits, accounting = self._options.limits, self.accounting
        for stop in (
            stop_if_service_fails(accounting.failed_in_a_row, limits.rows_failed_in_a_row_max, error),
            stop_if_all_rejected(accounting.rejections, error),
        ):
            if stop is not None:
                self.begin_stop(stop)

    def _hold(self, tracked: Tracked, error: ApiError) -> bool:
        item = tracked.item
        wait_s = second_pass_wait_s(error, item.tries, self._options.limits) if item.again is None else None
        if wait_s is None:
            return False
        due_s = time.monotonic() + wait_s
        return tracked.sink.hold(Held(item.fingerprint, error.code, error.message, item.tries, item.attempt, due_s))

    def _fail(self, fault: ArkbeamError) -> None:
        """Stop the run because of a bug or a storage error, and report it to every sink."""
        self.fault = self.fault or fault
        for sink in self._sinks:
            sink.fail(self.fault)
        self.begin_stop(Stop(StopKind.FAULT, "fault", str(self.fault)))

    def _release(self, tracked: Tracked) -> None:
        """Release the room of a settled item. Other references keep the item alive, so drop its body now."""
        self.room.leave(len(tracked.item.body))
        self.room.unqueue(tracked.item.quota_s)
        tracked.item.body, tracked.item.quota_s = b"", 0.0
