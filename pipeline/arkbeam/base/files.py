"""Read, write, list and remove files and objects by URI. Exceptions of storage become `StoreError`.

A file that this module writes is complete or absent, even if the write fails: a local file is written under a temporary
name in the same folder and then renamed; an object is uploaded in one call. (An exception inside fsspec's `with
fs.open(uri, "wb")` leaves half an object.) With `durable` (the default) file and name are synced to the disk before the
call returns, so that after a power cut a file that a later file relies on is neither empty nor missing. Files that are
needed only during the run are not synced.
"""

import errno
import functools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from arkbeam.base import faults
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import full_uri, is_local, open_filesystem, storage_errors

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY_PREFIX = "arkbeam-tmp-"
_TEMPORARY_AGE_S = 24 * 3600.0
# Names that fsspec's file systems use for a file's etag and its modification time.
_ETAG_KEYS = ("ETag", "etag", "generation", "md5Hash")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


def exists(uri: str) -> bool:
    """Return True if a file or folder exists. The listing cache is not used."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("look for", uri):
        filesystem.invalidate_cache()
        return bool(filesystem.exists(path))


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the URIs of all files below a folder, sorted.

    The listing cache is not used. A missing folder has no files.
    """
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        try:
            found = _walk_local(path) if isinstance(filesystem, LocalFileSystem) else filesystem.find(path)
        except FileNotFoundError:
            return []
        return sorted(full_uri(filesystem, name) for name in found if name.endswith(suffix))


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a listing. `version` changes when the file is written again."""

    uri: str
    size: int
    version: str


def list_versions(uri: str, suffix: str = "") -> list[Listed]:
    """List the files below a folder as `list_files` does, with the size and the version of each.

    On object stores this takes no more calls than `list_files`.
    """
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        if isinstance(filesystem, LocalFileSystem):
            return [one for name in list_files(uri, suffix) if (one := _local_version(name)) is not None]
        listed = (
            Listed(found, size, find_version(info) or str(size))
            for found, info in _find_objects(filesystem, path, suffix)
            for size in [int(info.get("size") or 0)]
        )
        return sorted(listed, key=lambda one: one.uri)


def list_times(uri: str, suffix: str = "") -> dict[str, float]:
    """Return when each file below a folder was last written, in Unix time by the storage's clock; 0 if this is not known."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        if isinstance(filesystem, LocalFileSystem):
            return {name: status.st_mtime for name in list_files(uri, suffix) if (status := _status(name)) is not None}
        return {found: _time_of(info) for found, info in _find_objects(filesystem, path, suffix)}


def _find_objects(filesystem: Any, path: str, suffix: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the URI of each object below a folder, and what the listing says of it. A missing folder has none."""
    try:
        found = filesystem.find(path, detail=True)
    except FileNotFoundError:
        return []
    return [(full_uri(filesystem, name), info) for name, info in found.items() if name.endswith(suffix)]


def _time_of(info: Mapping[str, Any]) -> float:
    """Return the time of the last change in what fsspec's `info` returns; 0 if there is none."""
    found = next((info[key] for key in _TIME_KEYS if info.get(key)), 0.0)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found)


def list_folders(uri: str) -> list[str]:
    """Return the names of the folders directly in a folder, sorted. A missing folder has none."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("list", uri):
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")


def find_version(info: Mapping[str, Any]) -> str:
    """Return the version of a file: its etag, else its size and modification time; empty if neither is known.

    The version changes when the file changes. `info` is what fsspec's `info` returns.
    """
    for key in _ETAG_KEYS:
        if info.get(key):
            return str(info[key]).strip('"')
    if info.get("size") is None:
        return ""
    return next((f"{info['size']}-{info[key]}" for key in _TIME_KEYS if info.get(key)), "")


def read_bytes(uri: str) -> bytes:
    """Read a whole small file, in one call."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        return _read_head(filesystem, path)


def read_if_exists(uri: str, bytes_max: int | None = None) -> bytes | None:
    """Read a whole small file, or at most its first `bytes_max` bytes, in one call; None if there is none."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        try:
            return _read_head(filesystem, path, bytes_max)
        except FileNotFoundError:
            return None


def read_range(uri: str, start: int, end: int | None = None) -> bytes:
    """Read the bytes of a file from `start` to before `end`, in one call. A negative `start` counts from the end of the file."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        return bytes(filesystem.cat_file(path, start=start, end=end))


def _read_head(filesystem: Any, path: str, bytes_max: int | None = None) -> bytes:
    """Read a file, or its first bytes.

    Without a range, s3fs would ask for the size first. In an empty object, any range is an error.
    """
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb") as file:
            return file.read() if bytes_max is None else file.read(bytes_max)
    try:
        return bytes(filesystem.cat_file(path, start=0, end=bytes_max))
    except (FileNotFoundError, PermissionError, TimeoutError, ConnectionError):
        raise
    except (OSError, ValueError):
        return bytes(filesystem.cat_file(path))[:bytes_max]


