"""Read an image's header: its size, and properties that services often handle badly. Pixels are not decoded.

The common formats have short parsers that stop at the first pixels and go through a bounded number of blocks, so that no
metadata can hold them up. Other formats are read by Pillow in a worker process.
"""

import struct
import zlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from arkbeam.base.bad_rows import fail_row
from arkbeam.decoding.ranges import RangedFile, Reader
from arkbeam.media.blocks import gif_blocks, jpeg_segments, png_chunks, riff_chunks
from arkbeam.media.facts import ImageFacts
from arkbeam.media.jp2 import read_jp2
from arkbeam.media.kinds import BMP, DIB, GIF, HEIC, JPEG, JPEG2000, PNG, SGI, TIFF, WEBP, Kind
from arkbeam.media.looking import look
from arkbeam.media.tiff import read_tiff

LOOK_S = 5.0
_TURNED = range(2, 9)
_ORIENTATION = 274
_WHOLE_NUMBERS = {3: "H", 4: "I", 8: "h", 9: "i"}
_SIZES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7))  # SOF
_JPEG_LS, _APP1, _SOS = 0xF7, 0xE1, 0xDA
_EXIF = b"Exif\0\0"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_BITMAP_HEADERS = range(16, 257)
_BITMAP_DEPTHS = (0, 1, 2, 4, 8, 16, 24, 32)


def read_header(
    data: bytes, kind: Kind, *, whole: bool, size: int = 0, read: Reader | None = None, look_s: float = LOOK_S
) -> ImageFacts | None:
    """Read an image's header from its first bytes; return None if they don't contain it or it can't be read.

    `whole`: `data` are all bytes of the image. Otherwise `read` returns others of its `size` bytes, for a directory at the
    end of a TIFF. Raise BadRow: `media_too_slow`, and `media_not_image` for a JPEG-LS.
    """
    try:
        if kind is TIFF:
            return _read_tiff(data, size if read is not None else len(data), read)
        parse = _PARSERS.get(kind)
        if parse is not None:
            return parse(data, whole)
    except (struct.error, IndexError):
        return None
    return _read_by_pillow(data, kind, look_s)


@cache
def can_read_heic() -> bool:
    """Return True if pillow-heif (the extra `heif`) is installed. Only worker processes import it."""
    return find_spec("pillow_heif") is not None


def _read_by_pillow(data: bytes, kind: Kind, look_s: float) -> ImageFacts | None:
    if kind is HEIC and not can_read_heic():
        return None
    found, _ = look("open", {"formats": kind.pillow_formats}, data, look_s)
    if "error" in found:
        return None
    width, height = found["size"]
    turned = found["orientation"] in _TURNED and kind is not HEIC
    return ImageFacts(
        kind,
        (width, height),
        cmyk=found["mode"] == "CMYK",
        transparent=found["transparent"],
        deep=found["mode"] in ("I", "F") or found["mode"].startswith("I;16"),
        orientation=found["orientation"] if turned else 1,
    )


def _read_tiff(data: bytes, size: int, read: Reader | None) -> ImageFacts | None:
    file = RangedFile(data, size, read or (lambda start, end: b""))
    try:
        return read_tiff(file, size)
    except OSError:
        if file.fault is not None:
            raise file.fault from None
        return None


def _read_jpeg(data: bytes, whole: bool) -> ImageFacts | None:
    exif = b""
    size_px: tuple[int, int] | None = None
    channels = 0
    for marker, start, length in jpeg_segments(data):
        if marker == _JPEG_LS:
            fail_row("media_not_image", "this is JPEG-LS, not an image that the API accepts")
        if marker in _SIZES and size_px is None:
            _, height, width, channels = struct.unpack_from(">BHHB", data, start)
            size_px = width, height
        elif marker == _APP1 and data.startswith(_EXIF, start):
            exif += data[start + len(_EXIF) : start + length]
        elif marker == _SOS:
            break
    else:
        return None
    if size_px is None or 0 in size_px:
        return None
    return ImageFacts(JPEG, size_px, cmyk=channels == 4, orientation=_read_orientation(exif))


def _read_png(data: bytes, whole: bool) -> ImageFacts | None:
    width, height, depth, colour, packing, filtering, _, checksum = struct.unpack_from(">IIBBBBBI", data, 16)
    is_known = depth in _PNG_DEPTHS.get(colour, ()) and packing == filtering == 0
    if data[12:16] != b"IHDR" or zlib.crc32(data[12:29]) != checksum or 0 in (width, height) or not is_known:
        return None
    exif, seen, frames = b"", set(), 0
    for name, start, length in png_chunks(data):
        if name == b"IDAT":
            break
        if name == b"IEND":
            fail_row("media_damaged", "the PNG has no pixels (IDAT)")
        if name == b"acTL":
            frames = 0 if name in seen else struct.unpack_from(">I", data, start)[0]  # a second one is an error
        elif name == b"eXIf" and start + length <= len(data):
            exif = data[start : start + length].removeprefix(_EXIF)
        seen.add(name)
    else:
        return None
    return ImageFacts(
        PNG,
        (width, height),
        transparent=colour in (4, 6) or b"tRNS" in seen,
        deep=depth > 8,
        orientation=_read_orientation(exif),
        animated=0 < frames <= 2**31 and frames + (b"fcTL" not in seen) > 1,
        ranged=depth == 16 and colour == 0,
    )


