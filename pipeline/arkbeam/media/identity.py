"""What tells one state of a medium from another: what its storage says of it, or its bytes.

A version is the storage's etag, or size and time of change where there is none. With `media.identity: content` the hash of
the bytes stands before it: the fingerprint is made of the hash alone, and the sender may see by the etag that nothing has
changed without hashing once more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from arkbeam.base.refusal import refuse

DIGEST_BYTES = 16
_CONTENT = "blake2b:"
_STORAGE = "storage:"


@dataclass(frozen=True, slots=True)
class MediumRead:
    """The first bytes of a file, with size and version of the whole."""

    head: bytes
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class MediumBlocks:
    """A file that is being read: `expected` bytes in blocks, with size and version of the whole."""

    blocks: Iterator[bytes]
    expected: int
    size: int
    version: str


def storage_version(tag: str) -> str:
    """Return the version that a storage's own words make; one that looks like a hash of ours is marked as what it is."""
    return f"{_STORAGE}{tag}" if tag.startswith((_CONTENT, _STORAGE)) else tag


def content_version(digest: bytes, version: str) -> str:
    """Return the version of a medium that is known by its bytes, whose storage tells `version`."""
    return f"{_CONTENT}{digest.hex()}:{version}"


def content_of(version: str | None) -> bytes | None:
    """Return the hash of the bytes if a version holds one."""
    if version is None or not version.startswith(_CONTENT):
        return None
    return bytes.fromhex(version[len(_CONTENT) : len(_CONTENT) + 2 * DIGEST_BYTES])


def storage_part(version: str) -> str:
    """Return what the storage itself told of a version."""
    return version if content_of(version) is None else version[len(_CONTENT) + 2 * DIGEST_BYTES + 1 :]


def digest_of(data: bytes) -> bytes:
    """Hash the bytes of a medium."""
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def check_version(expected: str | None, found: str, data: bytes | None) -> None:
    """Refuse a medium that is no more what its fingerprint was made of.

    `expected` is the version of then, None where there was none; `found` what the storage tells now; `data` the bytes, where
    they have been read whole. Raises RowRefused (`media_changed`).
    """
    if expected is None:
        return
    content, known = content_of(expected), storage_part(expected)
    if known == found or (content is not None and data is not None and digest_of(data) == content):
        return
    refuse("media_changed", f"it changed since it was read: version {known} then, {found} now")
