"""The HTTP client of the service: send bytes, return a `Reply` or raise an `ApiError`.

A call sends one request and does not retry. The engine decides whether and when to try again (`quota.retry`): if two
layers retried, they would multiply the cost. The layers below do not retry either: aiohttp repeats only idempotent
methods, and this is a POST.

Limits of httpx with the aiohttp transport (0.2.0) that this module works around: the transport passes on neither a
write time-out nor a total time-out, ignores the bound on idle connections, reports a reset connection as
`ConnectTimeout`, and does not translate aiohttp's error for a malformed response.
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
# Load balancers drop idle connections silently, and a request on a dropped connection is lost. Busy connections are
# never idle for this long.
_KEEPALIVE_S = 5.0
_KEY_ADVICE = "create an API key in the Volcengine Ark console (API Key management)"
_NO_ACCESS_KEYS = "AK/SK access keys are not supported"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Address of the service, API key and time limits. The `api:` section of the config."""

    base_url: str = "https://ark.cn-beijing.volces.com/api/v3"
    """URL of the Ark API, without `/embeddings/multimodal`."""
    api_key_env: str = "ARK_API_KEY"
    """Name of the environment variable that holds the API key."""
    timeout_text_s: float = 60.0
    """Time limit of a text-only request in seconds: from the wait for a connection to the end of the reply."""
    timeout_image_s: float = 120.0
    """Time limit of a request with an image and no video, in seconds. The service first downloads the image."""
    timeout_video_s: float = 300.0
    """Time limit of a request with a video, in seconds."""
    timeout_connect_s: float = 10.0
    """Time limit for opening a connection, in seconds."""
    reply_bytes_max: int = 16 * 2**20
    """Maximum size of a reply in bytes, before and after decompression. A larger reply is billed but can't be used."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that is not above 0."""
        for name in ("timeout_text_s", "timeout_image_s", "timeout_video_s", "timeout_connect_s", "reply_bytes_max"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"api.{name} is {getattr(self, name)}; it must be greater than 0")


