"""Rows of a JSON file that is one array: its elements.

The file is cut into elements without being parsed. So a bad element is one bad row, numbers stay as they are written,
and memory holds one element and one block.
"""

import re
from collections.abc import Iterator

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact
from arkbeam.manifest.compression import ByteSource
from arkbeam.manifest.lines import BLOCK_BYTES, LongLine, PendingLine
from arkbeam.manifest.options import Format
from arkbeam.manifest.text import BOM

_BLANK = b" \t\r\n"
_REST_OF_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STRING_END = re.compile(_REST_OF_STRING, re.DOTALL)
# An object of plain values, a string, or one character that matters outside of strings.
_TOKEN = re.compile(
    rb'\{(?:[^{}\[\]"]++|"' + _REST_OF_STRING + rb')*+\}|"' + _REST_OF_STRING + rb'|["\[\]{},]', re.DOTALL
)
_SPREAD_OBJECT = re.compile(rb'\{[^\S\n]*\n\s*"[^"\n]*"\s*:')
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{")


def is_array(head: bytes) -> bool:
    """True if a file that begins with `head` is a JSON array."""
    return head.removeprefix(BOM).lstrip(_BLANK).startswith(b"[")


def check_lines(uri: str, kind: Format, head: bytes) -> None:
    """Raise ManifestError if a file that begins with `head` is read as JSON Lines but is one value over several lines."""
    text = head.removeprefix(BOM).lstrip(_BLANK)
    if _SPREAD_OBJECT.match(text):
        raise ManifestError(
            f"manifest {redact(uri)} begins with a JSON object over several lines: write each object on a line of its own, or"
            " all of them as one array in a file with the ending .json"
        )
    line = text.partition(b"\n")[0].rstrip(_BLANK)
    if kind == "jsonl" and (line == b"[" or (_ARRAY_OF_OBJECTS.match(text) and not line.endswith(b"]"))):
        raise ManifestError(
            f"manifest {redact(uri)} is a JSON array, not JSON Lines: set manifest.format: json, or use the ending .json"
        )


def iter_elements(source: ByteSource, uri: str, element_bytes_max: int) -> Iterator[bytes | LongLine]:
    """Yield the elements of the array that a stream holds, as they are written. A comma may follow the last one.

    Raise ManifestError if the array does not end, or if something follows it: rows may be missing then.
    """
    element = PendingLine(element_bytes_max)
    depth = -1  # 0 in the array, and 1 more for each bracket that is open in an element
    in_string = escaped = False  # at the start of the block
    while block := source.read(BLOCK_BYTES):
        start = at = 0
        if in_string:
            closed = _STRING_END.match(block, int(escaped))
            in_string, escaped = closed is None, closed is None and _ends_in_escape(block, int(escaped))
            at = len(block) if closed is None else closed.end()
        for token in _TOKEN.finditer(block, at):
            char = token[0]
            if char == b"," and depth == 0:
                element.add(block[start : token.start()])
                yield _take(element) or b","  # an empty element is not valid JSON
                start = token.end()
            elif char == b"[" or char == b"{":
                start = token.end() if depth < 0 else start
                depth += 1
            elif char == b"]" or char == b"}":
                depth -= 1
                if depth < 0:
                    element.add(block[start : token.start()])
                    if last := _take(element):
                        yield last
                    _check_end(uri, char + block[token.end() :], source)
                    return
            elif char == b'"':
                in_string, escaped = True, _ends_in_escape(block, token.end())
                break  # the rest of the block belongs to the string
        element.add(block[start:])
    raise ManifestError(
        f"manifest {redact(uri)} is a JSON array without end: it is cut off, or a bracket or quote in it is not closed"
    )


def _take(element: PendingLine) -> bytes | LongLine:
    taken = element.take()
    return taken if isinstance(taken, LongLine) else taken.strip(_BLANK)


def _ends_in_escape(block: bytes, start: int) -> bool:
    """True if a string, of which `block` has the part from `start` on, goes on behind the backslash of an escape."""
    part = block[start:]
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _check_end(uri: str, block: bytes, source: ByteSource) -> None:
    """Raise ManifestError unless a block that begins with the array's last bracket, and the blocks behind it, end there."""
    rest = block[1:] if block.startswith(b"]") else block
    while not rest.strip(_BLANK):
        rest = source.read(BLOCK_BYTES)
        if not rest:
            return
    shown = rest.strip(_BLANK)[:40].decode("utf-8", "replace")
    raise ManifestError(
        f"manifest {redact(uri)} is a JSON array, but something follows its end: {redact(repr(shown), 100)}"
    )
