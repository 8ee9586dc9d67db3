"""Go through the blocks of image files: chunks, segments, sub-blocks. The number of blocks is bounded.

A hostile file has millions of tiny blocks, which take seconds. A usual one of 50 MB has thousands.
"""

import re
import struct
from collections.abc import Iterator

from arkbeam.media.looking import fail_too_slow

BLOCKS_MAX = 1_000_000
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # inside a scan: neither a stuffed zero nor a restart marker
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk, where its body starts, and its length as declared. Bodies may be cut off."""
    at = 8
    for _ in range(BLOCKS_MAX):
        if at + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, length
        at += 12 + length
    fail_too_slow(f"the PNG has more than {BLOCKS_MAX:,} chunks")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment, where its body starts, and the body's length. Pixel data are skipped."""
    at = 2
    for _ in range(BLOCKS_MAX):
        found = _JPEG_MARKER.search(data, at)
        if found is None:
            return
        marker, start = found[1][0], found.end()
        length = 0 if marker in _WITHOUT_LENGTH else int.from_bytes(data[start : start + 2], "big")
        yield marker, start + 2, max(0, length - 2)
        at = start + length
    fail_too_slow(f"the JPEG has more than {BLOCKS_MAX:,} segments")


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each chunk of a WebP, where its body starts, and its length as declared."""
    at = 12
    for _ in range(BLOCKS_MAX):
        if at + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, length
        at += 8 + length + length % 2
    fail_too_slow(f"the WebP has more than {BLOCKS_MAX:,} chunks")


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield the introducer of each block of a GIF, where the block starts, and True if it is complete."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    left = BLOCKS_MAX
    while at < len(data) and data[at] in (0x21, 0x2C):
        start = at
        if data[at] == 0x2C:
            if at + 10 > len(data):
                yield data[start], start, False
                return
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        else:
            at += 2
        while at < len(data) and data[at] and left:
            at += 1 + data[at]
            left -= 1
        if not left:
            fail_too_slow(f"the GIF has more than {BLOCKS_MAX:,} blocks")
        yield data[start], start, at < len(data)
        at += 1
        left -= 1
