"""The emulator as a Starlette application: the embeddings route, a greeting and the counts.

`RequestReader` reads and checks a request; `Emulator` accepts and bills it, or refuses it, and sends the response. Two
words have fixed meanings: a request that breaks the contract is rejected (400, 401, 404), a request beyond a quota or
after `stop_after` is refused. The route is plain ASGI, which is fast: in a benchmark, the client runs on the same
machine.
"""

import asyncio
import hmac
import os
import random
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar, assert_never

import numpy as np
import numpy.typing as npt
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from arkbeam.base.capabilities import Capabilities
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Usage
from arkbeam.emulator.asgi import (
    STAND_IN_HEADER,
    Headers,
    StandInMiddleware,
    find_header,
    read_body,
    send_body,
    send_half,
    wait_for_disconnect,
)
from arkbeam.emulator.contract import hash_meaning, parse_request
from arkbeam.emulator.ledger import Ledger
from arkbeam.emulator.media import fetch_part, is_loopback
from arkbeam.emulator.options import EmulatorOptions, Fault, FaultChooser
from arkbeam.emulator.parts import EmbeddingRequest, TextPart, count_usage
from arkbeam.emulator.quota import Limit, QuotaMeter
from arkbeam.emulator.replies import (
    ErrorReply,
    Rejected,
    encode_result,
    encode_token_vectors,
    encode_vector,
    make_request_id,
    reject,
)
from arkbeam.emulator.vectors import embed_parts, embed_sparse, embed_tokens

API_PATH = "/api/v3"
EMBEDDINGS_PATH = f"{API_PATH}/embeddings/multimodal"
STATS_PATH = "/emulator/stats"

_CLIENT_ID_BYTES_MAX = 256
_INLINE_BYTES_MAX = 20_000
"""Larger bodies are processed in a thread, so that they do not block other requests."""

_DOWNLOADS_MAX = 32

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
ResetConnection = Callable[[Scope], None]

_LIMIT_CODES = {
    Limit.REQUESTS: "ModelAccountRpmRateLimitExceeded",
    Limit.TOKENS: "ModelAccountTpmRateLimitExceeded",
}


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the contract allows, with its usage and the hash of its meaning.

    `large`: processing it takes long enough to need a thread.
    """

    request: EmbeddingRequest
    usage: Usage
    meaning_hash: bytes
    large: bool


async def _run(
    large: bool, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call `work` in a thread if `large`, else directly."""
    return await asyncio.to_thread(work, *args, **kwargs) if large else work(*args, **kwargs)


