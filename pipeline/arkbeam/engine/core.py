"""The async engine: one event loop in its own thread, shared by all sessions of a process.

A session sends what one bundle of Beam holds; it runs in a thread of Beam. It submits encoded requests, and collects
the results in order of completion from its sink. In between, an item waits for the quota and the budget, is
sent, may be sent again, and ends in the store or as a failure. It carries its fingerprint all the way, so that nothing
depends on the order.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from arkbeam.base.records import Failure
from arkbeam.engine.items import Item, Tracked
from arkbeam.engine.loop_thread import CHECK_S, LoopThread
from arkbeam.engine.outcomes import Counts, RunReport, Sink, Status, Stop
from arkbeam.engine.sender import Sender
from arkbeam.store.journal import TakenOver


class Engine:
    """The engine that the module describes. Its methods may be called from any thread; its `Sender` works in the loop."""

    def __init__(self, sender: Sender) -> None:
        self.attempts = sender.attempts
        self._sender = sender
        self._room = sender.room
        self._taken, self._taken_lock = Counts(), threading.Lock()
        self._thread = LoopThread("arkbeam-engine", sender.serve)
        self._thread.start()

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Take part in the quota for the length of the block."""
        self._thread.call(self._sender.sharing.join)
        try:
            yield
        finally:
            self._thread.call(self._sender.sharing.leave)

    def expect(self, items: int) -> None:
        """Set the number of items of the whole run, for the progress display."""
        self._sender.accounting.counts.expected = items

    def fail(self, fingerprint: bytes, failure: Failure, sink: Sink) -> None:
        """Deliver an item that can't be sent as a failure."""
        sink.add(1)
        sink.add_failure(fingerprint, failure.code, failure.message)
        self._thread.call(self._sender.count_failed, 1)

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
        if not self._thread.call(self._sender.accept, tracked):
            self._sender.drop(tracked)
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
        return 60.0 * max(1.0 / self._sender.pacer.rpm, tokens / self._sender.pacer.tpm)

    def settle(self, sink: Sink) -> None:
        """Wait until all items of a sink are stored, failed or held for a second try."""
        while not sink.wait_until_done(timeout_s=CHECK_S):
            self._thread.call(self._sender.flush_idle)

    def pause(self, seconds: float) -> bool:
        """Wait, without open items; return False as soon as the run stops. Other processes can use its budget."""
        if seconds > 0:
            self._thread.call_and_wait(self._sender.take_leftovers)()
        return not self._sender.stopping.wait(max(0.0, seconds))

    def finish(self, sink: Sink) -> RunReport:
        """Wait until all items of a sink are settled and stored. Held items become failures.

        Return what the process has done so far, for all sinks.
        """
        self.settle(sink)
        # Events are flushed too, though no sink waits for them.
        flushes = self._thread.call_and_wait(self._sender.start_flush)
        while self._thread.is_alive() and not all(flush.done() for flush in flushes):
            time.sleep(CHECK_S)
        report = self._thread.call_and_wait(lambda: self._sender.end(sink))
        self._thread.call_and_wait(self._sender.take_leftovers)()
        return report

    def stop(self, stop: Stop) -> None:
        """Send nothing more; requests in flight may finish within `drain_s`. Later stops do not replace the first one."""
        self._thread.call(self._sender.begin_stop, stop)

    def status(self) -> Status:
        """Return the current state."""
        return self._sender.status()

    def report(self) -> RunReport:
        """Return what the process has done so far."""
        return self._thread.call_and_wait(self._sender.report)

    @property
    def is_running(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    def take_counts(self) -> tuple[Counts, Counts]:
        """Return what the process had counted at the last call, and what it has counted so far."""
        with self._taken_lock:
            before, self._taken = self._taken, replace(self._sender.accounting.counts)
            return before, self._taken

    def take_throttled_s(self) -> int:
        """Return for how many seconds requests of this process have waited for the quota since the last call."""
        return self._sender.admission.throttled.take()

    @property
    def has_lost_journal(self) -> bool:
        """True if another process took this one for dead and recovered its journal: the engine can't go on."""
        return isinstance(self._sender.fault, TakenOver)

    def close(self) -> None:
        """End the thread. Requests in flight are cancelled, results are flushed."""
        self.attempts.close()
        self._thread.call(self._sender.leave)
        self._sender.close(has_left=self._thread.join(self._sender.end_s))
