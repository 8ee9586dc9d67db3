"""Scale and convert images as `media.fit` says: choose the change from the header, and apply it to the bytes.

The change is chosen while manifests are read and is part of the fingerprint; the sender applies exactly this change.
The result depends only on the bytes of the image. Metadata are dropped; colour profiles are kept.
"""

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.media.headers import ImageFacts, can_read_heic
from arkbeam.media.kinds import AVIF, HEIC, ICNS, JPEG, JPEG2000, PNG, SGI, TIFF, Kind
from arkbeam.media.options import SOURCE_PIXELS_MAX, FitOptions

RECIPE = 1
"""Part of the fingerprint. A new way of scaling or encoding needs a new number; changed images are then embedded
again."""
JPEG_QUALITY = 90
ICC_BYTES_MAX = 65_536
SCANS_MAX = 500
"""Maximum number of scans of a JPEG that is decoded; a usual progressive JPEG has about ten."""

_TRANSCODED = (TIFF, SGI, ICNS, JPEG2000, HEIC, AVIF)
_SCAN = b"\xff\xda"
_UINT16_MAX = 65_535
_ON_ITS_SIDE = 5  # from this orientation on, width and height are swapped
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image will be changed: its new size in pixels and its new type.

    `source` describes the original for people.
    """

    size_px: tuple[int, int]
    mime: str
    source: str

    @property
    def key(self) -> str:
        """The part of the change that is in the fingerprint."""
        return f"{RECIPE} {self.size_px[0]}x{self.size_px[1]} {self.mime}"

    def __str__(self) -> str:
        """Return the change as text, for the column `media_changes`."""
        return f"{self.source} -> {self.size_px[0]}x{self.size_px[1]} {self.mime}"


def plan_fit(facts: ImageFacts, options: FitOptions, side_px_min: int) -> Fit | None:
    """Choose how an image is changed; None if it is sent unchanged.

    Scaling makes no side shorter than `side_px_min`. A changed image is also turned upright.
    """
    if not (facts.kind.accepted or options.transcode):
        return None
    odd = _name_oddities(facts)
    transcodes = bool(options.transcode) and (bool(odd) or facts.kind in _TRANSCODED)
    size_px = scale(facts.size_px, options.resize_max_pixels, side_px_min)
    if not transcodes and size_px == facts.size_px:
        return None
    kind = _choose_kind(facts, options) if transcodes or facts.kind not in (JPEG, PNG) else facts.kind
    source = f"{facts.size_px[0]}x{facts.size_px[1]} {facts.kind.mime}"
    upright = size_px[::-1] if facts.orientation >= _ON_ITS_SIDE else size_px
    return Fit(upright, kind.mime, f"{source} ({', '.join(odd)})" if odd else source)


def _name_oddities(facts: ImageFacts) -> list[str]:
    named = {
        "CMYK": facts.cmyk,
        "more than 8 bits": facts.deep,
        "animated": facts.animated,
        "rotated": facts.orientation != 1,
    }
    return [name for name, holds in named.items() if holds]


def _choose_kind(facts: ImageFacts, options: FitOptions) -> Kind:
    match options.transcode:
        case "jpeg":
            return JPEG
        case "png":
            return PNG
        case _:
            return PNG if facts.transparent else JPEG


def scale(size_px: tuple[int, int], pixels_max: int | None, side_px_min: int) -> tuple[int, int]:
    """Scale a size down to at most `pixels_max` pixels, in proportion, sides rounded down; never scale up.

    A side is not made shorter than `side_px_min`, even if more pixels remain.
    """
    width, height = size_px
    if pixels_max is None or width * height <= pixels_max:
        return size_px
    factor = math.sqrt(pixels_max / (width * height))
    factor = min(1.0, max(factor, side_px_min / min(width, height)))
    low = min(width, height, side_px_min)
    return max(low, int(width * factor)), max(low, int(height * factor))


def apply_fit(data: bytes, facts: ImageFacts, fit: Fit) -> bytes:
    """Change an image as planned and return its new bytes. It decodes and encodes the image: call it in a thread.

    Raise BadRow (`media_unfit`) if the image can't be decoded, or if its pixel values can't be converted to 8 bits.
    """
    if facts.kind is HEIC and not can_read_heic():
        fail_row("media_unfit", "HEIC can't be decoded: install the extra `heif`")
    if facts.kind is JPEG and data.count(_SCAN) > SCANS_MAX:  # decoding each scan goes over all pixels
        fail_row("media_unfit", f"the JPEG has more than {SCANS_MAX} scans")
    width, height = facts.size_px
    with _pixels.take(width * height):
        try:
            return _convert(data, facts, fit)
        except BadRow:
            raise
        except Exception as error:  # noqa: BLE001 (hostile bytes make decoders raise nearly anything)
            fail_row("media_unfit", f"the image can't be decoded: {type(error).__name__}: {error}")


def _convert(data: bytes, facts: ImageFacts, fit: Fit) -> bytes:
    size_px = fit.size_px[::-1] if facts.orientation >= _ON_ITS_SIDE else fit.size_px
    with Image.open(io.BytesIO(data), formats=facts.kind.pillow_formats) as opened:
        if opened.size != facts.size_px:
            declared, decoded = (f"{width} x {height} px" for width, height in (facts.size_px, opened.size))
            fail_row("media_unfit", f"the header declares {declared}; the decoder finds {decoded}")
        profile = _read_profile(opened)
        # A JPEG is decoded at half its size or less if that is enough.
        opened.draft(None, (2 * size_px[0], 2 * size_px[1]))
        image = _make_plain(opened, fit.mime)
    if image.size != size_px:
        image = image.resize(size_px, Image.Resampling.LANCZOS)
    if facts.orientation in _TURNS:
        image = image.transpose(_TURNS[facts.orientation])
    image.info = {}  # some writers would copy comments and dates
    packed = io.BytesIO()
    if fit.mime == PNG.mime:
        image.save(packed, "PNG", icc_profile=profile)
    else:
        image.save(packed, "JPEG", quality=JPEG_QUALITY, icc_profile=profile)
    return packed.getvalue()


def _read_profile(image: Image.Image) -> bytes | None:
    """Return the colour profile of an RGB image. Profiles for CMYK and grey are not valid for the converted pixels."""
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "RGBX", "P") else None
    return profile if isinstance(profile, bytes) and 0 < len(profile) <= ICC_BYTES_MAX else None


def _make_plain(image: Image.Image, mime: str) -> Image.Image:
    """Convert to 8 bits a channel: grey, RGB, or RGBA for a transparent PNG. For JPEG, transparency becomes white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(image))
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if mime == PNG.mime:
            return clear
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Keep the upper 8 of 16 bits. The range of other values is unknown, so they are refused."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > _UINT16_MAX:
        fail_row("media_unfit", "the pixels are floating-point or 32-bit values, whose range is unknown")
    return (values >> 8).astype(np.uint8)


class _PixelLimit:
    """A limit on the pixels that are decoded at the same time in this process."""

    def __init__(self, pixels_max: int) -> None:
        self._pixels_max = pixels_max
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free. Do not wait if no other image is being decoded."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + pixels <= self._pixels_max)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_pixels = _PixelLimit(SOURCE_PIXELS_MAX)
