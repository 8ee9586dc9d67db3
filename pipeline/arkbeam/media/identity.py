"""The version of a medium: a string that changes when the medium changes.

It is the storage's etag, or size and modification time if there is no etag. With `media.identity: content`, a hash of
the bytes is put before it. The fingerprint then uses only the hash, and an unchanged etag shows the sender that the
bytes are the same, without hashing them again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from arkbeam.base.bad_rows import fail_row

DIGEST_BYTES = 16
_CONTENT = "blake2b:"
_STORAGE = "storage:"


@dataclass(frozen=True, slots=True)
class MediumRead:
    """The first bytes of a medium, with the size and the version of the whole."""

    head: bytes
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class MediumBlocks:
    """A medium that is being read: `expected` bytes in blocks, with the size and the version of the whole."""

    blocks: Iterator[bytes]
    expected: int
    size: int
    version: str


def storage_version(tag: str) -> str:
    """Return the version for a storage's etag. An etag that looks like a version with a content hash gets a prefix."""
    return f"{_STORAGE}{tag}" if tag.startswith((_CONTENT, _STORAGE)) else tag


def content_version(digest: bytes, version: str) -> str:
    """Return the version of a medium identified by its bytes; `version` is the one that its storage reports."""
    return f"{_CONTENT}{digest.hex()}:{version}"


def content_of(version: str | None) -> bytes | None:
    """Return the hash of the bytes that a version contains, or None."""
    if version is None or not version.startswith(_CONTENT):
        return None
    return bytes.fromhex(version[len(_CONTENT) : len(_CONTENT) + 2 * DIGEST_BYTES])


def storage_part(version: str) -> str:
    """Return the part of a version that the storage reported."""
    return version if content_of(version) is None else version[len(_CONTENT) + 2 * DIGEST_BYTES + 1 :]


def digest_of(data: bytes) -> bytes:
    """Return the hash of a medium's bytes (BLAKE2b, 16 bytes)."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def check_version(expected: str | None, found: str, data: bytes | None, *, of_web: bool = False) -> None:
    """Refuse a medium that changed after its fingerprint was made.

    `expected` is the version in the fingerprint, None if there was none; `found` is the version that the storage
    reports now; `data` are all bytes of the medium, or None if they were not read completely. `of_web`: it was reported
    by a web server. Raise BadRow (`media_changed`).
    """
    if expected is None:
        return
    content, known = content_of(expected), storage_part(expected)
    if known == found or (content is not None and data is not None and digest_of(data) == content):
        return
    advice = "; if the server reports another one with every answer, set media.identity: content"
    fail_row(
        "media_changed",
        f"the file changed after it was inspected: its version was {known[:80]} and is now {found[:80]}"
        f"{advice if of_web and content is None else ''}",
    )
