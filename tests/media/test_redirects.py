"""Redirects and replies of every odd form, sent byte by byte: the right picture, or a failure, never another picture."""

import gzip
import io
import random
import zlib
from dataclasses import replace
from typing import Literal

import pytest
import zstandard
from arkbeam.base.records import Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.access import Access
from arkbeam.media.http import fetch, fetch_range
from PIL import Image

from tests.media.outcomes import code_of
from tests.media.raw import Request, reply, serve

pytestmark = pytest.mark.usefixtures("hurry")

IMAGE = Modality.IMAGE
OPTIONS = MediaOptions(access={"http": Access.INLINE}, allowed_hosts=("127.0.0.1",), http_timeout_s=10)


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.frombytes("RGB", (200, 200), random.Random(3).randbytes(120_000)).save(stream, "PNG")
    return stream.getvalue()


PICTURE = _picture()
GOOD = reply(200, PICTURE, {"ETag": '"1"'})


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/b\xfccher.jpg", "/b%FCcher.jpg"),
        ("/b\xfccher.jpg".encode(), "/b%C3%BCcher.jpg"),
        (b"/a b.jpg", "/a%20b.jpg"),
        (b"a b\xe9.jpg", "/start/a%20b%E9.jpg"),
        (b"../x.jpg", "/x.jpg"),
        (b"/a/./b/../x.jpg", "/a/x.jpg"),
        (b"?q=1", "/start/x?q=1"),
        (b"?q=\xfc \xff", "/start/x?q=%FC%20%FF"),
        (b"/x#frag", "/x"),
        (b"//127.0.0.1:{port}/x", "/x"),
        (b"HTTP://127.0.0.1:{port}/x", "/x"),
        (b"http:/x", "/x"),
        (b"\\\\127.0.0.1:{port}\\x", "/x"),
        (b"http://127.1:{port}/x", "/x"),
        (b"http://0x7f000001:{port}/x", "/x"),
        ("http://\uff11\uff12\uff17.0.0.1:{port}/x".encode(), "/x"),
        (b"/a\tb", "/ab"),
        (b"/a%20b%fc%2F+", "/a%20b%fc%2F+"),
        (b"/x?X-Amz-Signature=a%2Fb%3D&b=+", "/x?X-Amz-Signature=a%2Fb%3D&b=+"),
        (b'/"<>`{}', "/%22%3C%3E%60%7B%7D"),
        (b"/%zz%", "/%zz%"),
        (b"http://127.0.0.1:{port}", "/"),
        (b"http://127.0.0.1:{port}?a", "/?a"),
    ],
)
def test_a_redirect_is_followed_as_browsers_do(location: bytes, target: str) -> None:
    """No byte of the target is lost or added: what ASCII lacks is percent-encoded, and what is encoded stays."""
    with serve(lambda r: reply(302, b"", {"Location": at}) if r.target == "/start/x" else GOOD) as web:
        at = location.replace(b"{port}", str(web.port).encode())
        assert isinstance(inspect(web.url("/start/x"), IMAGE, OPTIONS), MediaInfo)
        assert web.targets == ["/start/x", target]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_every_status_that_redirects_does(status: int) -> None:
    """With a target it is followed; without one it is a failure that names the status."""
    at: dict[str, str | bytes] = {"Location": "/x"}
    with serve(lambda r: GOOD if r.target == "/x" else reply(status, b"", at)) as web:
        assert isinstance(inspect(web.url("/"), IMAGE, OPTIONS), MediaInfo)
        for headers in ({}, {"Location": ""}, {"Location": " "}):
            at = dict(headers)
            outcome = inspect(web.url("/"), IMAGE, OPTIONS)
            assert code_of(outcome) == "media_status"
            assert str(status) in str(outcome)


