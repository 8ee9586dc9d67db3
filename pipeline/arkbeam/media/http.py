"""Fetch media from http(s) URLs, with limits on bytes, time and redirects, and not from private addresses.

The address is checked when its socket is created, also after each redirect, so a name can't resolve to another address
between check and connection. A request is a GET with the URL's own user and password, if it has any. It has no cookies
and nothing from `.netrc`. Proxies of the environment are not used: a proxy would resolve the name without this check.

Bodies are read in blocks: only the first bytes of a medium are kept, the others are counted and hashed.

aiohttp is used directly, without httpx, because it passes each address to a function of ours before it connects.
"""

import asyncio
import io
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar

import aiohttp
from fsspec.asyn import get_loop, sync
from yarl import URL

from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.base.records import Failure
from arkbeam.media.codings import find_unpackers, unpack
from arkbeam.media.connections import CONNECT_S, HEADERS, ForbiddenAddress, connections
from arkbeam.media.hosts import backoff_s, read_retry_after
from arkbeam.media.identity import DIGEST_BYTES, MediumRead, content_version, storage_version
from arkbeam.media.options import MediaOptions
from arkbeam.media.weburl import OtherScheme, WebUrl, check_url, parse_allowed_hosts, parse_redirect

REDIRECTS_MAX = 5
TRIES = 4
REFUSALS_MAX = 20
_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_AGAIN = frozenset({408, 425, 429, *range(500, 600)})
# A host that can't serve anybody now; other errors may be the fault of one URL.
_REFUSALS = frozenset({429, 503})
_HOST_FAILS = _REFUSALS | {502, 504, *range(520, 531)}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_VERSION_CHARS_MAX = 8_190

_Got = TypeVar("_Got")


class _TransientFailure(BadRow):
    """A try failed, and the next one may succeed."""

    def __init__(
        self, failure: Failure, *, blames_host: bool = True, refused: bool = False, asked_s: float | None = None
    ) -> None:
        super().__init__(failure)
        self.blames_host = blames_host
        self.refused = refused
        self.asked_s = asked_s
        """The seconds that the server asks to wait."""


def fetch(url: str, keep_max: int, whole_max: int, options: MediaOptions, *, hashed: bool = False) -> MediumRead:
    """Fetch at most `keep_max` bytes from the start, with size and version of the whole.

    The version is the etag, else size and modification time, else a hash of the bytes. With `hashed`, all bytes are
    read, and the version contains their hash (`media.identity`). The whole is read, though not kept, if the server
    does not report size or version; then it may have at most `whole_max` bytes. It blocks: call it in a thread.

    Raise BadRow: `media_bad_uri`, `media_forbidden`, `media_unreachable`, `media_timeout`, `media_redirects`,
    `media_missing` (404 and 410), `media_status` (any other reply without the bytes), `media_unreadable` (a coding that
    can't be unpacked), `media_too_large`.
    """
    return _run(url, options, partial(_fetch, keep_max=keep_max, whole_max=whole_max, hashed=hashed))


