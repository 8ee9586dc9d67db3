"""Sizes, versions and bytes of media in storage. Everything here may raise what the storage raises.

A version tells one state of a file from another: the etag where the store has one, else size and time of change. It is
read past fsspec's caches of listings, which went on telling the old etag after an overwrite (seen with s3fs).
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import fsspec

from pipeline.media.http import fetch, fetch_range
from pipeline.media.locations import allowed_local_path, check_scheme, check_url, is_web, local_path
from pipeline.media.options import MediaOptions
from pipeline.media.refusal import Refusal

_ETAG_KEYS = ("ETag", "etag", "generation", "md5Hash")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class Found:
    """The first bytes of a file, with size and version of the whole."""

    head: bytes
    size: int
    version: str


def look_at(uri: str, bytes_max: int, options: MediaOptions) -> Found:
    """Read at most `bytes_max` bytes from the start, with the file's size and version as they are now."""
    path = local_path(uri)
    if path is not None:
        return _read_local(path, bytes_max, options)
    if is_web(uri):
        return _fetch(uri, bytes_max, options)
    filesystem, path = _open_remote(uri, options)
    size, version = _remote_state(filesystem, path)
    head = bytes(filesystem.cat_file(path, start=0, end=bytes_max)) if size else b""
    return _complete(head, bytes_max, size, version)


def read_again(uri: str, bytes_max: int, options: MediaOptions) -> Found:
    """Read at most `bytes_max` bytes, then size and version, so that no newer bytes pass for older ones."""
    path = local_path(uri)
    if path is not None:
        return _read_local(path, bytes_max, options)
    if is_web(uri):
        return _fetch(uri, bytes_max, options)
    filesystem, path = _open_remote(uri, options)
    head = bytes(filesystem.cat_file(path, start=0, end=bytes_max))
    size, version = _remote_state(filesystem, path)
    return _complete(head, bytes_max, size, version)


def _fetch(url: str, bytes_max: int, options: MediaOptions) -> Found:
    check_url(url, options)
    fetched = fetch(url, bytes_max, options)
    return Found(fetched.head, fetched.size, fetched.version)


def read_range(uri: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Read the bytes from `start` up to `end`, as they are now."""
    path = local_path(uri)
    if path is not None:
        with _open_regular(allowed_local_path(path, options)) as descriptor:
            return os.pread(descriptor, end - start, start)
    if is_web(uri):
        return fetch_range(uri, start, end, options)
    filesystem, path = _open_remote(uri, options)
    return bytes(filesystem.cat_file(path, start=start, end=end))


def _complete(head: bytes, bytes_max: int, size: int, version: str) -> Found:
    expected = min(size, bytes_max)
    if len(head) != expected:
        raise Refusal("media_changed", f"{len(head)} bytes came where {expected} were expected: it changed meanwhile")
    return Found(head, size, version)


def _read_local(path: str, bytes_max: int, options: MediaOptions) -> Found:
    with _open_regular(allowed_local_path(path, options)) as descriptor:
        before = os.fstat(descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            head = stream.read(bytes_max)
        after = os.fstat(descriptor)
    if _local_version(before) != _local_version(after):
        raise Refusal("media_changed", "it changed while it was read")
    return _complete(head, bytes_max, after.st_size, _local_version(after))


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


def _open_remote(uri: str, options: MediaOptions) -> tuple[Any, str]:
    check_scheme(uri, options)
    filesystem, path = fsspec.core.url_to_fs(uri)
    return filesystem, path


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
            return str(info[key]).strip('"')
    for key in _TIME_KEYS:
        if info.get(key):
            return f"{size}-{info[key]}"
    return blake2b(filesystem.cat_file(path), digest_size=16).hexdigest()
