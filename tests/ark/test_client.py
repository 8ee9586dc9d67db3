"""The client against a real server on loopback: requests, replies and every kind of network failure.

The server uses asyncio sockets directly, so that it can fail below HTTP: reset, stall, stop in the middle of a body.
"""

import asyncio
import base64
import gzip
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from arkbeam.ark.client import (
    ApiOptions,
    ArkClient,
    endpoint_url,
    find_proxy,
    is_stand_in,
    new_client_request_id,
    read_api_key,
)
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Modality, Usage
from arkbeam.base.replies import Action, ApiError, Pressure, Reply

KEY = "test-key-0123456789"
VECTOR = [0.5, -1.25, 3.0, -0.0625]
USAGE = {"prompt_tokens": 20, "total_tokens": 20, "prompt_tokens_details": {"text_tokens": 20, "image_tokens": 0}}
DATA = {"object": "embedding", "embedding": base64.b64encode(struct.pack("<4f", *VECTOR)).decode()}
BODY = json.dumps({"id": "0217", "model": "m-1", "created": 5, "object": "list", "usage": USAGE, "data": DATA}).encode()
TIME_LIMIT_S = 0.3


@dataclass
class Received:
    """One request as the server saw it."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """A loopback server that answers each request with `answer` and stores what it received."""

    answer: Answer
    read_body: bool = True
    received: list[Received] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    port: int = 0

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._writers: list[asyncio.StreamWriter] = []
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *pairs = head.strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (pair.partition(": ") for pair in pairs)}
                length = int(headers.get("content-length", 0)) if self.read_body else 0
                request = Received(line, headers, await reader.readexactly(length))
                self.received.append(request)
                self.asked.set()
                await self.answer(request, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def http(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """Make an HTTP/1.1 response; `length` is a wrong Content-Length."""
    lines = [f"HTTP/1.1 {status} Words", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def sends(data: bytes, *, then: str = "keep") -> Answer:
    """Make an answer that writes `data` and then keeps, closes, resets or stalls the connection."""

    async def answer(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then == "close":
            writer.close()
        elif then == "reset":
            await asyncio.sleep(0.02)  # the data must be sent before the reset discards it
            writer.transport.abort()
        elif then == "hang":
            await asyncio.sleep(60)

    return answer


async def embed(client: ArkClient, **changes: Any) -> Reply:
    """Make one call with arguments that fit `BODY`."""
    arguments: dict[str, Any] = {
        "modality": Modality.TEXT,
        "client_request_id": "20250101000000abc",
        "dimensions": 4,
        "sparse": False,
    }
    return await client.embed(changes.pop("body", b'{"a":1}'), **(arguments | changes))


def options_for(server: Server, **changes: Any) -> ApiOptions:
    """Make options with the URL of the server."""
    return replace(ApiOptions(base_url=f"http://127.0.0.1:{server.port}/api/v3/"), **changes)


def call(answer: Answer, *, read_body: bool = True, body: bytes = b'{"a":1}', **changes: Any) -> Reply:
    """Start a server, send one request, close both. Keyword arguments change the options."""

    async def run() -> Reply:
        async with Server(answer, read_body=read_body) as server:
            client = ArkClient(options_for(server, **changes), KEY, connections_max=2)
            try:
                return await embed(client, body=body)
            finally:
                await client.aclose()

    return asyncio.run(run())


def fail(answer: Answer, **changes: Any) -> ApiError:
    """Return the ApiError of such a call."""
    with pytest.raises(ApiError) as caught:
        call(answer, **changes)
    return caught.value


def test_request_and_reply_go_through() -> None:
    """The body is sent unchanged, with the key and the request id in headers; the reply is decoded."""

    async def run() -> None:
        async with Server(sends(http(200, BODY))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=2)
            reply = await embed(client)
            await client.aclose()
        (request,) = server.received
        assert request.line == "POST /api/v3/embeddings/multimodal HTTP/1.1"
        assert request.body == b'{"a":1}'
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.headers["x-client-request-id"] == "20250101000000abc"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept-encoding"] == "gzip"
        assert request.headers["user-agent"].startswith("arkbeam/")
        assert "cookie" not in request.headers
        assert reply.dense.tolist() == VECTOR
        assert (reply.id, reply.model, reply.usage) == ("0217", "m-1", Usage(20, 20, 20, 0))
        assert not reply.stand_in

    asyncio.run(run())


def test_stand_in_is_told_by_its_header() -> None:
    """If a server says in a header that it is a stand-in, its replies are marked."""
    assert call(sends(http(200, BODY, "X-Arkbeam-Stand-In: 1"))).stand_in


def test_vectors_of_tokens_are_asked_of_the_reply() -> None:
    """Per-token vectors that were asked for are decoded; a reply without them is unusable and paid."""

    async def run() -> None:
        data = json.dumps(DATA | {"multi_embedding": [VECTOR, VECTOR]})
        async with Server(sends(http(200, BODY.replace(json.dumps(DATA).encode(), data.encode())))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=2)
            reply = await embed(client, multi=True)
            assert reply.multi is not None
            assert reply.multi.tolist() == [VECTOR, VECTOR]
            assert (await embed(client)).multi is None
            server.answer = sends(http(200, BODY))
            with pytest.raises(ApiError) as caught:
                await embed(client, multi=True)
            await client.aclose()
        assert (caught.value.code, caught.value.paid, caught.value.usage) == (
            "multi_missing",
            True,
            Usage(20, 20, 20, 0),
        )

    asyncio.run(run())


@pytest.mark.parametrize("members", [1, 3])
def test_gzip_is_undone(members: int) -> None:
    """A compressed reply is read, also with several gzip members."""
    third = len(BODY) // 3 + 1
    pieces = [BODY] if members == 1 else [BODY[i : i + third] for i in range(0, len(BODY), third)]
    packed = b"".join(map(gzip.compress, pieces))
    assert call(sends(http(200, packed, "Content-Encoding: gzip"))).dense.tolist() == VECTOR


def test_connections_are_kept_and_bounded() -> None:
    """Twenty concurrent calls use two connections, and each gets its own reply."""

    async def echo(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.001)
        writer.write(http(200, BODY.replace(b"0217", request.body)))

    async def run() -> None:
        async with Server(echo) as server:
            client = ArkClient(options_for(server), KEY, connections_max=2)
            calls = [embed(client, body=f"id-{i}".encode()) for i in range(20)]
            replies = await asyncio.gather(*calls)
            await client.aclose()
        assert [reply.id for reply in replies] == [f"id-{i}" for i in range(20)]
        assert server.connections == 2

    asyncio.run(run())


def test_cookies_are_not_sent_back() -> None:
    """A load balancer's cookie does not bind later requests to one server."""

    async def run() -> None:
        async with Server(sends(http(200, BODY, "Set-Cookie: node=7; Path=/"))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=2)
            await embed(client)
            await embed(client)
            await client.aclose()
        assert ["cookie" in request.headers for request in server.received] == [False, False]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (sends(b"", then="close"), "connection_lost"),
        (sends(b"", then="reset"), "connection_lost"),
        (sends(b"HTTP/1.1 200", then="close"), "connection_lost"),
        (sends(b"\x16\x03\x01 nonsense\r\n\r\n", then="close"), "bad_answer"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", then="close"), "bad_answer"),
        (sends(b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"x" * 100_000 + b"\r\n\r\n", then="close"), "bad_answer"),
    ],
)
def test_no_answer_is_retried_and_not_paid(answer: Answer, code: str) -> None:
    """Without a response, or with one that is not HTTP, the call is retried and not paid."""
    error = fail(answer)
    assert (error.action, error.code, error.paid, error.status) == (Action.RETRY, code, False, None)


