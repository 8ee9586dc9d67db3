"""The one place that speaks HTTP to the service: bytes out, a `Reply` or an `ApiError` back.

It tries once: whether and when to try again is for `pacing` to say, since two layers that retry multiply what is paid.
Nothing below retries either: aiohttp repeats idempotent methods alone, and this is a POST.

What httpx over the aiohttp transport (0.2.0) leaves to us: it passes on neither a write nor a total time-out, ignores
the bound on idle connections, calls a reset connection a `ConnectTimeout`, and lets aiohttp's error for a malformed
answer through.
"""

import asyncio
import ipaddress
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from aiohttp.abc import AbstractStreamWriter
from httpx_aiohttp import AiohttpTransport

from arkbeam import __version__
from arkbeam.ark.errors import classify_exception, error_from_status, error_from_unusable
from arkbeam.ark.vectors import Flaw
from arkbeam.ark.wire import EMBEDDINGS_PATH, STAND_IN_HEADER, UnusableReply, decode_reply, salvage
from arkbeam.base.errors import ArkbeamError, ConfigError
from arkbeam.base.records import Modality
from arkbeam.base.redaction import redact
from arkbeam.base.replies import ApiError, Reply

_ERROR_BYTES_MAX = 65_536
_SLICE_BYTES = 262_144
# Load balancers drop idle connections without a word, and a request on such a one is lost; busy connections never idle
# so long.
_KEEPALIVE_S = 5.0
_KEY_ADVICE = "make an API key in the Volcengine Ark console (API Key management); AK/SK access keys are not supported"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Where the service is and how long to wait for it. The `api:` section of the config."""

    base_url: str = "https://ark.cn-beijing.volces.com/api/v3"
    """The data plane, without `/embeddings/multimodal`."""
    api_key_env: str = "ARK_API_KEY"
    """Name of the environment variable that holds the API key."""
    timeout_text_s: float = 60.0
    """Longest wait for the whole answer to a request of text alone."""
    timeout_image_s: float = 120.0
    """The same where there is an image: the service fetches it first."""
    timeout_video_s: float = 300.0
    """The same where there is a video."""
    timeout_connect_s: float = 10.0
    """Longest wait for a connection."""
    reply_bytes_max: int = 16 * 2**20
    """Largest reply that is read, before and after decompression."""

    def __post_init__(self) -> None:
        """Refuse bounds that would let nothing through."""
        for name in ("timeout_text_s", "timeout_image_s", "timeout_video_s", "timeout_connect_s", "reply_bytes_max"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"api.{name} is {getattr(self, name)}; it must be above 0")


def endpoint_url(base_url: str) -> str:
    """The address that requests go to. Raises ConfigError when `base_url` is no plain http(s) address."""
    try:
        url = httpx.URL(base_url.rstrip("/") + EMBEDDINGS_PATH)
    except httpx.InvalidURL as error:
        raise ConfigError(f"api.base_url {redact(base_url)!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
        raise ConfigError(f"api.base_url {redact(base_url)!r} must start with https:// or http:// and a host")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(f"api.base_url {redact(base_url)!r} must hold no user, query or fragment")
    return str(url)


def read_api_key(env_name: str) -> str:
    """Read the API key from the environment. Raises ConfigError saying what to do; never shows the key."""
    key = os.environ.get(env_name, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {env_name} is not set: {_KEY_ADVICE}, then export {env_name}=<the key>"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"the environment variable {env_name} holds characters that no API key has: {_KEY_ADVICE}")
    if key.startswith("AKLT"):
        raise ConfigError(f"the environment variable {env_name} holds an access key ID: {_KEY_ADVICE}")
    return key


def new_client_request_id(now_s: float, random: Random) -> str:
    """Make the id that the vendor's support asks for: yyyymmddHHMMSS in UTC and 20 random hex digits, as SDKs do."""
    return _format_second(int(now_s)) + f"{random.getrandbits(80):020x}"


@lru_cache(maxsize=4)
def _format_second(second: int) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(second))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_stand_in(base_url: str, timeout_s: float) -> bool:
    """Whether the server at `base_url` says that it is a stand-in. Asks loopback hosts alone; any failure is a no."""
    try:
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not _is_loopback(url.host):
            return False
        root = url.copy_with(path="/", query=None, fragment=None)
        with httpx.stream("GET", root, timeout=timeout_s, trust_env=False, follow_redirects=False) as answer:
            return STAND_IN_HEADER in answer.headers
    except (httpx.HTTPError, httpx.InvalidURL, OSError):
        return False


