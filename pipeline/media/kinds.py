"""What bytes are: formats by their magic bytes, sizes of images from their headers. No storage, no URIs."""

import io
import struct
from dataclasses import dataclass

from PIL import Image

from pipeline.media.refusal import Refusal
from pipeline.records import Modality


@dataclass(frozen=True, slots=True)
class Kind:
    """A format that the API takes."""

    modality: Modality
    mime: str
    """The type that a data URI of such bytes must carry, lower case."""
    pillow_formats: tuple[str, ...] = ()
    """Pillow's names of the format: no other decoder is tried. Empty for video."""
    also_named: tuple[str, ...] = ()
    """Other types that a manifest's own data URI may carry for such bytes."""


def _image(mime: str, *pillow_formats: str, also_named: tuple[str, ...] = ()) -> Kind:
    return Kind(Modality.IMAGE, mime, pillow_formats, also_named)


# The types are those of the vendor's table of image formats (guide to visual understanding, section on formats).
JPEG = _image("image/jpeg", "JPEG", "MPO", also_named=("image/jpg",))
PNG = _image("image/png", "PNG", also_named=("image/apng",))
GIF = _image("image/gif", "GIF")
WEBP = _image("image/webp", "WEBP")
BMP = _image("image/bmp", "BMP")
DIB = _image("image/bmp", "DIB", also_named=("image/dib",))
TIFF = _image("image/tiff", "TIFF")
ICO = _image("image/x-icon", "ICO", also_named=("image/ico", "image/vnd.microsoft.icon"))
ICNS = _image("image/icns", "ICNS")
SGI = _image("image/sgi", "SGI")
JPEG2000 = _image("image/jp2", "JPEG2000", also_named=("image/jpeg2000",))
MP4 = Kind(Modality.VIDEO, "video/mp4")
AVI = Kind(Modality.VIDEO, "video/avi")
MOV = Kind(Modality.VIDEO, "video/quicktime")

_MAGIC = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"BM", BMP),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"\0\0\1\0", ICO),
    (b"icns", ICNS),
    (b"\x01\xda", SGI),
    (b"\0\0\0\x0cjP  \r\n\x87\n", JPEG2000),
    (b"\xff\x4f\xff\x51", JPEG2000),
)
_DIB_HEADER_BYTES = {12, 40, 52, 56, 64, 108, 124}
_MOV_ATOMS = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_STILL_BRANDS = (b"hei", b"hev", b"hec", b"mif", b"msf", b"avi", b"jxl", b"crx")


def detect_kind(head: bytes) -> Kind | None:
    """Tell a format from the first bytes; None when it is none that the API takes. 16 bytes are enough."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _by_brand(head[8:12])
    if head[4:8] in _MOV_ATOMS:
        return MOV
    return DIB if _is_dib(head) else None


def _by_brand(brand: bytes) -> Kind | None:
    """MPEG-4 family: QuickTime has its own brand; HEIF, AVIF and raw photographs are no video."""
    if brand == b"qt  ":
        return MOV
    return None if brand.startswith(_STILL_BRANDS) else MP4


def _is_dib(head: bytes) -> bool:
    """A bitmap without file header starts with its header's length and says one plane."""
    if len(head) < 16:
        return False
    (length,) = struct.unpack_from("<I", head)
    (planes,) = struct.unpack_from("<H", head, 8 if length == 12 else 12)
    return length in _DIB_HEADER_BYTES and planes == 1


def measure_image(data: bytes, kind: Kind) -> tuple[int, int] | None:
    """Read width and height in pixels from an image's header; None when Pillow can't make them out.

    `data` may be cut short: pixels are not decoded. Raises Refusal for more pixels than Pillow itself allows.
    """
    try:
        with Image.open(io.BytesIO(data), formats=kind.pillow_formats) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal("media_too_large", f"it has far too many pixels: {error}") from error
    except Exception:  # noqa: BLE001 (hostile bytes make Pillow raise nearly anything: struct.error, SyntaxError)
        return None
