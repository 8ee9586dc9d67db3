"""Formats of media, recognised by their first bytes. Nothing is read from storage or decoded here."""

import re
import struct
from dataclasses import dataclass

from arkbeam.base.records import Modality


@dataclass(frozen=True, slots=True)
class Kind:
    """A format of images or videos."""

    modality: Modality
    mime: str
    """The API's name for the format, in lower case; a data URI of such bytes must have this type."""
    pillow_formats: tuple[str, ...] = ()
    """Pillow's names for the format: only these decoders are tried. Empty for a video."""
    also_named: tuple[str, ...] = ()
    """Other types that are accepted in a data URI of a manifest."""
    accepted: bool = True
    """True if the API accepts the format; the other formats can be converted (`media.fit.transcode`)."""


def _image(mime: str, *pillow_formats: str, also_named: tuple[str, ...] = ()) -> Kind:
    return Kind(Modality.IMAGE, mime, pillow_formats, also_named)


# Types: vendor's guide to visual understanding, table of image formats.
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
HEIC = Kind(Modality.IMAGE, "image/heic", ("HEIF",), accepted=False)
AVIF = Kind(Modality.IMAGE, "image/avif", ("AVIF",), accepted=False)
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
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_AVIF_BRANDS = (b"avif", b"avis")
# The main brand of both formats; then a brand further back in the box tells which it is.
_SHARED_BRANDS = (b"mif1", b"msf1", b"miaf", b"MiHE", b"MiHM", b"MiHB", b"MA1A", b"MA1B", b"avio")
_BRANDS_MAX = 64
_OTHER_BRANDS = (b"jxl ", b"crx ")
_FOREIGN = (
    (b"8BPS", "a Photoshop file"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"FLV", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"\0\0\1\xb3", "an MPEG video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
)
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!doctype|svg|html|!--)", re.IGNORECASE)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)


def detect_kind(head: bytes) -> Kind | None:
    """Return the format of a file from its first 16 bytes or more; None if it is unknown."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": AVI}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    if head[4:8] in _MOV_ATOMS:
        return MOV
    return DIB if _is_dib(head) else None


def describe_unknown(head: bytes) -> str:
    """Describe, for a message, bytes that `detect_kind` does not recognise."""
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    if _MARKUP.match(head):
        return "an SVG drawing" if _SVG.search(head[:4_096]) else "HTML or XML"
    start = head[:256]
    if start.isascii() and not any(byte < 9 for byte in start):
        return "text"
    return "a file of unknown format"


def _by_brand(head: bytes) -> Kind | None:
    """Return the format of a file of the MPEG-4 family by its brands; None for JPEG XL and raw photographs."""
    brand = head[8:12]
    if brand == b"qt  ":
        return MOV
    if brand in _SHARED_BRANDS:
        end = min(int.from_bytes(head[:4], "big"), 16 + 4 * _BRANDS_MAX, len(head))
        known = (*_HEIC_BRANDS, *_AVIF_BRANDS)
        brand = next((head[at : at + 4] for at in range(16, end, 4) if head[at : at + 4] in known), b"heic")
    if brand in _HEIC_BRANDS:
        return HEIC
    if brand in _AVIF_BRANDS:
        return AVIF
    return None if brand in _OTHER_BRANDS else MP4


def _is_dib(head: bytes) -> bool:
    """Return True for a bitmap without file header: it starts with the length of its header and has one plane."""
    if len(head) < 16:
        return False
    (length,) = struct.unpack_from("<I", head)
    (planes,) = struct.unpack_from("<H", head, 8 if length == 12 else 12)
    return length in _DIB_HEADER_BYTES and planes == 1