def find_proxy(url: str) -> httpx.Proxy | None:
    """The proxy that the environment names for `url` (HTTPS_PROXY, NO_PROXY, …); never one for loopback.

    Raises ConfigError for a proxy that does not speak HTTP.
    """
    parsed = httpx.URL(url)
    if _is_loopback(parsed.host) or proxy_bypass(parsed.host):
        return None
    proxies = getproxies()
    address = proxies.get(parsed.scheme) or proxies.get("all")
    if not address:
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the proxy {redact(address)!r} from the environment can't be used: {redact(str(error))}"
        ) from error
    if proxy.url.scheme not in ("http", "https"):
        raise ConfigError(f"the proxy {redact(address)!r} from the environment must be an http:// one")
    return proxy


class ArkClient:
    """Connections to the service, for one event loop. Close it with `aclose`."""

    def __init__(self, options: ApiOptions, api_key: str, *, connections_max: int) -> None:
        """Prepare without connecting. `connections_max` should be no less than the requests in flight.

        A request waits for a free connection within its own time-out. Raises ConfigError for an unusable address or
        proxy.
        """
        url = endpoint_url(options.base_url)
        self._url = httpx.URL(url)
        self._api_key = api_key
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {api_key}",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"arkbeam/{__version__}",
            },
            encoding="ascii",
        )
        self._reply_bytes_max = options.reply_bytes_max
        self._timeout_s = {
            Modality.TEXT: options.timeout_text_s,
            Modality.IMAGE: options.timeout_image_s,
            Modality.VIDEO: options.timeout_video_s,
        }
        self._extensions = {
            "timeout": {"connect": options.timeout_connect_s, "read": None, "write": None, "pool": None}
        }
        # The transport without a client around it: auth, redirects and cookies are not wanted here, and cost 85 us a
        # request.
        self._transport = AiohttpTransport(proxy=find_proxy(url))
        self._transport.client = partial(_new_session, self._transport, connections_max)

    async def embed(
        self,
        body: bytes,
        *,
        modality: Modality,
        client_request_id: str,
        dimensions: int,
        sparse: bool,
        multi: bool = False,
        on_sending: Callable[[], None] | None = None,
    ) -> Reply:
        """Send one encoded request and decode what comes back. Raises ApiError, and what `on_sending` raises.

        `modality` decides the time-out, which bounds the call as a whole; `dimensions`, `sparse` and `multi` are what
        the reply must hold (see `decode_reply`). `on_sending` is called once, just before the body goes out: from then
        on, and not before, the request may be billed.
        """
        response: httpx.Response | None = None
        received = bytearray()
        sending = _Sending(on_sending)
        try:
            async with asyncio.timeout(self._timeout_s[modality]):
                response = await self._transport.handle_async_request(
                    self._new_request(body, client_request_id, sending)
                )
                try:
                    await self._receive(response, received)
                finally:
                    await response.aclose()
            if response.is_success:
                content = _decompress(received, response.headers, self._reply_bytes_max)
                stand_in = STAND_IN_HEADER in response.headers
                return decode_reply(content, dimensions=dimensions, sparse=sparse, multi=multi, stand_in=stand_in)
        except Exception as exc:
            if sending.fault is not None:
                raise sending.fault from exc
            raise self._mask(_classify_failure(exc, response, received)) from exc
        raise self._mask(_classify_answer(response, received))

    async def aclose(self) -> None:
        """Close all connections; requests under way fail."""
        await self._transport.aclose()

    def _new_request(self, body: bytes, client_request_id: str, sending: "_Sending") -> httpx.Request:
        headers = self._headers.copy()
        headers["X-Client-Request-Id"] = client_request_id
        headers["Content-Length"] = str(len(body))
        if len(body) <= _SLICE_BYTES:
            return _Request(_Body(body, sending), "POST", self._url, headers=headers, extensions=self._extensions)
        content = _slice(body, sending)
        return httpx.Request("POST", self._url, headers=headers, content=content, extensions=self._extensions)

    async def _receive(self, response: httpx.Response, received: bytearray) -> None:
        """Append the body as it comes, compressed or not. An error's is cut short; a reply's must not be too large."""
        if not response.is_success:
            async for chunk in response.aiter_raw():
                received += chunk[: _ERROR_BYTES_MAX - len(received)]
                if len(received) >= _ERROR_BYTES_MAX:
                    return
            return
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._reply_bytes_max:
            raise _too_large(self._reply_bytes_max)
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > self._reply_bytes_max:
                raise _too_large(self._reply_bytes_max)

    def _mask(self, error: ApiError) -> ApiError:
        """Take the key out, should the service have quoted it."""
        error.message = redact(error.message, secrets=(self._api_key,))
        return error


