"""Read the header of a JPEG 2000: the boxes of the file format, and the first segment of the code stream."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from arkbeam.media.facts import ImageFacts, Repairs
from arkbeam.media.kinds import JPEG2000

BOXES_MAX = 10_000
_SIGNATURE = b"\xff\x4f\xff\x51"
_COMPONENTS_MAX = 16_384
_CMYK, _LAB, _EXTENDED_YCC = 12, 14, 24
_END = b"\xff\xd9"


@dataclass(slots=True)
class _Header:
    """What the boxes before the code stream say, and where the code stream is."""

    stream: int = 0
    stream_end: int = 0
    colours: int | None = None
    palette_channels: int = 0
    order: tuple[int, ...] = ()
    is_odd: bool = False
    """The meaning of the channels is not understood."""


def read_jp2(data: bytes) -> ImageFacts | None:
    """Read the facts from the first bytes; None if they do not hold the header."""
    header = _read_header(data)
    if header is None:
        return None
    size, depths = _read_size(data, header.stream)
    count = len(depths)
    deep = count == 1 and depths[0] > 8
    channels = header.palette_channels or count
    return ImageFacts(
        JPEG2000,
        size,
        cmyk=header.colours == _CMYK and channels == 4,
        transparent=2 in (count, channels) or (channels == 4 and header.colours != _CMYK),
        deep=deep,
        unfit=_judge(header, depths),
        repairs=Repairs(order=header.order),
        recipe=2 if header.order else 1,
    )


def find_jp2_cut(data: bytes) -> str | None:
    """Return why a whole JPEG 2000 counts as truncated, or None. Other boxes may follow the code stream."""
    header = _read_header(data)
    if header is None:
        return "the file ends within its header"
    if header.stream_end > len(data):
        return f"box 'jp2c' declares {header.stream_end} bytes; the file has {len(data)}"
    return None if _END in data[header.stream : header.stream_end][-64:] else "no end marker (EOC)"


def _judge(header: _Header, depths: tuple[int, ...]) -> str:
    if max(depths) > 8 and len(depths) > 1:
        return "JPEG 2000 of several channels of more than 8 bits can't be decoded right"
    if header.colours in (_LAB, _EXTENDED_YCC):
        return f"the colours of this JPEG 2000 (enumerated colour space {header.colours}) can't be converted"
    if header.is_odd or len(depths) > 4:
        return "the channels of this JPEG 2000 can't be told apart"
    return ""


def _read_header(data: bytes) -> _Header | None:
    if data.startswith(_SIGNATURE):
        return _Header(0, len(data))
    found = _Header()
    for name, body, end in _boxes(data, 0, len(data)):
        if name == b"jp2h":
            for inner, start, stop in _boxes(data, body, min(end, len(data))):
                _note(found, inner, data[start:stop])
        elif name == b"jp2c":
            if data[body : body + 4] != _SIGNATURE:
                return None
            found.stream, found.stream_end = body, end
            return found
    return None


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(BOXES_MAX):
        if at + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1 and at + 16 <= end:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            start = at + 16
        stop = end if length == 0 else at + length
        if stop < start:
            return
        yield name, start, stop
        at = stop


def _note(found: _Header, name: bytes, body: bytes) -> None:
    if name == b"colr" and body[:1] == b"\1" and len(body) >= 7 and found.colours is None:
        (found.colours,) = struct.unpack_from(">I", body, 3)
    elif name == b"pclr" and len(body) >= 3:
        found.palette_channels = body[2]
    elif name == b"cdef" and len(body) >= 2:
        (count,) = struct.unpack_from(">H", body)
        entries = [struct.unpack_from(">HHH", body, 2 + 6 * index) for index in range(min(count, len(body) // 6))]
        colours = sorted((meaning, channel) for channel, kind, meaning in entries if kind == 0)
        alphas = [channel for channel, kind, _ in entries if kind in (1, 2)]
        order = (*(channel for _, channel in colours), *alphas)
        found.is_odd = sorted(order) != list(range(len(order))) or len(order) != len(entries)
        found.order = () if found.is_odd or order == tuple(range(len(order))) else order


def _read_size(data: bytes, at: int) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the size, and the bits of each component. Raise struct.error if the bytes end before."""
    _, _, right, bottom, left, top = struct.unpack_from(">HHIIII", data, at + 4)
    (count,) = struct.unpack_from(">H", data, at + 40)
    depths = struct.unpack_from(">" + "Bxx" * min(count, _COMPONENTS_MAX), data, at + 42)
    if not depths or right <= left or bottom <= top:
        raise struct.error("no components")
    return (right - left, bottom - top), tuple((depth & 0x7F) + 1 for depth in depths)
