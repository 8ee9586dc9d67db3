"""Tasks of a worker process that decode pictures with Pillow: read a header, check that all is there, scale and convert.

A picture is converted in bands, so that memory holds it once, as decoded, with a band of its converted pixels.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin

from arkbeam.decoding.child import Answer, Refused, take_complaints
from arkbeam.decoding.stripping import ICC_BYTES_MAX, strip_metadata

JPEG_QUALITY = 90
_BAND_PIXELS = 2**22
_LANCZOS_RADIUS = 3
_HIGH_BYTE_OF_12_BITS = 15
_ORIENTATION_TAG = 274
_COLOUR_MAP_TAG = 320
# Compressions of a TIFF whose damaged data leave gaps: pixels that are not written.
_WITH_GAPS = ("tiff_ccitt", "group3", "group4", "jpeg", "tiff_jpeg")
# How libtiff says that it can't decode a strip or a tile. Other lines are about tags.
_DAMAGE = re.compile(rb"^(?:\w*Decode\w*|JPEGLib):", re.MULTILINE)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = None  # callers check the size
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader mixes up planes of 16 bits, and YCbCr with RGB


def open_header(data: bytes, formats: Sequence[str]) -> Answer:
    """Return the size, the mode and the EXIF block's orientation of a picture whose header only Pillow reads."""
    with _open(data, formats) as image:
        exif = image.info.get("exif")
        tags = Image.Exif()
        if isinstance(exif, bytes):
            tags.load(exif)
        facts = {
            "size": image.size,
            "mode": image.mode,
            "transparent": image.has_transparency_data,
            "orientation": tags.get(_ORIENTATION_TAG, 1),
        }
        return facts, b""


def check_whole(data: bytes, formats: Sequence[str]) -> Answer:
    """Decode a picture, and return nothing. Raise what Pillow raises if the picture is cut off or damaged."""
    with _open(data, formats) as image:
        image.load()
    return {}, b""


def find_range(data: bytes, formats: Sequence[str]) -> Answer:
    """Return the smallest and the largest value of a picture of one channel."""
    with _open(data, formats) as image:
        low, high = _as_array(image).min(), _as_array(image).max()
    return {"low": float(low), "high": float(high)}, b""


def fit(
    data: bytes,
    formats: Sequence[str],
    size: Sequence[int],
    new_size: Sequence[int],
    mime: str,
    orientation: int,
    repairs: dict[str, Any],
) -> Answer:
    """Scale a picture of `size` to `new_size` (both before it is turned by `orientation`), and encode it as JPEG or PNG.

    `repairs` says what Pillow does not do right: the fields of `media.facts.Repairs` without `turn`, and `sixteen`, true for
    colours of 16 bits a channel. Raise Refused for pixels that can't be decoded right.
    """
    with _open(data, formats) as opened:
        if opened.size != tuple(size):
            declared, decoded = (f"{width} x {height} px" for width, height in (size, opened.size))
            raise Refused("media_unfit", f"the header declares {declared}; the decoder finds {decoded}")
        profile = _read_profile(opened)
        # A JPEG is decoded at half its size or less if that is enough.
        opened.draft(None, (2 * new_size[0], 2 * new_size[1]))
        _load(opened, data, formats)
        image = _scale(_repair(opened, **repairs), (new_size[0], new_size[1]), mime)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    image.info = {}  # some writers would copy comments and dates
    packed = io.BytesIO()
    if mime == "image/png":
        image.save(packed, "PNG", icc_profile=profile)
    else:
        image.save(packed, "JPEG", quality=JPEG_QUALITY, subsampling=0, icc_profile=profile)
    return {}, packed.getvalue()


@contextmanager
def _open(data: bytes, formats: Sequence[str]) -> Iterator[ImageFile.ImageFile]:
    if "HEIF" in formats:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 (the extra `heif`)

        register_heif_opener(thumbnails=False)
    with Image.open(io.BytesIO(strip_metadata(data, formats)), formats=list(formats)) as image:
        yield image


def _load(image: ImageFile.ImageFile, data: bytes, formats: Sequence[str]) -> None:
    """Decode the pixels. Raise Refused for damaged data of which libtiff only prints that they are, or not even that.

    Of some it leaves pixels as the memory was. Decoding twice, into memory that is filled in two ways, shows these.
    """
    take_complaints()
    if image.info.get("compression") in _WITH_GAPS:
        expected = _decode_and_hash(data, formats, 0x55)
        with _new_memory_filled_with(0xAA):
            image.load()
        if _hash_pixels(image) != expected:
            raise Refused("media_unfit", "the data are damaged: some pixels are not in the file")
    image.load()
    if "TIFF" in formats and _DAMAGE.search(take_complaints()):
        raise Refused("media_unfit", "the data are damaged: some pixels can't be decoded")


