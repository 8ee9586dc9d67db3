"""Read the first directory of a TIFF, wherever it is in the file: the image's size, and how its pixels are stored.

Pillow's own table of pixel layouts tells which of them it decodes; `_judge` knows those that come out wrong.
"""

import struct
from dataclasses import dataclass
from typing import Any

from PIL import TiffImagePlugin

from arkbeam.decoding.ranges import RangedFile, read_bytes
from arkbeam.media.facts import ImageFacts, Repairs
from arkbeam.media.kinds import TIFF

VALUES_MAX = 1_000_000
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_BYTE = 1
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_BYTES, _PLANES = 273, 274, 277, 279, 284
_COLOUR_MAP, _TILES, _TILE_BYTES, _INKS, _EXTRA, _FORMAT = 320, 324, 325, 332, 338, 339
_WANTED = frozenset((
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _ORIENTATION, _SAMPLES, _STRIP_BYTES,
    _PLANES, _COLOUR_MAP, _TILES, _TILE_BYTES, _INKS, _EXTRA, _FORMAT,
))  # fmt: skip
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 3, 5, 6, 8
_OLD_JPEG = 6
_SIGNED = 2


@dataclass(slots=True)
class _Directory:
    """The tags of a directory that matter here. `byte_tags` are those whose values are bytes.

    `end` is the end of the directory, or of the values of a tag that the file does not hold completely.
    """

    mark: bytes
    is_big: bool
    tags: dict[int, tuple[int, ...]]
    byte_tags: set[int]
    end: int = 0

    def one(self, tag: int, default: int = 0) -> int:
        return next(iter(self.tags.get(tag, ())), default)


def read_tiff(file: RangedFile, size: int) -> ImageFacts | None:
    """Read the facts of a TIFF of `size` bytes; None if it has no readable directory. Raise OSError as RangedFile does."""
    directory = _read_directory(file, size)
    if directory is None:
        return None
    width, height = directory.one(_WIDTH), directory.one(_HEIGHT)
    if width < 1 or height < 1:
        return None
    orientation = directory.one(_ORIENTATION, 1)
    unfit, mode = _find_mode(directory)
    repairs = _find_repairs(directory)
    return ImageFacts(
        TIFF,
        (height, width) if 5 <= orientation <= 8 else (width, height),
        cmyk=directory.one(_PHOTOMETRIC) == _CMYK,
        transparent=mode in ("RGBA", "LA", "PA"),
        deep=max(directory.tags.get(_BITS, (1,))) > 8,
        bytes_min=_find_end(directory),
        unfit=unfit,
        repairs=repairs,
        recipe=2 if repairs != Repairs() or _has_mixed_planes(directory) else 1,
        ranged=mode in ("I", "I;16", "I;16B") and directory.one(_BITS) != 12,
    )