def test_server_that_is_not_there_is_retried() -> None:
    """A refused connection has its own code, although the transport maps it to a time-out."""

    async def run() -> ApiError:
        async with Server(sends(b"")) as server:
            pass
        client = ArkClient(options_for(server), KEY, connections_max=2)
        with pytest.raises(ApiError) as caught:
            await embed(client)
        await client.aclose()
        return caught.value

    error = asyncio.run(run())
    assert (error.action, error.code, error.paid) == (Action.RETRY, "connect_failed", False)


def test_hanging_server_meets_the_time_out() -> None:
    """If the server never answers, the call times out and is retried."""
    error = fail(sends(b"", then="hang"), timeout_text_s=TIME_LIMIT_S)
    assert (error.action, error.code, error.paid, error.status) == (Action.RETRY, "timeout", False, None)


def test_time_out_goes_by_modality() -> None:
    """Each modality has its own time-out."""

    async def slow(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(TIME_LIMIT_S)
        writer.write(http(200, BODY))

    async def run() -> None:
        async with Server(slow) as server:
            for patient in Modality:
                times = {f"timeout_{kind.value}_s": 0.01 for kind in Modality} | {f"timeout_{patient.value}_s": 30.0}
                client = ArkClient(options_for(server, **times), KEY, connections_max=2)
                for kind in Modality:
                    if kind is patient:
                        assert (await embed(client, modality=kind)).id == "0217"
                    else:
                        with pytest.raises(ApiError, match="in time"):
                            await embed(client, modality=kind)
                await client.aclose()

    asyncio.run(run())


def test_trickling_server_meets_the_time_out() -> None:
    """A byte now and then does not extend the time-out. The reply had started, so the call is paid."""

    async def trickle(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(200, b"", length=10**6))
        while not writer.transport.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.01)

    error = fail(trickle, timeout_text_s=TIME_LIMIT_S)
    assert (error.action, error.code, error.paid, error.status) == (Action.RETRY, "cut_off", True, 200)