async def _slice(body: bytes, sending: "_Sending") -> AsyncIterator[bytes]:
    """Inlined media in pieces: one write of many megabytes would hold up every other call of the loop."""
    sending.tell()
    for start in range(0, len(body), _SLICE_BYTES):
        yield body[start : start + _SLICE_BYTES]


@dataclass(slots=True)
class _Sending:
    """Who is to be told that a request goes out. What that raises would come back as a fault of the connection."""

    announce: Callable[[], None] | None
    fault: ArkbeamError | None = None

    def tell(self) -> None:
        """Tell it, in the same step of the loop as the write."""
        if self.announce is None:
            return
        try:
            self.announce()
        except ArkbeamError as fault:
            self.fault = fault
            raise


class _Body(aiohttp.BytesPayload):
    """A body that tells when it is written, at less cost than the traces of aiohttp, which would tell it, too."""

    def __init__(self, body: bytes, sending: _Sending) -> None:
        super().__init__(body)
        self._sending = sending

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Called by aiohttp."""
        self._sending.tell()
        await super().write_with_length(writer, content_length)


class _Request(httpx.Request):
    """A request whose content the transport hands to aiohttp as it is."""

    def __init__(self, body: _Body, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._body = body

    @property
    def content(self) -> Any:
        """The body."""
        return self._body


def _new_session(transport: AiohttpTransport, connections_max: int) -> aiohttp.ClientSession:
    """Make the session that the transport would make by itself, but without a jar for cookies.

    A cookie of a load balancer would tie all requests to one server.
    """
    connector = aiohttp.TCPConnector(
        limit=connections_max, keepalive_timeout=_KEEPALIVE_S, ssl=transport.ssl_context, ttl_dns_cache=60
    )
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _classify_failure(exc: Exception, response: httpx.Response | None, received: bytearray) -> ApiError:
    """Name what went wrong on the way. Once a success was announced the call is paid, even if its body never ends."""
    if isinstance(exc, TimeoutError) and not str(exc):
        exc = TimeoutError("the answer was not complete in time")
    error = classify_exception(exc)
    if response is None:
        return error
    if not response.is_success:
        return _classify_answer(response, received)
    if error.code == "client_fault" and not isinstance(exc, UnusableReply):
        error.status, error.paid = response.status_code, True
        return error
    if not isinstance(exc, UnusableReply):
        exc = salvage(
            bytes(received), Flaw.CUT_OFF, f"the reply was cut off after {len(received)} bytes: {error.message}"
        )
    return error_from_unusable(exc, response.status_code, response.headers.get("x-request-id"))


def _classify_answer(response: httpx.Response, received: bytearray) -> ApiError:
    try:
        body = _decompress(received, response.headers, _ERROR_BYTES_MAX)
    except UnusableReply:
        body = b""
    return error_from_status(response.status_code, body, response.headers, time.time())


def _too_large(bytes_max: int) -> UnusableReply:
    return UnusableReply(Flaw.TOO_LARGE, f"the reply is larger than {bytes_max} bytes")


def _decompress(received: bytearray, headers: Mapping[str, str], bytes_max: int) -> bytes:
    """Undo gzip, the only encoding that is asked for, never past `bytes_max`. Raises UnusableReply."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return bytes(received)
    if encoding not in ("gzip", "x-gzip"):
        raise UnusableReply(Flaw.NOT_JSON, f"the reply has the content encoding {redact(encoding, 50)}")
    plain = bytearray()
    rest = bytes(received)
    while rest:  # a gzip stream may have several members
        member = zlib.decompressobj(wbits=31)
        try:
            plain += member.decompress(rest, bytes_max + 1 - len(plain))
        except zlib.error as error:
            raise salvage(bytes(plain), Flaw.NOT_JSON, f"the reply is no gzip: {error}") from error
        if len(plain) > bytes_max:
            raise _too_large(bytes_max)
        if not member.eof:
            raise salvage(bytes(plain), Flaw.CUT_OFF, "the reply's gzip stream ends too early")
        rest = member.unused_data
    return bytes(plain)
