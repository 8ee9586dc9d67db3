"""Leave out the parts of a picture file that do not matter for its pixels: they may be damaged, or slow to read.

Pillow reads every text, comment and application block, some of them in time that grows with the square of their number.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Sequence

ICC_BYTES_MAX = 65_536
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL")
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SOS, _JFIF, _ICC, _ADOBE = 0xDA, 0xE0, 0xE2, 0xEE
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))
_JFIF_BYTES = 16
_GIF_CONTROL, _GIF_IMAGE = 0xF9, 0x2C

Span = tuple[int, int]
"""The start and the end of bytes that are kept."""


def strip_metadata(data: bytes, formats: Sequence[str]) -> bytes:
    """Return a PNG, JPEG or GIF without metadata; other formats, and what can't be followed, as they are.

    An AVIF gets the brand by which Pillow knows it.
    """
    if formats[0] == "AVIF":
        return data[:8] + b"avif" + data[12:]
    strip = {"PNG": _strip_png, "JPEG": _strip_jpeg, "GIF": _strip_gif}.get(formats[0])
    if strip is None:
        return data
    try:
        spans = list(strip(data))
    except (struct.error, IndexError):
        return data
    if sum(end - start for start, end in spans) >= len(data):  # a copy would need as much memory again
        return data
    view = memoryview(data)
    return b"".join(view[start:end] for start, end in spans)


def _strip_png(data: bytes) -> Iterator[Span]:
    yield 0, 8
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = min(at + 12 + length, len(data))
        if name in _PNG_KEPT or (name == b"iCCP" and _is_small_profile(data[at + 8 : end - 4])):
            yield at, end
        at = end
        if name == b"IEND":
            return


def _is_small_profile(body: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(body[body.index(0) + 2 :], ICC_BYTES_MAX + 1)
    except (zlib.error, ValueError):
        return False
    return unpacker.eof and len(profile) <= ICC_BYTES_MAX


def _strip_jpeg(data: bytes) -> Iterator[Span]:
    yield 0, 2
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) is not None:
        marker, start = found[1][0], found.end()
        if marker == _SOS:
            yield start - 2, len(data)
            return
        end = start if marker in _WITHOUT_LENGTH else start + max(2, int.from_bytes(data[start : start + 2], "big"))
        body = data[start + 2 : end]
        is_kept = not 0xE0 <= marker <= 0xFE or {
            _JFIF: len(body) + 2 >= _JFIF_BYTES,
            _ICC: body.startswith(b"ICC_PROFILE\0"),
            _ADOBE: body.startswith(b"Adobe"),
        }.get(marker, False)
        if is_kept:
            yield start - 2, min(end, len(data))
        at = end


def _strip_gif(data: bytes) -> Iterator[Span]:
    """Keep the first image and the control block before it."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    yield 0, at
    while data[at] != _GIF_IMAGE:
        if data[at] != 0x21:
            at += 1
            continue
        start, at, is_kept = at, at + 2, data[at + 1] == _GIF_CONTROL
        while data[at]:
            at += 1 + data[at]
        at += 1
        if is_kept:
            yield start, at
    yield at, len(data)
