"""Bounds on the memory of this process's media while they are read and decoded.

`limits.bytes_in_flight` bounds `reading` while manifests are read. While rows are sent, the engine bounds the bytes of all
their media (`held_bytes`), and `decoding` only the pixels that worker processes hold at the same time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from arkbeam.media.options import SOURCE_PIXELS_MAX


class ByteLimit:
    """A limit on bytes that several threads share. A caller must not take twice, or two callers could wait for each other."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        self._changed = threading.Condition()

    def resize(self, bytes_max: int) -> None:
        """Set the limit."""
        with self._changed:
            self._bytes_max = bytes_max
            self._changed.notify_all()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait until so many bytes are free. Do not wait if nothing is taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._bytes_max)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


reading = ByteLimit(256 * 1024 * 1024)
decoding = ByteLimit(4 * SOURCE_PIXELS_MAX)
