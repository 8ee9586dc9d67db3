"""Fetch media from http(s) URLs, with limits on bytes, time and redirects, and not from private addresses.

The address is checked when its socket is created, also after each redirect, so a name can't resolve to another address
between check and connection. A request is a GET with the URL's own user and password, if it has any. It has no cookies
and nothing from `.netrc`. Proxies of the environment are not used: a proxy would resolve the name without this check.

aiohttp is used directly, without httpx, because it passes each address to a function of ours before it connects.
"""

import asyncio
import atexit
import base64
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import aiohttp
from fsspec.asyn import get_loop, sync
from yarl import URL

from arkbeam import __version__
from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.base.records import Failure
from arkbeam.media.identity import MediumRead, digest_of
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import WEB_SCHEMES, check_url, is_public

REDIRECTS_MAX = 5
TRIES = 3
_WAIT_S = 0.5
_CONNECT_S = 10.0
_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:\*|\d+-\d+)/(\d+)")
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"arkbeam/{__version__}"}


_Got = TypeVar("_Got")


class _TransientFailure(BadRow):
    """A try failed, and the next one may succeed."""


class _ForbiddenAddress(Exception):
    """A connection to a private address. Not an OSError: after that, aiohttp would try the host's next address."""


def fetch(url: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    """Fetch at most `bytes_max` bytes from the start, with size and version of the whole.

    The version is the etag, else size and modification time, else a hash of the bytes. It blocks: call it in a thread.

    Raise BadRow: `media_bad_uri`, `media_forbidden`, `media_unreachable`, `media_timeout`, `media_redirects`,
    `media_missing` (404 and 410), `media_status` (any other reply without the bytes), `media_too_large`.
    """
    check_url(url, options.url_chars_max)
    fetched: MediumRead = sync(
        get_loop(), _with_timeout, partial(_fetch, url, bytes_max, options), options.http_timeout_s
    )
    return fetched


def fetch_range(url: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Fetch the bytes from `start` to `end` (exclusive), fewer if the file ends before.

    Return no bytes if the server does not support ranges.
    """
    part: bytes = sync(
        get_loop(), _with_timeout, partial(_fetch_range, url, start, end, options), options.http_timeout_s
    )
    return part


async def _with_timeout(work: Callable[[], Awaitable[_Got]], timeout_s: float) -> _Got:
    try:
        async with asyncio.timeout(timeout_s):
            return await _with_retries(work)
    except TimeoutError:
        fail_row("media_timeout", f"not complete after {timeout_s:g} s (media.http_timeout_s)")


async def _with_retries(work: Callable[[], Awaitable[_Got]]) -> _Got:
    """Retry transient failures: a GET changes nothing, and a row whose medium can't be fetched is not sent at all."""
    tries = 0
    while True:
        try:
            return await _map_errors(work)
        except _TransientFailure:
            tries += 1
            if tries == TRIES:
                raise
        await asyncio.sleep(_WAIT_S * 2 ** (tries - 1))


async def _map_errors(work: Callable[[], Awaitable[_Got]]) -> _Got:
    try:
        return await work()
    except _ForbiddenAddress as error:
        fail_row("media_forbidden", f"{error}; if it may be used, add the host's name to media.allowed_hosts")
    except aiohttp.InvalidURL:
        fail_row("media_bad_uri", "malformed URL")
    except aiohttp.ClientConnectorError as error:
        fail_row("media_unreachable", f"no connection to the host: {error.os_error}")
    except TimeoutError:
        fail_row("media_timeout", f"no connection to the host after {_CONNECT_S:g} s")
    except aiohttp.ClientError as error:
        raise _TransientFailure(
            Failure("media_unreachable", f"the transfer broke off: {type(error).__name__}: {error}")
        ) from error


async def _fetch(url: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    """Request the first bytes; if the reply has no size or version of the whole file, request the whole file."""
    whole_max = max(options.image_bytes_max, options.video_bytes_max)
    async with _open(url, options, (0, bytes_max)) as reply:
        if reply.status == 416:  # the file is empty
            return MediumRead(b"", 0, "0")
        size, version = _read_size(reply), _read_version(reply)
        if size is not None and version is not None:
            head = await _read(reply, min(bytes_max, size))
            _check_complete(len(head), min(bytes_max, size))
            return MediumRead(head, size, version)
        if reply.status == 200:
            return await _read_whole(reply, bytes_max, whole_max)
    async with _open(url, options) as reply:
        return await _read_whole(reply, bytes_max, whole_max)


async def _fetch_range(url: str, start: int, end: int, options: MediaOptions) -> bytes:
    async with _open(url, options, (start, end)) as reply:
        return await _read(reply, end - start) if reply.status == 206 else b""


async def _read_whole(reply: aiohttp.ClientResponse, bytes_max: int, whole_max: int) -> MediumRead:
    size = _read_size(reply)
    if size is not None and size > whole_max:
        fail_row("media_too_large", f"the file has {size} bytes; at most {whole_max} are read")
    data = await _read(reply, whole_max + 1)
    if len(data) > whole_max:
        fail_row("media_too_large", f"the file has more than {whole_max} bytes, which is the most that is read")
    _check_complete(len(data), len(data) if size is None else size)
    version = _read_version(reply, len(data)) or digest_of(data).hex()
    return MediumRead(data[:bytes_max], len(data), version)


def _check_complete(count: int, expected: int) -> None:
    if count != expected:
        raise _TransientFailure(
            Failure("media_unreachable", f"the transfer broke off after {count} of {expected} bytes")
        )


async def _read(reply: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Read up to the end or the limit; if the server sends more, the connection is closed."""
    data = bytearray()
    while len(data) < bytes_max:
        chunk = await reply.content.read(min(_CHUNK_BYTES, bytes_max - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


@asynccontextmanager
async def _open(
    url: str, options: MediaOptions, part: tuple[int, int] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Request a URL, or a part of it, and follow redirects. Raise BadRow if the reply does not have the bytes."""
    headers = {**_HEADERS, "Range": f"bytes={part[0]}-{part[1] - 1}"} if part else _HEADERS
    address, own = _parse(url)
    for _ in range(REDIRECTS_MAX + 1):
        session = _sessions.get(is_allowed=(address.host or "").lower() in options.allowed_hosts)
        async with session.get(address, headers=headers | own, allow_redirects=False) as reply:
            if reply.status not in _REDIRECTS:
                _check_status(reply, ranged=part is not None)
                yield reply
                return
            address, own = _parse(_redirect_target(address, reply))[0], {}
    fail_row("media_redirects", f"more than {REDIRECTS_MAX} redirects")


def _parse(url: str) -> tuple[URL, dict[str, str]]:
    """Parse a URL without changing its spelling, which a signature may cover; user and password become a header."""
    try:
        address = URL(url, encoded=url.isascii())
        scheme, host, user, password = address.scheme.lower(), address.host, address.user, address.password
        is_bare = user is None and password is None
        bare = address if is_bare else address.with_user(None)
    except ValueError:
        fail_row("media_bad_uri", "malformed URL")
    if scheme not in WEB_SCHEMES:
        fail_row("media_forbidden", f"redirect to the scheme {scheme!r}; only http and https are read")
    if not host:
        fail_row("media_bad_uri", "malformed URL: it has no host")
    if is_bare:
        return bare, {}
    return bare, {"Authorization": "Basic " + base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()}


def _redirect_target(address: URL, reply: aiohttp.ClientResponse) -> str:
    location = reply.headers.get("Location")
    if not location:
        fail_row("media_status", f"the server replied {reply.status} without a Location")
    try:
        return str(address.join(URL(location, encoded=location.isascii())))
    except ValueError:
        fail_row("media_redirects", "redirect to a malformed URL")


def _check_status(reply: aiohttp.ClientResponse, *, ranged: bool) -> None:
    status = reply.status
    if status == 200 or (ranged and status in (206, 416)):
        coding = reply.headers.get("Content-Encoding", "identity").lower()
        if coding not in ("", "identity"):
            fail_row("media_unreadable", f"the server sent the content encoding {coding}, which was not requested")
        return
    if status in _GONE:
        fail_row("media_missing", f"the server replied {status}")
    failure = Failure("media_status", f"the server replied {status}")
    raise _TransientFailure(failure) if status in _TRANSIENT else BadRow(failure)


def _read_size(reply: aiohttp.ClientResponse) -> int | None:
    """Return the size of the whole file, None if the reply does not contain it."""
    if reply.status == 206:
        found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    return reply.content_length


def _read_version(reply: aiohttp.ClientResponse, size: int | None = None) -> str | None:
    etag, changed = reply.headers.get("ETag"), reply.headers.get("Last-Modified")
    if etag:
        return etag.strip('"')
    size = _read_size(reply) if size is None else size
    return f"{size}-{changed}" if changed and size is not None else None


def _guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """Create the socket for a public address; aiohttp connects it to exactly this address. Raise _ForbiddenAddress."""
    family, kind, protocol, _, (host, *_) = info
    if not is_public(host):
        raise _ForbiddenAddress(f"the host has the address {host}, which is not public")
    return _plain_socket((family, kind, protocol, "", ()))


def _plain_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


class _Sessions:
    """The connections of one process, in fsspec's event loop.

    One session is for hosts in `allowed_hosts`, one for all others.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[bool, aiohttp.ClientSession] = {}

    def get(self, *, is_allowed: bool) -> aiohttp.ClientSession:
        """Return the session for a host. Call it only in the event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the process was forked
            self._loop, self._open = loop, {}
            atexit.register(self.close)
        if is_allowed not in self._open:
            self._open[is_allowed] = _new_session(_plain_socket if is_allowed else _guarded_socket)
        return self._open[is_allowed]

    def close(self) -> None:
        """Close all connections; called from another thread."""
        loop, sessions = self._loop, list(self._open.values())
        self._open.clear()
        if loop is not None and loop.is_running():
            for session in sessions:
                sync(loop, session.close, timeout=1)


def _new_session(make_socket: Callable[[tuple[Any, ...]], socket.socket]) -> aiohttp.ClientSession:
    """Create a session whose sockets `make_socket` creates.

    "Happy eyeballs" is off: it would ignore that an address was refused and try the next one.
    """
    connector = aiohttp.TCPConnector(
        limit=64, resolver=aiohttp.ThreadedResolver(), happy_eyeballs_delay=None, socket_factory=make_socket
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
    )


_sessions = _Sessions()
