"""A loopback server with the part of the TOS API that reading needs; it checks the signatures of URLs."""

import hashlib
import hmac
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import fsspec
import fsspec.config
import pytest

BUCKET_HOST, ENDPOINT_HOST = "media.tos.example", "tos.example"
KEY, SECRET, REGION = "AKTEST0123456789", "tos-secret-key-5f2c", "cn-test"


@dataclass(slots=True)
class TosServer:
    """The files of the bucket `media`, and the number of requests that were rejected for a wrong signature."""

    files: dict[str, bytes] = field(default_factory=dict)
    rejected: int = 0

    def is_signed(self, host: str, path: str, query: dict[str, str]) -> bool:
        """True if a URL has the signature that the vendor describes (TOS4-HMAC-SHA256)."""
        given = query.pop("X-Tos-Signature", "")
        date = query.get("X-Tos-Date", "")
        pairs = "&".join(f"{quote(name, '~')}={quote(value, '~')}" for name, value in sorted(query.items()))
        canonical = ["GET", quote(path, "/~"), pairs, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"]
        scope = f"{date[:8]}/{REGION}/tos/request"
        key = SECRET.encode()
        for word in (date[:8], REGION, "tos", "request"):
            key = hmac.digest(key, word.encode(), "sha256")
        hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        text = "\n".join(["TOS4-HMAC-SHA256", date, scope, hashed])
        wanted = hmac.digest(key, text.encode(), "sha256").hex()
        return query.get("X-Tos-Credential") == f"{KEY}/{scope}" and hmac.compare_digest(given, wanted)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tos: TosServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        name, query = unquote(parts.path)[1:], dict(parse_qsl(parts.query))
        if "Authorization" not in self.headers and not self.tos.is_signed(self.headers["Host"], f"/{name}", query):
            self.tos.rejected += 1
            self._send(403, b"", {})
        elif not name:  # the request is about the bucket, or for a listing
            self._send(200, b'{"Name": "media", "KeyCount": 0, "Contents": []}', {"x-tos-bucket-type": "fns"})
        elif name not in self.tos.files:
            self._send(404, b"", {})
        else:
            self._send_file(self.tos.files[name])

    def _send_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last-Modified": "Sun, 22 Nov 2026 20:00:00 GMT"}
        if "Range" not in self.headers:
            self._send(200, data, headers)
            return
        first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._send(206, part, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"x-tos-request-id": "1", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def tos(monkeypatch: pytest.MonkeyPatch) -> Iterator[TosServer]:
    """A server, configured for tosfs as by a user; the bucket's host name resolves to this machine."""
    monkeypatch.setenv("TOS_BUCKET_TAG_ENABLE", "false")  # else tosfs tags each bucket at the vendor
    server = TosServer()
    web = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"tos": server}))
    web.daemon_threads = True
    threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    endpoint = f"http://{ENDPOINT_HOST}:{web.server_port}"
    settings = {"endpoint": endpoint, "key": KEY, "secret": SECRET, "region": REGION}
    monkeypatch.setitem(fsspec.config.conf, "tos", settings)
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == BUCKET_HOST else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield server
    fsspec.filesystem("tos").tos_client.close()
    web.shutdown()
    web.server_close()
