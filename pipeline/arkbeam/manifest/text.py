"""Text encodings of manifests: bytes in any of Python's text encodings become UTF-8, which is all that the readers know.

A byte that can't be decoded becomes 0xff, which is not valid in UTF-8. So it makes its row a failure (`bad_text`), and
its neighbours are read.
"""

import codecs
import re
from collections.abc import Callable

from arkbeam.base.redaction import redact

HEAD_BYTES = 65_536
BOM = codecs.BOM_UTF8
# UTF-32 first: the mark of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BAD = "arkbeam.bad_bytes"
_SAMPLE_BYTES = 4_096
_SHOWN_CHARS = 200
_KANA = re.compile(rb"(?:\x82[\x9f-\xf1]|\x83[\x40-\x96]){2}")
_HIGH = re.compile(rb"[\x80-\xff]+")
_ASCII = re.compile(rb"[\x00-\x7f]")
# The most common characters of an encoding, two bytes each. GB2312: its first 3,755 characters and punctuation.
_COMMON = (
    ("gb18030", re.compile(rb"[\xa1-\xa3][\xa1-\xfe]|[\xb0-\xd7][\xa1-\xfe]")),
    ("shift_jis", re.compile(rb"[\x81-\x83\x88-\x97][\x40-\x7e\x80-\xfc]")),
    ("big5", re.compile(rb"[\xa1-\xa3\xa4-\xc6][\x40-\x7e\xa1-\xfe]")),
)
# Each encoding has zero bytes at some places of a group of four, and none at the others.
_WIDE = (("utf-32-le", "x000"), ("utf-32-be", "000x"), ("utf-16-le", "x0x0"), ("utf-16-be", "0x0x"))


def is_utf8_name(encoding: str) -> bool:
    """True if the encoding is UTF-8, with or without a byte order mark, under any of its names."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def is_text_encoding(encoding: str) -> bool:
    """True if Python has a text encoding of this name that can be decoded in pieces."""
    try:
        codecs.getincrementaldecoder(encoding)(_BAD).decode("a,b\n".encode(encoding), final=True)
    except (LookupError, ValueError):  # UnicodeError is a ValueError
        return False
    return True


def _replace_bad(error: UnicodeError) -> tuple[str | bytes, int]:
    """Mark what can't be decoded; on the way to UTF-8, write the marks and lone surrogates as 0xff."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    raise error


codecs.register_error(_BAD, _replace_bad)


class TextSource:
    """The bytes of a manifest in UTF-8. Its first bytes can be looked at before they are read.

    `read` returns the next bytes, as `storage.ByteSource.read` does. With an encoding other than UTF-8, they must be the
    first ones of the manifest. A byte order mark of UTF-8 takes precedence over the encoding. If UTF-16 or UTF-32 has no
    mark, the zero bytes decide the byte order.
    """

    def __init__(self, read: Callable[[int], bytes], encoding: str = "utf-8") -> None:
        self._read = read
        self._head = b""
        self._at = 0
        if not is_utf8_name(encoding):
            raw = self.peek()
            if not raw.startswith(BOM):
                rest, self._head = self._head, b""
                self._read = _transcode(_chain(rest, read), _resolve(encoding, raw))

    def peek(self) -> bytes:
        """Return up to 65,536 of the bytes that `read` returns next; fewer only if the manifest has no more."""
        while len(self._head) - self._at < HEAD_BYTES and (block := self._read(HEAD_BYTES)):
            self._head += block
        return self._head[self._at : self._at + HEAD_BYTES]

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; empty at the end. After `peek`, these are at most `size` bytes."""
        if not self._head:
            return self._read(size)
        piece = self._head[self._at : self._at + size]
        self._at += size
        if self._at >= len(self._head):
            self._head, self._at = b"", 0
        return piece


def _chain(first: bytes, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    waiting = [first] if first else []
    return lambda size: waiting.pop() if waiting else read(size)


def _resolve(encoding: str, head: bytes) -> str:
    """Return the encoding with its byte order if Python would ask for a mark that the text does not have."""
    name = codecs.lookup(encoding).name
    if name not in ("utf-16", "utf-32") or any(head.startswith(mark) for mark, _ in _MARKS):
        return name
    found = _find_wide(head)
    return found if found is not None and found.startswith(name) else f"{name}-le"


def _transcode(read: Callable[[int], bytes], encoding: str) -> Callable[[int], bytes]:
    decoder = codecs.getincrementaldecoder(encoding)(_BAD)

    def read_utf8(size: int) -> bytes:
        while True:
            block = read(size)
            text = decoder.decode(block, final=not block)
            if text or not block:
                return text.encode("utf-8", _BAD)

    return read_utf8


def find_wide_encoding(head: bytes) -> tuple[str, str] | None:
    """Return the encoding of a text whose first bytes show UTF-16 or UTF-32, and how they show it; else None."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, f"it begins with the byte order mark of {encoding.upper()}"
    found = _find_wide(head)
    return None if found is None else (found, "its first line holds zero bytes")


