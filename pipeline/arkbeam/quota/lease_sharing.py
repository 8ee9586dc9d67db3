"""Sharing the quota by leases: this process keeps a mark in the store while it runs lanes (see `quota.sharing`).

The store is called in a separate thread, one call at a time. If the store hangs, the lease runs out and sending stops
without any further call.
"""

import asyncio
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from arkbeam.base.errors import StoreError
from arkbeam.base.uris import is_local
from arkbeam.quota.leases import RENEW_S, Membership
from arkbeam.quota.marks import list_marks, new_mark_name, quota_folder, remove_mark, write_mark
from arkbeam.quota.pacer import Pacer

STALE_S = 600.0  # marks that did not change for so long are removed
LINGER_S = 2.0  # the mark is kept after the last lane: another may follow at once, and joining again takes a lease
REMOVE_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LeaseSharing:
    """Sets the pacer's share. It calls `on_unreachable` after `unshared_s_max` seconds in which nothing could be sent."""

    store_uri: str
    account: str
    run_name: str
    pacer: Pacer
    unshared_s_max: float
    _folder: str = field(init=False)
    _member: Membership | None = None
    _number: int = 0
    _lanes: int = 0
    _left_s: float = math.inf
    _warned: bool = False
    _joined: asyncio.Event = field(default_factory=asyncio.Event)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "arkbeam-quota"))

    def __post_init__(self) -> None:
        self._folder = quota_folder(self.store_uri, self.account)

    def refresh(self, now_s: float) -> None:
        """Set the pacer's share to that of `now_s`; 0 without a mark."""
        self.pacer.set_share(0.0 if self._member is None else self._member.share(now_s), now_s)

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return 0: the pacer's share already bounds this process."""
        return 0.0

    def take(self, tokens: float, now_s: float) -> None:
        """Do nothing: the pacer counts the request."""

    def join(self) -> None:
        """Note that a lane has begun; the mark is written if there is none."""
        self._lanes += 1
        self._joined.set()

    def leave(self) -> None:
        """Note that a lane has ended; after the last one the mark is kept for `LINGER_S`."""
        self._lanes -= 1
        self._left_s = time.monotonic()

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Keep a mark while there are lanes, until cancelled."""
        try:
            while True:
                await self._joined.wait()
                await self._keep_mark(on_changed, on_unreachable)
        finally:
            self._pool.shutdown(wait=False)

    async def _keep_mark(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        name = new_mark_name(self.run_name, secrets.token_hex(6))
        self._member = member = Membership(name, time.monotonic(), wait=not is_local(self.store_uri))
        self._number, reported = 0, False
        try:
            while self._lanes > 0 or time.monotonic() - self._left_s < LINGER_S:
                began_s = time.monotonic()
                await self._renew(member)
                on_changed()
                if not reported and member.blocked_s(time.monotonic()) >= self.unshared_s_max:
                    reported = True
                    on_unreachable(self._explain())
                await asyncio.sleep(max(0.0, began_s + RENEW_S - time.monotonic()))
        finally:
            self._member = None  # so that the share is 0
            if self._lanes <= 0:
                self._joined.clear()
            await self._remove(name)

    async def _renew(self, member: Membership) -> None:
        """Write the mark, then list all marks: if two processes join at once, the later one sees the earlier."""
        details = {"run": self.run_name, "host": socket.gethostname(), "pid": str(os.getpid())}
        try:
            started_s = time.monotonic()
            await self._call_store(write_mark, self._folder, member.name, self._number, details)
            self._number += 1
            member.note_renewal(started_s, time.monotonic())
            started_s = time.monotonic()
            marks = await self._call_store(list_marks, self._folder)
            member.note_listing(marks, time.monotonic(), started_s)
            self._warned = False
            for name in member.find_stale(STALE_S):
                await self._call_store(remove_mark, self._folder, name)
        except StoreError as error:
            if not self._warned:
                _log.warning(
                    "cannot renew or list the marks that share the quota; nothing is sent until the store answers: %s",
                    error,
                )
            self._warned = True

    async def _remove(self, name: str) -> None:
        """Remove the mark, so that the others get this process's share at once. If that fails, the mark expires by itself."""
        try:
            await asyncio.wait_for(self._call_store(remove_mark, self._folder, name), REMOVE_S)
        except (StoreError, TimeoutError) as error:
            _log.warning("could not remove a mark in %s; it expires by itself: %s", self._folder, error)

    async def _call_store(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _explain(self) -> str:
        return (
            f"the marks in {self._folder}, by which processes share the quota, could not be renewed for "
            f"{self.unshared_s_max:.0f} s: check that the store can be written and listed within a second, then run the "
            "same command again"
        )
