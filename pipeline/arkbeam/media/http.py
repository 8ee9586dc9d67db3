"""Media behind http(s) URLs that we fetch ourselves: bounded in bytes, time and redirects, and never from private addresses.

The address is checked when the socket to it is made, so that a name can't resolve to another one in between, and at
every redirect. What is sent is a GET with the URL's own user and password, if it has any: no cookies, nothing out of
`.netrc`, and no proxy of the environment is used, since a proxy would resolve the name where nothing is checked.

aiohttp alone, without httpx around it: it hands the address of a connection to a function of ours before it connects.
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
from arkbeam.base.records import Failure
from arkbeam.base.refusal import RowRefused, refuse
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
_PASSING = frozenset({429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:\*|\d+-\d+)/(\d+)")
_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"arkbeam/{__version__}"}


_Got = TypeVar("_Got")


class _Again(RowRefused):
    """A try that failed in a way that may pass."""


class _ForbiddenAddress(Exception):
    """A connection to an address that isn't anybody's to reach; not an OSError, after which the next address is tried."""


def fetch(url: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    """Fetch at most `bytes_max` bytes from the start, with size and version of the whole. It blocks: call it in a thread.

    Raises RowRefused: `media_bad_uri`, `media_forbidden`, `media_unreachable`, `media_timeout`,
    `media_redirects`, `media_missing` (404 and 410), `media_status` (any other answer), `media_too_large`.
    """
    check_url(url, options.url_chars_max)
    fetched: MediumRead = sync(get_loop(), _in_time, partial(_fetch, url, bytes_max, options), options.http_timeout_s)
    return fetched


def fetch_range(url: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Fetch the bytes from `start` up to `end`, as far as there are so many, and nothing of a server without ranges."""
    part: bytes = sync(get_loop(), _in_time, partial(_fetch_range, url, start, end, options), options.http_timeout_s)
    return part


async def _in_time(work: Callable[[], Awaitable[_Got]], timeout_s: float) -> _Got:
    try:
        async with asyncio.timeout(timeout_s):
            return await _patiently(work)
    except TimeoutError:
        refuse("media_timeout", f"it did not come in {timeout_s:g} s")


async def _patiently(work: Callable[[], Awaitable[_Got]]) -> _Got:
    """Try a few times: a GET changes nothing, and a row that fails here is not sent at all."""
    tries = 0
    while True:
        try:
            return await _once(work)
        except _Again:
            tries += 1
            if tries == TRIES:
                raise
        await asyncio.sleep(_WAIT_S * 2 ** (tries - 1))


async def _once(work: Callable[[], Awaitable[_Got]]) -> _Got:
    try:
        return await work()
    except _ForbiddenAddress as error:
        refuse("media_forbidden", f"{error} (media.allowed_hosts)")
    except aiohttp.InvalidURL:
        refuse("media_bad_uri", "the URL can't be one")
    except aiohttp.ClientConnectorError as error:
        refuse("media_unreachable", f"the host can't be reached: {error.os_error}")
    except TimeoutError:
        refuse("media_timeout", f"there was no connection in {_CONNECT_S:g} s")
    except aiohttp.ClientError as error:
        raise _Again(Failure("media_unreachable", f"it broke off: {type(error).__name__}: {error}")) from error