def fetch_range(url: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Fetch the bytes from `start` to `end` (exclusive), fewer if the file ends before.

    Return no bytes if the server does not support ranges.
    """
    return _run(url, options, partial(_fetch_range, start=start, end=end))


@dataclass(slots=True)
class _Reading:
    """The reading of one medium: its URL, and the time that it has taken and waited."""

    url: WebUrl
    options: MediaOptions
    clock: asyncio.Timeout
    waited_s: float = 0.0
    failed: bool = False

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Stop the clock of `media.http_timeout_s`."""
        loop, ends = asyncio.get_running_loop(), self.clock.when()
        if ends is None or self.clock.expired():
            yield
            return
        started = loop.time()
        self.clock.reschedule(None)
        try:
            yield
        finally:
            self.clock.reschedule(ends + loop.time() - started)


def _run(url: str, options: MediaOptions, work: Callable[[_Reading], Awaitable[_Got]]) -> _Got:
    parsed = check_url(url, options.url_chars_max)
    got: _Got = sync(get_loop(), _with_timeout, parsed, options, work)
    return got


def interrupt() -> None:
    """End all reading of this process, also what waits for its turn: each medium fails. Call it in any thread."""
    connections.cancel_all()


async def _with_timeout(url: WebUrl, options: MediaOptions, work: Callable[[_Reading], Awaitable[_Got]]) -> _Got:
    try:
        async with connections.cancellable(), asyncio.timeout(options.http_timeout_s) as clock:
            return await _with_retries(_Reading(url, options, clock), work)
    except TimeoutError:
        fail_row("media_timeout", f"not complete after {options.http_timeout_s:g} s (media.http_timeout_s)")
    except asyncio.CancelledError:
        fail_row("media_unreachable", "reading was interrupted")


async def _with_retries(reading: _Reading, work: Callable[[_Reading], Awaitable[_Got]]) -> _Got:
    """Retry transient failures: a GET changes nothing, and a row whose medium can't be fetched is not sent at all.

    A refusal with a time to wait is not a failed try: the host is there and says when it will serve.
    """
    tries = refusals = 0
    wait_max = reading.options.http.wait_s
    while True:
        try:
            return await _map_errors(work, reading)
        except _TransientFailure as failure:
            refusals += 1
            tries += failure.asked_s is None
            if tries == TRIES or refusals == REFUSALS_MAX:
                raise
            wait_s = max(failure.asked_s or 0.0, backoff_s(tries or 1, random.random))
            if reading.waited_s + wait_s > wait_max:
                reason = f"{failure.failure.message}, and asks to wait" if failure.asked_s else failure.failure.message
                raise BadRow(
                    Failure(
                        failure.failure.code,
                        f"{reason} ({reading.waited_s:.0f} s waited, {wait_s:.0f} s more; media.http.wait_s is {wait_max:g})",
                    )
                ) from failure
        reading.failed = True
        reading.waited_s += wait_s
        with reading.off_the_clock():
            await asyncio.sleep(wait_s)


async def _map_errors(work: Callable[[_Reading], Awaitable[_Got]], reading: _Reading) -> _Got:
    try:
        return await work(reading)
    except ForbiddenAddress as error:
        fail_row("media_forbidden", f"{error}; if it may be used, add the host to media.allowed_hosts")
    except aiohttp.InvalidURL:
        fail_row("media_bad_uri", "malformed URL")
    except aiohttp.ClientConnectorError as error:
        fail_row("media_unreachable", f"no connection to the host: {error.os_error}")
    except aiohttp.ClientResponseError:  # its text quotes the reply
        fail_row("media_status", "the server's reply is not valid HTTP, or a line of its head has more than 64 kB")
    except TimeoutError:
        fail_row("media_timeout", f"no connection to the host after {CONNECT_S:g} s")
    except aiohttp.ClientError as error:
        raise _TransientFailure(_broken(f"{type(error).__name__}: {error}")) from error


def _broken(how: str) -> Failure:
    return Failure("media_unreachable", f"the transfer broke off: {how}")


async def _fetch(reading: _Reading, *, keep_max: int, whole_max: int, hashed: bool) -> MediumRead:
    """Request the first bytes. If the reply does not have them with size and version, request the whole file."""
    if not hashed:
        async with _open(reading, (0, keep_max)) as reply:
            if reply.status == 200 or _is_described(reply, keep_max):
                return await _read_medium(reply, keep_max, whole_max, hashed=False)
    async with _open(reading) as reply:
        return await _read_medium(reply, keep_max, whole_max, hashed=hashed)


def _is_described(reply: aiohttp.ClientResponse, keep_max: int) -> bool:
    return _read_size(reply, 0, keep_max) is not None and _read_version(reply) is not None


async def _read_medium(reply: aiohttp.ClientResponse, keep_max: int, whole_max: int, *, hashed: bool) -> MediumRead:
    """Read the first bytes, or all if the reply does not tell size and version."""
    size, version = _read_size(reply, 0, keep_max), _read_version(reply)
    if hashed or size is None or version is None:
        return await _read_whole(reply, keep_max, whole_max, hashed=hashed)
    wanted = min(keep_max, size)
    head = await _read(reply, wanted)
    if len(head) != wanted:
        raise _TransientFailure(_broken(f"{len(head)} of {wanted} bytes came"))
    return MediumRead(head, size, version)


async def _fetch_range(reading: _Reading, *, start: int, end: int) -> bytes:
    async with _open(reading, (start, end)) as reply:
        is_part = reply.status == 206 and _read_size(reply, start, end) is not None
        return await _read(reply, end - start) if is_part else b""


async def _read_whole(reply: aiohttp.ClientResponse, keep_max: int, whole_max: int, *, hashed: bool) -> MediumRead:
    """Read a whole body; keep its first bytes, count and hash all."""
    declared = _read_size(reply, 0, 0)
    if declared is not None and declared > whole_max:
        fail_row("media_too_large", f"the file has {declared} bytes; at most {whole_max} are read")
    digest, head, size = blake2b(digest_size=DIGEST_BYTES), io.BytesIO(), 0
    async for block in _unpacked(reply, 2 * whole_max + _CHUNK_BYTES):
        size += len(block)
        if size > whole_max:
            fail_row("media_too_large", f"the file has more than {whole_max} bytes, which is the most that is read")
        digest.update(block)
        if head.tell() < keep_max:
            head.write(memoryview(block)[: keep_max - head.tell()])
    if declared is not None and size != declared:
        raise _TransientFailure(_broken(f"{size} of {declared} bytes came"))
    version = _read_version(reply, size) or digest.hexdigest()
    # getvalue() does not copy the bytes.
    return MediumRead(head.getvalue(), size, content_version(digest.digest(), version) if hashed else version)


async def _unpacked(reply: aiohttp.ClientResponse, packed_max: int) -> AsyncIterator[bytes]:
    """Yield a body in blocks, unpacked. Raise BadRow if it has more than `packed_max` bytes before that."""
    unpackers = find_unpackers(reply.headers.get("Content-Encoding"))
    packed = 0
    while block := await reply.content.read(_CHUNK_BYTES):
        packed += len(block)
        if packed > packed_max:
            fail_row("media_too_large", f"the body has more than {packed_max} bytes before it is unpacked")
        for part in unpack(unpackers, block):
            yield part
    if not all(one.is_complete() for one in unpackers):
        raise _TransientFailure(_broken(f"the {reply.headers.get('Content-Encoding')} data end too early"))


async def _read(reply: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Read up to the end or the limit; if the server sends more, the connection is closed."""
    data = io.BytesIO()
    while data.tell() < bytes_max:
        block = await reply.content.read(min(_CHUNK_BYTES, bytes_max - data.tell()))
        if not block:
            break
        data.write(block)
    return data.getvalue()


@asynccontextmanager
async def _open(reading: _Reading, part: tuple[int, int] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
    """Request a URL, or a part of it, and follow redirects. Raise BadRow if the reply does not have the bytes."""
    options = reading.options
    allowed = parse_allowed_hosts(options.allowed_hosts)
    wanted = {"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {}
    url = reading.url
    for _ in range(REDIRECTS_MAX + 1):
        headers = HEADERS | options.http.headers_for(url) | wanted
        if url.authorization is not None:
            headers["Authorization"] = url.authorization
        session = connections.session(None if allowed.has_host(url) else allowed)
        async with _turn(reading, url):
            address = URL(url.href, encoded=True)  # a signature may cover the spelling
            async with session.get(address, headers=headers, allow_redirects=False) as reply:
                if reply.status not in _REDIRECTS or (reply.status == 300 and not _locations(reply)):
                    _check_status(reply, ranged=part is not None)
                    yield reply
                    return
                url = _follow(url, reply)
    fail_row("media_redirects", f"more than {REDIRECTS_MAX} redirects")


@asynccontextmanager
async def _turn(reading: _Reading, url: WebUrl) -> AsyncIterator[None]:
    """Wait until the host may be asked, and record how it answered."""
    gate = connections.gate(url.origin, reading.options.http.per_host)
    with reading.off_the_clock():
        await gate.enter(again=reading.failed)
    now = asyncio.get_running_loop().time
    try:
        yield
    except _TransientFailure as failure:
        if failure.blames_host:
            asked_s = failure.asked_s and min(failure.asked_s, reading.options.http.wait_s)
            gate.pace.fail(now(), failure.failure, refused=failure.refused, asked_s=asked_s, random=random.random)
        raise
    except (aiohttp.ClientConnectorError, TimeoutError, asyncio.CancelledError) as error:
        gate.pace.count_failure(now(), _last_failure(error))
        raise
    except aiohttp.ClientError as error:
        gate.pace.fail(now(), _last_failure(error), refused=False, asked_s=None, random=random.random)
        raise
    except BadRow:
        gate.pace.succeed()  # the host replied
        raise
    else:
        gate.pace.succeed()
    finally:
        gate.leave()


def _last_failure(error: BaseException) -> Failure:
    name = "no reply in time" if isinstance(error, TimeoutError | asyncio.CancelledError) else type(error).__name__
    return Failure("media_unreachable", f"the last request ended with {name}")


def _locations(reply: aiohttp.ClientResponse) -> set[bytes]:
    return {value for name, value in reply.raw_headers if name.lower() == b"location" and value.strip()}


def _follow(url: WebUrl, reply: aiohttp.ClientResponse) -> WebUrl:
    """Return the target of a redirect. User and password stay within the same host; a target may have its own."""
    locations = _locations(reply)
    if not locations:
        fail_row("media_status", f"the server replied {reply.status} without a Location")
    if len(locations) > 1:
        fail_row("media_redirects", "redirect to several URLs at once")
    try:
        target = parse_redirect(locations.pop(), url)
    except OtherScheme as error:
        fail_row("media_forbidden", f"redirect to the scheme {error.args[0]!r}; only http and https are read")
    except ValueError:
        fail_row("media_redirects", "redirect to a malformed URL")
    return target.with_login_of(url)


def _check_status(reply: aiohttp.ClientResponse, *, ranged: bool) -> None:
    status = reply.status
    if status == 200 or (ranged and status in (206, 416)):
        return
    if status in _GONE:
        fail_row("media_missing", f"the server replied {status}")
    failure = Failure("media_status", f"the server replied {status}")
    if status not in _AGAIN:
        raise BadRow(failure)
    asked_s = read_retry_after(reply.headers.get("Retry-After"), reply.headers.get("Date"), time.time())
    raise _TransientFailure(
        failure,
        blames_host=status in _HOST_FAILS or asked_s is not None,
        refused=status in _REFUSALS,
        asked_s=asked_s,
    )


def _read_size(reply: aiohttp.ClientResponse, start: int, end: int) -> int | None:
    """Return the size of the whole file, None if the reply does not contain it, or has another part than was requested.

    A packed body does not tell the size of what is in it.
    """
    if find_unpackers(reply.headers.get("Content-Encoding")):
        return None
    if reply.status == 206:
        found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", "").strip())
        if found is None:
            return None
        first, last, size = map(int, found.groups())
        return size if first == start and last + 1 == min(end, size) else None
    return reply.content_length if reply.status == 200 else None


def _read_version(reply: aiohttp.ClientResponse, size: int | None = None) -> str | None:
    etag, changed = reply.headers.get("ETag"), reply.headers.get("Last-Modified")
    if etag:
        return _clean(storage_version(etag.strip('"')))
    size = _read_size(reply, 0, _CHUNK_BYTES) if size is None else size
    return _clean(f"{size}-{changed}") if changed and size is not None else None


def _clean(version: str) -> str:
    """Return a version that can be encoded, of limited length; a usual one stays as it is."""
    data = version.encode("utf-8", "surrogateescape")
    if len(data) > _VERSION_CHARS_MAX:
        return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
    return version if version.isascii() else data.decode("utf-8", "backslashreplace")
