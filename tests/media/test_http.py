"""Media fetched over http(s): complete, limited, with a version, and never from private addresses."""

import io
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, http, inspect, inspect_many, load_medium
from arkbeam.media.access import Access
from arkbeam.media.http import REDIRECTS_MAX, TRIES
from arkbeam.media.kinds import BMP
from PIL import Image

from tests.media.outcomes import code_of
from tests.media.pictures import data_uri
from tests.web import Web

pytestmark = pytest.mark.usefixtures("hurry")

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
HOST = "127.0.0.1"
MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\0\0\0\x08moov" + struct.pack(">I4s200000x", 200_008, b"mdat")
OPTIONS = MediaOptions(access={"http": Access.INLINE}, allowed_hosts=(HOST,), http_timeout_s=10)


def _picture(colour: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((300, 300), colour).save(stream, "BMP")
    return stream.getvalue()


PICTURE = _picture()


@pytest.fixture
def web(serve_web: Callable[..., Web]) -> Web:
    """A server with an image of 91 kB (more than is read at first), a video, an empty file and a text file."""
    return serve_web({"a.bmp": PICTURE, "a.mp4": MP4, "empty.png": b"", "text.png": b"no picture"})


@pytest.mark.parametrize("manner", ["good", "dated", "bare", "ranges", "hops/5", "flaky"])
def test_what_is_fetched_is_inlined_with_its_version(manner: str, web: Web) -> None:
    """Size, format and version are found with or without ranges, and with an etag, a date or neither; all bytes arrive."""
    url = web.url(f"{manner}/a.bmp")
    info = inspect(url, IMAGE, OPTIONS)
    assert isinstance(info, MediaInfo)
    assert (info.mime, info.size_px) == ("image/bmp", (300, 300))
    assert info.version
    sent = load_medium(url, IMAGE, info.version, OPTIONS)
    assert sent == Inline("image/bmp", PICTURE)
    assert info.wire_bytes == len(data_uri("image/bmp", PICTURE))
    web.files["a.bmp"], web.date = _picture(20) + b"\0", "Sun, 22 Nov 2026 21:00:00 GMT"
    assert code_of(load_medium(url, IMAGE, info.version, OPTIONS)) == "media_changed"


def test_one_range_of_header_bytes_is_asked_for_at_planning(web: Web) -> None:
    """A server with ranges sends 64 kB; without ranges, the transfer is ended early: the image is not read completely."""
    assert isinstance(inspect(web.url("good/a.bmp"), IMAGE, OPTIONS), MediaInfo)
    assert [(path, headers["Range"]) for path, headers in web.requests] == [("/good/a.bmp", "bytes=0-65535")]
    assert isinstance(inspect(web.url("dated/a.bmp"), IMAGE, OPTIONS), MediaInfo)
    assert len(web.requests) == 2
    assert isinstance(inspect(web.url("good/a.mp4"), VIDEO, OPTIONS), MediaInfo)


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("status/404", "media_missing", "404"),
        ("status/410", "media_missing", "410"),
        ("status/403", "media_status", "403"),
        ("status/503", "media_status", "503"),
        ("status/204", "media_status", "204"),
        ("nowhere", "media_status", "301"),
        ("hops/6/a.bmp", "media_redirects", str(REDIRECTS_MAX)),
        ("short/a.bmp", "media_unreachable", "broke off"),
        ("gzip/a.bmp", "media_unreadable", "gzip"),
        ("good/empty.png", "media_empty", "0 bytes"),
        ("bare/empty.png", "media_empty", "0 bytes"),
        ("good/text.png", "media_not_image", "text"),
        ("good/a.mp4", "media_not_image", "video/mp4"),
    ],
)
def test_what_can_not_be_fetched_is_a_failure(path: str, code: str, words: str, web: Web) -> None:
    """Each kind of failure has its own code, and the message gives the measured value."""
    outcome = inspect(web.url(path), IMAGE, OPTIONS)
    assert code_of(outcome) == code
    assert isinstance(outcome, Failure)
    assert words in outcome.message


@pytest.mark.parametrize(("path", "tries"), [("status/503", TRIES), ("short/a.bmp", TRIES), ("status/403", 1)])
def test_only_what_may_pass_is_tried_again(path: str, tries: int, web: Web) -> None:
    """Overload and broken transfers are retried, up to a limit; another error status is not."""
    inspect(web.url(path), IMAGE, OPTIONS)
    assert len(web.requests) == tries