def test_server_that_stops_reading_meets_the_time_out() -> None:
    """If the server does not read a large body, the same time-out applies."""
    error = fail(sends(b"", then="hang"), read_body=False, body=b"x" * 50_000_000, timeout_text_s=TIME_LIMIT_S)
    assert (error.action, error.code, error.paid) == (Action.RETRY, "timeout", False)


@pytest.mark.parametrize("size", [0, 262_144, 262_145, 3_000_000])
def test_body_of_any_size_arrives_whole(size: int) -> None:
    """Small bodies are sent in one piece and large ones in several, with equal bytes and a Content-Length."""
    body = random.Random(size).randbytes(size)

    async def run() -> None:
        async with Server(sends(http(200, BODY))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=1)
            await embed(client, body=body)
            await client.aclose()
        (request,) = server.received
        assert request.body == body
        assert request.headers["content-length"] == str(size)
        assert "transfer-encoding" not in request.headers

    asyncio.run(run())


def test_refusal_before_the_body_is_read_is_understood() -> None:
    """If a server rejects a large body without reading it, its response is used."""
    answer = sends(http(413, b'{"error":{"code":"TooLarge","message":"too large"}}', "Connection: close"), then="hang")
    error = fail(answer, read_body=False, body=b"x" * 50_000_000, timeout_text_s=10)
    assert (error.action, error.code, error.status) == (Action.REJECT, "TooLarge", 413)


@pytest.mark.parametrize("then", ["close", "reset"])
def test_cut_off_reply_is_paid(then: str) -> None:
    """A reply that is cut off was processed and is billed: it is paid, with the fields that were received."""
    error = fail(sends(http(200, BODY[:-20], length=len(BODY)), then=then))
    assert (error.action, error.code, error.paid) == (Action.RETRY, "cut_off", True)
    assert (error.request_id, error.model, error.usage) == ("0217", "m-1", Usage(20, 20, 20, 0))


