"""Unpack the body of an http reply (`Content-Encoding`) as it arrives, with a bound on what one step gives.

`Accept-Encoding: identity` is sent, but some servers pack all the same, or name a coding that is none.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import zstandard

from arkbeam.base.bad_rows import fail_row

_STEP_BYTES = 256 * 1024
_CODINGS_MAX = 3
_WINDOW_BYTES_MAX = 8 * 1024 * 1024  # RFC 9659: what a receiver must support
# A block of 4 bytes can hold 128 KiB.
_ZSTD_SLICE_BYTES = 64
_UNKNOWN = frozenset({"br", "compress", "x-compress", "dcb", "dcz", "exi", "pack200-gzip"})


class Unpacker(Protocol):
    """One coding of a body."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes unpack to, at most a few MiB at a time. Raise BadRow if they are damaged."""
        ...

    def is_complete(self) -> bool:
        """Return True if the packed data ended as they should, or if there were none."""
        ...


def find_unpackers(header: str | None) -> list[Unpacker]:
    """Return what undoes a `Content-Encoding`, in the order of use; nothing for `identity` and for names of no coding.

    Names such as `aws-chunked`, `none` or `utf-8` are sent by mistake, before plain bytes. Raise BadRow
    (`media_unreadable`) for a coding that can't be unpacked here.
    """
    names = [name.strip().lower() for name in (header or "").split(",")]
    unpackers: list[Unpacker] = []
    for name in reversed(names):
        if name in _UNKNOWN:
            fail_row("media_unreadable", f"the server sent the content encoding {name}, which was not requested")
        if name in ("gzip", "x-gzip", "deflate"):
            unpackers.append(_Zlib(name))
        if name == "zstd":
            unpackers.append(_Zstandard())
    if len(unpackers) > _CODINGS_MAX:
        fail_row("media_unreadable", f"the server packed the body {len(unpackers)} times (Content-Encoding)")
    return unpackers


def unpack(unpackers: Sequence[Unpacker], data: bytes) -> Iterator[bytes]:
    """Yield what the next bytes of a body unpack to."""
    if not unpackers:
        yield data
        return
    first, *rest = unpackers
    for part in first.feed(data):
        yield from unpack(rest, part)


class _Zlib:
    """`gzip`, also of several members, and `deflate`, with or without zlib's header."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._object: zlib._Decompress | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._ended:
            if self._object is None:
                self._object = zlib.decompressobj(self._window_bits(data))
            try:
                part = self._object.decompress(data, _STEP_BYTES)
            except zlib.error as error:
                fail_row("media_unreadable", f"the bytes are not valid {self._name} (Content-Encoding): {error}")
            if part:
                yield part
            if self._object.eof:
                data = self._object.unused_data
                self._object = None
                self._ended = not data.startswith(b"\x1f")  # else another member of a gzip file
            else:
                data = self._object.unconsumed_tail
                while len(part) == _STEP_BYTES and not data:  # what zlib has read, but not given out
                    part = self._object.decompress(b"", _STEP_BYTES)
                    if part:
                        yield part

    def is_complete(self) -> bool:
        return self._object is None

    def _window_bits(self, data: bytes) -> int:
        if self._name != "deflate":
            return 16 + zlib.MAX_WBITS
        has_header = len(data) > 1 and data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


class _Zstandard:
    def __init__(self) -> None:
        self._object = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).decompressobj()
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE_BYTES):
            if self._object.eof:
                return
            self._fed = True
            try:
                yield self._object.decompress(data[start : start + _ZSTD_SLICE_BYTES])
            except zstandard.ZstdError as error:
                fail_row("media_unreadable", f"the bytes are not valid zstd (Content-Encoding): {error}")

    def is_complete(self) -> bool:
        return self._object.eof or not self._fed
