"""Media at loopback URLs are downloaded, and a failed download has the service's messages."""

import io
import re
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest
from arkbeam.ark.errors import error_from_status
from arkbeam.base.replies import Action
from arkbeam.emulator import media
from arkbeam.emulator.media import is_loopback
from PIL import Image

Server = Any


def make_picture(colour: tuple[int, int, int] = (200, 30, 30), kind: str = "PNG") -> bytes:
    """Make an image of 280 x 280 pixels: 100 tokens."""
    buffer = io.BytesIO()
    Image.new("RGB", (280, 280), colour).save(buffer, kind)
    return buffer.getvalue()


class MediaServer(ThreadingHTTPServer):
    """Serves the files in `files`: path to (status, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MediaHandler)
        self.files: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []
        self.let_go = threading.Event()

    def put(self, path: str, body: bytes = b"", status: int = 200) -> str:
        """Serve a body at a path; return its URL."""
        self.files[path] = status, body
        return f"http://127.0.0.1:{self.server_port}{path}"


class MediaHandler(BaseHTTPRequestHandler):
    """Serves the files of the server. `/slow…` waits first; `/cut…` sends less than Content-Length declares."""

    server: MediaServer

    def do_GET(self) -> None:
        """Send the response."""
        self.server.asked.append(self.path)
        status, body = self.server.files.get(self.path, (404, b""))
        if self.path.startswith("/slow"):
            self.server.let_go.wait(20)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "https://example.com/elsewhere.png")
        self.send_header("Content-Length", str(len(body) + (5 if self.path.startswith("/cut") else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def files() -> Iterator[MediaServer]:
    """A media server on loopback."""
    with MediaServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()


def image(url: str) -> dict[str, Any]:
    """An image item."""
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    """A video item."""
    return {"type": "video_url", "video_url": {"url": url}}


def vector_of(answer: httpx.Response) -> Any:
    """Return the dense vector of a response."""
    return np.array(answer.json()["data"]["embedding"])


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1/a.png", True),
        ("http://127.9.8.7:80/a.png", True),
        ("HTTP://LOCALHOST:1/a.png", True),
        ("https://[::1]/a.png", True),
        ("https://example.com/127.0.0.1/a.png", False),
        ("https://127.0.0.1.example.com/a.png", False),
        ("https://localhost.example.com/a.png", False),
        ("http://127.0.0.1@example.com/a.png", False),
        ("http://10.0.0.1/a.png", False),
        ("http://[::1/a.png", False),
        ("data:image/png;base64,aHR0cDovL2xvY2FsaG9zdA==", False),
    ],
)
def test_what_is_fetched(url: str, loopback: bool) -> None:
    """Only loopback hosts are contacted, not a host or path with a similar name."""
    assert is_loopback(url) is loopback


def test_a_fetched_picture(server: Server, files: MediaServer) -> None:
    """A downloaded image is billed by its size, and images of similar colours have similar vectors."""
    red, dark_red, blue = (make_picture(colour) for colour in ((200, 30, 30), (180, 30, 30), (20, 20, 250)))
    urls = [files.put(f"/{number}.png", data) for number, data in enumerate((red, dark_red, blue))]
    answers = [server.embed(input=[image(url)]) for url in urls]
    assert [answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] for answer in answers] == [100] * 3
    one, like, unlike = map(vector_of, answers)
    assert one @ like > 0.9 > one @ unlike
    assert sorted(files.asked) == ["/0.png", "/1.png", "/2.png"]


def test_a_fetched_video(server: Server, files: MediaServer) -> None:
    """A downloaded video is billed by its duration: 40 s are 40 frames, each with its time axis tokens."""
    header = b"\0\0\0\x1cmvhd" + bytes(12) + (1_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big")
    data = b"\0\0\0\x10ftypisom\0\0\0\0" + (8 + len(header)).to_bytes(4, "big") + b"moov" + header
    long, unknown = files.put("/long.mp4", data), files.put("/unknown.mp4", data[:16])
    usage = [server.embed(input=[video(url)]).json()["usage"]["prompt_tokens_details"] for url in (long, unknown)]
    assert [detail["image_tokens"] for detail in usage] == [40 * 640, 16 * 640]
    assert usage[0]["text_tokens"] - usage[1]["text_tokens"] == 24 * 6


def test_other_urls_are_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vector of any other URL depends on the URL only: no host is looked up or contacted."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a host was looked up"))
    monkeypatch.setattr(media, "download", lambda *_: pytest.fail("a URL was fetched"))
    same, again, other = (
        vector_of(server.embed(input=[image(f"https://example.com/{name}.jpg")])) for name in ("a", "a", "b")
    )
    assert same.tolist() == again.tolist() != other.tolist()


def read_error(answer: httpx.Response) -> tuple[int, str, str]:
    """Return status, code, and message without the request id."""
    error = answer.json()["error"]
    message, _, request_id = error["message"].rpartition(" Request id: ")
    assert request_id == answer.headers["x-request-id"]
    return answer.status_code, error["code"], message


@pytest.mark.parametrize("make_item", [image, video])
def test_a_missing_file(server: Server, files: MediaServer, make_item: Callable[[str], Any]) -> None:
    """A missing file gives the documented download error with its status, is not billed, and our client retries it."""
    url = files.put("/gone.jpg", status=404)
    answer = server.embed(input=[make_item(url)])
    assert read_error(answer) == (400, "InvalidParameter", f"Error while downloading: {url}, status code: 404")
    assert (server.stats()["paid"], server.stats()["rejected"]) == (0, 1)
    classified = error_from_status(answer.status_code, answer.content, answer.headers, 0.0)
    assert classified.action is Action.RETRY


def test_a_slow_file(server: Server, files: MediaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer in time gives the documented time-out, and our client retries it."""
    monkeypatch.setattr(media, "DOWNLOAD_TIMEOUT_S", 0.1)
    url = files.put("/slow.jpg")
    answer = server.embed(input=[image(url)])
    assert read_error(answer) == (400, "InvalidParameter", f"Timeout while downloading url={url}.")
    assert error_from_status(answer.status_code, answer.content, answer.headers, 0.0).action is Action.RETRY