def test_reply_cut_off_within_its_length_is_paid() -> None:
    """A body that is complete for HTTP but is only half of the JSON is unusable and paid."""
    error = fail(sends(http(200, BODY[:-20])))
    assert (error.code, error.paid, error.usage) == ("not_json", True, Usage(20, 20, 20, 0))


def test_cut_off_gzip_is_paid() -> None:
    """A gzip stream without its end is unusable and paid; its usage is read if it was received."""
    error = fail(sends(http(200, gzip.compress(BODY)[:-8], "Content-Encoding: gzip")))
    assert (error.code, error.paid, error.usage) == ("cut_off", True, Usage(20, 20, 20, 0))


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"<html>", (), "not_json"),
        (b"", (), "not_json"),
        (b"no gzip", ("Content-Encoding: gzip",), "not_json"),
        (BODY, ("Content-Encoding: br",), "not_json"),
        (BODY.replace(b'"embedding":', b'"vector":'), (), "no_embedding"),
        (json.dumps(json.loads(BODY) | {"data": {"embedding": [0.5]}}).encode(), (), "wrong_length"),
    ],
)
def test_unusable_reply_is_paid(body: bytes, headers: tuple[str, ...], code: str) -> None:
    """A 200 without a usable vector has a code, is paid, and is tried at most twice more."""
    error = fail(sends(http(200, body, "X-Request-Id: header-id", *headers)))
    assert (error.action, error.code, error.paid) == (Action.RETRY, code, True)
    assert error.request_id in ("header-id", "0217")


@pytest.mark.parametrize(
    "data",
    [
        http(200, b"", length=10**12),
        http(200, b"x" * 5_001),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"x" * 0x1000 + b"\r\n") * 50,
        http(200, gzip.compress(b" " * 10_000_000)[:4_900], "Content-Encoding: gzip"),
        http(200, gzip.compress(b"x" * 5_001), "Content-Encoding: gzip"),
    ],
    ids=["declared", "sent", "chunked", "gzip bomb", "gzip one too many"],
)
def test_oversized_reply_is_given_up(data: bytes) -> None:
    """Reading stops at the limit, whether the size is declared, chunked or hidden by compression."""
    error = fail(sends(data, then="hang"), reply_bytes_max=5_000)
    assert (error.code, error.paid, error.action) == ("too_large", True, Action.RETRY)


def test_largest_reply_is_read() -> None:
    """A reply of exactly the limit is read, compressed or not."""
    for data in (http(200, BODY), http(200, gzip.compress(BODY), "Content-Encoding: gzip")):
        assert call(sends(data), reply_bytes_max=len(BODY)).id == "0217"


def test_refusal_says_how_long_to_wait() -> None:
    """The error of a 429 has its pressure and its Retry-After."""
    body = b'{"error":{"code":"ModelAccountRpmRateLimitExceeded","message":"slow. Request id: 0217-b"}}'
    error = fail(sends(http(429, body, "Retry-After: 7")))
    assert (error.action, error.pressure, error.retry_after_s) == (Action.RETRY, Pressure.RPM, 7.0)
    assert (error.request_id, error.paid, error.status) == ("0217-b", False, 429)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(status: int) -> None:
    """A redirect would send the key to another host: only one request is sent, and the run stops."""

    async def run() -> tuple[ApiError, int]:
        async with Server(sends(http(status, b"", "Location: /elsewhere"))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=2)
            with pytest.raises(ApiError) as caught:
                await embed(client)
            await client.aclose()
        return caught.value, len(server.received)

    error, requests = asyncio.run(run())
    assert (error.action, error.status, requests) == (Action.STOP, status, 1)
    assert "/elsewhere" in str(error)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (http(400, gzip.compress(b'{"error":{"code":"X","message":"m"}}'), "Content-Encoding: gzip"), "X"),
        (http(400, b"no gzip", "Content-Encoding: gzip"), "http_400"),
        (http(400, b'{"error":{"code":"X","message":"' + b"m" * 10**6 + b'"}}'), "http_400"),
        (http(400, b'{"error":{"code"', length=500), "http_400"),
    ],
    ids=["gzip", "bad gzip", "huge", "cut off"],
)
def test_error_answer_counts_even_if_its_body_does_not(data: bytes, code: str) -> None:
    """The status decides, also if the body is compressed, very long or cut off."""
    error = fail(sends(data, then="close"))
    assert (error.action, error.status, error.code, error.paid) == (Action.REJECT, 400, code, False)
    assert len(str(error)) <= 500


