"""Detect truncated files by the lengths in their headers and by end markers. Pixels and frames are not decoded.

Truncated files are refused before they are paid for. Extra bytes after the end of a file are accepted, as decoders do.
"""

import re
import struct
from collections.abc import Callable, Iterator

from arkbeam.media.kinds import AVI, BMP, DIB, GIF, ICNS, ICO, JPEG, JPEG2000, MOV, MP4, PNG, SGI, WEBP, Kind

_BOXES_MAX = 10_000
_ICONS_MAX = 256
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # inside a scan: neither a stuffed zero nor a restart marker
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
_SOS, _EOI = 0xDA, 0xD9
_JPEG_END = _JPEG2000_END = b"\xff\xd9"


def find_truncation(data: bytes, size: int, kind: Kind) -> str | None:
    """Return why a file of `size` bytes counts as truncated, as text for a message; None if it seems complete.

    `data` are its first bytes or all of them. If they are all, each format is checked to its end; otherwise only the
    lengths in the headers are compared with `size`.
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
    if kind in _ENDS:
        what, find_end = _ENDS[kind]
        return _reaches(what, find_end(data), size)
    if len(data) < size:
        return None
    if kind is JPEG and not _has_jpeg_end(data):
        return "no end marker (EOI)"
    if kind is GIF and count_gif_frames(data, strict=True) < 1:
        return "the file ends within a block"
    if kind is JPEG2000 and _JPEG2000_END not in data[-64:]:
        return "no end marker (EOC)"
    return None


def _reaches(what: str, end: int, size: int) -> str | None:
    return f"{what} declares {end} bytes; the file has {size}" if end > size else None


def _riff_end(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 4)[0]) + 8


def _icns_end(data: bytes) -> int:
    return int(struct.unpack_from(">I", data, 4)[0])


def _ico_end(data: bytes) -> int:
    count = min(struct.unpack_from("<H", data, 4)[0], _ICONS_MAX)
    return max((sum(struct.unpack_from("<II", data, 6 + 16 * index + 8)) for index in range(count)), default=0)


def _bitmap_end(data: bytes, at: int) -> int:
    """Return where the pixels of a bitmap end.

    Return 0 if they are compressed: their length is then not in the header.
    """
    (header,) = struct.unpack_from("<I", data, at)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, at + 4)
        compression = colours = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, at + 4)
        (colours,) = struct.unpack_from("<I", data, at + 32)
    if compression not in (0, 3):
        return 0
    pixels: int = (int(width) * bits + 31) // 32 * 4 * abs(height)
    if at:
        return int(struct.unpack_from("<I", data, 10)[0]) + pixels
    palette = (colours or (1 << bits if bits <= 8 else 0)) * (3 if header == 12 else 4)
    masks = 12 if compression == 3 and header == 40 else 0
    return int(header) + palette + masks + pixels


def _sgi_end(data: bytes) -> int:
    """Return where an SGI image ends: computed from its size, or from its table of rows if they are compressed."""
    packed, depth, dimension, width, height, channels = struct.unpack_from(">BBHHHH", data, 2)
    rows = (height if dimension > 1 else 1) * (channels if dimension > 2 else 1)
    if not packed:
        return 512 + int(width) * rows * int(depth)
    table = struct.Struct(f">{rows}I")
    if len(data) < 512 + 2 * table.size:
        return 512 + 2 * table.size
    starts, lengths = table.unpack_from(data, 512), table.unpack_from(data, 512 + table.size)
    return max(map(sum, zip(starts, lengths, strict=True)), default=0)


_ENDS: dict[Kind, tuple[str, Callable[[bytes], int]]] = {
    WEBP: ("the RIFF header", _riff_end),
    AVI: ("the RIFF header", _riff_end),
    BMP: ("the header", lambda data: _bitmap_end(data, 14)),
    DIB: ("the header", lambda data: _bitmap_end(data, 0)),
    ICNS: ("the header", _icns_end),
    ICO: ("the directory", _ico_end),
    SGI: ("the header", _sgi_end),
}
"""Formats whose header tells their length: the name of that header for messages, and a function that reads the
length."""


def _find_png_truncation(data: bytes, size: int) -> str | None:
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > size:
            return _reaches(f"chunk {name.decode('latin-1')!r}", at, size)
        if name == b"IEND":
            return None
    return "no end marker (IEND)" if len(data) >= size else None


def _has_jpeg_end(data: bytes) -> bool:
    """Follow a JPEG's segments to its end marker; end markers of thumbnails inside segments don't count."""
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            return True
        if marker == _SOS and data.endswith(_JPEG_END):
            return True  # pixel data can't contain the marker; searching all of it would take a millisecond
        if marker not in _NO_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return False


def count_gif_frames(data: bytes, *, strict: bool = False) -> int:
    """Count the images of a GIF, up to two. `strict`: count all images, or return 0 if the file ends within a block.

    A GIF without its last byte, the trailer, counts as complete: all decoders accept it.
    """
    frames = 0
    for name, complete in _gif_blocks(data):
        frames += name == 0x2C and (complete or not strict)
        if frames == 2 and not strict:
            break
        if not complete:
            return 0 if strict else frames
    return frames


def _gif_blocks(data: bytes) -> Iterator[tuple[int, bool]]:
    """Yield the introducer of each block, and True if the block is complete."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while at < len(data) and data[at] in (0x21, 0x2C):
        name = data[at]
        if name == 0x2C:
            if at + 10 > len(data):
                yield name, False
                return
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        yield name, at < len(data)
        at += 1


def _find_movie_truncation(data: bytes, size: int) -> str | None:
    """Follow the boxes of a movie (ISO 14496-12) through the bytes at hand."""
    at = boxes = 0
    seen = set()
    while at + 8 <= len(data) and boxes < _BOXES_MAX:
        length, name = struct.unpack_from(">I4s", data, at)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
        elif length == 0:  # up to the end of the file
            length = size - at
        if length < 8:
            return None
        seen.add(name)
        boxes += 1
        at += length
        if at > size:
            return _reaches(f"box {name.decode('latin-1')!r}", at, size)
    if at >= size and b"moov" not in seen:
        return "no index (moov box); the recording was not finished"
    return None