@pytest.mark.parametrize(
    ("location", "code"),
    [
        (b"#f", "media_redirects"),
        (b"http://[::1", "media_redirects"),
        (b"http://a:99999/", "media_redirects"),
        (b"http://b\xfccher.example/", "media_redirects"),
        (b"http://a b/", "media_redirects"),
        (b"http://[::1]:1/", "media_forbidden"),
        (b"http://[::ffff:7f00:1]:1/", "media_forbidden"),
        (b"http://169.254.169.254./", "media_forbidden"),
        ("http://\uff11\uff16\uff19.254.169.254/".encode(), "media_forbidden"),
        (b"http://169%2e254%2e169%2e254/", "media_forbidden"),
        (b"http://169.254.169.254\\@127.0.0.1/", "media_forbidden"),
        (b"ftp://127.0.0.1/x", "media_forbidden"),
        (b"javascript:alert(1)", "media_forbidden"),
        (b"/y\r\nLocation: /z", "media_redirects"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_a_failure(location: bytes, code: str) -> None:
    """Malformed targets, private addresses in any spelling, other schemes, and two targets at once."""
    with serve(lambda r: reply(302, b"", {"Location": location})) as web:
        assert code_of(inspect(web.url("/"), IMAGE, OPTIONS)) == code


def test_user_and_password_stay_on_their_host() -> None:
    """They go along on a redirect within the same host and port, not to another port or name, and not back from there."""
    options = replace(OPTIONS, allowed_hosts=("127.0.0.1", "localhost"))
    hops: dict[str, str] = {}
    with (
        serve(lambda r: reply(302, b"", {"Location": hops[r.target]}) if r.target in hops else GOOD) as web,
        serve(lambda r: reply(302, b"", {"Location": web.url("/back")})) as other,
    ):
        hops |= {"/1": "/2", "/2": web.url("/3", "localhost"), "/3": other.url("/4"), "/back": "/5"}
        url = web.url("/1").replace("://", "://us%20er:p%40w@")
        assert isinstance(inspect(url, IMAGE, options), MediaInfo)
        logins = [request.headers.get("authorization") for request in (*web.requests, *other.requests)]
        login = "Basic dXMgZXI6cEB3"
        assert logins == [login, login, None, None, None, None]
        hops["/1"] = web.url("/x").replace("://", "://a:b@")
        assert isinstance(inspect(url, IMAGE, options), MediaInfo)
        assert web.requests[-1].headers["authorization"] == "Basic YTpi"


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(PICTURE)),
        ("x-gzip", gzip.compress(PICTURE)),
        ("GZIP", gzip.compress(PICTURE[:9]) + gzip.compress(PICTURE[9:]) + b"\0\0"),
        ("deflate", zlib.compress(PICTURE)),
        ("deflate", zlib.compress(PICTURE, wbits=-15)),
        ("zstd", zstandard.compress(PICTURE)),
        ("gzip, gzip", gzip.compress(gzip.compress(PICTURE))),
        ("gzip, aws-chunked", gzip.compress(PICTURE)),
        ("aws-chunked", PICTURE),
        ("none", PICTURE),
        ("utf-8", PICTURE),
        ("identity", PICTURE),
        ("", PICTURE),
        ("binary", PICTURE),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"ETag": '"1"'}, {"Content-Length": "None"}])