def test_slow_and_endless_bodies_are_left(web: Web) -> None:
    """The time and the bytes for one medium are limited, whatever the server does."""
    outcome = inspect(web.url("slow/a.bmp"), IMAGE, replace(OPTIONS, http_timeout_s=0.5))
    assert code_of(outcome) == "media_timeout"
    assert "0.5 s" in str(outcome)
    small = replace(OPTIONS, image_bytes_max=300_000, video_bytes_max=200_000)
    outcome = inspect(web.url("endless/a.jpg"), IMAGE, small)
    assert code_of(outcome) == "media_too_large"
    assert "300000" in str(outcome)


def test_sizes_are_refused_before_they_are_read(web: Web) -> None:
    """The message gives the size and the limit; only the header bytes were requested."""
    outcome = inspect(web.url("good/a.bmp"), IMAGE, replace(OPTIONS, image_bytes_max=1_000))
    assert code_of(outcome) == "media_too_large"
    assert str(len(PICTURE)) in str(outcome)
    assert "1000" in str(outcome)
    assert len(web.requests) == 1


def test_hosts_that_are_not_there() -> None:
    """A name that does not resolve and a port without a listener are `media_unreachable`."""
    assert code_of(inspect("http://no-such-host.invalid/a.png", IMAGE, OPTIONS)) == "media_unreachable"
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        assert code_of(inspect(f"http://{HOST}:{unused.getsockname()[1]}/", IMAGE, OPTIONS)) == "media_unreachable"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "user:pw@127.0.0.1",
        "127.0.0.1%2e",
        "\uff11\uff12\uff17.0.0.1",
        "pictures.example",
    ],
)
def test_private_addresses_are_not_reached(host: str, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the address is written, and whichever name resolves to it, no request is sent there."""
    _resolve_as(monkeypatch, {"pictures.example": [HOST]})
    outcome = inspect(f"http://{host}:{web.port}/good/a.bmp", IMAGE, replace(OPTIONS, allowed_hosts=()))
    assert code_of(outcome) in {"media_forbidden", "media_bad_uri", "media_unreachable"}
    assert web.requests == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("http://10.0.0.1/", "10.0.0.1"),
        ("http://192.168.1.1/a.png", "192.168.1.1"),
        ("http://100.100.100.200/", "100.100.100.200"),
        ("http://224.0.0.1/", "224.0.0.1"),
        ("http://[fe80::1]/", "fe80::1"),
        ("http://[fd00:ec2::254]/", "fd00:ec2::254"),
        ("http://168.63.129.16/", "168.63.129.16"),
    ],
)
def test_addresses_of_networks_and_clouds_are_forbidden(url: str, words: str) -> None:
    """The message names the address and the config key that allows it."""
    outcome = inspect(url, IMAGE, OPTIONS)
    assert code_of(outcome) == "media_forbidden"
    assert words in str(outcome)
    assert "media.allowed_hosts" in str(outcome)


def test_hosts_are_allowed_by_name(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allowed name may resolve to a private address. This allows neither the address itself nor other names."""
    _resolve_as(monkeypatch, {"pictures.example": [HOST], "other.example": [HOST]})
    options = replace(OPTIONS, allowed_hosts=("pictures.example",))
    assert isinstance(inspect(web.url("good/a.bmp", "Pictures.Example"), IMAGE, options), MediaInfo)
    for host in (HOST, "other.example", "x.pictures.example"):
        web.requests.clear()
        assert isinstance(inspect(web.url("good/a.bmp", host), IMAGE, options), Failure)
        assert web.requests == []


def test_a_name_can_not_change_its_address_after_the_check(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a name resolves first to a public address and then to a private one, only the checked address is connected to."""
    answers = iter([["192.88.99.1"], *([[HOST]] * 20)])  # public according to the registry, but not routed
    _resolve_as(monkeypatch, {"rebinding.example": lambda: next(answers)})
    options = replace(OPTIONS, allowed_hosts=(), http_timeout_s=0.5)
    for _ in range(3):
        assert isinstance(inspect(web.url("good/a.bmp", "rebinding.example"), IMAGE, options), Failure)
    assert web.requests == []


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://169.254.169.254/latest/meta-data/", "media_forbidden"),
        ("http://localhost:{port}/good/a.bmp", "media_forbidden"),
        ("//localhost:{port}/good/a.bmp", "media_forbidden"),
        ("http://127.0.0.2:{port}/good/a.bmp", "media_forbidden"),
        ("file:///etc/passwd", "media_forbidden"),
        ("FILE:///etc/passwd", "media_forbidden"),
        ("data:image/png;base64,AAAA", "media_forbidden"),
        ("http://[::1", "media_redirects"),
        ("http://a:99999/", "media_redirects"),
    ],
)
def test_redirects_are_checked_each_time(target: str, code: str, web: Web) -> None:
    """A host that may be read can't redirect to an address or scheme that may not."""
    target = target.format(port=web.port)
    outcome = inspect(web.url(f"to?url={quote(target, safe='')}"), IMAGE, OPTIONS)
    assert (code_of(outcome), len(web.requests)) == (code, 1)


def test_a_redirect_within_what_is_allowed_is_followed(web: Web) -> None:
    """A redirect to another server is followed too."""
    target = web.url("good/a.bmp?x=1&y=%2F")
    assert isinstance(inspect(web.url(f"to?url={quote(target, safe='')}"), IMAGE, OPTIONS), MediaInfo)
    assert web.paths[-1] == "/good/a.bmp?x=1&y=%2F"


def test_nothing_of_ours_is_sent_along(
    web: Web, serve_web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """No cookie, proxy or `.netrc` of the environment is used; a URL's own password is sent only to its host."""
    proxy = serve_web({})
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url(""))
    (tmp_path / "netrc").write_text(f"machine {HOST} login ours password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    options = replace(OPTIONS, allowed_hosts=(HOST, "localhost"))
    url = web.url(f"to?url={quote(web.url('good/a.bmp', 'localhost'), safe='')}", user="user:pw@")
    assert isinstance(inspect(url, IMAGE, options), MediaInfo)
    assert isinstance(inspect(web.url("good/a.bmp"), IMAGE, OPTIONS), MediaInfo)
    assert proxy.requests == []
    sent = [headers.get("Authorization") for _, headers in web.requests]
    assert sent == ["Basic dXNlcjpwdw==", None, None]
    assert [headers for _, headers in web.requests if "Cookie" in headers] == []


def test_a_signed_url_is_asked_for_as_it_is_spelt(web: Web) -> None:
    """A signature covers the spelling of a URL, so nothing in it is decoded, encoded or sorted."""
    path = "good/a.bmp?b=%7E~&a=+%20%2f&X-Amz-Signature=ab%3D"
    assert isinstance(inspect(web.url(path), IMAGE, OPTIONS), MediaInfo)
    assert web.paths == [f"/{path}"]


def test_secrets_of_urls_are_in_no_message_and_no_log(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """Secrets of a URL appear in no message and in no log, at any log level, whatever fails."""
    caplog.set_level(logging.DEBUG)
    for path in (
        "status/403",
        "status/503",
        "hops/6/a.bmp",
        "short/a.bmp",
        "good/text.png",
        "to?url=http%3A%2F%2F127.1%2F",
    ):
        sign = "&" if "?" in path else "?"
        outcome = inspect(web.url(f"{path}{sign}X-Amz-Signature=SECRET", user="u:SECRET@"), IMAGE, OPTIONS)
        assert isinstance(outcome, Failure)
        assert "SECRET" not in outcome.message
    assert "SECRET" not in caplog.text


def test_parts_are_fetched(web: Web) -> None:
    """Ranges in the middle and past the end are read. A server without ranges gives no bytes, never the wrong ones."""
    assert http.fetch_range(web.url("good/a.bmp"), 1_000, 2_000, OPTIONS) == PICTURE[1_000:2_000]
    assert http.fetch_range(web.url("good/a.bmp"), len(PICTURE) - 5, len(PICTURE) + 5, OPTIONS) == PICTURE[-5:]
    assert http.fetch_range(web.url("good/a.bmp"), len(PICTURE), len(PICTURE) + 5, OPTIONS) == b""
    assert http.fetch_range(web.url("dated/a.bmp"), 1_000, 2_000, OPTIONS) == b""


def test_many_are_fetched_together(web: Web) -> None:
    """Many URLs are fetched from the planning threads; each gets its own result."""
    names = {f"{number}.bmp": PICTURE + bytes(number) for number in range(60)}
    web.files.update(names)
    looks = inspect_many([(web.url(f"good/{name}"), IMAGE) for name in names], OPTIONS)
    versions = [look.version for look in looks.values() if isinstance(look, MediaInfo)]
    assert len(set(versions)) == 60
    for name, data in names.items():
        look = looks[web.url(f"good/{name}"), IMAGE]
        assert isinstance(look, MediaInfo)
        assert look.wire_bytes == len(data_uri(BMP.mime, data))


def _resolve_as(monkeypatch: pytest.MonkeyPatch, names: dict[str, Any]) -> None:
    """Make some names resolve to given addresses, or to what a function returns."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = names.get((host.decode() if isinstance(host, bytes) else host).lower())
        if found is None:
            return real(host, port, *args, **kwargs)
        addresses = found() if callable(found) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
