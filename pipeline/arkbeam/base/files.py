"""Files and objects by URI. Exceptions of fsspec and its backends become `StoreError` here.

A file that this module writes is complete or absent, even if the write fails: a local file is written under a temporary
name in the same folder and then renamed; an object is uploaded in one call. (An exception inside fsspec's `with
fs.open(uri, "wb")` leaves half an object.) With `durable` (the default) file and name are synced to the disk before the
call returns, so that after a power cut a file that a later file relies on is neither empty nor missing. Files that are
needed only during the run are not synced.
"""

import errno
import functools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem, make_path_posix

from arkbeam.base import faults
from arkbeam.base.errors import ArkbeamError, ConfigError, StoreError
from arkbeam.base.parallel import IN_FLIGHT, LOCAL_IN_FLIGHT, in_parallel
from arkbeam.base.redaction import holds_credentials, redact

LOCAL_SCHEMES = frozenset({"file", "local"})
_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY_PREFIX = "arkbeam-tmp-"
_TEMPORARY_AGE_S = 24 * 3600.0
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAIN = re.compile(r"::.*://|://.*::/", re.DOTALL)
# Names that fsspec's file systems use for a file's etag and its modification time.
_ETAG_KEYS = ("ETag", "etag", "generation", "md5Hash")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


@contextmanager
def storage_errors(doing: str, uri: str) -> Iterator[None]:
    """Turn any exception of a storage backend into a `StoreError` that names the action and the URI."""
    try:
        yield
    except ArkbeamError:
        raise
    except Exception as error:
        raise StoreError(f"cannot {doing} {redact(uri)}: {type(error).__name__}: {redact(str(error))}") from error


def scheme_of(uri: str) -> str | None:
    """Return the scheme in front of `://`, in lower case; None for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else None


def is_chained(uri: str) -> bool:
    """True for a chain of URIs, such as `zip://a.jsonl::s3://…`. `::` in a path or in an object's name makes no chain."""
    return "::" in uri and uri[:1] not in ("/", "~", ".") and _CHAIN.search(uri) is not None


def file_url_path(url: str) -> str:
    """Return the path that a `file://` URL names: percent-decoded, without the host `localhost`.

    The path is not decoded if that gives no valid UTF-8, or if only the path that is not decoded exists.
    """
    raw = url.partition("://")[2]
    raw = raw.removeprefix("localhost") if raw.startswith("localhost/") else raw
    try:
        path = unquote(raw, errors="strict")
    except UnicodeDecodeError:
        return raw
    return raw if path != raw and not os.path.lexists(path) and os.path.lexists(raw) else path


def find_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path in that filesystem. Exceptions of fsspec pass through.

    The characters of a local path, and of an object's name, have no special meaning: fsspec's own function would take
    `::` for a chain, and `file:` at the start of a path for a scheme.
    """
    uri = lower_scheme(uri)
    if is_chained(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        return filesystem, str(path)
    if uri.startswith("file:/") and not uri.startswith("file://"):
        uri = uri.replace(":", "://", 1)
    scheme = scheme_of(uri)
    if scheme is None or scheme in LOCAL_SCHEMES:
        path = uri if scheme is None else file_url_path(uri)
        if path.startswith("~") and os.path.lexists(path):  # the name of a file, not of a home folder
            path = f"./{path}"
        return fsspec.filesystem("file"), make_path_posix(path).rstrip("/") or "/"
    protocol = uri.partition("://")[0]
    kind = fsspec.get_filesystem_class(protocol)
    return fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(uri)), str(kind._strip_protocol(uri))


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path in that filesystem. Raise ConfigError for a URI with a password."""
    check_credentials(uri)
    with storage_errors("open", uri):
        filesystem, path = find_filesystem(uri)
        return filesystem, path.rstrip("/")


def open_object_store(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of an object's URI and the path in it. `::` in a key is not the start of another URI."""
    uri = lower_scheme(uri)
    scheme = uri.partition("://")[0]
    kind = fsspec.get_filesystem_class(scheme)
    return fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(uri)), str(kind._strip_protocol(uri))


def lower_scheme(uri: str) -> str:
    """Return a URI with its scheme in lower case, as fsspec needs it; a path is returned unchanged."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme.lower()}://{rest}" if separator and _SCHEME.match(uri) else uri


def check_credentials(uri: str) -> None:
    """Raise ConfigError if the URI of an object has a user or a password in it: errors of the storage would quote them."""
    if holds_credentials(uri):
        raise ConfigError(
            f"{redact(uri)} has a user or a password in it: remove them; objects are read with the credentials of the"
            " environment"
        )


def full_uri(filesystem: Any, path: str) -> str:
    """Return the URI of a path in an fsspec filesystem; local paths stay as they are."""
    return path if isinstance(filesystem, LocalFileSystem) else str(filesystem.unstrip_protocol(path))


def is_local(uri: str) -> bool:
    """Return True if a URI is a path on this machine, where renames are atomic and locks work."""
    return isinstance(open_filesystem(uri)[0], LocalFileSystem)


def reads_in_flight(uri: str) -> int:
    """Return how many files to read at once: on a local disk, more than the cores can decode only take memory."""
    return LOCAL_IN_FLIGHT if is_local(uri) else IN_FLIGHT


def absolute(uri: str) -> str:
    """Make a local path absolute, since workers have other working directories; return other URIs unchanged."""
    filesystem, path = open_filesystem(uri)
    return str(path) if isinstance(filesystem, LocalFileSystem) else uri.rstrip("/")


def join(base: str, *names: str) -> str:
    """Append path segments to a URI."""
    return "/".join([base.rstrip("/"), *names])


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
        try:
            found = filesystem.find(path, detail=True)
        except FileNotFoundError:
            return []
        listed = (
            Listed(full_uri(filesystem, name), size, find_version(info) or str(size))
            for name, info in found.items()
            if name.endswith(suffix)
            for size in [int(info.get("size") or 0)]
        )
        return sorted(listed, key=lambda one: one.uri)


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
        return _read_whole(filesystem, path)


def read_if_exists(uri: str) -> bytes | None:
    """Read a whole small file, in one call; None if there is none."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        try:
            return _read_whole(filesystem, path)
        except FileNotFoundError:
            return None


def read_range(uri: str, start: int, end: int | None = None) -> bytes:
    """Read the bytes of a file from `start` to before `end`, in one call. A negative `start` counts from the end of the file."""
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri):
        return bytes(filesystem.cat_file(path, start=start, end=end))


def _read_whole(filesystem: Any, path: str) -> bytes:
    """Read a file. Without a range, s3fs would ask for the size first. In an empty object, any range is an error."""
    if isinstance(filesystem, LocalFileSystem):
        return Path(path).read_bytes()
    try:
        return bytes(filesystem.cat_file(path, start=0))
    except (FileNotFoundError, PermissionError, TimeoutError, ConnectionError):
        raise
    except (OSError, ValueError):
        return bytes(filesystem.cat_file(path))


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
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return Listed(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _walk_local(path: str) -> list[str]:
    """List the files below a folder.

    If a folder can't be read, raise OSError: fsspec's `find` would return no files.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(path, onerror=fail, followlinks=True)
    return [f"{folder}/{name}" for folder, _, names in walk for name in names]
