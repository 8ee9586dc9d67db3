"""Read the index of a film from the boxes of an mp4 or mov, or from the header of an avi. Frames are not decoded.

Nothing here takes long: the number of boxes and the bytes that are read are bounded. What can't be understood is unknown.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from arkbeam.decoding.ranges import BLOCK_BYTES, RangedFile, read_bytes

BOXES_MAX = 10_000
INDEX_BYTES_MAX = 8 * 1024 * 1024
ENCRYPTED = (b"encv", b"drmi", b"drms")
_SAMPLE_TABLE = (b"mdia", b"minf", b"stbl")


@dataclass(slots=True)
class Track:
    """A track of an mp4 or mov, or a stream of an avi. None where the index does not say."""

    handler: bytes | None = None
    """`vide` or `vids` for video, `soun` or `auds` for sound."""
    codec: bytes | None = None
    frames: int | None = None
    first_byte: int | None = None
    """Where its first frame is in the file."""

    @property
    def is_video(self) -> bool:
        """True for a track of video."""
        return self.handler in (b"vide", b"vids")


@dataclass(slots=True)
class Film:
    """What the index of a film says."""

    tracks: list[Track] = field(default_factory=list)
    duration_s: float | None = None
    fragmented: bool = False
    """The frames have indexes of their own, behind the main one."""
    has_frames: bool = True
    """False if the boxes were read to the end of the file, and none of them holds frames."""


def read_boxes(file: RangedFile, size: int) -> Film | None:
    """Read an mp4 or mov; None if its index is not found or not understood. Raise OSError as RangedFile does."""
    at, film = 0, None
    seen: set[bytes] = set()
    for _ in range(BOXES_MAX):
        name, body, end = _read_box(file, at, size)
        if name is None or end > size:
            return film
        seen.add(name)
        if name == b"moov" and film is None:
            film = _parse_index(read_bytes(file, body, end)) if end - body <= INDEX_BYTES_MAX else None
            if film is None:
                return None
        if film is not None and (b"moof" in seen or (b"mdat" in seen and not film.fragmented)):
            return film
        at = end
        if at >= size:
            if film is not None:
                film.has_frames = b"mdat" in seen
            return film
    return None


def read_avi(file: RangedFile) -> Film | None:
    """Read an avi; None if its header is not in the first 64 KiB. Raise OSError as RangedFile does."""
    film, head = Film(), read_bytes(file, 0, BLOCK_BYTES)
    if head[12:16] != b"LIST" or head[20:24] != b"hdrl":
        return None
    end = 20 + int.from_bytes(head[16:20], "little")
    if end > len(head):
        return None
    for name, body in _chunks(head, 24, end):
        if name == b"LIST" and body[:4] == b"strl":
            header = next((part for inner, part in _chunks(body, 4, len(body)) if inner == b"strh"), b"")
            if len(header) < 36:
                return None
            scale, rate, _, length = struct.unpack_from("<4I", header, 20)
            track = Track(header[:4], header[4:8], length or None)
            film.tracks.append(track)
            if track.is_video and scale and rate and length:
                film.duration_s = length * scale / rate
    return film if film.tracks else None


def _chunks(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(BOXES_MAX):
        if at + 8 > end:
            return
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : min(at + 8 + length, end)]
        at += 8 + length + length % 2


def _read_box(file: RangedFile, at: int, size: int) -> tuple[bytes | None, int, int]:
    """Return the name of the box at a position, the start of its body and its end; no name if there is no box."""
    header = read_bytes(file, at, min(at + 16, size))
    if len(header) < 8:
        return None, at, at
    return _parse_box(header, 0, size - at, at)


def _parse_box(data: bytes, at: int, left: int, base: int = 0) -> tuple[bytes | None, int, int]:
    length, name = struct.unpack_from(">I4s", data, at)
    start = 8
    if length == 1 and len(data) >= at + 16:
        (length,) = struct.unpack_from(">Q", data, at + 8)
        start = 16
    elif length == 0:  # up to the end of the file
        length = left
    return (name, base + at + start, base + at + length) if length >= start else (None, base + at, base + at)


def _inner(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    for _ in range(BOXES_MAX):
        if at + 8 > len(data):
            return
        name, body, end = _parse_box(data, at, len(data) - at)
        if name is None or end > len(data):
            return
        yield name, data[body:end]
        at = end


def _parse_index(moov: bytes) -> Film | None:
    film = Film()
    scale = duration = 0
    for name, body in _inner(moov):
        if name == b"trak":
            film.tracks.append(_parse_track(body))
        elif name == b"mvhd":
            scale, duration = _unpack(body, (">12xII", ">20xIQ"))
        elif name == b"mvex":
            film.fragmented = True
            header = next((part for inner, part in _inner(body) if inner == b"mehd"), b"")
            (duration,) = _unpack(header, (">4xI", ">4xQ")) if len(header) >= 8 else (duration,)
    if scale and duration not in (0, 2**32 - 1, 2**64 - 1):
        film.duration_s = duration / scale
    return film if film.tracks else None


def _unpack(body: bytes, layouts: tuple[str, str]) -> tuple[int, ...]:
    """Unpack a box of version 0 or 1; zeros if it is too short."""
    layout = struct.Struct(layouts[body[:1] == b"\1"])
    return layout.unpack_from(body.ljust(layout.size, b"\0"))


def _parse_track(trak: bytes) -> Track:
    track, level = Track(), [(b"trak", trak)]
    for _ in range(len(_SAMPLE_TABLE) + 1):
        deeper = []
        for _, body in level:
            for name, inner in _inner(body):
                _note(track, name, inner)
                if name in _SAMPLE_TABLE:
                    deeper.append((name, inner))
        level = deeper
    return track


def _note(track: Track, name: bytes, body: bytes) -> None:
    if name == b"hdlr" and len(body) >= 12 and track.handler is None:
        track.handler = body[8:12]
    elif name == b"stsd" and len(body) >= 16:
        track.codec = body[12:16]
    elif name in (b"stsz", b"stz2") and len(body) >= 12:
        (track.frames,) = struct.unpack_from(">I", body, 8)
    elif name == b"stco" and len(body) >= 12:
        (track.first_byte,) = struct.unpack_from(">I", body, 8)
    elif name == b"co64" and len(body) >= 16:
        (track.first_byte,) = struct.unpack_from(">Q", body, 8)