def has_ascii(text: bytes) -> bool:
    """True if a text in UTF-8 has any character of ASCII, as all that separates cells and rows is."""
    return _ASCII.search(text) is not None


def _find_wide(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 with its byte order, if that is where the zero bytes of the first line lie; else None."""
    line = head[:_SAMPLE_BYTES].partition(b"\n")[0]
    if len(line) < 4 or line.count(0) * 4 < len(line):
        return None
    zeros = [line[start::4].count(0) for start in range(4)]
    often, seldom = len(line) // 16, len(line) // 64
    for encoding, places in _WIDE:
        if all(found > often if place == "0" else found <= seldom for place, found in zip(places, zeros, strict=True)):
            return encoding
    return None


def guess_encoding(data: bytes) -> str | None:
    """Return the likely encoding of a few words that are not valid UTF-8; None if no guess is better than another.

    Chinese and Japanese are recognised by their most common characters. What else has no more than two bytes above 0x7f
    in a row is taken for a Western European language.
    """
    high = _HIGH.search(data)
    start = max(high.start() - _SAMPLE_BYTES // 2, 0) if high is not None else 0
    data = data[start : start + _SAMPLE_BYTES]
    if b"\0" in data:
        return next((name for name in ("utf-16-le", "utf-16-be") if _reads_as_text(data, name)), None)
    if _KANA.search(data) and _decodes(data, "cp932"):
        return "shift_jis"
    if max(map(len, _HIGH.findall(data)), default=0) <= 2 and not _COMMON[0][1].search(data):
        is_utf8_in_part = not data.decode("utf-8", "ignore").isascii()
        return "cp1252" if _decodes(data, "cp1252") and not is_utf8_in_part else None
    return next((name for name, common in _COMMON if not _HIGH.search(common.sub(b"", data))), None)


def explain_bad_text(what: str, line: str, encoding: str, setting: str) -> str:
    """Say why a text can't be decoded. Its bad bytes are in `line` as lone surrogates; `setting` sets the encoding."""
    if not is_utf8_name(encoding):
        return f"{what} holds bytes that are not valid in {encoding} ({setting})"
    likely = guess_encoding(line.encode("utf-8", "surrogateescape"))
    advice = "such as gb18030, cp1252 or utf-16" if likely is None else f"it is probably {likely}"
    return f"{what} is not valid UTF-8: save the file as UTF-8, or set {setting} to its encoding ({advice})"


def show_line(line: str) -> str:
    """Return the start of a line for a message, in quotes; what can't be printed is escaped."""
    data = line.strip("\r\n")[:_SHOWN_CHARS].encode("utf-8", "surrogateescape")
    likely = None if _decodes(data, "utf-8") else guess_encoding(data)
    return redact(repr(data.decode(likely or "utf-8", "backslashreplace")), 4 * _SHOWN_CHARS)


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _reads_as_text(data: bytes, encoding: str) -> bool:
    text = data[: len(data) // 2 * 2].decode(encoding, "replace")
    return "\ufffd" not in text and "\0" not in text and any(char.isascii() for char in text)
