"""Truncated files are detected wherever they end; complete files are accepted whatever follows their end."""

import struct

import pytest
from arkbeam.base.records import Failure, Modality
from arkbeam.media import MediaOptions
from arkbeam.media.checks import prepare
from arkbeam.media.files import guard
from arkbeam.media.headers import read_header
from arkbeam.media.kinds import BMP, DIB, SGI, Kind, describe_unknown, detect_kind
from arkbeam.media.truncation import find_truncation
from hypothesis import example, given
from hypothesis import strategies as st

from tests.media.pictures import FAKES, animation, boxes, film, picture, rotated, without

WHOLE = {
    "JPEG": picture(),
    "JPEG, progressive": picture(progressive=True),
    "JPEG with a thumbnail's end marker inside": picture(comment=b"\xff\xd8\xff\xd9" * 20),
    "PNG": picture("PNG"),
    "PNG, animated": animation("PNG"),
    "GIF": picture("GIF"),
    "GIF, animated": animation("GIF"),
    "WEBP": picture("WEBP"),
    "WEBP, lossless": picture("WEBP", lossless=True),
    "WEBP, animated": animation("WEBP"),
    "BMP": picture("BMP"),
    "BMP of a palette": picture("BMP", mode="P"),
    "BMP of two colours": picture("BMP", mode="1"),
    "DIB": picture("DIB"),
    "DIB of a palette": picture("DIB", mode="P"),
    "TIFF": picture("TIFF"),
    "TIFF, packed": picture("TIFF", compression="tiff_lzw"),
    "ICO": picture("ICO"),
    "ICO of bitmaps": picture("ICO", bitmap_format="bmp"),
    "ICNS": picture("ICNS", (128, 128)),
    "SGI": picture("SGI"),
    "SGI, grey": picture("SGI", mode="L"),
    "SGI, packed": picture("SGI", rle=True),
    "JPEG 2000": picture("JPEG2000"),
    "JPEG 2000, bare": picture("JPEG2000", no_jp2=True),
    "mp4": film(),
    "mp4, index first": film(front=True),
    "mov": film("mov"),
    "avi": film("avi"),
}


def _kind(data: bytes) -> Kind:
    kind = detect_kind(data)
    assert kind is not None
    return kind


def _is_taken(data: bytes) -> bool:
    kind = _kind(data)
    if kind in (BMP, DIB, SGI):
        return not isinstance(guard("a", lambda: prepare(data, Modality.IMAGE, None, MediaOptions())), Failure)
    if kind.pillow_formats:
        facts = read_header(data, kind, whole=True)
        if facts is None or facts.bytes_min > len(data):
            return False
    return find_truncation(data, len(data), kind) is None


@pytest.mark.parametrize("name", WHOLE)
def test_a_complete_file_is_taken_with_anything_behind_it(name: str) -> None:
    """Padding after the end of a file is accepted."""
    assert _is_taken(WHOLE[name])
    if name not in ("mp4", "mp4, index first", "mov"):  # the next bytes of a movie are a box
        assert _is_taken(WHOLE[name] + bytes(40))


@given(st.sampled_from(sorted(WHOLE)), st.floats(0, 1, exclude_max=True))
@example("GIF, animated", 0.999_999)
def test_a_file_that_is_cut_anywhere_is_seen(name: str, share: float) -> None:
    """A truncated file is rejected, unless what is left is complete.

    A GIF without its trailer counts as complete, and so does a bitmap or an animation that only lacks padding.
    """
    data = WHOLE[name]
    start = data[: max(16, int(len(data) * share))]
    spare = {"GIF": 1, "GIF, animated": 1, "PNG": 4, "PNG, animated": 4, "TIFF": 300, "TIFF, packed": 300}.get(name, 0)
    if len(start) < len(data) - spare:
        assert not _is_taken(start), len(start)


@pytest.mark.parametrize("name", ["WEBP", "ICO", "ICNS", "PNG", "mp4", "mp4, index first", "mov", "avi"])
def test_a_header_alone_tells_that_a_file_is_cut(name: str) -> None:
    """A format whose header declares its length is rejected without being read completely."""
    data = WHOLE[name]
    head = data[: max(60, len(data) // 3)]
    assert find_truncation(head, len(data), _kind(data)) is None
    assert find_truncation(head, len(data) // 2, _kind(data)) is not None


def test_what_is_not_at_hand_is_not_judged() -> None:
    """The end of a JPEG, a GIF or a JPEG 2000 can't be found from its first bytes."""
    for name in ("JPEG", "GIF", "JPEG 2000"):
        assert find_truncation(WHOLE[name][:200], len(WHOLE[name]), _kind(WHOLE[name])) is None


def test_a_film_without_its_index_was_not_finished() -> None:
    """All boxes are complete, but the index is missing."""
    unfinished = without(film(), [b"moov"])
    assert "moov" in str(find_truncation(unfinished, len(unfinished), _kind(unfinished)))


def test_a_films_boxes_may_have_long_lengths_or_none() -> None:
    """64-bit lengths are read; the last box may extend to the end of the file without a length."""
    parts = dict(boxes(film()))
    body = parts[b"mdat"][8:]
    long = parts[b"ftyp"] + parts[b"moov"] + struct.pack(">I4sQ", 1, b"mdat", 16 + len(body)) + body
    endless = parts[b"ftyp"] + parts[b"moov"] + struct.pack(">I4s", 0, b"mdat") + body
    assert find_truncation(long, len(long), _kind(long)) is None
    assert find_truncation(long[:-1], len(long) - 1, _kind(long)) is not None
    assert find_truncation(endless, len(endless), _kind(endless)) is None


@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 200), st.binary(min_size=1, max_size=8), st.booleans())
def test_damaged_headers_raise_nothing(name: str, at: int, noise: bytes, whole: bool) -> None:
    """For any header, the result is a reason or None."""
    data = WHOLE[name][:at] + noise + WHOLE[name][at + len(noise) :]
    kind = detect_kind(data)
    if kind is not None:
        find_truncation(data, len(data) if whole else 10**9, kind)


@pytest.mark.parametrize(
    ("name", "words"),
    [("psd", "Photoshop"), ("svg", "SVG"), ("pdf", "PDF"), ("html", "HTML"), ("text", "text"), ("webm", "WebM")],
)
def test_other_files_are_named(name: str, words: str) -> None:
    """The message says what a file of a wrong format is."""
    assert words in describe_unknown(FAKES[name])
    assert detect_kind(FAKES[name]) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_read_without_unpacking(pillow_format: str, orientation: int) -> None:
    """All eight orientations are read from EXIF."""
    data = rotated(orientation, pillow_format=pillow_format)
    facts = read_header(data, _kind(data), whole=True)
    assert facts is not None
    assert (facts.orientation, facts.size_px) == (orientation, (64, 48))