def test_packed_bodies_are_unpacked(coding: str, packed: bytes, headers: dict[str, str]) -> None:
    """Real codings are undone, names that are no coding are ignored, and the picture is sent with its own bytes and size."""

    def answer(request: Request) -> bytes:
        start = 206 if "range" in request.headers and not headers else 200
        part = request.part(packed) if start == 206 else packed
        ends = {"Content-Range": f"bytes 0-{len(part) - 1}/{len(packed)}"} if start == 206 else {}
        return reply(start, part, {"Content-Encoding": coding, **headers, **ends})

    with serve(answer) as web:
        info = inspect(web.url("/"), IMAGE, OPTIONS)
        assert isinstance(info, MediaInfo)
        assert info.wire_bytes == len("data:image/png;base64,") + 4 * ((len(PICTURE) + 2) // 3)
        assert load_medium(web.url("/"), IMAGE, info.version, OPTIONS) == Inline("image/png", PICTURE)


BOMB = gzip.compress(gzip.compress(bytes(200_000_000), 9), 9)


@pytest.mark.parametrize(
    ("coding", "packed", "code", "words"),
    [
        ("br", PICTURE, "media_unreadable", "br"),
        ("gzip", PICTURE, "media_unreadable", "gzip"),
        ("zstd", PICTURE, "media_unreadable", "zstd"),
        ("deflate", b"\x78\x9c" + PICTURE, "media_unreadable", "deflate"),
        ("gzip", gzip.compress(PICTURE)[:-9], "media_unreachable", "too early"),
        ("zstd", zstandard.compress(PICTURE)[:-9], "media_unreachable", "too early"),
        ("gzip", gzip.compress(bytes(20_000_000)), "media_too_large", "10000000"),
        ("zstd", zstandard.compress(bytes(20_000_000)), "media_too_large", "10000000"),
        ("gzip, gzip", BOMB, "media_too_large", "10000000"),
        ("gzip, gzip, gzip, gzip", PICTURE, "media_unreadable", "4 times"),
        ("gzip", gzip.compress(b""), "media_empty", "0 bytes"),
    ],
)
def test_what_can_not_be_unpacked_is_a_failure(coding: str, packed: bytes, code: str, words: str) -> None:
    """Damaged, cut, unknown and exploding bodies end with their own code, within the limit of an image."""
    with serve(lambda r: reply(200, packed, {"Content-Encoding": coding, "ETag": '"1"'})) as web:
        outcome = inspect(web.url("/"), IMAGE, OPTIONS)
        assert code_of(outcome) == code
        assert words in str(outcome)


def _chunked(data: bytes) -> bytes:
    return b"".join(
        b"%x\r\n%s\r\n" % (len(data[at : at + 999]), data[at : at + 999]) for at in range(0, len(data), 999)
    )


SIZE = len(PICTURE)
RANGED = {"Content-Range": f"bytes 0-65535/{SIZE}", "ETag": '"1"'}
ODD_REPLIES = {
    "416 to a range that ends behind the end": reply(416, b"", {"Content-Range": f"bytes */{SIZE}"}),
    "416 with a body": reply(416, b"no such range"),
    "206 with another range": reply(206, PICTURE[9:99], {"Content-Range": f"bytes 9-98/{SIZE}", "ETag": '"1"'}),
    "206 with a shorter range": reply(206, PICTURE[:99], {"Content-Range": f"bytes 0-98/{SIZE}", "ETag": '"1"'}),
    "206 without a range": reply(206, PICTURE[:65536], {"ETag": '"1"'}),
    "206 of an unknown size": reply(206, PICTURE[:65536], {"Content-Range": "bytes 0-65535/*", "ETag": '"1"'}),
    "206 of several parts": reply(206, b"--x", {"Content-Type": "multipart/byteranges; boundary=x", "ETag": '"1"'}),
    "200": GOOD,
    "chunked": reply(200, _chunked(PICTURE) + b"0\r\n\r\n", {"Transfer-Encoding": "chunked", "Content-Length": "None"}),
    "closed although it was to be kept": reply(200, PICTURE, {"ETag": '"1"', "Connection": "keep-alive"}),
    "closed at the end": reply(200, PICTURE, {"Content-Length": "None"}),
    "a head of 40 kB": reply(200, PICTURE, {"ETag": '"1"', "Set-Cookie": "a" * 40_000}),
    "an etag that looks like a content hash": reply(200, PICTURE, {"ETag": '"blake2b:zz"'}),
    "an etag in latin-1": reply(200, PICTURE, {"ETag": b'"\xfc"'}),
    "an endless etag": reply(200, PICTURE, {"ETag": "e" * 20_000}),
    "a date in latin-1": reply(200, PICTURE, {"Last-Modified": b"M\xe4rz"}),
}


@pytest.mark.parametrize("identity", ["uri_version", "content"])
@pytest.mark.parametrize("name", ODD_REPLIES)
def test_odd_replies_that_hold_the_picture(name: str, identity: Literal["uri_version", "content"]) -> None:
    """Whatever a server replies to a range, the whole picture is found, with a version that can be written down."""
    options = replace(OPTIONS, identity=identity)
    with serve(lambda r: ODD_REPLIES[name] if "range" in r.headers or name[:3] not in ("206", "416") else GOOD) as web:
        info = inspect(web.url("/"), IMAGE, options)
        assert isinstance(info, MediaInfo)
        assert info.size_px == (200, 200)
        assert info.version is not None
        assert len(info.version.encode()) < 9_000
        assert load_medium(web.url("/"), IMAGE, info.version, options) == Inline("image/png", PICTURE)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (reply(200, PICTURE, {"Content-Length": str(SIZE + 9), "ETag": '"1"'}), "media_unreachable"),
        (reply(200, PICTURE, {"Content-Length": str(SIZE - 9), "ETag": '"1"'}), "media_status"),
        (
            reply(200, _chunked(PICTURE), {"Transfer-Encoding": "chunked", "Content-Length": "None"}),
            "media_unreachable",
        ),
        (reply(200, b"5\r\nab", {"Transfer-Encoding": "chunked", "Content-Length": "None"}), "media_unreachable"),
        (reply(200, b"zz\r\nab", {"Transfer-Encoding": "chunked", "Content-Length": "None"}), "media_status"),
        (reply(200, PICTURE, {"Set-Cookie": "SECRET" * 20_000}), "media_status"),
        (b"SECRET\r\n\r\n", "media_status"),
        (b"", "media_unreachable"),
        (reply(200, b"", {"ETag": '"1"'}), "media_empty"),
        (reply(206, b"", {"ETag": '"1"'}), "media_status"),
    ],
)
def test_odd_replies_that_do_not(sent: bytes, code: str) -> None:
    """Bodies that are cut off, lengths that are wrong, and replies that are not http end with a code and no quotation."""
    with serve(lambda r: sent) as web:
        outcome: object = inspect(web.url("/"), IMAGE, OPTIONS)
        if isinstance(outcome, MediaInfo):  # the planner does not see the end of the file
            outcome = load_medium(web.url("/"), IMAGE, outcome.version, OPTIONS)
        assert code_of(outcome) == code
        assert "SECRET" not in str(outcome)


