"""Read the bytes, sizes and versions of media from storage.

The functions raise what the storage raises; `guard` turns this into a failure. The version of a file is its etag, else
its size and modification time. fsspec's listing caches are not used for it: s3fs was seen to return the old etag from
them after an overwrite.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NoReturn, TypeVar

from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.files import find_version
from arkbeam.base.records import Failure, Modality
from arkbeam.base.redaction import redact, secrets_of
from arkbeam.base.uris import open_object_store
from arkbeam.decoding.workers import Interrupted, is_stopped
from arkbeam.media.checks import readable_bytes_max
from arkbeam.media.data_uri import describe_data_uri, is_data_uri
from arkbeam.media.http import fetch, fetch_range
from arkbeam.media.identity import DIGEST_BYTES, MediumBlocks, MediumRead, content_version, digest_of, storage_version
from arkbeam.media.options import MediaOptions
from arkbeam.media.s3 import find_object, head_object, open_object, read_object
from arkbeam.media.uris import check_scheme, find_allowed_path, is_web, local_path

_BLOCK_BYTES = 4 * 1024 * 1024

_Result = TypeVar("_Result")


def guard(uri: str, work: Callable[[], _Result]) -> _Result | Failure:
    """Run `work` on a medium and return its result.

    If it raises BadRow or an exception of the storage, return a Failure that names the medium. After
    `decoding.workers.stop`, raise Interrupted instead: the medium may be fine.
    """
    try:
        return work()
    except BadRow as refused:
        code, reason = refused.failure.code, refused.failure.message
    except FileNotFoundError:
        code, reason = "media_missing", "the file does not exist"
    except (IsADirectoryError, NotADirectoryError) as error:
        code, reason = "media_not_a_file", f"not a file: {error}"
    except ArkbeamError:
        raise
    except Exception as error:  # noqa: BLE001 (each fsspec backend has errors of its own)
        code, reason = "media_unreadable", f"reading failed: {type(error).__name__}: {error}"
    if is_stopped():
        raise Interrupted
    shown = describe_data_uri(uri) if is_data_uri(uri) else redact(uri, 200)
    return Failure(code, f"{shown}: {redact(reason, 250, secrets=secrets_of(uri))}")


def read_head(uri: str, bytes_max: int, options: MediaOptions, whole_max: int | None = None) -> MediumRead:
    """Read at most `bytes_max` bytes from the start, with the size and version of the file.

    With `media.identity: content` the whole file is read, a block at a time, and the version contains a hash of its
    bytes. `whole_max` is the most that is read of a file, and is at least `bytes_max`; None: the size of the largest
    medium.
    """
    if options.identity == "content":
        return _read_and_hash(uri, bytes_max, options, _largest(options) if whole_max is None else whole_max)
    medium = _read_at_once(uri, bytes_max, options, whole_max)
    if medium is not None:
        return medium
    filesystem, path = open_object_store(uri)
    size, version = _remote_state(filesystem, path)
    head = bytes(filesystem.cat_file(path, start=0, end=bytes_max)) if size else b""
    return _check_length(MediumRead(head, size, version), bytes_max)


def read_for_sending(uri: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    """Read at most `bytes_max` bytes from the start, and the size and version together with or after the bytes.

    The version is never older than the bytes: if the file is overwritten before the bytes are read, the version shows
    it.
    """
    medium = _read_at_once(uri, bytes_max, options, bytes_max)
    if medium is not None:
        return medium
    filesystem, path = open_object_store(uri)
    try:
        head = bytes(filesystem.cat_file(path, start=0, end=bytes_max))
    except OSError:  # s3fs raises it for a range of an empty object
        if _remote_state(filesystem, path)[0]:
            raise
        head = b""
    return _check_length(MediumRead(head, *_remote_state(filesystem, path)), bytes_max)


def _largest(options: MediaOptions) -> int:
    return max(readable_bytes_max(modality, options) for modality in (Modality.IMAGE, Modality.VIDEO))


def _read_at_once(uri: str, bytes_max: int, options: MediaOptions, whole_max: int | None) -> MediumRead | None:
    """Read a local file, a URL or an S3 object, whose bytes and version can be read together.

    Return None for other storage.
    """
    path = local_path(uri)
    if path is not None:
        return _read_local(path, bytes_max, options)
    if is_web(uri):
        return fetch(uri, bytes_max, _largest(options) if whole_max is None else whole_max, options)
    check_scheme(uri, options.schemes)
    target = find_object(uri)
    return None if target is None else _check_length(read_object(target, 0, bytes_max), bytes_max)


def read_range(uri: str, start: int, end: int, options: MediaOptions) -> bytes:
    """Read the bytes from `start` to `end` (exclusive), fewer if the file ends before."""
    path = local_path(uri)
    if path is not None:
        with _open_local(path, options) as descriptor:
            return os.pread(descriptor, end - start, start)
    if is_web(uri):
        return fetch_range(uri, start, end, options)
    check_scheme(uri, options.schemes)
    target = find_object(uri)
    if target is not None:
        return read_object(target, start, end).head
    filesystem, path = open_object_store(uri)
    return bytes(filesystem.cat_file(path, start=start, end=end))


def read_version(uri: str, options: MediaOptions) -> str:
    """Return a file's current version without reading the file."""
    path = local_path(uri)
    if path is not None:
        with _open_local(path, options) as descriptor:
            return _local_version(os.fstat(descriptor))
    if is_web(uri):
        return fetch(uri, 1, _largest(options), options).version
    check_scheme(uri, options.schemes)
    target = find_object(uri)
    if target is not None:
        return head_object(target)[1]
    return _remote_state(*open_object_store(uri))[1]


