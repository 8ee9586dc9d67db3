"""When the open buffer is written: full, old, or nothing more to come. One write at a time, in a thread of its own."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from arkbeam.base.errors import ArkbeamError, StoreError
from arkbeam.engine.recorder import Batch, Recorder


@dataclass(slots=True)
class Flusher:
    """Used by the engine's thread alone, but for `close`. `on_fault` hears of what keeps results from being stored."""

    recorder: Recorder
    rows_max: int
    age_s_max: float
    timeout_s: float
    loop: asyncio.AbstractEventLoop
    on_fault: Callable[[ArkbeamError], None]
    _unwritten: int = 0
    _writing: set[asyncio.Task[None]] = field(default_factory=set)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "arkbeam-flush"))

    def note_result(self) -> None:
        """Write what is there when a result has filled the buffer: to 3/4, the rest is room for what comes meanwhile."""
        self._unwritten += 1
        if self.recorder.is_full(max(1, self.rows_max * 3 // 4)):
            self.start()

    def start(self) -> list[asyncio.Task[None]]:
        """Write what is there; return all writes that are under way."""
        batch = self.recorder.take()
        if batch is not None:
            task = self.loop.create_task(self._write(batch))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)
        return list(self._writing)

    async def wait_for_room(self) -> None:
        """Wait while too much is unwritten: a kill loses what is not written, `rows_max` at most, and what is in flight."""
        while self._unwritten >= self.rows_max and self._writing:
            await asyncio.wait(self._writing, return_when=asyncio.FIRST_COMPLETED)

    async def keep_time(self) -> None:
        """Write what has waited long enough, until cancelled."""
        while True:
            await asyncio.sleep(self.age_s_max / 4)
            if self.recorder.age_s(time.monotonic()) >= self.age_s_max * 3 / 4:
                self.start()

    async def finish(self) -> None:
        """Write what is there and wait for all writes."""
        await asyncio.gather(*self.start(), return_exceptions=True)

    def close(self) -> None:
        """Leave a write that hangs behind: `on_fault` has heard of it by now."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _write(self, batch: Batch) -> None:
        try:
            await asyncio.wait_for(self.loop.run_in_executor(self._pool, batch.write), self.timeout_s)
            self._unwritten -= len(batch.bought)
        except TimeoutError:
            message = f"the store took longer than {self.timeout_s:g} s (store.timeout_s) to write a segment"
            self.on_fault(StoreError(message))
        except ArkbeamError as fault:
            self.on_fault(fault)
        except Exception as error:  # noqa: BLE001 - a fault of ours must end the run, not be lost in a task
            self.on_fault(ArkbeamError(f"fault in a flush: {type(error).__name__}: {error}"))
