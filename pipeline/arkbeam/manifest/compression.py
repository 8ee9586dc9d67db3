"""Recognise compressed manifests by their first bytes, and decompress them: gzip, zstd, bzip2 and xz.

A file may have several members (streams, frames), one after the other. All of them are read; one that is cut off, or
followed by other bytes, is an error.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import IO, Any, Literal, Protocol, assert_never, cast

import zstandard

from arkbeam.manifest.options import Format

Compression = Literal["gzip", "zstd", "bzip2", "xz"]
ENDINGS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
MAGIC_BYTES = 64
"""How many bytes from the start of a file show its compression."""
# What a file starts with. The second part of bzip2's is the number pi (a block), or its root (the end of an empty file).
_GZIP, _ZSTD, _XZ = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00"
_BZIP2, _BZIP2_BLOCKS = b"BZh", (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))
_ZSTD_SKIPPED = b"\x2a\x4d\x18"
_BOM = b"\xef\xbb\xbf"
# A zstd block of 128 kB takes 4 bytes if all its bytes are equal, so 1,024 bytes of input expand to 32 MB at most.
_ZSTD_FEED_BYTES = 1024
_FEED_BYTES = 16 * 1024
_WINDOW_BYTES_MAX = 2**27
_XZ_MEMORY_BYTES_MAX = _WINDOW_BYTES_MAX + 2**24


class ByteSource(Protocol):
    """A source of bytes that is read once, from start to end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, about `size` of them; empty at the end. A decompressor may return up to 32 MB."""


def find_compression(head: bytes) -> Compression | None:
    """Return the compression that a file's first bytes show, None if they show none."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or (head[:1] and 0x50 <= head[0] <= 0x5F and head[1:4] == _ZSTD_SKIPPED):
        return "zstd"
    if head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    return "xz" if head.startswith(_XZ) else None


def looks_plain(head: bytes, format_: Format) -> bool:
    """True if a file begins as plain text of its format does. A server may decompress a file and leave its name as it is."""
    if format_ in ("jsonl", "json"):
        return head.removeprefix(_BOM).lstrip()[:1] in (b"{", b"[")
    return b"\0" not in head and len(head.decode("utf-8", "ignore").encode()) > len(head) - 4


class Counted:
    """The bytes of a file whose first bytes have been read already. `count` is how many have been taken."""

    def __init__(self, head: bytes, raw: IO[bytes]) -> None:
        self._head = head
        self._raw = raw
        self.count = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size` of them; empty at the end."""
        block, self._head = (self._head[:size], self._head[size:]) if self._head else (self._raw.read(size), b"")
        self.count += len(block)
        return block


def unpack(raw: ByteSource, compression: Compression | None) -> ByteSource:
    """Return the decompressed bytes of a source."""
    match compression:
        case None:
            return raw
        case "gzip":
            return cast(ByteSource, gzip.GzipFile(fileobj=cast(IO[bytes], raw)))
        case "zstd":
            return _ZstdFrames(raw)
        case "bzip2":
            return _Streams(raw, bz2.BZ2Decompressor)
        case "xz":
            return _Streams(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES_MAX))
        case _:
            assert_never(compression)


class _Streams:
    """Decompresses streams of bzip2 or xz. The library's file objects skip what follows a stream, and have no limit of memory."""

    def __init__(self, raw: ByteSource, make: Callable[[], Any]) -> None:
        self._raw = raw
        self._make = make
        self._stream: Any = None

    def read(self, size: int) -> bytes:
        """Return at most `size` decompressed bytes, empty at the end."""
        while True:
            packed = b""
            if self._stream is None or self._stream.eof:
                packed = b"" if self._stream is None else self._stream.unused_data
                packed = packed.lstrip(b"\0") or self._read_behind_padding()
                if not packed:
                    return b""
                self._stream = self._make()
            elif self._stream.needs_input:
                packed = self._raw.read(_FEED_BYTES)
                if not packed:
                    raise EOFError("the last stream is cut off")
            out: bytes = self._stream.decompress(packed, size)
            if out:
                return out

    def _read_behind_padding(self) -> bytes:
        """Return the next bytes without the zero bytes in front of them, which are allowed between streams."""
        while block := self._raw.read(_FEED_BYTES):
            if packed := block.lstrip(b"\0"):
                return packed
        return b""


class _ZstdFrames:
    """Decompresses a zstd stream of any number of frames. Unlike the library's reader, it detects a frame that is cut off."""

    def __init__(self, raw: ByteSource) -> None:
        self._raw = raw
        self._frame: Any = None
        self._packed = b""

    def read(self, size: int) -> bytes:
        """Return some decompressed bytes, empty at the end; `size` is the number of compressed bytes read at a time."""
        while True:
            if not self._packed:
                self._packed = self._raw.read(size)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is cut off")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).decompressobj()
            out: bytes = self._frame.decompress(self._packed[:_ZSTD_FEED_BYTES])
            self._packed = self._packed[_ZSTD_FEED_BYTES:]
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data + self._packed, None
            if out:
                return out
