"""A file in storage that is read in ranges, within limits."""

import io
from collections.abc import Callable

BLOCK_BYTES = 64 * 1024
BYTES_MAX = 8 * 1024 * 1024
READS_MAX = 64

Reader = Callable[[int, int], bytes]
"""Returns the bytes of a medium from one position to another (exclusive)."""


class RangedFile(io.RawIOBase):
    """A seekable file in storage. It is read in blocks, up to `BYTES_MAX` bytes and `READS_MAX` calls in all."""

    def __init__(self, head: bytes, size: int, read: Reader) -> None:
        """`head` are the first bytes, which are not fetched again; `size` is the length of the file."""
        self._size = size
        self._read = read
        self._at = 0
        self._start, self._block = 0, b""
        self._head = head
        self._bytes = self._reads = 0
        self.fault: Exception | None = None
        """The exception of the storage, which PyAV replaces with its own."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position without reading; return the new position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, fewer at the end of a block. Raise OSError if the limits are exceeded."""
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
            raise OSError("too many bytes would have to be read")
        try:
            block = self._read(self._at, end)
        except Exception as error:
            self.fault = error
            raise OSError("the storage failed") from error
        self._start, self._block = self._at, block
        self._reads += 1
        self._bytes += len(block)


def read_bytes(file: RangedFile, start: int, end: int) -> bytes:
    """Read from one position to another (exclusive), less at the end of the file. Raise OSError as the file does."""
    file.seek(start)
    data = bytearray()
    while len(data) < end - start and (part := file.read(end - start - len(data))):
        data += part
    return bytes(data)
