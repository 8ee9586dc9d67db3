"""What a URI names: which fsspec filesystem, and which path in it. Exceptions of storage become `StoreError`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem, make_path_posix

from arkbeam.base.errors import ArkbeamError, ConfigError, StoreError
from arkbeam.base.parallel import IN_FLIGHT, LOCAL_IN_FLIGHT
from arkbeam.base.redaction import holds_credentials, redact

LOCAL_SCHEMES = frozenset({"file", "local"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAIN = re.compile(r"::.*://|://.*::/", re.DOTALL)


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
    return open_object_store(uri)


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
