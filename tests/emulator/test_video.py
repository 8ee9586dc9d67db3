"""Format and duration from the headers of videos."""

import struct

import pytest
from arkbeam.emulator.media import detect_video, video_duration_s
from hypothesis import given
from hypothesis import strategies as st

SCALE = 1_000
UNKNOWN_32, UNKNOWN_64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


def box(kind: bytes, content: bytes) -> bytes:
    """Make one box of a movie file."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def movie_header(length: int, version: int = 0, scale: int = SCALE) -> bytes:
    """Make an `mvhd` box, with the fields after the duration as in real files."""
    times = struct.pack(">QQIQ" if version else ">IIII", 1, 2, scale, length)
    return box(b"mvhd", bytes([version, 0, 0, 0]) + times + bytes(80))


def extends_header(length: int, version: int = 0) -> bytes:
    """Make the box with the duration of a fragmented file."""
    return box(b"mvex", box(b"mehd", bytes([version, 0, 0, 0]) + struct.pack(">Q" if version else ">I", length)))


def mp4(*inside_moov: bytes, before: bytes = b"", brand: bytes = b"isom") -> bytes:
    """Make a file with a type box, other boxes and the movie box."""
    return box(b"ftyp", brand + bytes(4)) + before + box(b"moov", b"".join(inside_moov))


def avi(frames: int = 50, frame_us: int = 40_000) -> bytes:
    """Make the start of an avi file."""
    header = b"avih" + struct.pack("<IIIIII", 56, frame_us, 0, 0, 0, frames)
    return b"RIFF" + bytes(4) + b"AVI LIST" + struct.pack("<I", 4 + len(header)) + b"hdrl" + header


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (mp4(), "mp4"),
        (mp4(brand=b"qt  "), "quicktime"),
        (box(b"wide", b""), "quicktime"),
        (avi(), "avi"),
        (b"RIFF0000WEBP", None),
        (b"", None),
    ],
)
def test_formats(data: bytes, kind: str | None) -> None:
    """The first bytes determine the format; anything else is not a video."""
    assert detect_video(data) == kind


FAKE = box(b"mdat", b"....mvhd" + bytes(40) + movie_header(99_000))


@pytest.mark.parametrize(
    ("data", "duration_s"),
    [
        (mp4(movie_header(7_500)), 7.5),
        (mp4(movie_header(7_500, version=1)), 7.5),
        (mp4(box(b"udta", b"x"), movie_header(7_500), before=FAKE), 7.5),
        (mp4(movie_header(7_500), before=struct.pack(">I4sQ", 1, b"mdat", 16 + 40) + bytes(40)), 7.5),
        (mp4(movie_header(0), extends_header(3_000)), 3.0),
        (mp4(movie_header(UNKNOWN_32), extends_header(3_000, version=1)), 3.0),
        (mp4(movie_header(UNKNOWN_64, version=1)), None),
        (mp4(movie_header(0)), None),
        (mp4(movie_header(5, scale=0)), None),
        (mp4(movie_header(7_500))[:-90], None),
        (mp4(box(b"trak", b"")), None),
        (box(b"ftyp", b"isom") + FAKE, None),
        (box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"moov") + movie_header(7_500), 7.5),
        (box(b"ftyp", b"isom") + struct.pack(">I4s", 4, b"mdat"), None),
        (avi(50, 40_000), 2.0),
        (avi(0), None),
        (avi()[:40], None),
        (avi().replace(b"hdrl", b"odml"), None),
        (b"", None),
    ],
)
def test_durations(data: bytes, duration_s: float | None) -> None:
    """The duration is that of the movie header, at any position, and None if the file has none."""
    assert video_duration_s(data) == duration_s


@given(st.binary(max_size=200), st.integers(0, 250))
def test_hostile_bytes(noise: bytes, cut: int) -> None:
    """Random bytes give no exception, no negative duration and no endless loop."""
    for data in (noise, b"RIFF" + noise, mp4(movie_header(7_500), noise)[:cut], mp4(noise, before=noise)):
        duration_s = video_duration_s(data)
        assert duration_s is None or duration_s > 0
