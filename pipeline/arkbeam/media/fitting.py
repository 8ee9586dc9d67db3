"""Making an image fit: which of `media.fit` it needs, by its header, and doing that to its bytes.

The choice is made when manifests are read, is part of the fingerprint, and is carried out as it was made, so that what was
planned, bought and told is one thing. The same bytes give the same bytes: metadata is dropped, colour profiles are kept.
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

from arkbeam.base.refusal import RowRefused, refuse
from arkbeam.media.headers import ImageFacts, can_read_heic
from arkbeam.media.kinds import AVIF, HEIC, ICNS, JPEG, JPEG2000, PNG, SGI, TIFF, Kind
from arkbeam.media.options import SOURCE_PIXELS_MAX, FitOptions

RECIPE = 1
"""Part of the fingerprint: another way of scaling or packing is another number, and buys anew what it changes."""
JPEG_QUALITY = 90
ICC_BYTES_MAX = 65_536
SCANS_MAX = 500
"""A progressive JPEG has about ten."""

_TRANSCODED = (TIFF, SGI, ICNS, JPEG2000, HEIC, AVIF)
_SCAN = b"\xff\xda"
_UINT16_MAX = 65_535
_ON_ITS_SIDE = 5  # and above: width and height are exchanged
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
    """What is to be made of an image: its size in pixels and its type. `source` says for people what it was."""

    size_px: tuple[int, int]
    mime: str
    source: str

    @property
    def key(self) -> str:
        """What of it belongs to the identity of the request."""
        return f"{RECIPE} {self.size_px[0]}x{self.size_px[1]} {self.mime}"

    def __str__(self) -> str:
        """Tell the change."""
        return f"{self.source} -> {self.size_px[0]}x{self.size_px[1]} {self.mime}"


def plan_fit(facts: ImageFacts, options: FitOptions, side_px_min: int) -> Fit | None:
    """Choose what is to be changed about an image; None: nothing, it goes out as it is.

    No side becomes smaller than `side_px_min`, or than it was, where that is less. Whatever is changed is turned upright.
    """
    if not (facts.kind.taken or options.transcode):
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
    """Scale a size down to at most so many pixels, sides in proportion and rounded down; never up."""
    width, height = size_px
    if pixels_max is None or width * height <= pixels_max:
        return size_px
    factor = math.sqrt(pixels_max / (width * height))
    factor = min(1.0, max(factor, side_px_min / min(width, height)))
    low = min(width, height, side_px_min)
    return max(low, int(width * factor)), max(low, int(height * factor))


def apply_fit(data: bytes, facts: ImageFacts, fit: Fit) -> bytes:
    """Carry out what was chosen. It takes the time of unpacking and packing the picture: call it in a thread.

    Raises RowRefused (`media_unfit`) when the picture can't be unpacked or its pixels have no plain meaning.
    """
    if facts.kind is HEIC and not can_read_heic():
        refuse("media_unfit", "pillow-heif is not installed here (extra `heif`)")
    if facts.kind is JPEG and data.count(_SCAN) > SCANS_MAX:  # each goes over all pixels
        refuse("media_unfit", f"it has more than {SCANS_MAX} scans")
    width, height = facts.size_px
    with _pixels.take(width * height):
        try:
            return _convert(data, facts, fit)
        except RowRefused:
            raise
        except Exception as error:  # noqa: BLE001 (hostile bytes make decoders raise nearly anything)
            refuse("media_unfit", f"it can't be unpacked: {type(error).__name__}: {error}")


def _convert(data: bytes, facts: ImageFacts, fit: Fit) -> bytes:
    size_px = fit.size_px[::-1] if facts.orientation >= _ON_ITS_SIDE else fit.size_px
    with Image.open(io.BytesIO(data), formats=facts.kind.pillow_formats) as opened:
        if opened.size != facts.size_px:
            refuse("media_unfit", f"its header says {facts.size_px} px, its pixels are {opened.size}")
        profile = _read_profile(opened)
        opened.draft(None, (2 * size_px[0], 2 * size_px[1]))  # JPEG: unpacked at a half or less where that is enough
        image = _make_plain(opened, fit.mime)
    if image.size != size_px:
        image = image.resize(size_px, Image.Resampling.LANCZOS)
    if facts.orientation in _TURNS:
        image = image.transpose(_TURNS[facts.orientation])
    image.info = {}  # or some writers would copy comments and dates
    packed = io.BytesIO()
    if fit.mime == PNG.mime:
        image.save(packed, "PNG", icc_profile=profile)
    else:
        image.save(packed, "JPEG", quality=JPEG_QUALITY, icc_profile=profile)
    return packed.getvalue()


def _read_profile(image: Image.Image) -> bytes | None:
    """The profile of RGB pixels; those of CMYK and grey say nothing of what these become."""
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "RGBX", "P") else None
    return profile if isinstance(profile, bytes) and 0 < len(profile) <= ICC_BYTES_MAX else None


def _make_plain(image: Image.Image, mime: str) -> Image.Image:
    """Return an image of 8 bits a channel: grey, RGB, or RGBA where transparency stays; for JPEG it is put on white."""
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
    """Keep the upper half of 16 bits; numbers of any other range would have to be guessed at."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > _UINT16_MAX:
        refuse("media_unfit", "its pixels are fractions or 32 bits wide: what is black and white is not told")
    return (values >> 8).astype(np.uint8)


class _Gate:
    """A bound on the pixels that are unpacked at once in this process."""

    def __init__(self, pixels_max: int) -> None:
        self._pixels_max = pixels_max
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait for room; one picture always has it."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + pixels <= self._pixels_max)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_pixels = _Gate(SOURCE_PIXELS_MAX)
