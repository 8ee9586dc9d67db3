"""Files and objects by URI: the one border between fsspec's many exceptions and ours.

A file that this module writes is complete or absent, whatever happens on the way: local files are written beside their place
and renamed, objects are put whole in one call. (An exception inside fsspec's `with fs.open(uri, "wb")` leaves half an object.)
Durable ones, the default, are on the disk when the call returns, and so is their name: a power cut can't leave a file that a
later one relies on empty or gone. What lives only as long as a run does without.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from arkbeam.base import faults
from arkbeam.base.errors import ArkbeamError, StoreError
from arkbeam.base.redaction import redact

_TEMPORARY_SUFFIX = ".tmp"
# What fsspec's file systems call a file's etag and its time of change.
_ETAG_KEYS = ("ETag", "etag", "generation", "md5Hash")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@contextmanager
def storage_errors(doing: str, uri: str) -> Iterator[None]:
    """Turn whatever a storage backend raises into `StoreError`, naming what was being done to which URI."""
    try:
        yield
    except ArkbeamError:
        raise
    except Exception as error:
        raise StoreError(f"cannot {doing} {redact(uri)}: {type(error).__name__}: {redact(str(error))}") from error


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path in it."""
    with storage_errors("open", uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, path.rstrip("/")


def is_local(uri: str) -> bool:
    """Tell whether a URI is a path of this machine: renames are atomic and locks work there."""
    return isinstance(open_filesystem(uri)[0], LocalFileSystem)


def absolute(uri: str) -> str:
    """Make a local path absolute, since workers have working directories of their own; leave other URIs as they are."""
    filesystem, path = open_filesystem(uri)
    return str(path) if isinstance(filesystem, LocalFileSystem) else uri.rstrip("/")


def join(base: str, *names: str) -> str:
    """Append path segments to a URI."""
    return "/".join([base.rstrip("/"), *names])


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there, past any listing cache."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("look for", uri):
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))


def list_files(uri: str, suffix: str = "") -> list[str]:
    """List the URIs of all files below a folder, in name order, past any listing cache; a missing folder has none."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        try:
            found = _walk_local(path) if isinstance(filesystem, LocalFileSystem) else filesystem.find(path)
        except FileNotFoundError:
            return []
        return sorted(_full_uri(filesystem, name) for name in found if name.endswith(suffix))


def list_folders(uri: str) -> list[str]:
    """List the names of the folders directly below a folder, in name order; a missing folder has none."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")


def find_version(info: Mapping[str, Any]) -> str:
    """Return what tells one state of a file from another: its etag, else size and time of change; empty if neither is known.

    `info` is what fsspec's `info` returns.
    """
    for key in _ETAG_KEYS:
        if info.get(key):
            return str(info[key]).strip('"')
    if info.get("size") is None:
        return ""
    return next((f"{info['size']}-{info[key]}" for key in _TIME_KEYS if info.get(key)), "")


def read_bytes(uri: str) -> bytes:
    """Read a whole small file."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        return bytes(filesystem.cat_file(path))


def write_bytes(uri: str, data: bytes, *, durable: bool = True) -> None:
    """Write a whole small file, complete or not at all."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("write", uri):
        if isinstance(filesystem, LocalFileSystem):
            with _beside(Path(path), durable=durable) as temporary:
                temporary.write_bytes(data)
            return
        faults.hit("file.write", uri)
        faults.hit("file.commit", uri)
        filesystem.pipe_file(path, data)
        faults.hit("file.written", uri)


@contextmanager
def writing(uri: str, *, durable: bool = True, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """Give a local path to write to; at the end of the block it is put at `uri`, complete, or not at all if it raised.

    `check` is called just before it is put there, and may raise to keep it from being put.
    """
    filesystem, path = open_filesystem(uri)
    with storage_errors("write", uri):
        if isinstance(filesystem, LocalFileSystem):
            with _beside(Path(path), durable=durable) as temporary:
                yield temporary
                if check is not None:
                    check()
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "file"
            faults.hit("file.write", uri)
            yield local
            if check is not None:
                check()
            faults.hit("file.commit", uri)
            filesystem.put_file(str(local), path)
            faults.hit("file.written", uri)


def remove_file(uri: str, *, durable: bool = False) -> None:
    """Remove a file; one that is not there is fine. `durable`: a power cut can't bring it back."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("remove", uri):
        filesystem.invalidate_cache()
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            return
        if durable and isinstance(filesystem, LocalFileSystem):
            _sync_folder(Path(path).parent)


def move_file(uri: str, target: str) -> None:
    """Move a file within its storage."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("move", uri):
        target_path = open_filesystem(target)[1]
        if isinstance(filesystem, LocalFileSystem):
            _make_folder(Path(target_path).parent, durable=True)
        filesystem.mv(path, target_path)


def remove_folder(uri: str) -> None:
    """Remove a folder and all below it; one that is not there is fine."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("remove", uri):
        if isinstance(filesystem, LocalFileSystem):
            shutil.rmtree(path, ignore_errors=True)
            return
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def remove_leftovers(uri: str) -> None:
    """Remove the temporary files that a killed writer left below a local folder; objects have none."""
    for name in list_files(uri, _TEMPORARY_SUFFIX) if is_local(uri) else []:
        if name.rpartition("/")[2].startswith("."):
            remove_file(name)


@contextmanager
def _beside(target: Path, *, durable: bool) -> Iterator[Path]:
    """Give a temporary path in the target's folder; rename it onto the target when all went well."""
    _make_folder(target.parent, durable=durable)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY_SUFFIX}")
    try:
        faults.hit("file.write", str(target))
        yield temporary
        if durable:
            _sync(temporary)
        faults.hit("file.commit", str(target))
        os.replace(temporary, target)
        if durable:
            _sync_folder(target.parent)
        faults.hit("file.written", str(target))
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path, *, durable: bool) -> None:
    """Make a folder with those above it; each new name is in the folder above, which is what must reach the disk."""
    if folder.is_dir():
        return
    above = folder.parent
    _make_folder(above, durable=durable)
    folder.mkdir(exist_ok=True)
    if durable:
        _sync_folder(above)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system and its permissions let us."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk_local(path: str) -> list[str]:
    """List the files below a folder. For one that can't be read, fsspec's `find` would give none instead of an error."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(path, onerror=fail, followlinks=True)
    return [f"{folder}/{name}" for folder, _, names in walk for name in names]


def _full_uri(filesystem: Any, name: str) -> str:
    return name if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(name))
