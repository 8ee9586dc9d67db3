"""An event loop in a thread of its own, and calls into it from other threads."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import TypeVar

CHECK_S = 0.02  # how often a thread that waits for the loop checks that it is alive
_Result = TypeVar("_Result")


class LoopThread:
    """Runs one coroutine in an event loop until it ends. The methods may be called from any thread."""

    def __init__(self, name: str, serve: Callable[[], Coroutine[None, None, None]]) -> None:
        self.loop = asyncio.new_event_loop()
        self._serve = serve
        self._calls = threading.RLock()  # re-entrant: a signal handler may interrupt a call in the same thread
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Return False once the thread has ended."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; return True if it has ended."""
        self._thread.join(timeout=timeout_s)
        return not self.is_alive()

    def call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Run a function in the loop's thread later; return False if the loop has ended. After True it is certain to run."""
        with self._calls:
            if self.loop.is_closed():
                return False
            self.loop.call_soon_threadsafe(function, *arguments)
            return True

    def call_and_wait(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the loop's thread, or in this thread if the loop has ended, and return its result."""
        answer: Future[_Result] = Future()
        self.call(lambda: answer.set_result(function()))
        while self.is_alive() and not answer.done():
            wait([answer], timeout=CHECK_S)
        return answer.result() if answer.done() else function()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            with self._calls:
                self.loop.run_until_complete(asyncio.sleep(0))  # calls that were scheduled meanwhile
                self.loop.close()