async def _fetch(url: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    """Ask for the first bytes; of a server that does not tell size or version of the whole, for the whole."""
    whole_max = max(options.image_bytes_max, options.video_bytes_max)
    async with _open(url, options, (0, bytes_max)) as answer:
        if answer.status == 416:  # there is no first byte
            return MediumRead(b"", 0, "0")
        size, version = _read_size(answer), _read_version(answer)
        if size is not None and version is not None:
            head = await _read(answer, min(bytes_max, size))
            _check_complete(len(head), min(bytes_max, size))
            return MediumRead(head, size, version)
        if answer.status == 200:
            return await _read_whole(answer, bytes_max, whole_max)
    async with _open(url, options) as answer:
        return await _read_whole(answer, bytes_max, whole_max)


async def _fetch_range(url: str, start: int, end: int, options: MediaOptions) -> bytes:
    async with _open(url, options, (start, end)) as answer:
        return await _read(answer, end - start) if answer.status == 206 else b""


async def _read_whole(answer: aiohttp.ClientResponse, bytes_max: int, whole_max: int) -> MediumRead:
    size = _read_size(answer)
    if size is not None and size > whole_max:
        refuse("media_too_large", f"it has {size} bytes; {whole_max} are read at most")
    data = await _read(answer, whole_max + 1)
    if len(data) > whole_max:
        refuse("media_too_large", f"it has more than {whole_max} bytes, which are read at most")
    _check_complete(len(data), len(data) if size is None else size)
    version = _read_version(answer, len(data)) or digest_of(data).hex()
    return MediumRead(data[:bytes_max], len(data), version)


def _check_complete(count: int, expected: int) -> None:
    if count != expected:
        raise _Again(Failure("media_unreachable", f"it broke off after {count} of {expected} bytes"))


async def _read(answer: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Read until the end or the limit; the connection is dropped with what a server sends beyond it."""
    data = bytearray()
    while len(data) < bytes_max:
        chunk = await answer.content.read(min(_CHUNK_BYTES, bytes_max - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


@asynccontextmanager
async def _open(
    url: str, options: MediaOptions, part: tuple[int, int] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask for a URL, or for part of it, and follow redirects. Raises RowRefused and _Again for bad answers."""
    headers = {**_HEADERS, "Range": f"bytes={part[0]}-{part[1] - 1}"} if part else _HEADERS
    address, own = _parse(url)
    for _ in range(REDIRECTS_MAX + 1):
        session = _sessions.get(is_allowed=(address.host or "").lower() in options.allowed_hosts)
        async with session.get(address, headers=headers | own, allow_redirects=False) as answer:
            if answer.status not in _REDIRECTS:
                _check_status(answer, ranged=part is not None)
                yield answer
                return
            address, own = _parse(_redirect_target(address, answer))[0], {}
    refuse("media_redirects", f"it redirects more than {REDIRECTS_MAX} times")


def _parse(url: str) -> tuple[URL, dict[str, str]]:
    """Read a URL as it stands, since a signature may hang on its spelling; user and password become a header."""
    try:
        address = URL(url, encoded=url.isascii())
        scheme, host, user, password = address.scheme.lower(), address.host, address.user, address.password
        is_bare = user is None and password is None
        bare = address if is_bare else address.with_user(None)
    except ValueError:
        refuse("media_bad_uri", "the URL can't be one")
    if scheme not in WEB_SCHEMES:
        refuse("media_forbidden", f"it redirects to the scheme {scheme!r}")
    if not host:
        refuse("media_bad_uri", "the URL has no host")
    if is_bare:
        return bare, {}
    return bare, {"Authorization": "Basic " + base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()}


def _redirect_target(address: URL, answer: aiohttp.ClientResponse) -> str:
    location = answer.headers.get("Location")
    if not location:
        refuse("media_status", f"the server answers {answer.status} and does not say where to")
    try:
        return str(address.join(URL(location, encoded=location.isascii())))
    except ValueError:
        refuse("media_redirects", "it redirects to what is no URL")


def _check_status(answer: aiohttp.ClientResponse, *, ranged: bool) -> None:
    status = answer.status
    if status == 200 or (ranged and status in (206, 416)):
        coding = answer.headers.get("Content-Encoding", "identity").lower()
        if coding not in ("", "identity"):
            refuse("media_unreadable", f"it comes packed as {coding}, which was not asked for")
        return
    if status in _GONE:
        refuse("media_missing", f"the server answers {status}")
    failure = Failure("media_status", f"the server answers {status}")
    raise _Again(failure) if status in _PASSING else RowRefused(failure)


def _read_size(answer: aiohttp.ClientResponse) -> int | None:
    """Size of the whole, where the server tells it."""
    if answer.status == 206:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        return int(found[1]) if found else None
    return answer.content_length


def _read_version(answer: aiohttp.ClientResponse, size: int | None = None) -> str | None:
    etag, changed = answer.headers.get("ETag"), answer.headers.get("Last-Modified")
    if etag:
        return etag.strip('"')
    size = _read_size(answer) if size is None else size
    return f"{size}-{changed}" if changed and size is not None else None


def _guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """Make the socket for an address that may be reached; aiohttp connects it to this very address."""
    family, kind, protocol, _, (host, *_) = info
    if not is_public(host):
        raise _ForbiddenAddress(f"its host has the address {host}, which is not public")
    return _plain_socket((family, kind, protocol, "", ()))


def _plain_socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


class _Sessions:
    """Connections of one process: those to hosts that are allowed by name, and all others. They live in fsspec's loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[bool, aiohttp.ClientSession] = {}

    def get(self, *, is_allowed: bool) -> aiohttp.ClientSession:
        """Return the session for a host; called in the loop alone."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the process was forked
            self._loop, self._open = loop, {}
            atexit.register(self.close)
        if is_allowed not in self._open:
            self._open[is_allowed] = _new_session(_plain_socket if is_allowed else _guarded_socket)
        return self._open[is_allowed]

    def close(self) -> None:
        """Close all connections, from another thread."""
        loop, sessions = self._loop, list(self._open.values())
        self._open.clear()
        if loop is not None and loop.is_running():
            for session in sessions:
                sync(loop, session.close, timeout=1)


def _new_session(make_socket: Callable[[tuple[Any, ...]], socket.socket]) -> aiohttp.ClientSession:
    """Make a session without happy eyeballs, which would swallow the refusal of an address and try the next."""
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
