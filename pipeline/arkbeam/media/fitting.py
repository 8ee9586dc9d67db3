"""Scale and convert images as `media.fit` says: choose the change from the header, and apply it to the bytes.

The change is chosen while manifests are read and is part of the fingerprint; the sender applies exactly this change.
The result depends only on the bytes of the image. Metadata are dropped; colour profiles are kept.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from arkbeam.base.bad_rows import fail_row
from arkbeam.media.facts import ImageFacts
from arkbeam.media.headers import LOOK_S, can_read_heic
from arkbeam.media.kinds import AVIF, HEIC, ICNS, JPEG, JPEG2000, PNG, SGI, TIFF, Kind
from arkbeam.media.looking import look
from arkbeam.media.memory import decoding
from arkbeam.media.options import FitOptions

SCANS_MAX = 500
"""Maximum number of scans of a JPEG that is decoded; a usual progressive JPEG has about ten."""

_TRANSCODED = (TIFF, SGI, ICNS, JPEG2000, HEIC, AVIF)
_SCAN = b"\xff\xda"
_ON_ITS_SIDE = 5  # from this orientation on, width and height are swapped
_PIXELS_A_SECOND = 2_000_000  # what the slowest decoder and encoder do at least
_DEPTHS = (8, 10, 12, 14, 16)
_PIXEL_BYTES, _WIDE_PIXEL_BYTES = 4, 24
_WIDE_KINDS = (JPEG2000, HEIC, AVIF)  # their decoders hold the pixels several times


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image will be changed: its new size in pixels and its new type.

    `source` describes the original for people.
    """

    size_px: tuple[int, int]
    mime: str
    source: str
    recipe: int = 1
    """The way of decoding and scaling. A kind of images whose pixels were wrong has a new number, and is embedded again."""
    bits: int = 16
    """Bits that the values of a grey image of more than 8 bits really use."""

    @property
    def key(self) -> str:
        """The part of the change that is in the fingerprint."""
        return f"{self.recipe} {self.size_px[0]}x{self.size_px[1]} {self.mime}"

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
    described = f"{source} ({', '.join(odd)})" if odd else source
    return Fit(upright, kind.mime, described, facts.recipe, facts.repairs.bits)


def _name_oddities(facts: ImageFacts) -> list[str]:
    named = {
        "CMYK": facts.cmyk,
        "more than 8 bits": facts.deep and facts.repairs.bits == 16,
        f"values of {facts.repairs.bits} bits": facts.repairs.bits != 16,
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


def measure_depth(data: bytes, facts: ImageFacts, look_s: float = LOOK_S) -> ImageFacts:
    """Return the facts with the bits that the pixels of a `ranged` image use. Decodes the image.

    A camera's 12 bits are often stored in 16 as they are: taken for 16 bits, the image would be nearly black. Raise BadRow
    (`media_unfit`) if the values are negative or have more than 16 bits.
    """
    found, _ = decode("range", data, facts, look_s, "media_unfit")
    if found["low"] < 0 or found["high"] > 65_535:
        fail_row("media_unfit", "the pixels are signed or 32-bit values, whose range is unknown")
    used = int(found["high"]).bit_length()
    bits = next(depth for depth in _DEPTHS if depth >= used) if used else 16
    return replace(facts, repairs=replace(facts.repairs, bits=bits), recipe=facts.recipe if bits == 16 else 2)


def decode(
    task: str, data: bytes, facts: ImageFacts, look_s: float, code: str = "", **further: Any
) -> tuple[dict[str, Any], bytes]:
    """Do a task that decodes an image, within the limits of time and memory for its size; see `look`."""
    width, height = facts.size_px
    with decoding.take(_pixel_bytes(facts)):
        further["formats"] = facts.kind.pillow_formats
        return look(task, further, data, look_s + width * height / _PIXELS_A_SECOND, code=code)


def _pixel_bytes(facts: ImageFacts) -> int:
    return math.prod(facts.size_px) * (_WIDE_PIXEL_BYTES if facts.kind in _WIDE_KINDS else _PIXEL_BYTES)


def held_bytes(size: int, facts: ImageFacts, fit: Fit) -> int:
    """Return about how many bytes memory holds while an image of `size` bytes is changed.

    The file is held twice, here and in a worker process, the pixels before and after the change.
    """
    return 2 * size + _pixel_bytes(facts) + 2 * _PIXEL_BYTES * math.prod(fit.size_px)


def apply_fit(data: bytes, facts: ImageFacts, fit: Fit, look_s: float = LOOK_S) -> bytes:
    """Change an image as planned and return its new bytes. A worker process does it; this thread waits.

    Raise BadRow: `media_unfit` if the image can't be decoded, or not right; `media_too_slow`.
    """
    if facts.kind is HEIC and not can_read_heic():
        fail_row("media_unfit", "HEIC can't be decoded: install the extra `heif`")
    if facts.kind is JPEG and data.count(_SCAN) > SCANS_MAX:  # decoding each scan goes over all pixels
        fail_row("media_unfit", f"the JPEG has more than {SCANS_MAX} scans")
    repairs = asdict(facts.repairs)
    turn = repairs.pop("turn")
    repairs["sixteen"] = facts.deep and not facts.cmyk
    _, packed = decode(
        "fit",
        data,
        facts,
        look_s,
        "media_unfit",
        size=facts.size_px[::-1] if turn >= _ON_ITS_SIDE else facts.size_px,
        new_size=fit.size_px[::-1] if max(turn, facts.orientation) >= _ON_ITS_SIDE else fit.size_px,
        mime=fit.mime,
        orientation=max(turn, facts.orientation),
        repairs=repairs,
    )
    return packed
