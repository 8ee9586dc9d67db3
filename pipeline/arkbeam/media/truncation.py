"""Detect truncated files by the lengths in their headers and by end markers. Pixels and frames are not decoded.

Truncated files are refused before they are paid for. Extra bytes after the end of a file are accepted, as decoders do. Of
the formats that are not checked here, `checks` has the whole file decoded before it is sent.
"""

import struct

from arkbeam.media.blocks import gif_blocks, jpeg_segments, png_chunks
from arkbeam.media.jp2 import find_jp2_cut
from arkbeam.media.kinds import AVI, GIF, ICNS, ICO, JPEG, JPEG2000, MOV, MP4, PNG, WEBP, Kind

_BOXES_MAX = 10_000
_ICONS_MAX = 256
_SOS, _EOI = 0xDA, 0xD9
_GIF_IMAGE = 0x2C
_JPEG_END = b"\xff\xd9"
_UNKNOWN_LENGTHS = (0, 2**32 - 1)
_INDEX, _FRAMES = b"moov", (b"mdat", b"moof")
_KNOWN_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"styp", b"pnot", b"wide")


def find_truncation(data: bytes, size: int, kind: Kind) -> str | None:
    """Return why a file of `size` bytes counts as truncated, as text for a message; None if it seems complete.

    `data` are its first bytes or all of them. If they are all, each format is checked to its end; otherwise only the
    lengths in the headers are compared with `size`. Raise BadRow (`media_too_slow`).
    """
    try:
        return _find_truncation(data, size, kind)
    except (struct.error, IndexError):  # the header itself is truncated
        return "the file ends within its header" if len(data) >= size else None


def _find_truncation(data: bytes, size: int, kind: Kind) -> str | None:
    if kind in (MP4, MOV):
        return _find_movie_truncation(data, size)
    if kind is PNG:
        return _find_png_truncation(data, size)
    if kind in (WEBP, AVI):
        (length,) = struct.unpack_from("<I", data, 4)
        is_known = kind is WEBP or length not in _UNKNOWN_LENGTHS  # an avi that was written to a pipe has none
        return _reaches("the RIFF header", length + 8, size) if is_known else None
    if kind is ICNS:
        return _reaches("the header", struct.unpack_from(">I", data, 4)[0], size)
    if kind is ICO:
        count = min(struct.unpack_from("<H", data, 4)[0], _ICONS_MAX)
        ends = (sum(struct.unpack_from("<II", data, 6 + 16 * index + 8)) for index in range(count))
        return _reaches("the directory", max(ends, default=0), size)
    return _find_missing_end(data, kind) if len(data) >= size else None


def _find_missing_end(data: bytes, kind: Kind) -> str | None:
    if kind is JPEG and not _has_jpeg_end(data):
        return "no end marker (EOI)"
    if kind is GIF and not _is_whole_gif(data):
        return "the file ends within a block"
    return find_jp2_cut(data) if kind is JPEG2000 else None


def _reaches(what: str, end: int, size: int) -> str | None:
    return f"{what} declares {end} bytes; the file has {size}" if end > size else None


def _find_png_truncation(data: bytes, size: int) -> str | None:
    for name, start, length in png_chunks(data):
        if start + length + 4 > size:
            return _reaches(f"chunk {name.decode('latin-1')!r}", start + length + 4, size)
        if name == b"IEND":
            return None
    return "no end marker (IEND)" if len(data) >= size else None


def _has_jpeg_end(data: bytes) -> bool:
    """Follow a JPEG's segments to its end marker; end markers of thumbnails inside segments don't count."""
    for marker, _, _ in jpeg_segments(data):
        if marker == _EOI:
            return True
        if marker == _SOS and data.endswith(_JPEG_END):
            return True  # pixel data can't contain the marker; searching all of it would take a millisecond
    return False


def _is_whole_gif(data: bytes) -> bool:
    """Return True for at least one image, and no block that is cut off. All decoders accept a GIF without its last byte."""
    frames = 0
    for name, _, complete in gif_blocks(data):
        if not complete:
            return False
        frames += name == _GIF_IMAGE
    return frames > 0


def _find_movie_truncation(data: bytes, size: int) -> str | None:
    """Follow the boxes of a movie (ISO 14496-12) through the bytes at hand.

    Bytes behind the last box that are no box are accepted: once the index and the frames are complete, only the known
    boxes can be cut off.
    """
    at = boxes = 0
    seen: set[bytes] = set()
    while at + 8 <= len(data) and boxes < _BOXES_MAX:
        length, name = struct.unpack_from(">I4s", data, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8:
            return None
        boxes += 1
        at += length
        if at > size:
            is_complete = _INDEX in seen and not seen.isdisjoint(_FRAMES)
            is_spare = is_complete and name not in _KNOWN_BOXES
            return None if is_spare else _reaches(f"box {name.decode('latin-1')!r}", at, size)
        seen.add(name)
    if at >= size and _INDEX not in seen:
        return "no index (moov box); the recording was not finished"
    return None
