"""Physical lines of a byte stream, each limited in length."""

from collections.abc import Iterator
from dataclasses import dataclass

from arkbeam.manifest.compression import ByteSource
from arkbeam.manifest.options import Format
from arkbeam.manifest.text import BOM

BLOCK_BYTES = 1024 * 1024
# The start of a line that is too long is kept, for its failure row.
_SHOWN_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line above the limit: its first bytes, and its length in bytes."""

    head: bytes
    length: int


def iter_lines(source: ByteSource, start: int, end: int, line_bytes_max: int) -> Iterator[bytes | LongLine]:
    """Yield the lines whose first byte lies in [start, end) of the stream, without their line feed.

    `source` must be positioned at `start - 1`, or at 0 if `start` is 0. The line that contains byte `start - 1` belongs
    to the previous shard. A byte order mark at the start of the stream is removed. At most one line and one block are
    held in memory.
    """
    position = max(start - 1, 0)
    foreign = start > 0
    pending = PendingLine(line_bytes_max, BOM if start == 0 else b"")
    while block := source.read(min(BLOCK_BYTES, end - position) if position < end else BLOCK_BYTES):
        behind = position >= end
        position += len(block)
        pieces = block.split(b"\n")
        pending.add(pieces[0])
        if len(pieces) > 1:
            line = pending.take()
            if not foreign:
                yield line
            if behind:
                return
            foreign = False
            for index in range(1, len(pieces) - 1):
                line = pieces[index]
                yield line if len(line) <= line_bytes_max else LongLine(line[:_SHOWN_BYTES], len(line))
            pending.add(pieces[-1])
        if position >= end and (foreign or not pending.length):
            return
    if pending.length and not foreign:
        yield pending.take()


def ends_with_cr(head: bytes, kind: Format) -> bool:
    """True if the lines of a file that begins with `head` end with carriage returns alone, as far as it shows.

    In CSV and TSV the first line decides, because cells may hold line ends of another kind. In JSON Lines, a carriage
    return may also be a blank, so that there must be no line feed.
    """
    at = head.find(b"\r")
    return at >= 0 and head.find(b"\n", 0, at + 2 if kind in ("csv", "tsv") else len(head)) < 0


def iter_universal_lines(source: ByteSource, line_bytes_max: int) -> Iterator[bytes | LongLine]:
    """Yield all lines of a stream with their ends: a carriage return, a line feed, or both.

    A byte order mark at the start is removed. At most one line and one block are held in memory.
    """
    pending = PendingLine(line_bytes_max, BOM)
    carry = b""
    while block := source.read(BLOCK_BYTES):
        block = carry + block
        carry = b"\r" if block.endswith(b"\r") else b""  # a line feed may follow
        for piece in block[: len(block) - len(carry)].splitlines(keepends=True):
            pending.add(piece)
            if piece.endswith((b"\r", b"\n")):
                yield pending.take()
    if carry:
        pending.add(carry)
    if pending.length:
        yield pending.take()


class PendingLine:
    """A line whose end has not been read yet. Bytes above the limit are counted and dropped.

    `mark` is removed from the start of the first line.
    """

    def __init__(self, bytes_max: int, mark: bytes = b"") -> None:
        self._bytes_max = bytes_max
        self._mark = mark
        self._pieces: list[bytes] = []
        self.length = 0

    def add(self, piece: bytes) -> None:
        """Append the next bytes of the line."""
        if self.length <= self._bytes_max:
            self._pieces.append(piece)
        self.length += len(piece)

    def take(self) -> bytes | LongLine:
        """Return the line, and start the next one."""
        line = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if self._mark:
            line, self._mark = line.removeprefix(self._mark), b""
        length, self._pieces, self.length = self.length, [], 0
        return line if length <= self._bytes_max else LongLine(line[:_SHOWN_BYTES], length)
