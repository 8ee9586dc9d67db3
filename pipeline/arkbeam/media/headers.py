"""Read an image's header: its size, and properties that services often handle badly. Pixels are not decoded."""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.media.kinds import GIF, HEIC, PNG, SGI, TIFF, WEBP, Kind
from arkbeam.media.truncation import count_gif_frames

_EXIF_ORIENTATION = 274
_TIFF_BITS = 258
_TURNED = range(2, 9)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as its header describes it. `size_px` is width and height before any rotation by EXIF.

    Decoders turn TIFF and HEIC images upright, so these count as upright.
    """

    kind: Kind
    size_px: tuple[int, int]
    cmyk: bool = False
    transparent: bool = False
    """The image has an alpha channel or a transparent colour, even if no pixel uses it."""
    deep: bool = False
    """The image has more than 8 bits a channel."""
    orientation: int = 1
    """From EXIF, 1 to 8: 1 is upright; with 5 to 8, width and height are swapped."""
    animated: bool = False
    undecided: bool = False
    """True if more bytes are needed to see if the image is animated or rotated."""
    bytes_min: int = 0
    """Length of the file in bytes according to its directory of strips or tiles; 0 if it has none."""


def read_header(data: bytes, kind: Kind, *, whole: bool) -> ImageFacts | None:
    """Read an image's header from its first bytes; return None if they don't contain it or it can't be read.

    `whole`: `data` are all bytes of the image. Raise BadRow (`media_too_many_pixels`) for more pixels than
    Pillow opens.
    """
    try:
        if kind is WEBP:
            return _read_webp(data, whole=whole)
        if kind is HEIC and not can_read_heic():
            return None
        animated = kind is GIF and count_gif_frames(data) > 1
        with Image.open(io.BytesIO(data), formats=kind.pillow_formats) as image:
            return ImageFacts(
                kind,
                image.size,
                cmyk=image.mode == "CMYK",
                transparent=image.has_transparency_data,
                deep=_is_deep(data, image, kind),
                orientation=1 if kind is TIFF else _orientation_of(_load_exif(image.info.get("exif"))),
                animated=animated or (kind is PNG and getattr(image, "is_animated", False)),
                undecided=kind is GIF and not animated and not whole,
                bytes_min=_tiff_end(image) if kind is TIFF else 0,
            )
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        fail_row("media_too_many_pixels", f"too many pixels: {error}")
    except BadRow:
        raise
    except Exception:  # noqa: BLE001 (hostile bytes make Pillow raise nearly anything: struct.error, SyntaxError)
        return None


@cache
def can_read_heic() -> bool:
    """Return True if pillow-heif is installed, and register it with Pillow."""
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 (the extra `heif`)
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _is_deep(data: bytes, image: Image.Image, kind: Kind) -> bool:
    if kind is PNG:
        return data[24] > 8
    if kind is SGI:
        return data[3] > 1
    if kind is TIFF:
        return bool(max(image.tag_v2.get(_TIFF_BITS, (1,))) > 8)  # type: ignore[attr-defined]
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _tiff_end(image: Image.Image) -> int:
    """Return the end of the last strip (tags 273 and 279) or tile (324 and 325)."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    ends = [0]
    for starts, lengths in ((273, 279), (324, 325)):
        ends += map(sum, zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False))
    return max(ends)


def _orientation_of(tags: Mapping[int, Any]) -> int:
    value = tags.get(_EXIF_ORIENTATION, 1)
    return value if value in _TURNED else 1


def _load_exif(data: object) -> Mapping[int, Any]:
    """Read an EXIF block; a damaged one has no tags, and the image is used without it."""
    tags = Image.Exif()
    try:
        if isinstance(data, bytes):
            tags.load(data)
        return dict(tags)
    except Exception:  # noqa: BLE001 (as above)
        return {}


def _read_webp(data: bytes, *, whole: bool) -> ImageFacts | None:
    """Read a WebP header (RFC 9649); Pillow would need the whole file. EXIF comes after the pixels."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        flags = data[20]
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        animated, has_exif = bool(flags & 0x02), bool(flags & 0x08)
        orientation = _orientation_of(_load_exif(_find_webp_exif(data))) if has_exif and whole else 1
        undecided = has_exif and not whole and not animated
        return ImageFacts(
            WEBP,
            (width, height),
            transparent=bool(flags & 0x10),
            orientation=orientation,
            animated=animated,
            undecided=undecided,
        )
    if chunk == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageFacts(WEBP, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), transparent=bool(bits >> 28 & 1))
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageFacts(WEBP, (width & 0x3FFF, height & 0x3FFF))
    return None


def _find_webp_exif(data: bytes) -> bytes | None:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return None
