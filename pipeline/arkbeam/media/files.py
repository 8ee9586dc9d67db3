"""Sizes, versions and bytes of media in storage. Everything here may raise what the storage raises.

A version tells one state of a file from another: the etag where the store has one, else size and time of change. It is
read past fsspec's caches of listings, which went on telling the old etag after an overwrite (seen with s3fs).
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import fsspec

from arkbeam.base.records import Modality
from arkbeam.media.checks import bytes_max as largest
from arkbeam.media.found import Blocks, Found
from arkbeam.media.http import fetch, fetch_range
from arkbeam.media.identity import DIGEST_BYTES, content_version, storage_version
from arkbeam.media.objects import head_object, open_object, read_object
from arkbeam.media.options import MediaOptions
from arkbeam.media.refusal import Refusal
from arkbeam.media.s3 import find_place
from arkbeam.media.uris import allowed_local_path, check_scheme, check_url, is_web, local_path

_ETAG_KEYS = ("ETag", "etag", "generation", "md5Hash")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_BLOCK_BYTES = 4 * 1024 * 1024


def look_at(uri: str, bytes_max: int, options: MediaOptions) -> Found:
    """Read at most `bytes_max` bytes from the start, with the file's size and version as they are now.

    Where media are known by their bytes, all of them are read, a block at a time, and the version holds their hash.
    """
    if options.identity == "content":
        return _look_through(uri, bytes_max, options)
    found = _read_at_once(uri, bytes_max, options)
    if found is not None:
        return found
    filesystem, path = fsspec.core.url_to_fs(uri)
    size, version = _remote_state(filesystem, path)
    head = bytes(filesystem.cat_file(path, start=0, end=bytes_max)) if size else b""
    return _complete(Found(head, size, version), bytes_max)


def _read_at_once(uri: str, bytes_max: int, options: MediaOptions) -> Found | None:
    """Read where bytes and version come together: local files, http and S3. None elsewhere."""
    path = local_path(uri)
    if path is not None:
        return _read_local(path, bytes_max, options)
    if is_web(uri):
        return _fetch(uri, bytes_max, options)
    check_scheme(uri, options)
    place = find_place(uri)
    return None if place is None else _complete(read_object(place, 0, bytes_max), bytes_max)


def read_again(uri: str, bytes_max: int, options: MediaOptions) -> Found:
    """Read at most `bytes_max` bytes, and size and version with or after them: no newer bytes pass for older ones."""
    found = _read_at_once(uri, bytes_max, options)
    if found is not None:
        return found
    filesystem, path = fsspec.core.url_to_fs(uri)
    try:
        head = bytes(filesystem.cat_file(path, start=0, end=bytes_max))
    except OSError:  # so s3fs answers for a range of an empty object
        if _remote_state(filesystem, path)[0]:
            raise
        head = b""
    return _complete(Found(head, *_remote_state(filesystem, path)), bytes_max)


def read_range(uri: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Read the bytes from `start` up to `end`, as far as there are so many, as they are now."""
    path = local_path(uri)
    if path is not None:
        with _open_regular(allowed_local_path(path, options)) as descriptor:
            return os.pread(descriptor, end - start, start)
    if is_web(uri):
        return fetch_range(uri, start, end, options)
    check_scheme(uri, options)
    place = find_place(uri)
    if place is not None:
        return read_object(place, start, end).head
    filesystem, path = fsspec.core.url_to_fs(uri)
    return bytes(filesystem.cat_file(path, start=start, end=end))


def read_version(uri: str, options: MediaOptions) -> str:
    """Return a file's version as it is now, without reading the file."""
    path = local_path(uri)
    if path is not None:
        with _open_regular(allowed_local_path(path, options)) as descriptor:
            return _local_version(os.fstat(descriptor))
    if is_web(uri):
        return _fetch(uri, 1, options).version
    check_scheme(uri, options)
    place = find_place(uri)
    if place is not None:
        return head_object(place)[1]
    return _remote_state(*fsspec.core.url_to_fs(uri))[1]


def _fetch(url: str, bytes_max: int, options: MediaOptions) -> Found:
    check_url(url, options)
    fetched = fetch(url, bytes_max, options)
    return Found(fetched.head, fetched.size, fetched.version)


