"""HTTP helpers of the plain ASGI route: read headers and a bounded body, send complete and broken responses.

Every response has a header that says that the server is a stand-in.
"""

from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arkbeam.emulator.contract import BODY_BYTES_MAX
from arkbeam.emulator.replies import Rejected, reject

STAND_IN_HEADER = (b"x-arkbeam-stand-in", b"1")

Headers = list[tuple[bytes, bytes]]


def find_header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of a request header by its lower-case name, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Read a whole body of bounded size. Raise Rejected if the body is longer; the server then discards the rest."""
    declared = find_header(scope, b"content-length")
    if declared is not None and int(declared) > BODY_BYTES_MAX:
        raise _too_long()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise reject("InvalidParameter", "body", "the client disconnected before the body was complete")
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > BODY_BYTES_MAX:
            raise _too_long()
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_long() -> Rejected:
    return reject("InvalidParameter", "body", f"the request body has more than {BODY_BYTES_MAX} bytes")


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_body(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_half(send: Send, headers: Headers, body: bytes) -> None:
    """Send only half of the body that Content-Length declares; the server then closes the connection."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})


class StandInMiddleware:
    """Adds the stand-in header to every response."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an ASGI application."""
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application and add the header to its response."""

        def send_marked(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), STAND_IN_HEADER]
            return send(message)

        return self._app(scope, receive, send_marked)
