"""A loopback web server with files; the path of a request selects the server's behaviour."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

TRICKLE_S = 0.05


@dataclass(slots=True)
class Web:
    """The files of the server, and the requests that it received. Paths are `/<behaviour>/<file>`.

    Behaviours: `good` (ranges, etag), `dated` (no ranges, only a date), `bare` (no ranges, length, etag or date), `ranges`
    (ranges without etag or date), `slow` (a byte every 50 ms), `short` (half of the file), `flaky` (503 twice), `gzip` (declares it
    wrongly), `endless`; `status/<n>`; `hops/<n>/<file>` (n redirects), `to?url=<url>` (a redirect), `nowhere` (a redirect
    without a target).
    """

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and headers of each request."""
    date: str = "Sun, 22 Nov 2026 20:00:00 GMT"

    def url(self, path: str, host: str = "127.0.0.1", user: str = "") -> str:
        """Return the URL of a path; `host` is a name or address of this machine."""
        return f"http://{user}{host}:{self.port}/{path}"

    @property
    def paths(self) -> list[str]:
        """The requested paths, in order."""
        return [path for path, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        self.web.requests.append((self.path, dict(self.headers.items())))
        behaviour, _, rest = urlsplit(self.path).path[1:].partition("/")
        with suppress(ConnectionError):
            getattr(self, f"reply_{behaviour}")(rest)

    def reply_good(self, name: str) -> None:
        self._send_ranged(name, {"ETag": f'"{hashlib.md5(self.web.files[name]).hexdigest()}"'})

    def reply_ranges(self, name: str) -> None:
        self._send_ranged(name, {})

    def reply_dated(self, name: str) -> None:
        self._send(200, self.web.files[name], {"Last-Modified": self.web.date})

    def reply_bare(self, name: str) -> None:
        self.close_connection = True
        self._start(200, {"Connection": "close"})
        self.wfile.write(self.web.files[name])

    def reply_slow(self, name: str) -> None:
        data = self.web.files[name]
        self._start(200, {"Content-Length": str(len(data)), "ETag": '"slow"'})
        for start in range(len(data)):
            self.wfile.write(data[start : start + 1])
            time.sleep(TRICKLE_S)

    def reply_short(self, name: str) -> None:
        data = self.web.files[name]
        self.close_connection = True
        self._start(200, {"Content-Length": str(len(data)), "ETag": '"short"'})
        self.wfile.write(data[: len(data) // 2])

    def reply_flaky(self, name: str) -> None:
        if len([path for path in self.web.paths if path == self.path]) <= 2:
            self._send(503, b"later")
        else:
            self.reply_good(name)

    def reply_gzip(self, name: str) -> None:
        self._send(200, self.web.files[name], {"Content-Encoding": "gzip", "ETag": '"g"'})

    def reply_endless(self, _: str) -> None:
        self.close_connection = True
        self._start(200, {"Connection": "close"})
        while True:
            self.wfile.write(b"\xff\xd8\xff" + bytes(65_536))

    def reply_status(self, number: str) -> None:
        self._send(int(number), b"no picture")

    def reply_hops(self, rest: str) -> None:
        count, _, name = rest.partition("/")
        left = int(count) - 1
        self._send(302, b"", {"Location": f"../{left}/{name}" if left else f"/good/{name}"})

    def reply_to(self, _: str) -> None:
        self._send(307, b"", {"Location": parse_qs(urlsplit(self.path).query)["url"][0], "Set-Cookie": "a=b"})

    def reply_nowhere(self, _: str) -> None:
        self._send(301, b"")

    def _send_ranged(self, name: str, headers: dict[str, str]) -> None:
        data = self.web.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, data, headers)
        elif int(asked[1]) >= len(data):
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        else:
            part = data[int(asked[1]) : int(asked[2]) + 1]
            last = int(asked[1]) + len(part) - 1
            self._send(206, part, headers | {"Content-Range": f"bytes {asked[1]}-{last}/{len(data)}"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:
        if status == 204:  # no body (RFC 9110, 15.3.5): a client would read it as the start of the next reply
            self._start(status, dict(headers))
            return
        self._start(status, {"Content-Length": str(len(data)), **headers})
        self.wfile.write(data)

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """A server that does not report clients that disconnect: tests do this on purpose."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve_web() -> Iterator[Callable[[dict[str, bytes]], Web]]:
    """Starts servers with given files; they stop after the test."""
    servers = []

    def start(files: dict[str, bytes]) -> Web:
        web = Web(files=dict(files))
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
        web.port = server.server_port
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return web

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
