"""A writer of TIFF files of every layout: bit depths, byte orders, planes, strips and tiles, odd tags."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
Tag = tuple[int, Sequence[int]]
"""The type of a tag's values (1: byte, 3: short, 4: long, 16: long8), and the values."""
BYTE, SHORT, LONG, LONG8 = 1, 3, 4, 16
_CODES = {"none": 1, "fax3": 3, "fax4": 4, "jpeg": 7, "deflate": 8, "packbits": 32773}
_LETTERS = {BYTE: "B", SHORT: "H", LONG: "I", LONG8: "Q"}
_FLIPPED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def tiff(
    samples: Samples,
    *,
    photometric: int = 1,
    bits: int = 8,
    sample_format: int = 1,
    planar: int = 1,
    order: str = "<",
    big: bool = False,
    compression: str = "none",
    packed: bytes | None = None,
    fill_order: int = 1,
    strip_rows: int | None = None,
    tile: int | None = None,
    extra: Sequence[int] = (),
    tags: Mapping[int, Tag] = {},
) -> bytes:
    """Write samples of the shape (height, width) or (height, width, channels) as a TIFF.

    `packed` replaces the pixel data, already compressed. `tags` are added, or replace those that are written.
    """
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    height, width, channels = samples.shape
    planes = [samples] if planar == 1 else [samples[:, :, number : number + 1] for number in range(channels)]
    blocks = [block for plane in planes for block in _cut(plane, strip_rows, tile)]
    parts = (
        [packed] if packed is not None else [_pack(part, bits, sample_format, order, compression) for part in blocks]
    )
    parts = [part.translate(_FLIPPED) if fill_order == 2 else part for part in parts]
    body, starts, first = b"", [], 16 if big else 8
    for part in parts:
        starts.append(first + len(body))
        body += part + b"\0" * (len(part) % 2)
    offset, lengths = LONG8 if big else LONG, [len(part) for part in parts]
    entries: dict[int, Tag] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [bits] * channels),
        259: (SHORT, [_CODES[compression]]),
        262: (SHORT, [photometric]),
        277: (SHORT, [channels]),
        284: (SHORT, [planar]),
        339: (SHORT, [sample_format] * channels),
    }
    if tile:
        entries |= {322: (SHORT, [tile]), 323: (SHORT, [tile]), 324: (offset, starts), 325: (offset, lengths)}
    else:
        entries |= {273: (offset, starts), 278: (LONG, [strip_rows or height]), 279: (offset, lengths)}
    entries |= {266: (SHORT, [fill_order])} if fill_order != 1 else {}
    entries |= {338: (SHORT, extra)} if extra else {}
    return _write(body, {**entries, **tags}, order, big)


def _cut(plane: Samples, strip_rows: int | None, tile: int | None) -> list[Samples]:
    height, width, _ = plane.shape
    if not tile:
        step = strip_rows or height
        return [plane[top : top + step] for top in range(0, height, step)]
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    return [padded[top : top + tile, left : left + tile] for top, left in corners]


def _pack(samples: Samples, bits: int, sample_format: int, order: str, compression: str) -> bytes:
    rows = samples.reshape(samples.shape[0], -1)
    if bits in (8, 16, 32, 64):
        lines = [row.astype(f"{order}{'uif'[sample_format - 1]}{bits // 8}").tobytes() for row in rows]
    else:  # most significant bit first; a row ends with a whole byte
        split = (rows.astype(np.int64)[:, :, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in split]
    if compression == "packbits":
        lines = [_pack_bits(line) for line in lines]
    data = b"".join(lines)
    return zlib.compress(data) if compression == "deflate" else data


def _pack_bits(line: bytes) -> bytes:
    parts = (line[at : at + 128] for at in range(0, len(line), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def _write(body: bytes, entries: Mapping[int, Tag], order: str, big: bool) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    start = (16 if big else 8) + len(body)
    count, entry, word, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    far = start + struct.calcsize(f"{order}{count}{word}") + len(entries) * (struct.calcsize(order + entry) + inline)
    lines, rest = b"", b""
    for name, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values)
        if len(packed) > inline:
            packed, rest = struct.pack(order + word, far + len(rest)), rest + packed + b"\0" * (len(packed) % 2)
        lines += struct.pack(order + entry, name, kind, len(values)) + packed.ljust(inline, b"\0")
    header = struct.pack(f"{order}HHHQ", 43, 8, 0, start) if big else struct.pack(f"{order}HI", 42, start)
    return mark + header + body + struct.pack(order + count, len(entries)) + lines + bytes(inline) + rest
