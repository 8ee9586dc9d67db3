"""How long a video is, by its container's index. Frames are not decoded.

PyAV reads the index (the extra `video`) through a file that fetches little: the index of an mp4 stands at its start or at
its end, and what is between is left where it is. Without PyAV, or where the index can't be read, the length is unknown.
"""

import io
from collections.abc import Callable

from arkbeam.media.kinds import AVI, Kind

BLOCK_BYTES = 64 * 1024
BYTES_MAX = 8 * 1024 * 1024
READS_MAX = 64
DURATION_S_MAX = 24 * 3600.0
"""A header that tells of more is not believed."""

Reader = Callable[[int, int], bytes]
"""Gives the bytes from a position up to another."""


def read_duration_s(head: bytes, size: int, kind: Kind, read: Reader) -> float | None:
    """Return a video's length in seconds; None where it isn't known.

    `head` are its first bytes, of `size` in all; others are read as they are needed, at most 8 MB in 64 pieces. What the
    storage raises comes through, for then nothing is known of the video at all.
    """
    try:
        import av  # noqa: PLC0415 (the extra `video`)
    except ImportError:
        return None
    file = RangedFile(head, size, read)
    probing = {"probesize": str(BLOCK_BYTES), "analyzeduration": "0"}  # codecs don't matter here
    try:
        with av.open(file, "r", "avi" if kind is AVI else "mov", options=probing) as container:
            duration_s = None if container.duration is None else container.duration / av.time_base
    except (av.FFmpegError, OSError, ValueError, OverflowError, UnicodeDecodeError):
        if file.fault is not None:
            raise file.fault from None
        return None
    return duration_s if duration_s is not None and 0 < duration_s <= DURATION_S_MAX else None


class RangedFile(io.RawIOBase):
    """A file in storage that can be read from anywhere, a block at a time and no more than so much of it."""

    def __init__(self, head: bytes, size: int, read: Reader) -> None:
        """`head` are the first bytes, which need not be fetched again."""
        self._size = size
        self._read = read
        self._at = 0
        self._start, self._block = 0, b""
        self._head = head
        self._bytes = self._reads = 0
        self.fault: Exception | None = None
        """What the storage raised: the library in between gives it another name."""

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, fewer where a block ends. Raises OSError once too much was read."""
        left = self._size - self._at
        wanted = left if size < 0 else min(size, left)
        if wanted <= 0:
            return b""
        if self._at < len(self._head):
            data = self._head[self._at : self._at + wanted]
        else:
            if not self._start <= self._at < self._start + len(self._block):
                self._fetch(wanted)
            data = self._block[self._at - self._start :][:wanted]
        self._at += len(data)
        return data

    def _fetch(self, wanted: int) -> None:
        end = min(self._size, self._at + max(wanted, BLOCK_BYTES))
        if self._reads >= READS_MAX or self._bytes + end - self._at > BYTES_MAX:
            raise OSError("too much would have to be read")
        try:
            block = self._read(self._at, end)
        except Exception as error:
            self.fault = error
            raise OSError("the storage failed") from error
        self._start, self._block = self._at, block
        self._reads += 1
        self._bytes += len(block)