def _decode_and_hash(data: bytes, formats: Sequence[str], filling: int) -> bytes:
    with _new_memory_filled_with(filling), _open(data, formats) as image:
        image.load()
        return _hash_pixels(image)


def _hash_pixels(image: Image.Image) -> bytes:
    """Return a hash of the pixels, without a copy of all of them."""
    state, rows = blake2b(), math.ceil(_BAND_PIXELS / image.width)
    for top in range(0, image.height, rows):
        state.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return state.digest()


@contextmanager
def _new_memory_filled_with(value: int) -> Iterator[None]:
    """Let the C library fill memory that it hands out, where it can (glibc's M_PERTURB)."""
    import ctypes  # noqa: PLC0415 (rarely needed)

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(-6, value)
    try:
        yield
    finally:
        mallopt(-6, 0)


def _read_profile(image: Image.Image) -> bytes | None:
    """Return the colour profile of an RGB image. Profiles for CMYK and grey are not valid for the converted pixels."""
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA", "RGBX", "P") else None
    return profile if isinstance(profile, bytes) and 0 < len(profile) <= ICC_BYTES_MAX else None


def _repair(
    image: Image.Image,
    *,
    invert: bool = False,
    byte_palette: bool = False,
    order: Sequence[int] = (),
    bits: int = 16,
    sixteen: bool = False,
) -> Image.Image:
    if byte_palette:
        colours = image.tag_v2[_COLOUR_MAP_TAG]  # type: ignore[attr-defined]
        image.putpalette(ImagePalette.raw("RGB;L", bytes(value & 255 for value in colours)))
    if order:
        bands = image.split()
        image = Image.merge(image.mode, [bands[channel] for channel in order])
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, bits, invert=invert)
    elif sixteen and 0 < max(high for _, high in _extremes(image)) <= _HIGH_BYTE_OF_12_BITS:
        raise Refused("media_unfit", "the pixels use at most 12 of 16 bits a channel, of which too few are decoded")
    return image


def _extremes(image: Image.Image) -> list[tuple[int, int]]:
    """Return the smallest and the largest value of each channel but transparency."""
    found: Any = image.getextrema()
    channels = [found] if isinstance(found[0], int) else list(found)
    return channels[: 1 if image.mode in ("L", "LA") else 3]


def _as_array(image: Image.Image) -> Any:
    import numpy as np  # noqa: PLC0415 (rarely needed)

    return np.asarray(image)


def _to_8_bits(image: Image.Image, bits: int, *, invert: bool) -> Image.Image:
    """Scale grey values of `bits` bits to 8 bits. Raise Refused for values outside of their range."""
    values = _as_array(image)
    if values.dtype.kind == "f" or values.min() < 0 or int(values.max()) >> bits:
        raise Refused("media_unfit", f"the pixels have other values than those of {bits} bits")
    grey = (values >> bits - 8 if bits == 16 else values.astype("u4") * 255 // ((1 << bits) - 1)).astype("u1")
    return Image.fromarray(255 - grey if invert else grey)


def _scale(image: Image.Image, size: tuple[int, int], mime: str) -> Image.Image:
    """Scale and convert in bands of rows. Each is the same as if the whole were scaled at once."""
    width, height = image.size
    bands = math.ceil(max(width * height, size[0] * size[1]) / _BAND_PIXELS)
    if bands == 1:
        plain = _make_plain(image, mime)
        return plain if image.size == size else plain.resize(size, Image.Resampling.LANCZOS)
    factor = height / size[1]
    margin = math.ceil(_LANCZOS_RADIUS * max(factor, 1.0)) + 1
    step = math.ceil(size[1] / bands)
    scaled: Image.Image | None = None
    for top in range(0, size[1], step):
        bottom = min(top + step, size[1])
        first, last = max(0, math.floor(top * factor) - margin), min(height, math.ceil(bottom * factor) + margin)
        if image.size == size:
            part = _make_plain(image.crop((0, top, width, bottom)), mime)
        else:
            box = (0, top * factor - first, width, min(bottom * factor, height) - first)
            band = _make_plain(image.crop((0, first, width, last)), mime)
            part = band.resize((size[0], bottom - top), Image.Resampling.LANCZOS, box=box)
        scaled = scaled or Image.new(part.mode, size)
        scaled.paste(part, (0, top))
    assert scaled is not None
    return scaled


def _make_plain(image: Image.Image, mime: str) -> Image.Image:
    """Convert to 8 bits a channel: grey, RGB, or RGBA for a transparent PNG. For JPEG, transparency becomes white."""
    if image.has_transparency_data:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        if mime == "image/png":
            return clear
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode)
