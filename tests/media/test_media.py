"""Media: what is accepted, what is rejected and with which code, and what is sent."""

import base64
import io
import os
import pickle
import struct
import time
import zlib
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, inspect_many, load_medium, make_absolute
from arkbeam.media.headers import read_header
from arkbeam.media.kinds import detect_kind
from arkbeam.media.truncation import find_truncation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.media.outcomes import code_of
from tests.media.pictures import data_uri

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
INDEX = b"\0\0\0\x48moov" + b"\0" * 64
MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + INDEX
MOV = b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + INDEX
AVI = b"RIFF\x40\0\0\0AVI LIST" + b"\0" * 64


def _picture(pillow_format: str = "PNG", size: tuple[int, int] = (32, 20)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(stream, pillow_format)
    return stream.getvalue()


@pytest.fixture
def options(tmp_path: Path) -> MediaOptions:
    """Options that allow reading the test's own folder."""
    return MediaOptions(allowed_roots=(str(tmp_path),))


def _put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(
    ("pillow_format", "mime"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
        ("BMP", "image/bmp"),
        ("DIB", "image/bmp"),
        ("TIFF", "image/tiff"),
        ("ICO", "image/x-icon"),
        ("ICNS", "image/icns"),
        ("SGI", "image/sgi"),
        ("JPEG2000", "image/jp2"),
    ],
)
def test_every_image_format_of_the_api_is_inlined_with_its_own_type(
    pillow_format: str, mime: str, tmp_path: Path, options: MediaOptions
) -> None:
    """Type and size in pixels come from the bytes, not from the name of the file."""
    size = (1024, 1024) if pillow_format == "ICNS" else (32, 32)
    data = _picture(pillow_format, size)
    uri = _put(tmp_path, "picture.of_unknown_kind", data)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    assert (info.mime, info.size_px) == (mime, size)
    assert load_medium(uri, IMAGE, info.version, options) == Inline(mime, data)
    assert info.wire_bytes == len(data_uri(mime, data))


@pytest.mark.parametrize(
    ("data", "mime"),
    [(MP4, "video/mp4"), (MOV, "video/quicktime"), (AVI, "video/avi"), (b"\0\0\0\x08moov" * 4, "video/quicktime")],
)
def test_videos_are_inlined_with_exactly_the_three_types_of_the_api(
    data: bytes, mime: str, tmp_path: Path, options: MediaOptions
) -> None:
    """mp4, avi and mov are distinguished by their bytes."""
    uri = _put(tmp_path, "clip", data)
    info = inspect(uri, VIDEO, options)
    assert isinstance(info, MediaInfo)
    assert load_medium(uri, VIDEO, info.version, options) == Inline(mime, data)


@pytest.mark.parametrize(
    ("data", "modality", "code"),
    [
        (b"", IMAGE, "media_empty"),
        (b"no picture at all", IMAGE, "media_not_image"),
        (b"\x89PNG\r\n\x1a\nbut nothing behind it", IMAGE, "media_truncated"),
        (b"\xff\xd8\xff" + b"\0" * 200_000, IMAGE, "media_truncated"),
        (b"\xff\xd8\xff" + b"\0" * 200_000 + b"\xff\xd9", IMAGE, "media_damaged"),
        (MP4, IMAGE, "media_not_image"),
        (_picture(), VIDEO, "media_not_video"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 64, VIDEO, "media_not_video"),
        (_picture(size=(14, 200)), IMAGE, "media_too_small"),
    ],
)
def test_what_the_api_would_refuse_is_a_failure(
    data: bytes, modality: Modality, code: str, tmp_path: Path, options: MediaOptions
) -> None:
    """A file that is not such a medium is a failure and is never sent."""
    assert code_of(inspect(_put(tmp_path, "medium.png", data), modality, options)) == code


def test_sizes_are_refused_one_past_the_limit_and_not_at_it(tmp_path: Path) -> None:
    """An image must be below its limit, a video may be at it; the message gives the measured value and the limit."""
    image, video = _picture(), MP4
    image_uri, video_uri = _put(tmp_path, "a.png", image), _put(tmp_path, "a.mp4", video)

    def limits(image_bytes: int, video_bytes: int) -> MediaOptions:
        return MediaOptions(allowed_roots=(str(tmp_path),), image_bytes_max=image_bytes, video_bytes_max=video_bytes)

    assert isinstance(inspect(image_uri, IMAGE, limits(len(image) + 1, 0)), MediaInfo)
    outcome = inspect(image_uri, IMAGE, limits(len(image), 0))
    assert code_of(outcome) == "media_too_large"
    assert isinstance(outcome, Failure)
    said = outcome.message.replace(str(tmp_path), "")  # the folder's name has digits, too
    assert said.count(str(len(image))) == 2
    assert isinstance(inspect(video_uri, VIDEO, limits(0, len(video))), MediaInfo)
    assert code_of(inspect(video_uri, VIDEO, limits(0, len(video) - 1))) == "media_too_large"


def test_a_video_that_base64_makes_too_long_for_a_body_is_refused(tmp_path: Path) -> None:
    """A video below 50 MiB may be too large as base64 for a body of 64 MB: the encoded length counts."""
    uri = _put(tmp_path, "a.mp4", MP4)
    small = MediaOptions(allowed_roots=(str(tmp_path),), body_bytes_max=len(MP4) * 4 // 3)
    assert code_of(inspect(uri, VIDEO, small)) == "media_body_too_large"


def test_pixels_are_limited(tmp_path: Path, options: MediaOptions) -> None:
    """Images of 36 million pixels or more are rejected by their header, without being decoded."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    for side in (6_000, 60_000):
        size = struct.pack(">II", side, side)
        body = b"IHDR" + size + b"\x08\x02\0\0\0"
        data = head[:12] + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0IDAT"
        assert code_of(inspect(_put(tmp_path, f"{side}.png", data), IMAGE, options)) == "media_too_many_pixels"


def test_an_image_whose_size_stands_far_behind_is_still_measured(tmp_path: Path) -> None:
    """TIFF keeps its directory after the pixels, beyond the header bytes that are read first."""
    uri = _put(tmp_path, "a.tiff", _picture("TIFF", (300, 200)))
    options = MediaOptions(allowed_roots=(str(tmp_path),), header_bytes=1_000)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    assert info.size_px == (300, 200)


def test_urls_pass_and_are_not_looked_at(options: MediaOptions) -> None:
    """http(s) URLs are sent to the service unchanged; their version and size are unknown."""
    url = "https://pictures.example/a.png?id=1"
    assert inspect(url, IMAGE, options) == MediaInfo()
    assert load_medium(url, IMAGE, None, options) == url


@pytest.mark.parametrize(
    "url", ["http://", "https:///a.png", "https://a b/c.png", "https://a/\n.png", "https://a/" + "x" * 9_000]
)
def test_urls_that_can_not_be_one_are_refused(url: str, options: MediaOptions) -> None:
    """White space, a missing host and excessive length are detected without a request."""
    assert code_of(inspect(url, IMAGE, options)) == "media_bad_uri"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://h/a b.png", "a blank (write it as %20) at character 12"),
        ("https://h/a.png ", "a blank (write it as %20) at its end"),
        ("https://h/a\tb", "a tab at character 12"),
        ("https://h/a\r\nb", "a line break at character 12"),
        ("https://h/a\u00a0b", "the character U+00A0 at character 12"),
        ("https://h/a\u3000", "the character U+3000 at its end"),
        ("https://h/a\x7fb", "the character U+007F at character 12"),
        ("https:///a.png", "it has no host"),
        ("https://?a", "it has no host"),
        ("https://h\\a", "backslash"),
        ("https://h:x/a", "its host or port is not valid"),
    ],
)
def test_the_message_says_where_a_url_is_wrong(url: str, words: str, options: MediaOptions) -> None:
    """The character and its place, counted from 1."""
    assert words in str(inspect(url, IMAGE, options))


def test_a_good_data_uri_passes_and_is_measured(options: MediaOptions) -> None:
    """A data URI in the form of the contract is sent unchanged; its size in pixels is used for the estimate."""
    uri = data_uri("image/png", _picture())
    info = inspect(uri, IMAGE, options)
    assert info == MediaInfo(None, "image/png", (32, 20), len(uri))
    assert load_medium(uri, IMAGE, None, options) == uri


@pytest.mark.parametrize(
    ("head", "data", "code"),
    [
        ("data:image/PNG;base64,", _picture(), "media_bad_data_uri"),
        ("DATA:image/png;base64,", _picture(), "media_bad_data_uri"),
        ("data:image/png,", _picture(), "media_bad_data_uri"),
        ("data:text/plain;base64,", _picture(), "media_bad_data_uri"),
        ("data:image/png;base64,*", _picture(), "media_bad_data_uri"),
        ("data:image/png;base64,\n", _picture(), "media_bad_data_uri"),
        ("data:image/png;base64,=", _picture(), "media_bad_data_uri"),
        ("data:image/png;charset=utf-8;base64,", _picture(), "media_bad_data_uri"),
        ("data:image/;base64,", _picture(), "media_bad_data_uri"),
        ("data:image/png;BASE64,", _picture(), "media_bad_data_uri"),
        (" data:image/png;base64,", _picture(), "media_forbidden"),
        ("data:image/jpeg;base64,", _picture(), "media_mime"),
        ("data:image/png;base64,", b"", "media_empty"),
        ("data:image/png;base64,", b"text", "media_not_image"),
        ("data:video/mp4;base64,", MP4, "media_not_image"),
    ],
)
def test_bad_data_uris_are_refused(head: str, data: bytes, code: str, options: MediaOptions) -> None:
    """Upper case, other types, invalid base64, and a type that is not that of the bytes."""
    outcome = inspect(head + base64.b64encode(data).decode(), IMAGE, options)
    assert code_of(outcome) == code


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (f"data:image/png;charset=utf-8;base64,{_encode(_picture())}", "a parameter besides base64, such as charset"),
        (f"data:image/png;BASE64,{_encode(_picture())}", "'base64' has capitals"),
        (f"DATA:image/png;base64,{_encode(_picture())}", "'data:' has capitals"),
        (f"data:image/PNG;base64,{_encode(_picture())}", "the type has capitals"),
        (f"data:application/pdf;base64,{_encode(_picture())}", "the type is not that of an image or a video"),
        (f"data:;base64,{_encode(_picture())}", "the data URI has no type"),
        (f"data:image/png,{_encode(_picture())}", "the data URI is not said to be base64"),
        (f"data:image/png;base64 {_encode(_picture())}", "no comma"),
        (f"data:image/png;base64;{_encode(_picture() * 20)}", "no comma"),
        (f"data:image/png; base64,{_encode(_picture())}", "a blank at character 16"),
        (f"data:image/png;base64,\n{_encode(_picture())}", "a line break at character 1 of the payload"),
        (
            f"data:image/png;base64,{base64.encodebytes(_picture()).decode()}",
            "a line break at character 77 of the payload",
        ),
        (f"data:image/png;base64,{_encode(_picture())[:9]} {_encode(_picture())[9:]}", "a blank at character 10"),
        (f"data:image/png;base64,{_encode(_picture())[:9]}-_x=", "URL-safe alphabet (at character 10"),
        (f"data:image/png;base64,{_encode(_picture())[:9]}%2B%3D", "percent-encoded (at character 10"),
        (
            f"data:image/png;base64,{_encode(_picture())[:9]}\u56fe",
            "a character that base64 does not have, at character 10",
        ),
        (f"data:image/png;base64,{_encode(_picture())[:-1]}", "padding"),
        (_encode(_picture()), "without its beginning 'data:image/png;base64,'"),
        (_encode(b"\xff\xd8\xff\xe0" + bytes(99)), "without its beginning 'data:image/jpeg;base64,'"),
        (_encode(b"\0\0\0\x18ftypisom" + bytes(99)), "without its beginning 'data:video/mp4;base64,'"),
        (_encode(b"RIFF" + bytes(99)), "without its beginning 'data:image/webp;base64,'"),
    ],
)
@pytest.mark.parametrize("folder", ["/data", "s3://bucket/data"])
def test_the_message_says_what_is_wrong_with_a_data_uri(
    uri: str, words: str, folder: str, options: MediaOptions
) -> None:
    """It names the fault and, in the payload, its place, and quotes nothing of the payload."""
    for modality in Modality.IMAGE, Modality.VIDEO:
        outcome = inspect(make_absolute(uri, folder), modality, options)
        assert code_of(outcome) == "media_bad_data_uri"
        assert isinstance(outcome, Failure)
        assert words in outcome.message
        assert not any(part in outcome.message for part in ("iVBOR", "/9j/", "AAAA", "UklG", "AAAB"))


@pytest.mark.parametrize("path", ["/9j/a.jpg", "/9j/" + "a" * 30, "AAAA" * 20, "iVBORw0KGgo.png", "R0lGODlh/a/b/c.gif"])
def test_paths_that_are_no_base64(path: str) -> None:
    """A name that only starts like base64 is a path."""
    assert make_absolute(path, "/data") == os.path.join("/data", path)


def test_a_data_uri_that_is_cut_off_is_refused(options: MediaOptions) -> None:
    """Base64 that ends within a group of four characters is not valid."""
    uri = data_uri("image/png", _picture())
    assert code_of(inspect(uri[:-1], IMAGE, options)) == "media_bad_data_uri"


@pytest.mark.parametrize(
    ("head", "data", "code"),
    [
        ("data:video/mp4;base64,", MP4, None),
        ("data:video/avi;base64,", AVI, None),
        ("data:video/quicktime;base64,", MOV, None),
        ("data:video/mov;base64,", MOV, "media_mime"),
        ("data:video/MP4;base64,", MP4, "media_bad_data_uri"),
        ("data:video/avi;base64,", MP4, "media_mime"),
        ("data:video/mp4;base64,", MOV, "media_mime"),
        ("data:video/webm;base64,", b"\x1a\x45\xdf\xa3" + bytes(30), "media_not_video"),
        ("data:image/png;base64,", _picture(), "media_not_video"),
    ],
)
def test_data_uris_of_videos(head: str, data: bytes, code: str | None, options: MediaOptions) -> None:
    """Three formats, in lower case, each with its own type; the bytes decide."""
    outcome = inspect(head + base64.b64encode(data).decode(), VIDEO, options)
    assert (None if isinstance(outcome, MediaInfo) else code_of(outcome)) == code


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("{root}/missing.png", "media_missing"),
        ("{root}", "media_not_a_file"),
        ("{root}/a.png/b.png", "media_not_a_file"),
        ("{root}/fifo", "media_not_a_file"),
        ("{root}/../outside.png", "media_forbidden"),
        ("/etc/passwd", "media_forbidden"),
        ("file:///etc/passwd", "media_forbidden"),
        ("local:///etc/passwd", "media_forbidden"),
        ("{root}-sibling/a.png", "media_forbidden"),
        ("{root}/link.png", "media_forbidden"),
        ("{root}/nul\0.png", "media_bad_uri"),
        ("ftp://host/a.png", "media_forbidden"),
        ("sftp://host/a.png", "media_forbidden"),
        ("simplecache::file:///etc/passwd", "media_forbidden"),
        ("memory://x::file:///etc/passwd", "media_forbidden"),
        ("memory://nothing/there.png", "media_missing"),
        ("nosuchscheme://a/b.png", "media_forbidden"),
    ],
)
def test_a_manifest_reads_only_what_it_may(uri: str, code: str, tmp_path: Path, options: MediaOptions) -> None:
    """Paths outside the allowed folders, links that lead out of them, pipes and other schemes are rejected in both steps."""
    _put(tmp_path, "a.png", _picture())
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    (tmp_path.parent / f"{tmp_path.name}-sibling").mkdir()
    _put(tmp_path.parent / f"{tmp_path.name}-sibling", "a.png", _picture())
    uri = uri.format(root=tmp_path)
    assert code_of(inspect(uri, IMAGE, options)) == code
    assert code_of(load_medium(uri, IMAGE, "1-1", options)) == code


def test_no_local_file_may_be_read_unless_a_folder_is_allowed(tmp_path: Path) -> None:
    """Without allowed folders, every local path is rejected."""
    assert code_of(inspect(_put(tmp_path, "a.png", _picture()), IMAGE, MediaOptions())) == "media_forbidden"


def test_links_within_an_allowed_folder_work(tmp_path: Path, options: MediaOptions) -> None:
    """A symbolic link is judged by its target."""
    _put(tmp_path, "a.png", _picture())
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert isinstance(inspect(str(tmp_path / "b.png"), IMAGE, options), MediaInfo)


def test_a_file_that_changed_is_not_sent_under_its_old_version(tmp_path: Path, options: MediaOptions) -> None:
    """Bytes other than those in the fingerprint are a failure, even if their number is the same."""
    uri = _put(tmp_path, "a.bmp", _picture("BMP"))
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    _put(tmp_path, "a.bmp", bytes(reversed(_picture("BMP"))))
    os.utime(uri, ns=(0, 0))
    assert code_of(load_medium(uri, IMAGE, info.version, options)) == "media_changed"


def test_media_in_an_object_store_are_read_with_their_version() -> None:
    """Other fsspec schemes give size, version and bytes like local files, and an overwrite is detected."""
    store = fsspec.filesystem("memory")
    uri = "memory://media-test/a.png"
    store.pipe_file("/media-test/a.png", _picture())
    info = inspect(uri, IMAGE, MediaOptions())
    assert isinstance(info, MediaInfo)
    assert load_medium(uri, IMAGE, info.version, MediaOptions()) == Inline("image/png", _picture())
    time.sleep(0.001)
    store.pipe_file("/media-test/a.png", _picture(size=(20, 32)))
    assert code_of(load_medium(uri, IMAGE, info.version, MediaOptions())) == "media_changed"
    store.pipe_file("/media-test/a.png", b"")
    assert code_of(inspect(uri, IMAGE, MediaOptions())) == "media_empty"
    assert code_of(inspect("memory://media-test", IMAGE, MediaOptions())) == "media_not_a_file"


class CachingStore(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """An object store with cached listings, like s3fs: they are stale until the cache is invalidated."""

    protocol = "cachingstore"
    objects: ClassVar[dict[str, tuple[str, bytes]]] = {}
    seen: ClassVar[dict[str, dict[str, object]]] = {}

    def invalidate_cache(self, path: str | None = None) -> None:
        """Drop the cached listings."""
        self.seen.clear()

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        """Return the cached entry if there is one."""
        if path not in self.seen:
            etag, data = self.objects[path]
            self.seen[path] = {"name": path, "size": len(data), "type": "file", "ETag": f'"{etag}"'}
        return self.seen[path]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        """Return bytes, or raise what a careless plugin may raise."""
        if path == "broken":
            raise KeyError("what a plugin may raise: token=hunter2 https://u:pw@host/x?Signature=abc")
        return self.objects[path][1][start:end]


def test_versions_are_read_past_the_listing_cache() -> None:
    """A cached etag does not hide an overwrite, and an exception of a plugin is a failure."""
    fsspec.register_implementation("cachingstore", CachingStore, clobber=True)
    options = MediaOptions(schemes=("cachingstore",))
    CachingStore.objects.update({"a": ("v1", _picture()), "broken": ("v1", _picture())})
    first = inspect("cachingstore://a", IMAGE, options)
    CachingStore.objects["a"] = ("v2", _picture())
    second = inspect("cachingstore://a", IMAGE, options)
    assert isinstance(first, MediaInfo)
    assert isinstance(second, MediaInfo)
    assert (first.version, second.version) == ("v1", "v2")
    assert code_of(load_medium("cachingstore://a", IMAGE, "v1", options)) == "media_changed"
    broken = inspect("cachingstore://broken", IMAGE, options)
    assert code_of(broken) == "media_unreadable"
    assert isinstance(broken, Failure)
    assert "pw" not in broken.message
    assert "abc" not in broken.message


def test_many_media_are_looked_at_together(tmp_path: Path, options: MediaOptions) -> None:
    """Each URI gets its own result, in whatever order they are inspected."""
    wanted = [(_put(tmp_path, f"{index}.png", _picture(size=(20 + index, 20))), IMAGE) for index in range(80)]
    wanted += [("https://a.example/b.png", IMAGE), (str(tmp_path / "missing"), IMAGE)]
    looks = inspect_many(wanted, options)
    assert [getattr(looks[one], "size_px", None) for one in wanted[:80]] == [(20 + index, 20) for index in range(80)]
    assert looks["https://a.example/b.png", IMAGE] == MediaInfo()
    assert code_of(looks[str(tmp_path / "missing"), IMAGE]) == "media_missing"


@pytest.mark.parametrize(
    ("uri", "folder", "absolute"),
    [
        ("a.png", "/data/m", "/data/m/a.png"),
        ("./x/../a.png", "/data/m", "/data/m/a.png"),
        ("../a.png", "s3://bucket/m", "s3://bucket/a.png"),
        ("a.png", "memory:///m", "memory:///m/a.png"),
        ("/abs//a.png", "/data/m", "/abs/a.png"),
        ("file:///abs/./a.png", "s3://b", "/abs/a.png"),
        ("file://localhost/abs/a%20b%23.png", "/data", "/abs/a b#.png"),
        ("/abs/a%20b.png", "/data", "/abs/a%20b.png"),
        ("s3://b/x/../a.png", "/data", "s3://b/x/../a.png"),
        ("https://h/a?b#c", "/data", "https://h/a?b#c"),
        ("data:image/png;base64,AA", "/data", "data:image/png;base64,AA"),
    ],
)
def test_relative_paths_start_at_the_manifests_folder(uri: str, folder: str, absolute: str) -> None:
    """One file has one name, wherever its manifest is; URLs stay unchanged."""
    assert make_absolute(uri, folder) == absolute


@settings(max_examples=300, deadline=None)
@given(
    head=st.sampled_from(
        [b"", *(_picture(kind)[:60] for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "SGI"))]
    ),
    tail=st.binary(max_size=200),
)
def test_hostile_bytes_raise_nothing(head: bytes, tail: bytes) -> None:
    """For any bytes, the result is a format or None, and a size or None."""
    kind = detect_kind(head + tail)
    if kind is not None and kind.modality is IMAGE:
        for whole in (False, True):
            facts = read_header(head + tail, kind, whole=whole)
            assert facts is None or len(facts.size_px) == 2
        find_truncation(head + tail, 10**6, kind)
        find_truncation(head + tail, len(head + tail), kind)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_hostile_uris_raise_nothing(uri: str) -> None:
    """Any text in a media cell gives MediaInfo or a failure whose message can be written as UTF-8."""
    outcome = inspect(uri, IMAGE, MediaOptions())
    if isinstance(outcome, Failure):
        outcome.message.encode()


def test_options_survive_pickling() -> None:
    """Options are pickled for workers."""
    assert pickle.loads(pickle.dumps(MediaOptions(threads=3))) == MediaOptions(threads=3)
