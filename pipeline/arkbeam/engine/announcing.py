"""Announcements: on an object store, the requests that are sent next are recorded in the journal before they are sent.

Objects can't be appended to, and writing one for each request would be slow and expensive. So the journal is uploaded
every `UPLOAD_S` seconds, with the replies so far and the requests that are probably sent until the next upload. A
request that is not among these waits, and starts an upload. After a kill, all announced requests without a reply count
as lost, though some were not sent.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from arkbeam.base.errors import ArkbeamError
from arkbeam.engine.items import Tracked
from arkbeam.engine.recorder import Recorder

UPLOAD_S = 2.0
ITEMS_MIN = 16
_AHEAD_S = 1.25 * UPLOAD_S
_RATE_S = 0.5  # the shortest time over which the rate of requests is measured


@dataclass(slots=True)
class Announcer:
    """Uploads the journal. `next_items` returns the items that are probably sent next. Used only by the engine's thread.

    `sent`: returns how many requests were sent so far. Of a local journal, which has each record at once, nothing needs
    to be announced.
    """

    recorder: Recorder
    next_items: Callable[[int], Sequence[Tracked]]
    new_client_id: Callable[[], str]
    sent: Callable[[], int]
    _unwritten: list[Tracked] = field(default_factory=list)
    _due: asyncio.Event = field(default_factory=asyncio.Event)
    _written: asyncio.Event = field(default_factory=asyncio.Event)
    _measured: tuple[float, int] = (0.0, 0)
    _per_s: float = 0.0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "arkbeam-journal"))

    async def wait_for(self, tracked: Tracked) -> None:
        """Wait until an item is announced. It is sent next, so an upload starts at once if it is not."""
        if not self.recorder.journal.announces:
            return
        while not tracked.is_announced:
            self._announce(tracked)
            self._due.set()
            await self._written.wait()

    async def run(self, on_fault: Callable[[ArkbeamError], None]) -> None:
        """Upload the journal again and again, until cancelled. `on_fault` is called if it can't be written."""
        if not self.recorder.journal.announces:
            return
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), UPLOAD_S)
                self._due.clear()
                try:
                    await self._upload()
                except ArkbeamError as fault:
                    on_fault(fault)
                    await asyncio.sleep(UPLOAD_S)
                except Exception as error:  # noqa: BLE001 - without uploads nothing would be sent again
                    on_fault(ArkbeamError(f"fault in the journal: {type(error).__name__}: {error}"))
                    await asyncio.sleep(UPLOAD_S)
        finally:
            self._pool.shutdown(wait=False)

    async def _upload(self) -> None:
        for tracked in self.next_items(self._count_ahead()):
            self._announce(tracked)
        unwritten, self._unwritten = self._unwritten, []
        upload = asyncio.get_running_loop().run_in_executor(self._pool, self.recorder.journal.upload)
        try:
            await asyncio.shield(upload)
        except asyncio.CancelledError:
            await asyncio.wait([upload])
            raise
        for tracked in unwritten:
            tracked.is_announced = True
        self._written.set()
        self._written.clear()

    def _announce(self, tracked: Tracked) -> None:
        """Record the next try of an item, unless that was done before."""
        if not tracked.client_id:
            tracked.client_id = self.new_client_id()
            self.recorder.announce(tracked.client_id, tracked.item.fingerprint)
            self._unwritten.append(tracked)

    def _count_ahead(self) -> int:
        """Return how many requests to announce, from the rate at which they were sent last."""
        now_s, sent = time.monotonic(), self.sent()
        since_s, before = self._measured
        if now_s - since_s >= _RATE_S:
            self._per_s = (sent - before) / (now_s - since_s) if since_s else 0.0
            self._measured = now_s, sent
        return ITEMS_MIN + int(self._per_s * _AHEAD_S)
