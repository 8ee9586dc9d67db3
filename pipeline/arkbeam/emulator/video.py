"""Videos by their bytes: which format, and how long. Pure parsers of headers; frames are never decoded."""

import struct
from collections.abc import Iterator
from itertools import islice

_OLD_MOV_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip"}
_BOXES_MAX = 10_000
_UNKNOWN = {0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
"""Durations that say nothing: 0 stands in the movie header of a fragmented file, all ones mean that nobody knows."""

_Box = tuple[bytes, int, int]


def detect_video(data: bytes) -> str | None:
    """Tell `mp4`, `quicktime` or `avi` by the first bytes; None for anything else."""
    if data[4:8] == b"ftyp":
        return "quicktime" if data[8:12] == b"qt  " else "mp4"
    if data[4:8] in _OLD_MOV_BOXES:
        return "quicktime"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def video_duration_s(data: bytes) -> float | None:
    """Read the duration off the header; None where it isn't told.

    mp4 and mov (ISO 14496-12): `moov/mvhd`, or `moov/mvex/mehd` of a fragmented file. avi: the `avih` that comes first.
    """
    try:
        return _avi_duration_s(data) if data[:4] == b"RIFF" else _movie_duration_s(data)
    except struct.error:  # the header is cut off
        return None


def _movie_duration_s(data: bytes) -> float | None:
    movie = _find(data, b"moov", (0, len(data)))
    header = None if movie is None else _find(data, b"mvhd", movie)
    if movie is None or header is None:
        return None
    at = header[0]
    if data[at : at + 1] == b"\1":  # version 1 has 64-bit times
        scale, length = struct.unpack_from(">IQ", data, at + 20)
    else:
        scale, length = struct.unpack_from(">II", data, at + 12)
    if length in _UNKNOWN:
        length = _fragmented_length(data, movie)
    return length / scale if scale and length else None


def _fragmented_length(data: bytes, movie: tuple[int, int]) -> int:
    extends = _find(data, b"mvex", movie)
    header = None if extends is None else _find(data, b"mehd", extends)
    if header is None:
        return 0
    wide = data[header[0] : header[0] + 1] == b"\1"
    return int(struct.unpack_from(">Q" if wide else ">I", data, header[0] + 4)[0])


def _find(data: bytes, kind: bytes, within: tuple[int, int]) -> tuple[int, int] | None:
    """Find the first box of a kind: where its content starts and ends."""
    boxes = islice(_boxes(data, *within), _BOXES_MAX)
    return next(((start, end) for found, start, end in boxes if found == kind), None)


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:  # up to the end
            size = end - at
        if size < head:
            return
        yield kind, at + head, min(at + size, end)
        at += size


def _avi_duration_s(data: bytes) -> float | None:
    if data[12:16] != b"LIST" or data[20:28] != b"hdrlavih":
        return None
    frame_us, frames = struct.unpack_from("<I12xI", data, 32)
    return frame_us * frames / 1e6 or None