def test_key_is_never_in_a_message() -> None:
    """If the service quotes the key, it is masked."""
    body = json.dumps({"error": {"code": "AuthenticationError", "message": f"the key {KEY} is wrong"}}).encode()
    error = fail(sends(http(401, body)))
    assert error.action is Action.STOP
    assert KEY not in str(error)
    assert "is wrong" in str(error)


def test_request_is_sent_once_even_on_a_stale_connection() -> None:
    """If the connection breaks during a request, the error is reported and the request is not sent again."""

    async def run() -> None:
        async with Server(sends(http(200, BODY))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=1)
            await embed(client)
            server.answer = sends(b"", then="close")
            with pytest.raises(ApiError) as caught:
                await embed(client)
            await client.aclose()
        assert caught.value.code == "connection_lost"
        assert len(server.received) == 2

    asyncio.run(run())


def test_cancelled_call_frees_its_connection() -> None:
    """A cancelled call raises CancelledError, and its connection can be used again."""

    async def run() -> None:
        async with Server(sends(b"", then="hang")) as server:
            client = ArkClient(options_for(server), KEY, connections_max=1)
            task = asyncio.create_task(embed(client))
            await server.asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.answer = sends(http(200, BODY))
            assert (await embed(client)).id == "0217"
            await client.aclose()

    asyncio.run(run())


def test_closed_client_stops_the_run() -> None:
    """A call after closing is a defect of the caller and is never retried."""

    async def run() -> None:
        async with Server(sends(http(200, BODY))) as server:
            client = ArkClient(options_for(server), KEY, connections_max=1)
            await embed(client)
            await client.aclose()
            with pytest.raises(ApiError) as caught:
                await embed(client)
        assert (caught.value.action, caught.value.code) == (Action.STOP, "client_fault")

    asyncio.run(run())


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "emulator",
        "ark.example.com/api/v3",
        "ftp://h/",
        "https://",
        "https://h:99999/",
        "https://h:port/",
        "https://u:s3cr3t@h/",
        "https://h/?a=1",
        "https://h/#a",
    ],
)
def test_unusable_address_is_refused(base_url: str) -> None:
    """A base URL that can't work or contains a secret is rejected before anything is sent."""
    with pytest.raises(ConfigError, match=r"api\.base_url") as caught:
        endpoint_url(base_url)
    assert "u:s3cr3t" not in str(caught.value)


def test_default_address_is_the_contracts() -> None:
    """By default, requests go to the URL on the contract page."""
    url = "https://ark.cn-beijing.volces.com/api/v3/embeddings/multimodal"
    assert endpoint_url(ApiOptions().base_url) == endpoint_url(ApiOptions().base_url + "/") == url


