"""What reading a medium gives."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """The first bytes of a file, with size and version of the whole."""

    head: bytes
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """A file that is being read: `expected` bytes in blocks, with size and version of the whole."""

    blocks: Iterator[bytes]
    expected: int
    size: int
    version: str