def test_a_range_of_another_place_is_not_taken() -> None:
    """A part is used only if the server says that it is the part that was asked for."""
    with serve(lambda r: reply(206, b"x" * 10, {"Content-Range": "bytes 0-9/100"})) as web:
        assert fetch_range(web.url("/"), 0, 10, OPTIONS) == b"x" * 10
        assert fetch_range(web.url("/"), 10, 20, OPTIONS) == b""


def test_an_endless_image_stops_at_the_limit_of_images() -> None:
    """Of a body without length, not more is read than an image may have, although a video may have more."""
    sent = 0

    def answer(request: Request) -> bytes:
        nonlocal sent
        sent += 1
        return reply(200, b"\xff\xd8\xff" + bytes(3_000_000), {"Content-Length": "None"})

    options = replace(OPTIONS, image_bytes_max=1_000_000)
    with serve(answer) as web:
        outcome = inspect(web.url("/"), IMAGE, options)
        assert code_of(outcome) == "media_too_large"
        assert "1000000" in str(outcome)
        assert sent == 1


def test_only_the_first_bytes_of_a_file_without_length_are_kept() -> None:
    """What a server without length and version sends is counted and hashed, not kept."""
    with serve(lambda r: reply(200, PICTURE, {"Content-Length": "None"})) as web:
        for hashed in (False, True):
            medium = fetch(web.url("/"), 100, 10_000_000, OPTIONS, hashed=hashed)
            assert (medium.head, medium.size) == (PICTURE[:100], SIZE)