class RequestReader:
    """Reads and checks the request bodies of one server."""

    def __init__(self, options: EmulatorOptions) -> None:
        """Prepare; no thread is started yet."""
        self._options = options
        self._downloads = ThreadPoolExecutor(_DOWNLOADS_MAX, "download")  # own threads, since downloads wait

    async def read(self, body: bytes) -> CheckedRequest:
        """Parse a request body, download its media from loopback URLs and check it. Raise Rejected."""
        large = len(body) > _INLINE_BYTES_MAX
        request, caps = await _run(large, parse_request, body, self._options.endpoints)
        if any(not isinstance(part, TextPart) and is_loopback(part.url) for part in request.parts):
            request, large = await self._fetch(request), True
        return await _run(large, self._check, request, caps, large)

    async def _fetch(self, request: EmbeddingRequest) -> EmbeddingRequest:
        loop = asyncio.get_running_loop()
        downloads = [
            loop.run_in_executor(self._downloads, fetch_part, part, f"input[{index}]")
            for index, part in enumerate(request.parts)
        ]
        return replace(request, parts=tuple(await asyncio.gather(*downloads)))

    def _check(self, request: EmbeddingRequest, caps: Capabilities, large: bool) -> CheckedRequest:
        usage = count_usage(request, caps.context_tokens)
        if (usage.total_tokens or 0) > caps.context_tokens:
            raise reject("OutofContextError", "input", f"more than {caps.context_tokens}")
        poison = self._options.poison
        if poison and any(isinstance(part, TextPart) and poison in part.text for part in request.parts):
            raise reject("SensitiveContentDetected", "input")
        return CheckedRequest(request, usage, hash_meaning(request), large)


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request that was accepted, and the fault that its response will have, or None."""

    checked: CheckedRequest
    fault: Fault | None


class Emulator:
    """The state of one server, and its embeddings route as an ASGI application.

    `reset_connection` resets the connection of a scope; only the fault `reset` needs it.
    """

    def __init__(
        self,
        options: EmulatorOptions,
        *,
        clock: Callable[[], float] = time.time,
        reset_connection: ResetConnection | None = None,
    ) -> None:
        """Start with all counts at 0. Raise ConfigError if the environment variable `api_key_env` is not set."""
        self.options = options
        self.ledger = Ledger()
        self._clock = clock
        self._reset_connection = reset_connection
        self._meter = QuotaMeter(rpm=options.rpm, tpm=options.tpm, window=options.window)
        self._faults = FaultChooser(options.faults)
        self._fault_random = random.Random(options.seed)
        self._jitter_random = random.Random(options.seed + 1)
        self._reader = RequestReader(options)
        self._authorization = _expected_authorization(options.api_key_env)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST to the embeddings route."""
        now_s = self._clock()
        request_id = make_request_id(int(now_s * 1000))
        headers = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
        if client_id := find_header(scope, b"x-client-request-id"):
            headers.append((b"x-client-request-id", client_id[:_CLIENT_ID_BYTES_MAX]))
        with self.ledger.receive(now_s):
            outcome = await self._decide(scope, receive)
            if isinstance(outcome, ErrorReply):
                await send_body(send, outcome.status, headers + _retry_after(outcome), outcome.to_bytes(request_id))
                return
            if self.options.latency_ms or self.options.jitter_ms:
                jitter_ms = self.options.jitter_ms * self._jitter_random.random()
                await asyncio.sleep((self.options.latency_ms + jitter_ms) / 1000)
            await self._answer(outcome, request_id, headers, scope, receive, send)

    async def _decide(self, scope: Scope, receive: Receive) -> AcceptedRequest | ErrorReply:
        """Accept and bill a request, or return the error response. This happens before the configured latency."""
        try:
            self._authorize(scope)
            checked = await self._reader.read(await read_body(scope, receive))
        except Rejected as rejected:
            self.ledger.rejected += 1
            if self.options.refusals_count and rejected.reply.status == 400:
                self._meter.add(1, 0, self._clock())
            return rejected.reply
        return self._accept(checked, self._clock())

    def _authorize(self, scope: Scope) -> None:
        sent = find_header(scope, b"authorization") or b""
        scheme, _, key = sent.partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise reject("AuthenticationError")
        if self._authorization is not None and not hmac.compare_digest(key.strip(), self._authorization):
            raise reject("AuthenticationError")

    def _accept(self, checked: CheckedRequest, now_s: float) -> AcceptedRequest | ErrorReply:
        options, tokens = self.options, checked.usage.total_tokens or 0
        if options.stop_after is not None and self.ledger.paid >= options.stop_after:
            self.ledger.refuse(now_s)
            return ErrorReply(options.stop_code)
        if (limit := self._meter.find_limit(tokens, now_s)) is not None:
            self.ledger.refuse(now_s)
            if options.refusals_count:
                self._meter.add(1, 0, now_s)
            wait_s = self._meter.room_in_s(tokens, now_s) if options.retry_after else None
            return ErrorReply(_LIMIT_CODES[limit], retry_after_s=None if wait_s is None else max(1, -int(-wait_s // 1)))
        fault = self._faults.choose(self._fault_random.random()) if self._faults.any else None
        if fault is not None:
            self.ledger.faulted += 1
        if fault is not None and not fault.billed:
            self._meter.add(1, 0, now_s)
        else:
            self._meter.add(1, tokens, now_s)
            self.ledger.bill(checked.usage, checked.meaning_hash, now_s)
        return self._fail_at_once(fault) or AcceptedRequest(checked, fault)

    def _fail_at_once(self, fault: Fault | None) -> ErrorReply | None:
        if fault is Fault.RATE_429:
            return ErrorReply(_LIMIT_CODES[Limit.REQUESTS])
        if fault is Fault.RATE_429_RETRY_AFTER:
            return ErrorReply(_LIMIT_CODES[Limit.REQUESTS], retry_after_s=self.options.retry_after_s)
        return ErrorReply("ServerOverloaded") if fault is Fault.OVERLOAD_429 else None

    async def _answer(
        self, accepted: AcceptedRequest, request_id: str, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        match accepted.fault:
            case Fault.ERROR_500:
                await send_body(send, 500, headers, ErrorReply("InternalServiceError").to_bytes(request_id))
            case Fault.RESET | Fault.RESET_PAID:
                if self._reset_connection is None:
                    raise RuntimeError("the fault `reset` needs a server that can reset connections: use serve()")
                self._reset_connection(scope)
                await wait_for_disconnect(receive)
            case Fault.HANG | Fault.HANG_PAID:
                await wait_for_disconnect(receive)
            case Fault.TRUNCATED:
                await send_half(send, headers, await self._make_result(accepted, request_id))
            case Fault.BROKEN_JSON:
                body = await self._make_result(accepted, request_id)
                await send_body(send, 200, headers, body[: len(body) // 2])
            case None | Fault.WRONG_LENGTH | Fault.NAN:
                await send_body(send, 200, headers, await self._make_result(accepted, request_id))
            case Fault.RATE_429 | Fault.RATE_429_RETRY_AFTER | Fault.OVERLOAD_429:
                raise AssertionError("these faults are answered in _accept")
            case _:
                assert_never(accepted.fault)

    async def _make_result(self, accepted: AcceptedRequest, request_id: str) -> bytes:
        created_s = int(self._clock())
        large = accepted.checked.large or accepted.checked.request.token_vectors is not None
        return await _run(large, _encode, accepted, request_id, created_s)


def _encode(accepted: AcceptedRequest, request_id: str, created_s: int) -> bytes:
    request = accepted.checked.request
    vector = embed_parts(request.parts, request.dimensions, request.instructions)
    if accepted.fault is Fault.WRONG_LENGTH:
        vector = vector[:-1]
    elif accepted.fault is Fault.NAN:
        vector[len(vector) // 2] = np.nan
    return encode_result(
        request_id=request_id,
        created_s=created_s,
        model=request.model,
        embedding=encode_vector(vector, request.encoding_format),
        sparse=embed_sparse(request.parts) if request.sparse else None,
        usage=accepted.checked.usage,
        token_vectors=_encode_tokens(request),
    )


def _encode_tokens(request: EmbeddingRequest) -> str | npt.NDArray[np.float64] | None:
    if request.token_vectors is None:
        return None
    return encode_token_vectors(embed_tokens(request.parts, request.dimensions), request.token_vectors)


def _expected_authorization(api_key_env: str | None) -> bytes | None:
    if api_key_env is None:
        return None
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise ConfigError(f"emulator.api_key_env: the environment variable {api_key_env} is not set")
    return key.encode()


def _retry_after(reply: ErrorReply) -> Headers:
    return [] if reply.retry_after_s is None else [(b"retry-after", str(reply.retry_after_s).encode())]


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _error(reply: ErrorReply) -> Response:
    request_id = make_request_id(int(time.time() * 1000))
    response = Response(reply.to_bytes(request_id), reply.status, media_type="application/json")
    response.headers["x-request-id"] = request_id
    return response


async def _answer_http_error(request: Request, error: Exception) -> Response:
    code = "MethodNotAllowed" if isinstance(error, HTTPException) and error.status_code == 405 else "NotFound"
    return _error(ErrorReply(code, detail=request.url.path))


async def _answer_defect(_request: Request, error: Exception) -> Response:
    """Answer 500 and say that it is a defect of the emulator, not an injected fault.

    The traceback goes to stderr, since there is no log. StandInMiddleware does not see this response, so the header is
    added here.
    """
    traceback.print_exception(error)
    response = _error(ErrorReply("InternalServiceError", detail=f" This is a defect of the stand-in: {error!r}."))
    response.raw_headers.append(STAND_IN_HEADER)
    return response


def make_app(
    options: EmulatorOptions,
    *,
    clock: Callable[[], float] = time.time,
    reset_connection: ResetConnection | None = None,
) -> Starlette:
    """Make the application of one server. The arguments are those of `Emulator`."""
    emulator = Emulator(options, clock=clock, reset_connection=reset_connection)

    async def greet(_request: Request) -> Response:
        return _json({"service": "arkbeam emulator", "stand_in": True, "embeddings": EMBEDDINGS_PATH})

    async def report(_request: Request) -> Response:
        return _json(emulator.ledger.report())

    routes: Sequence[Route] = [
        Route(EMBEDDINGS_PATH, emulator, methods=["POST"]),
        Route("/", greet),
        Route(STATS_PATH, report),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(StandInMiddleware)],
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_defect},
    )