def _read_directory(file: RangedFile, size: int) -> _Directory | None:
    header = read_bytes(file, 0, 16)
    order = "<" if header[:2] == b"II" else ">"
    if len(header) < 16:
        return None
    is_big = struct.unpack_from(f"{order}H", header, 2)[0] == 43
    count_layout, entry_layout = (f"{order}Q", f"{order}HHQ8s") if is_big else (f"{order}H", f"{order}HHI4s")
    (at,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", header, 8 if is_big else 4)
    packed = read_bytes(file, at, at + struct.calcsize(count_layout))
    if at >= size or len(packed) < struct.calcsize(count_layout):
        return None
    (count,) = struct.unpack(count_layout, packed)
    entry = struct.Struct(entry_layout)
    found = _Directory(header[:2], is_big, {}, set())
    first = at + len(packed)
    found.end = first + min(count, 65_535) * entry.size
    lines = read_bytes(file, first, found.end)
    for start in range(0, len(lines) - entry.size + 1, entry.size):
        tag, kind, number, inline = entry.unpack_from(lines, start)
        letter = _LETTERS.get(kind)
        if tag not in _WANTED or letter is None or not 0 < number <= VALUES_MAX:
            continue
        values = struct.Struct(f"{order}{number}{letter}")
        if values.size > len(inline):
            (far,) = struct.unpack(f"{order}Q" if is_big else f"{order}I", inline)
            inline = read_bytes(file, far, far + values.size)
            if len(inline) < values.size:
                found.end = max(found.end, far + values.size)
                continue
        found.tags[tag] = values.unpack_from(inline)
        if kind == _BYTE:
            found.byte_tags.add(tag)
    return found


def _find_end(directory: _Directory) -> int:
    """Return the end of the last strip or tile, or of the directory if this is behind the end of the file."""
    ends = [directory.end]
    for starts, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        ends += map(sum, zip(directory.tags.get(starts, ()), directory.tags.get(lengths, ()), strict=False))
    return max(ends)


def _find_mode(directory: _Directory) -> tuple[str, str]:
    """Return why the pixels can't be decoded right, or an empty string; and Pillow's name for them."""
    tags, one = directory.tags, directory.one
    photometric = _YCBCR if one(_COMPRESSION) == _OLD_JPEG else one(_PHOTOMETRIC)
    formats = tags.get(_FORMAT, (1,))
    sample_format = formats[:1] if len(set(formats)) == 1 else formats
    bits, extra = tags.get(_BITS, (1,)), tags.get(_EXTRA, ())
    samples = one(_SAMPLES, 3 if photometric == _YCBCR and one(_COMPRESSION) == _OLD_JPEG else 1)
    if one(_PLANES) == 2 and extra and max(extra) == 0:
        bits, samples, extra = bits[: -len(extra)], samples - len(extra), ()
    if samples > len(bits) == 1:
        bits = bits * min(samples, 99)
    key: Any = (directory.mark, photometric, sample_format, one(_FILL_ORDER, 1), bits[:samples], extra)
    mode, _ = TiffImagePlugin.OPEN_INFO.get(key, ("", ""))
    if sample_format == (3,) or (max(bits) > 16 and mode != "I"):
        return "the pixels are floating-point or 32-bit values, whose range is unknown", mode
    return _judge(directory, mode, photometric, sample_format, bits), mode


def _judge(
    directory: _Directory, mode: str, photometric: int, sample_format: tuple[int, ...], bits: tuple[int, ...]
) -> str:
    if not mode or directory.one(_COMPRESSION, 1) not in TiffImagePlugin.COMPRESSION_INFO:
        named = f"{'/'.join(map(str, bits[:6]))} bits, photometric {photometric}, compression {directory.one(_COMPRESSION, 1)}"
        return f"this layout of a TIFF's pixels can't be decoded: {named}"
    if directory.is_big and directory.mark == b"MM":
        return "a BigTIFF in big-endian byte order can't be decoded"
    if photometric == _LAB:
        return "the colours are in CIE L*a*b*, which can't be converted exactly"
    if sample_format == (_SIGNED,) and bits == (8,):
        return "the pixels are signed 8-bit values, whose range is unknown"
    if photometric == _CMYK and directory.one(_INKS, 1) != 1:
        return "the inks are not cyan, magenta, yellow and black"
    return ""


def _find_repairs(directory: _Directory) -> Repairs:
    bits, palette = directory.one(_BITS, 1), directory.tags.get(_COLOUR_MAP, ())
    is_byte_turn = _ORIENTATION in directory.byte_tags
    return Repairs(
        turn=directory.one(_ORIENTATION, 1) if is_byte_turn else 1,
        invert=directory.one(_PHOTOMETRIC) == _WHITE_IS_ZERO and bits == 16,
        byte_palette=directory.one(_PHOTOMETRIC) == _PALETTE and bool(palette) and 0 < max(palette) < 256,
        bits=12 if bits == 12 else 16,
    )


def _has_mixed_planes(directory: _Directory) -> bool:
    """True for planes that Pillow's own reader mixes up; libtiff, which is used here, reads them right."""
    is_plain = directory.one(_COMPRESSION, 1) == 1 and directory.one(_PLANES) == 2
    return is_plain and (directory.one(_BITS) > 8 or directory.one(_PHOTOMETRIC) == _YCBCR)