def test_a_file_that_trickles(server: Server, files: MediaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that is not complete at the time limit is a time-out too."""
    monkeypatch.setattr(media, "DOWNLOAD_TIMEOUT_S", -1.0)
    open_plainly = urllib.request.build_opener().open
    monkeypatch.setattr(media._OPENER, "open", lambda url, timeout: open_plainly(url))
    url = files.put("/1.png", make_picture())
    assert read_error(server.embed(input=[image(url)]))[2] == f"Timeout while downloading url={url}."


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("make_url", ["http://127.0.0.1:{port}/a.png", "http://localhost:99999/a.png"])
def test_nobody_listens(server: Server, make_url: str) -> None:
    """A failed connection is a download error without a status."""
    url = make_url.format(port=closed_port())
    assert read_error(server.embed(input=[image(url)])) == (400, "InvalidParameter", f"Error while downloading: {url}")


@pytest.mark.parametrize(("path", "status"), [("/cut.png", 200), ("/moved.png", 302)])
def test_downloads_that_break(server: Server, files: MediaServer, path: str, status: int) -> None:
    """A body that is cut off, and a redirect, which could lead to another host, are failed downloads."""
    url = files.put(path, make_picture(), status)
    status_told = ", status code: 302" if status == 302 else ""
    assert read_error(server.embed(input=[image(url)]))[2] == f"Error while downloading: {url}{status_told}"


@pytest.mark.parametrize(
    ("item", "path", "body", "code"),
    [
        (image, "/a.png", b"<html>", "InvalidParameter.UnsupportedImageFormat"),
        (image, "/a.jpg", make_picture(), "InvalidParameter.UnsupportedImageFormat"),
        (image, "/a.png", b"", "InvalidParameter.UnsupportedImageFormat"),
        (image, "/large.png", bytes(2_000), "InvalidParameter"),
        (video, "/large.mp4", bytes(3_000), "InvalidParameter"),
        (video, "/a.mp4", make_picture(), "InvalidParameter"),
        (video, "/a.mov", b"\0\0\0\x10ftypisom", "InvalidParameter"),
    ],
)
def test_files_of_no_use(
    server: Server,
    files: MediaServer,
    monkeypatch: pytest.MonkeyPatch,
    item: Callable[[str], Any],
    path: str,
    body: bytes,
    code: str,
) -> None:
    """A downloaded file must keep the media rules: the format of the URL's extension, and the size limit."""
    monkeypatch.setattr(media, "IMAGE_BYTES_MAX", 2_000)
    monkeypatch.setattr(media, "VIDEO_BYTES_MAX", 2_500)
    answer = server.embed(input=[{"type": "text", "text": "a"}, item(files.put(path, body))])
    assert read_error(answer)[:2] == (400, code)
    assert re.fullmatch(r"input\[1\]\.(image|video)_url\.url", answer.json()["error"]["param"])


def test_names_that_need_quoting(server: Server, files: MediaServer) -> None:
    """A URL with Chinese characters is quoted as in browsers; without a known extension any format is allowed."""
    files.put("/%E5%9B%BE", make_picture())
    url = f"http://127.0.0.1:{files.server_port}/图"
    assert server.embed(input=[image(url)]).status_code == 200
