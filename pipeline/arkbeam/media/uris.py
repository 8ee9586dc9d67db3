"""Where media are: which are local, which on the web, and which a manifest may name at all."""

import os
import posixpath
import re

from arkbeam.media.access import LOCAL_SCHEMES, WEB_SCHEMES
from arkbeam.media.options import MediaOptions
from arkbeam.media.refusal import Refusal

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(uri: str) -> str | None:
    """The URI's scheme in lower case, `data` for a data URI, None for a path."""
    if uri[:5].lower() == "data:":
        return "data"
    match = _SCHEME.match(uri)
    return match[1].lower() if match else None


def is_web(uri: str) -> bool:
    """Tell whether the URI is an http(s) URL."""
    return scheme_of(uri) in WEB_SCHEMES


def local_path(uri: str) -> str | None:
    """The path of a local file or folder, None for anything else. `~` and `%20` mean themselves."""
    scheme = scheme_of(uri)
    if scheme is None:
        return uri
    return uri.partition("://")[2] if scheme in LOCAL_SCHEMES else None


def make_absolute(uri: str, folder: str) -> str:
    """Return a medium's URI independent of where it was written.

    A relative path starts at `folder`, the folder of the manifest that names it, which may itself be a URI. Local paths
    lose `file://`, `.` and `..`, so that one file has one name; every other URI stays as it is.
    """
    path = local_path(uri)
    if path is None:
        return uri
    if os.path.isabs(path):
        return os.path.normpath(path)
    base = local_path(folder)
    if base is not None:
        return os.path.normpath(os.path.join(os.path.abspath(base), path))
    scheme, _, base_path = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(base_path, path))}"


def check_url(url: str, options: MediaOptions) -> None:
    """Refuse an http(s) URL that can't be one. What it points at is found out by whoever fetches it."""
    if len(url) > options.url_chars_max:
        raise Refusal("media_bad_uri", f"the URL has {len(url)} characters, {options.url_chars_max} are allowed")
    host = url.partition("://")[2].partition("/")[0].partition("?")[0]
    if not host or any(character.isspace() or character < " " for character in url):
        raise Refusal("media_bad_uri", "the URL has no host, or white space in it")


def allowed_local_path(path: str, options: MediaOptions) -> str:
    """Return the real path of a local file that a manifest may read, symbolic links resolved.

    Raises Refusal for one outside `allowed_roots`, whether it exists or not: those who write manifests need not be
    allowed to see this machine's disk.
    """
    if len(path) > options.url_chars_max or "\0" in path:
        raise Refusal("media_bad_uri", "this is no path of a file")
    real = os.path.realpath(path)
    for root in map(local_path, options.allowed_roots):
        if root is not None:
            folder = os.path.realpath(root)
            if os.path.commonpath([real, folder]) == folder:
                return real
    raise Refusal("media_forbidden", "it is outside the folders that may be read (media.allowed_roots)")


def check_scheme(uri: str, options: MediaOptions) -> None:
    """Refuse a scheme that manifests may not use; a chained URI (`s3://…::file://…`) could reach anything."""
    scheme = scheme_of(uri)
    if scheme not in options.schemes or "::" in uri:
        raise Refusal("media_forbidden", f"media may not be read by the scheme {scheme!r} (media.schemes)")
