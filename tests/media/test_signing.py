"""Signed URLs of S3 (s3fs against moto's server) and of TOS (tosfs against a server that checks the signatures)."""

import hashlib
import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec
import fsspec.config
import pytest
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.access import Access
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer
from PIL import Image

from tests.media.outcomes import code_of
from tests.tos import TosServer

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\0\0\0\x08moov\0\0\0\x40mdat" + bytes(56)
SIGNED = MediaOptions(access={"s3": Access.SIGN})


def _picture(pillow_format: str = "PNG", colour: int = 200) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 30, 30)).save(stream, pillow_format)
    return stream.getvalue()


def _query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """A server with S3's API."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(moto: str) -> Iterator[Any]:
    """A bucket `media`, configured as a user would do it."""
    settings = {
        "endpoint_url": moto,
        "key": "AK",
        "secret": "SK",
        "client_kwargs": {"region_name": "eu-west-1"},
        "use_listings_cache": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", settings)
        files = fsspec.filesystem("s3")
        files.mkdir("media")
        yield files
        files.clear_instance_cache()


def test_a_signed_url_of_s3_gives_the_object_to_whoever_has_it(bucket: Any) -> None:
    """The object is inspected as if inlined; the service gets a URL with the configured lifetime and without the secret key."""
    bucket.pipe_file("media/a b+c.png", _picture())
    info = inspect("s3://media/a b+c.png", IMAGE, SIGNED)
    assert isinstance(info, MediaInfo)
    assert (info.mime, info.size_px, info.wire_bytes) == ("image/png", (40, 30), None)
    inlined = inspect("s3://media/a b+c.png", IMAGE, MediaOptions())
    assert isinstance(inlined, MediaInfo)
    assert info.version == inlined.version
    url = load_medium("s3://media/a b+c.png", IMAGE, info.version, replace(SIGNED, sign_lifetime_s=7_200))
    assert isinstance(url, str)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == _picture()
    assert (_query(url)["X-Amz-Algorithm"], _query(url)["X-Amz-Expires"]) == ("AWS4-HMAC-SHA256", "7200")
    assert "SK" not in _query(url).values()


def test_what_changed_is_not_signed(bucket: Any) -> None:
    """The version is read again just before signing; a missing object is a failure too."""
    bucket.pipe_file("media/a.png", _picture())
    info = inspect("s3://media/a.png", IMAGE, SIGNED)
    assert isinstance(info, MediaInfo)
    bucket.pipe_file("media/a.png", _picture(colour=10))
    assert code_of(load_medium("s3://media/a.png", IMAGE, info.version, SIGNED)) == "media_changed"
    bucket.rm("media/a.png")
    assert code_of(load_medium("s3://media/a.png", IMAGE, info.version, SIGNED)) == "media_missing"
    assert code_of(inspect("s3://media/a.png", IMAGE, SIGNED)) == "media_missing"


@pytest.mark.parametrize(
    ("name", "data", "modality", "code"),
    [
        ("a.png", _picture(), IMAGE, None),
        ("a.PNG", _picture(), IMAGE, None),
        ("a", _picture(), IMAGE, None),
        ("a.jpg", _picture(), IMAGE, "media_extension"),
        ("a.txt", b"text", IMAGE, "media_not_image"),
        ("a.mp4", MP4, VIDEO, None),
        ("clip", MP4, VIDEO, None),
        ("a.MP4", MP4, VIDEO, "media_extension"),
        ("a.m4v", MP4, VIDEO, "media_extension"),
        ("a.mov", MP4, VIDEO, "media_extension"),
        ("a.png", MP4, VIDEO, "media_extension"),
    ],
    ids=lambda value: None if isinstance(value, str | None) else "",
)
def test_the_name_of_what_is_signed_must_tell_its_format(
    name: str, data: bytes, modality: Modality, code: str | None, bucket: Any
) -> None:
    """The service tells the format from the extension; inlined, the same bytes are accepted under any name."""
    bucket.pipe_file(f"media/{name}", data)
    outcome = inspect(f"s3://media/{name}", modality, SIGNED)
    assert (None if isinstance(outcome, MediaInfo) else code_of(outcome)) == code
    if code == "media_extension":
        assert isinstance(outcome, Failure)
        assert "rename it" in outcome.message
        assert isinstance(inspect(f"s3://media/{name}", modality, MediaOptions()), MediaInfo)


def test_a_signed_video_may_be_larger_than_a_body(bucket: Any) -> None:
    """A signed video is limited by the size of a video, not by the size of a request body."""
    bucket.pipe_file("media/a.mp4", MP4)
    small = MediaOptions(body_bytes_max=len(MP4))
    assert code_of(inspect("s3://media/a.mp4", VIDEO, small)) == "media_body_too_large"
    assert isinstance(inspect("s3://media/a.mp4", VIDEO, replace(small, access=SIGNED.access)), MediaInfo)
    smaller = replace(small, access=SIGNED.access, video_bytes_max=len(MP4) - 1)
    assert code_of(inspect("s3://media/a.mp4", VIDEO, smaller)) == "media_too_large"


def test_storage_that_can_not_sign_is_a_failure() -> None:
    """A store that can't sign is a failure, even if its scheme usually can."""

    class Unsigning(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "gs"

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 300, "type": "file", "etag": "v1"}

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
            return _picture()[start:end]

    fsspec.register_implementation("gs", Unsigning, clobber=True)
    try:
        outcome = load_medium("gs://b/a.png", IMAGE, "v1", MediaOptions(access={"gs": Access.SIGN}))
        assert code_of(outcome) == "media_unsigned"
        assert "inline" in str(outcome)
    finally:
        _registry.pop("gs")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tos_is_signed_unless_told_otherwise(tos: TosServer) -> None:
    """The file system inspects, the vendor's client signs, and the server accepts the signature for this object only."""
    tos.files |= {"dir/a b.png": _picture(), "other.png": _picture()}
    options = MediaOptions(sign_lifetime_s=3_600)
    info = inspect("tos://media/dir/a b.png", IMAGE, options)
    assert isinstance(info, MediaInfo), info
    assert (info.mime, info.size_px, info.version) == ("image/png", (40, 30), hashlib.md5(_picture()).hexdigest())
    url = load_medium("tos://media/dir/a b.png", IMAGE, info.version, options)
    assert isinstance(url, str), url
    assert (urlsplit(url).path, _query(url)["X-Tos-Expires"]) == ("/dir/a%20b.png", "3600")
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == _picture()
    assert tos.rejected == 0
    with pytest.raises(urllib.error.HTTPError, match="403") as forbidden:
        urllib.request.urlopen(url.replace("dir/a%20b.png", "other.png"))
    forbidden.value.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tos_can_be_inlined_and_changes_are_seen(tos: TosServer) -> None:
    """A rule inlines TOS media; an overwritten image is not signed."""
    tos.files["a.png"] = _picture()
    inlined = MediaOptions(access={"tos": {"image": Access.INLINE}})
    info = inspect("tos://media/a.png", IMAGE, inlined)
    assert isinstance(info, MediaInfo), info
    assert load_medium("tos://media/a.png", IMAGE, info.version, inlined) == Inline("image/png", _picture())
    tos.files["a.png"] = _picture(colour=1)
    assert code_of(load_medium("tos://media/a.png", IMAGE, info.version, inlined)) == "media_changed"
    assert code_of(load_medium("tos://media/a.png", IMAGE, info.version, MediaOptions())) == "media_changed"
    del tos.files["a.png"]
    assert code_of(load_medium("tos://media/a.png", IMAGE, info.version, MediaOptions())) == "media_missing"