def _look_through(uri: str, head_bytes: int, options: MediaOptions) -> Found:
    """Read a whole file, unless it is too large to be sent, and keep its first bytes and the hash of all."""
    bytes_max = max(largest(modality, options) for modality in (Modality.IMAGE, Modality.VIDEO))
    digest, head, size = blake2b(digest_size=DIGEST_BYTES), bytearray(), 0
    with _open_blocks(uri, bytes_max, options) as opened:
        for block in opened.blocks:
            digest.update(block)
            head += memoryview(block)[: max(0, head_bytes - len(head))]
            size += len(block)
    if size != min(opened.size, bytes_max):
        raise _cut_short(size, opened.size)
    return Found(bytes(head), opened.size, content_version(digest.digest(), opened.version))


@contextmanager
def _open_blocks(uri: str, bytes_max: int, options: MediaOptions) -> Iterator[Blocks]:
    """Read a file in blocks; what changes meanwhile is refused."""
    path = local_path(uri)
    if path is not None:
        with _open_regular(allowed_local_path(path, options)) as descriptor:
            before = os.fstat(descriptor)
            blocks = _read_blocks(descriptor, min(before.st_size, bytes_max))
            yield Blocks(blocks, before.st_size, before.st_size, _local_version(before))
            if _local_version(os.fstat(descriptor)) != _local_version(before):
                raise Refusal("media_changed", "it changed while it was read")
        return
    if is_web(uri):
        fetched = _fetch(uri, bytes_max, options)
        yield Blocks(iter((fetched.head,)), len(fetched.head), fetched.size, fetched.version)
        return
    check_scheme(uri, options)
    place = find_place(uri)
    if place is not None:
        yield open_object(place, 0, bytes_max)  # one call: all bytes are of one state
        return
    filesystem, path = fsspec.core.url_to_fs(uri)
    size, version = _remote_state(filesystem, path)
    starts = range(0, min(size, bytes_max), _BLOCK_BYTES)
    ranges = ((start, min(start + _BLOCK_BYTES, bytes_max)) for start in starts)
    yield Blocks((bytes(filesystem.cat_file(path, start=start, end=end)) for start, end in ranges), size, size, version)
    if _remote_state(filesystem, path)[1] != version:
        raise Refusal("media_changed", "it changed while it was read")


def _read_blocks(descriptor: int, left: int) -> Iterator[bytes]:
    while left and (block := os.read(descriptor, min(_BLOCK_BYTES, left))):
        left -= len(block)
        yield block


def _complete(found: Found, bytes_max: int) -> Found:
    if len(found.head) != min(found.size, bytes_max):
        raise _cut_short(len(found.head), min(found.size, bytes_max))
    return found


def _cut_short(size: int, expected: int) -> Refusal:
    return Refusal("media_changed", f"{size} bytes came where {expected} were expected: it changed meanwhile")


def _read_local(path: str, bytes_max: int, options: MediaOptions) -> Found:
    with _open_regular(allowed_local_path(path, options)) as descriptor:
        before = os.fstat(descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            head = stream.read(bytes_max)
        after = os.fstat(descriptor)
    if _local_version(before) != _local_version(after):
        raise Refusal("media_changed", "it changed while it was read")
    return _complete(Found(head, after.st_size, _local_version(after)), bytes_max)


@contextmanager
def _open_regular(path: str) -> Iterator[int]:
    """Open without following a link put there meanwhile, and without waiting on a pipe."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refusal("media_not_a_file", "it is a folder or a device, not a file")
        yield descriptor
    finally:
        os.close(descriptor)


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _remote_state(filesystem: Any, path: str) -> tuple[int, str]:
    """Size and version as they are now."""
    filesystem.invalidate_cache(path)
    info: Mapping[str, Any] = filesystem.info(path)
    size = info.get("size")
    if info.get("type") == "directory":
        raise Refusal("media_not_a_file", "it is a folder, not a file")
    if size is None:
        raise Refusal("media_unreadable", "the storage does not tell its size")
    return size, _remote_version(filesystem, path, info, size)


def _remote_version(filesystem: Any, path: str, info: Mapping[str, Any], size: int) -> str:
    """An etag, else size and time, else a hash of the bytes: a store that tells neither must be read to be known."""
    for key in _ETAG_KEYS:
        if info.get(key):
            return storage_version(str(info[key]).strip('"'))
    for key in _TIME_KEYS:
        if info.get(key):
            return f"{size}-{info[key]}"
    return blake2b(filesystem.cat_file(path), digest_size=DIGEST_BYTES).hexdigest()