@pytest.mark.parametrize("name", ["timeout_text_s", "timeout_video_s", "timeout_connect_s", "reply_bytes_max"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_bounds_must_let_something_through(name: str, value: float) -> None:
    """A time-out or size of 0 or less is rejected with its config key."""
    with pytest.raises(ConfigError, match=f"api.{name}"):
        ApiOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_missing_key_says_what_to_do(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Without a key the message has the variable and where to create a key."""
    if value is not None:
        monkeypatch.setenv("ARK_API_KEY", value)
    with pytest.raises(ConfigError, match=r"ARK_API_KEY is not set.*console.*AK/SK"):
        read_api_key("ARK_API_KEY")


@pytest.mark.parametrize("value", ["two words", "密钥密钥", "a\x01b", "AKLTabcdef0123456789"])
def test_what_is_no_key_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A value that can't be an API key is rejected, and the message does not contain it."""
    monkeypatch.setenv("OTHER_KEY", value)
    with pytest.raises(ConfigError, match="OTHER_KEY") as caught:
        read_api_key("OTHER_KEY")
    assert value not in str(caught.value)


def test_key_is_read_without_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was exported with a line break works."""
    monkeypatch.setenv("ARK_API_KEY", f" {KEY}\n")
    assert read_api_key("ARK_API_KEY") == KEY


def test_client_request_id_has_the_sdks_format() -> None:
    """14 digits of UTC time and 20 letters or digits; the same time and random state give the same id."""
    made = new_client_request_id(1_700_000_000.9, random.Random(1))
    assert re.fullmatch(r"20231114221320[0-9a-z]{20}", made)
    assert made == new_client_request_id(1_700_000_000.9, random.Random(1))
    source = random.Random(2)
    assert len({new_client_request_id(0.0, source) for _ in range(1000)}) == 1000


@contextmanager
def serve_root(*headers: tuple[str, str], status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Run a threaded server, since `is_stand_in` blocks. Yield its address and the list of requested paths."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_stand_in_is_recognised_at_its_root() -> None:
    """A loopback server with the header is a stand-in, with any path in its base URL and any status."""
    with serve_root(("X-Arkbeam-Stand-In", "1"), status=404) as (address, paths):
        assert is_stand_in(f"http://{address}/api/v3", 5)
        assert is_stand_in(f"http://localhost:{address.rpartition(':')[2]}", 5)
    assert paths == ["/", "/"]


def test_other_servers_are_no_stand_ins() -> None:
    """A server without the header, with a redirect, that hangs or does not exist is not a stand-in."""
    with serve_root() as (address, _):
        assert not is_stand_in(f"http://{address}", 5)
        assert not is_stand_in(f"https://{address}", 5)
    assert not is_stand_in(f"http://{address}", 5)
    with serve_root(("X-Arkbeam-Stand-In", "1")) as (target, seen):
        with serve_root(("Location", f"http://{target}/"), status=302) as (address, _):
            assert not is_stand_in(f"http://{address}", 5)
        assert seen == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not is_stand_in(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1)


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "emulator",
        "file://localhost/x",
        "https://ark.cn-beijing.volces.com/api/v3",
        "http://10.0.0.1",
        "http://0.0.0.0:1",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.0.0.1@evil.example",
    ],
)
def test_hosts_off_loopback_are_never_asked(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    """Only a loopback host can be a stand-in; no request is sent to any other host."""
    monkeypatch.setattr("httpx.stream", lambda *_, **__: pytest.fail("something was sent"))
    assert not is_stand_in(base_url, 5)


def test_proxy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual variables and their exceptions apply; loopback never uses a proxy."""
    assert find_proxy("https://ark.example.com/x") is None
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pass@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    proxy = find_proxy("https://ark.example.com/x")
    assert proxy is not None
    assert (str(proxy.url), proxy.raw_auth) == ("http://proxy.example:3128", (b"user", b"pass"))
    assert find_proxy("https://ark.inside.example/x") is None
    assert find_proxy("http://ark.example.com/x") is None
    assert find_proxy("https://127.0.0.1:1/x") is None
    monkeypatch.setenv("ALL_PROXY", "proxy.example:3129")
    proxy = find_proxy("http://ark.example.com/x")
    assert proxy is not None
    assert str(proxy.url) == "http://proxy.example:3129"


@pytest.mark.parametrize("address", ["socks5://u:s3cr3t@proxy.example:1080", "ftp://proxy.example"])
def test_proxy_that_speaks_no_http_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A proxy that the transport can't use is rejected before anything is sent."""
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(ConfigError, match="proxy") as caught:
        find_proxy("https://ark.example.com/x")
    assert "s3cr3t" not in str(caught.value)