def _read_and_hash(uri: str, head_bytes: int, options: MediaOptions, bytes_max: int) -> MediumRead:
    """Read a file up to `bytes_max` bytes; keep its first bytes and the hash of all that was read."""
    if is_web(uri):
        return fetch(uri, head_bytes, bytes_max, options, hashed=True)
    digest, head, size = blake2b(digest_size=DIGEST_BYTES), bytearray(), 0
    with _open_blocks(uri, bytes_max, options) as opened:
        for block in opened.blocks:
            digest.update(block)
            head += memoryview(block)[: max(0, head_bytes - len(head))]
            size += len(block)
    if size != min(opened.size, bytes_max):
        _refuse_length(size, opened.size)
    return MediumRead(bytes(head), opened.size, content_version(digest.digest(), opened.version))


@contextmanager
def _open_blocks(uri: str, bytes_max: int, options: MediaOptions) -> Iterator[MediumBlocks]:
    """Open a file to be read in blocks. On leaving the context, refuse it if it changed while it was read."""
    path = local_path(uri)
    if path is not None:
        with _open_local(path, options) as descriptor:
            before = os.fstat(descriptor)
            blocks = _read_blocks(descriptor, min(before.st_size, bytes_max))
            yield MediumBlocks(blocks, before.st_size, before.st_size, _local_version(before))
            _check_same(_local_version(before), _local_version(os.fstat(descriptor)))
        return
    check_scheme(uri, options.schemes)
    target = find_object(uri)
    if target is not None:
        yield open_object(target, 0, bytes_max)  # one call: all bytes are of one state
        return
    filesystem, path = open_object_store(uri)
    size, version = _remote_state(filesystem, path)
    starts = range(0, min(size, bytes_max), _BLOCK_BYTES)
    ranges = ((start, min(start + _BLOCK_BYTES, bytes_max)) for start in starts)
    blocks = (bytes(filesystem.cat_file(path, start=start, end=end)) for start, end in ranges)
    yield MediumBlocks(blocks, size, size, version)
    _check_same(version, _remote_state(filesystem, path)[1])


def _read_blocks(descriptor: int, left: int) -> Iterator[bytes]:
    while left and (block := os.read(descriptor, min(_BLOCK_BYTES, left))):
        left -= len(block)
        yield block


def _read_local(path: str, bytes_max: int, options: MediaOptions) -> MediumRead:
    with _open_local(path, options) as descriptor:
        before = os.fstat(descriptor)
        with os.fdopen(os.dup(descriptor), "rb") as stream:
            head = stream.read(bytes_max)
        after = os.fstat(descriptor)
    _check_same(_local_version(before), _local_version(after))
    return _check_length(MediumRead(head, after.st_size, _local_version(after)), bytes_max)


@contextmanager
def _open_local(path: str, options: MediaOptions) -> Iterator[int]:
    """Open a file that a manifest may name.

    A link created after the check is not followed; opening a pipe does not block.
    """
    real = find_allowed_path(path, options.allowed_roots, options.url_chars_max)
    descriptor = os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            fail_row("media_not_a_file", "this is a folder or a device, not a file")
        yield descriptor
    finally:
        os.close(descriptor)


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _remote_state(filesystem: Any, path: str) -> tuple[int, str]:
    """Return the current size and version."""
    filesystem.invalidate_cache(path)
    info: Mapping[str, Any] = filesystem.info(path)
    size = info.get("size")
    if info.get("type") == "directory":
        fail_row("media_not_a_file", "this is a folder, not a file")
    if size is None:
        fail_row("media_unreadable", "the storage does not report the size of the file")
    version = find_version(info)
    # If the store reports neither etag nor time, the version is a hash of the bytes.
    return size, storage_version(version) if version else digest_of(filesystem.cat_file(path)).hex()


def _check_same(before: str, after: str) -> None:
    if before != after:
        fail_row("media_changed", "the file changed while it was read")


def _check_length(medium: MediumRead, bytes_max: int) -> MediumRead:
    if len(medium.head) != min(medium.size, bytes_max):
        _refuse_length(len(medium.head), min(medium.size, bytes_max))
    return medium


def _refuse_length(size: int, expected: int) -> NoReturn:
    fail_row("media_changed", f"{size} bytes were read instead of {expected}: the file changed while it was read")
