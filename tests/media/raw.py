"""A loopback server that sends exactly the bytes that a test gives it."""

import re
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(slots=True)
class Request:
    """A request as it was received: its target, and its headers in lower case."""

    target: str
    headers: dict[str, str]

    def part(self, data: bytes) -> bytes:
        """Return the bytes that the request asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return data[int(asked[1]) : int(asked[2]) + 1] if asked else data


Reply = Callable[[Request], bytes]


@dataclass(slots=True)
class RawWeb:
    """A server; `reply` returns the bytes of each reply, after which the connection is closed."""

    reply: Reply
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Return the URL of a path."""
        return f"http://{host}:{self.port}{path}"

    @property
    def targets(self) -> list[str]:
        """The requested targets, in order."""
        return [request.target for request in self.requests]


def reply(status: int | str, body: bytes = b"", headers: Mapping[str, str | bytes] = {}) -> bytes:
    """Return a reply with a Content-Length, unless `headers` have one or say that there is none (`None`)."""
    given: dict[str, str | bytes] = {"Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status} X".encode()]
    for name, value in given.items():
        if value != "None":
            lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class _Handler(socketserver.StreamRequestHandler):
    web: RawWeb

    def handle(self) -> None:
        with suppress(ConnectionError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = self.rfile.readline(65_537)
                if not line:
                    return
                head += line
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines if line)
            request = Request(first.split(" ", 1)[1].rpartition(" ")[0], {n.lower(): v.strip() for n, _, v in pairs})
            with self.web.lock:
                self.web.requests.append(request)
                self.web.active += 1
                self.web.most_active = max(self.web.most_active, self.web.active)
            try:
                data = self.web.reply(request)
            finally:
                with self.web.lock:
                    self.web.active -= 1
            self.wfile.write(data)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


@contextmanager
def serve(answer: Reply) -> Iterator[RawWeb]:
    """Start a server on a free port."""
    web = RawWeb(answer)
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web})) as server:
        web.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield web
        server.shutdown()