def fetch_file(uri: str, folder: Path) -> Path | None:
    """Return the path of a local file, or of a copy of an object in a local folder; None if there is no such file."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        if isinstance(filesystem, LocalFileSystem):
            return Path(path) if os.path.exists(path) else None
        target = folder / path.rpartition("/")[2]
        try:
            filesystem.get_file(path, str(target))
        except FileNotFoundError:
            return None
        return target


def put_file(local: Path, uri: str) -> None:
    """Move a local file to `uri`, completely or not at all."""
    with writing(uri) as path:
        shutil.move(local, path)


def write_bytes(uri: str, data: bytes, *, durable: bool = True) -> None:
    """Write a whole small file; on failure there is no file, or the old one."""
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
def writing(
    uri: str,
    *,
    durable: bool = True,
    check: Callable[[], None] | None = None,
    name: Callable[[Path], str] | None = None,
) -> Iterator[Path]:
    """Yield a local path to write to. At the end of the block, the file appears at `uri`.

    `name` may return another name for the file in the same folder, which can depend on what was written; if it returns
    an empty one, no file appears. `check` is called just before the file appears. If the block, `name` or `check` raises,
    it does not appear.
    """
    filesystem, path = open_filesystem(uri)
    with storage_errors("write", uri):
        if isinstance(filesystem, LocalFileSystem):
            with _beside(Path(path), durable=durable, name=name) as temporary:
                yield temporary
                if check is not None:
                    check()
            return
        with temporary_folder() as folder:
            local = folder / "file"
            faults.hit("file.write", uri)
            yield local
            final = path if name is None else _rename(path, name(local))
            if final is None:
                return
            if check is not None:
                check()
            faults.hit("file.commit", uri)
            filesystem.put_file(str(local), final)
            faults.hit("file.written", uri)


def _rename(path: str, name: str) -> str | None:
    """Return the path of a file with this name in the same folder; None for an empty name."""
    return f"{path.rpartition('/')[0]}/{name}" if name else None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new local folder, which is removed at the end of the block.

    Folders of killed processes are removed by the first call in a later process, a day after their last change.
    """
    _remove_old_folders()
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@functools.cache
def _remove_old_folders() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*"):
        if all(_is_older(str(path), _TEMPORARY_AGE_S) for path in (folder, *folder.rglob("*"))):
            shutil.rmtree(folder, ignore_errors=True)


def remove_file(uri: str, *, durable: bool = False) -> None:
    """Remove a file; a missing file is not an error. With `durable`, the file does not come back after a power cut."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("remove", uri):
        filesystem.invalidate_cache()
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            return
        if durable and isinstance(filesystem, LocalFileSystem):
            _sync_folder(Path(path).parent)


def remove_files(uris: Iterable[str]) -> None:
    """Remove files, many at once; missing files are not errors."""
    for _ in in_parallel(remove_file, uris):
        pass


def move_file(uri: str, target: str) -> None:
    """Move a file within one storage."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("move", uri):
        target_path = open_filesystem(target)[1]
        if isinstance(filesystem, LocalFileSystem):
            _make_folder(Path(target_path).parent, durable=True)
        filesystem.mv(path, target_path)


def remove_folder(uri: str) -> None:
    """Remove a folder and everything below it; a missing folder is not an error."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("remove", uri):
        if isinstance(filesystem, LocalFileSystem):
            shutil.rmtree(path, ignore_errors=True)
            return
        filesystem.invalidate_cache()
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)


def remove_leftovers(uri: str, *, age_s: float = 0.0) -> None:
    """Remove the temporary files that a killed writer left below a local folder. Object stores have no such files.

    `age_s`: leave those that have changed within this many seconds, since their writer may be alive.
    """
    for name in list_files(uri, _TEMPORARY_SUFFIX) if is_local(uri) else []:
        if name.rpartition("/")[2].startswith(".") and (not age_s or _is_older(name, age_s)):
            remove_file(name)


def _is_older(path: str, age_s: float) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > age_s
    except FileNotFoundError:
        return False


@contextmanager
def _beside(target: Path, *, durable: bool, name: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; rename it to the target if the block does not raise.

    `name`: as in `writing`.
    """
    _make_folder(target.parent, durable=durable)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY_SUFFIX}")
    try:
        faults.hit("file.write", str(target))
        yield temporary
        final = str(target) if name is None else _rename(str(target), name(temporary))
        if final is None:
            return
        if durable:
            _sync(temporary)
        faults.hit("file.commit", final)
        os.replace(temporary, final)
        if durable:
            _sync_folder(target.parent)
        faults.hit("file.written", final)
    finally:
        temporary.unlink(missing_ok=True)


def _make_folder(folder: Path, *, durable: bool) -> None:
    """Make a folder and its parents.

    With `durable`, sync the parent of each new folder, since the parent holds its name.
    """
    if folder.is_dir():
        return
    above = folder.parent
    _make_folder(above, durable=durable)
    folder.mkdir(exist_ok=True)
    if durable:
        _sync_folder(above)


def _sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk, if its file system and its permissions allow it."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _sync(path: Path) -> None:
    """Sync a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _local_version(path: str) -> Listed | None:
    """Return size and version of a local file; None if it has been removed since it was listed."""
    status = _status(path)
    return None if status is None else Listed(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _walk_local(path: str) -> list[str]:
    """List the files below a folder.

    If a folder can't be read, raise OSError: fsspec's `find` would return no files.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(path, onerror=fail, followlinks=True)
    return [f"{folder}/{name}" for folder, _, names in walk for name in names]