def _read_gif(data: bytes, whole: bool) -> ImageFacts | None:
    """Read a GIF to its second image; the first may be larger than the screen."""
    width, height = struct.unpack_from("<HH", data, 6)
    frames, transparent = 0, False
    for name, start, _ in gif_blocks(data):
        if name != 0x2C:
            transparent |= frames == 0 and data[start + 1] == 0xF9 and bool(data[start + 3] & 1)
            continue
        frames += 1
        if frames == 2:
            break
        left, top, across, down = struct.unpack_from("<HHHH", data, start + 1)
        width, height = max(width, left + across), max(height, top + down)
    if not frames or 0 in (width, height):
        return None
    animated = frames > 1
    return ImageFacts(
        GIF, (width, height), transparent=transparent, animated=animated, undecided=not animated and not whole
    )


def _read_bitmap(data: bytes, whole: bool) -> ImageFacts | None:
    return _parse_bitmap(data, 14, BMP)


def _read_dib(data: bytes, whole: bool) -> ImageFacts | None:
    return _parse_bitmap(data, 0, DIB)


def _parse_bitmap(data: bytes, at: int, kind: Kind) -> ImageFacts | None:
    """Read a bitmap. Of those with bit fields, the fourth mask is transparency."""
    (header,) = struct.unpack_from("<I", data, at)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, at + 4)
        return ImageFacts(kind, (width, height)) if 0 not in (width, height) else None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, at + 4)
    alpha = 0
    if compression in (3, 6) and bits == 32 and (header >= 56 or compression == 6):
        (alpha,) = struct.unpack_from("<I", data, at + 52)
    if header not in _BITMAP_HEADERS or bits not in _BITMAP_DEPTHS or width <= 0 or height == 0:
        return None
    return ImageFacts(kind, (width, abs(height)), transparent=bool(alpha))


def is_packed_bitmap(data: bytes, kind: Kind) -> bool:
    """Return True for a bitmap with compressed pixels. Pillow decodes them slowly, and nothing tells their length."""
    at = {BMP: 14, DIB: 0}.get(kind)
    return at is not None and data[at : at + 1] != b"\x0c" and data[at + 16 : at + 20] not in (bytes(4), b"\3\0\0\0")


def _read_sgi(data: bytes, whole: bool) -> ImageFacts | None:
    depth, dimension, width, height, channels = struct.unpack_from(">BHHHH", data, 3)
    if 0 in (width, height):
        return None
    return ImageFacts(SGI, (width, height), transparent=dimension > 2 and channels == 4, deep=depth > 1)


def _read_webp(data: bytes, whole: bool) -> ImageFacts | None:
    """Read a WebP header (RFC 9649). EXIF comes after the pixels."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        flags = data[20]
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        animated, has_exif = bool(flags & 0x02), bool(flags & 0x08)
        return ImageFacts(
            WEBP,
            (width, height),
            transparent=bool(flags & 0x10),
            orientation=_read_orientation(_find_webp_exif(data)) if has_exif and whole else 1,
            animated=animated,
            undecided=has_exif and not whole and not animated,
        )
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageFacts(WEBP, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), transparent=bool(bits >> 28 & 1))
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageFacts(WEBP, (width & 0x3FFF, height & 0x3FFF))
    return None


def _find_webp_exif(data: bytes) -> bytes:
    exif = next((data[start : start + length] for name, start, length in riff_chunks(data) if name == b"EXIF"), b"")
    return exif.removeprefix(_EXIF)


def _read_orientation(exif: bytes) -> int:
    """Read the orientation from an EXIF block; 1 if the block is damaged or has none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    entry, found = struct.Struct(f"{order}HHI4s"), 1
    try:
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for index in range(count):
            tag, kind, number, inline = entry.unpack_from(exif, at + 2 + index * entry.size)
            if tag == _ORIENTATION and number == 1 and kind in _WHOLE_NUMBERS:
                (found,) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], inline)
    except struct.error:  # Pillow, and so earlier versions, take no tag of a damaged block
        return 1
    return found if found in _TURNED else 1


_PARSERS: dict[Kind, Callable[[bytes, bool], ImageFacts | None]] = {
    JPEG: _read_jpeg,
    PNG: _read_png,
    GIF: _read_gif,
    WEBP: _read_webp,
    BMP: _read_bitmap,
    DIB: _read_dib,
    SGI: _read_sgi,
    JPEG2000: lambda data, whole: read_jp2(data),
}
