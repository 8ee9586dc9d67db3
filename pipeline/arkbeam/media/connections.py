"""The connections of one process to web servers, in fsspec's event loop, and the queues in front of them.

Sockets are created here, so that none is connected to a private address that is not allowed.
"""

import asyncio
import atexit
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
from fsspec.asyn import sync

from arkbeam import __version__
from arkbeam.media.hosts import HostGate, HostPace
from arkbeam.media.uris import is_public
from arkbeam.media.weburl import AllowedHosts

CONNECT_S = 10.0
HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"arkbeam/{__version__} (batch job that reads images and videos)",
}
# aiohttp's limit of 8 kB for one line is less than some servers send (cookies, content security policies).
_HEAD_BYTES_MAX = 64 * 1024
_GATES_MAX = 4_096


class ForbiddenAddress(Exception):
    """A connection to a private address. Not an OSError: after that, aiohttp would try the host's next address."""


def _guarded_socket(info: tuple[Any, ...], allowed: AllowedHosts) -> socket.socket:
    """Create the socket for an address that may be read; aiohttp connects it to exactly this address.

    Raise ForbiddenAddress.
    """
    family, kind, protocol, _, (host, *_) = info
    if not is_public(host) and not allowed.has_address(host):
        raise ForbiddenAddress(f"the host has the address {host}, which is not public")
    return _plain_socket((family, kind, protocol, "", ()))


def _plain_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


class _Connections:
    """Sessions, queues and tasks. Call the methods only in the event loop, if they do not say otherwise."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sessions: dict[AllowedHosts | None, aiohttp.ClientSession] = {}
        self._gates: dict[tuple[object, int], HostGate] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def cancellable(self) -> AsyncIterator[None]:
        """Let `cancel_all` end the current task."""
        self._follow_loop()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    def cancel_all(self) -> None:
        """Cancel the tasks that are in `cancellable`; called from another thread."""
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tuple(self._tasks)])

    def session(self, guard: AllowedHosts | None) -> aiohttp.ClientSession:
        """Return the session whose sockets are checked; None: the host is allowed, nothing is checked."""
        self._follow_loop()
        if guard not in self._sessions:
            self._sessions[guard] = _new_session(guard)
        return self._sessions[guard]

    def gate(self, origin: object, per_host: int) -> HostGate:
        """Return the queue in front of a host."""
        self._follow_loop()
        key = origin, per_host
        if key not in self._gates:
            if len(self._gates) >= _GATES_MAX:
                self._gates = {key: gate for key, gate in self._gates.items() if not gate.is_idle}
            self._gates[key] = HostGate(HostPace(per_host))
        return self._gates[key]

    def _follow_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the process was forked
            self._loop, self._sessions, self._gates, self._tasks = loop, {}, {}, set()
            atexit.register(self.close)

    def close(self) -> None:
        """Close all connections; called from another thread."""
        loop, sessions = self._loop, list(self._sessions.values())
        self._sessions.clear()
        if loop is not None and loop.is_running():
            for session in sessions:
                sync(loop, session.close, timeout=1)


def _new_session(guard: AllowedHosts | None) -> aiohttp.ClientSession:
    """Create a session. How many requests run at the same time is decided by the queues.

    "Happy eyeballs" is off: it would ignore that an address was refused and try the next one.
    """
    connector = aiohttp.TCPConnector(
        limit=0,
        resolver=aiohttp.ThreadedResolver(),
        happy_eyeballs_delay=None,
        socket_factory=_plain_socket if guard is None else partial(_guarded_socket, allowed=guard),
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        max_line_size=_HEAD_BYTES_MAX,
        max_field_size=_HEAD_BYTES_MAX,
    )


connections = _Connections()