def endpoint_url(base_url: str) -> str:
    """Return the URL that requests are sent to. Raise ConfigError if `base_url` is not a plain http(s) URL."""
    try:
        url = httpx.URL(base_url.rstrip("/") + EMBEDDINGS_PATH)
    except httpx.InvalidURL as error:
        raise ConfigError(f"api.base_url {redact(base_url)!r} is not a valid URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
        raise ConfigError(f"api.base_url {redact(base_url)!r} must be an https:// or http:// URL with a host")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(f"api.base_url {redact(base_url)!r} must not contain a user, a query or a fragment")
    return str(url)


def read_api_key(env_name: str) -> str:
    """Return the API key from an environment variable.

    Raise ConfigError that says what to do and does not contain the key.
    """
    key = os.environ.get(env_name, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {env_name} is not set: {_KEY_ADVICE} and export"
            f" {env_name}=<the key>; {_NO_ACCESS_KEYS}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"the environment variable {env_name} contains characters that an API key can't have: {_KEY_ADVICE}; {_NO_ACCESS_KEYS}"
        )
    if key.startswith("AKLT"):
        raise ConfigError(
            f"the environment variable {env_name} contains an access key ID instead of an API key: {_KEY_ADVICE}"
        )
    return key


def new_client_request_id(now_s: float, random: Random) -> str:
    """Return a new client request id, which the vendor's support asks for.

    Format of the vendor's SDKs: yyyymmddHHMMSS in UTC, then 20 random hex digits.
    """
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
    """Return True if the server at `base_url` says that it is a stand-in.

    Only loopback hosts are asked. If the request fails, the result is False.
    """
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
    """Return the proxy for `url` from the environment (HTTPS_PROXY, NO_PROXY, …); loopback hosts never use one.

    Raise ConfigError if the proxy is not an HTTP proxy.
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
        raise ConfigError(f"the proxy {redact(address)!r} from the environment must be an HTTP proxy (http://…)")
    return proxy


class ArkClient:
    """Connections to the service for one event loop. Close them with `aclose`."""

    def __init__(self, options: ApiOptions, api_key: str, *, connections_max: int) -> None:
        """Prepare the client; nothing is connected yet.

        `connections_max` should be at least the number of requests in flight: a request that waits for a free
        connection uses up its own time limit. Raise ConfigError if the URL or the proxy can't be used.
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
        # The transport is used without an httpx client: auth, redirects and cookies are not wanted and cost 85 µs
        # per request.
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
        """Send one encoded request and return the decoded reply. Raise ApiError, or the exception of `on_sending`.

        Args:
            body: The encoded request (`wire.encode_request`).
            modality: Selects the time limit of the whole call.
            client_request_id: Our id of this attempt, sent as a header.
            dimensions: Required length of the dense vector.
            sparse: True if the reply must contain a sparse vector.
            multi: True if the reply must contain per-token vectors.
            on_sending: Called once, just before the body is sent. The request can be billed from then on, and not
                before.
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
        """Close all connections. Requests in flight fail."""
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
        """Append the raw body to `received`.

        An error body is cut at 64 KiB. Raise UnusableReply if a reply is too large.
        """
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
        """Mask the API key in the message, in case the service quoted it."""
        error.message = redact(error.message, secrets=(self._api_key,))
        return error


async def _slice(body: bytes, sending: "_Sending") -> AsyncIterator[bytes]:
    """Yield a large body in pieces: a single write of many megabytes would block all other calls of the event loop."""
    sending.notify()
    for start in range(0, len(body), _SLICE_BYTES):
        yield body[start : start + _SLICE_BYTES]


@dataclass(slots=True)
class _Sending:
    """Call `announce` when the request is sent; keep its exception, which the HTTP libraries would hide."""

    announce: Callable[[], None] | None
    fault: ArkbeamError | None = None

    def notify(self) -> None:
        """Call `announce`, in the same step of the event loop as the write."""
        if self.announce is None:
            return
        try:
            self.announce()
        except ArkbeamError as fault:
            self.fault = fault
            raise


class _Body(aiohttp.BytesPayload):
    """A body that reports when it is written. aiohttp's tracing could do the same at a higher cost."""

    def __init__(self, body: bytes, sending: _Sending) -> None:
        super().__init__(body)
        self._sending = sending

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Notify, then write. aiohttp calls this."""
        self._sending.notify()
        await super().write_with_length(writer, content_length)


_NOTHING = httpx.ByteStream(b"")


class _Request(httpx.Request):
    """A request whose content the transport passes to aiohttp unchanged."""

    def __init__(self, body: _Body, *args: Any, **kwargs: Any) -> None:
        # With a stream, httpx prepares no headers of its own, which takes 10 µs a request: aiohttp adds the host.
        super().__init__(*args, stream=_NOTHING, **kwargs)
        self._body = body

    @property
    def content(self) -> Any:
        """The body."""
        return self._body


def _new_session(transport: AiohttpTransport, connections_max: int) -> aiohttp.ClientSession:
    """Make the session that the transport would make itself, but without cookies.

    A load balancer's cookie would send all requests to one server.
    """
    connector = aiohttp.TCPConnector(
        limit=connections_max, keepalive_timeout=_KEEPALIVE_S, ssl=transport.ssl_context, ttl_dns_cache=60
    )
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())


def _classify_failure(exc: Exception, response: httpx.Response | None, received: bytearray) -> ApiError:
    """Turn an exception into an ApiError.

    After a success status the call is paid, even if the body was not complete.
    """
    if isinstance(exc, TimeoutError) and not str(exc):
        exc = TimeoutError("the reply was not complete in time")
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
    """Decompress gzip, the only encoding that requests accept.

    Raise UnusableReply for another encoding, for damaged data, and for more than `bytes_max` bytes.
    """
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return bytes(received)
    if encoding not in ("gzip", "x-gzip"):
        raise UnusableReply(Flaw.NOT_JSON, f"the reply has the unsupported content encoding {redact(encoding, 50)}")
    plain = bytearray()
    rest = bytes(received)
    while rest:  # a gzip stream may have several members
        member = zlib.decompressobj(wbits=31)
        try:
            plain += member.decompress(rest, bytes_max + 1 - len(plain))
        except zlib.error as error:
            raise salvage(bytes(plain), Flaw.NOT_JSON, f"the reply is not valid gzip: {error}") from error
        if len(plain) > bytes_max:
            raise _too_large(bytes_max)
        if not member.eof:
            raise salvage(bytes(plain), Flaw.CUT_OFF, "the gzip stream of the reply is cut off")
        rest = member.unused_data
    return bytes(plain)
