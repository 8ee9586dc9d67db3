"""Parse URIs of media (local path, http(s) URL, object, data URI), and check which of them a manifest may name.

No medium is read here. The only look at the disk: symbolic links are resolved, and `file://` URLs with `%` are decoded.
"""

import ipaddress
import os
import posixpath
import re
from collections.abc import Collection, Iterable
from urllib.parse import unquote

from arkbeam.base import uris
from arkbeam.base.bad_rows import fail_row
from arkbeam.base.redaction import holds_credentials
from arkbeam.base.uris import LOCAL_SCHEMES, file_url_path
from arkbeam.media.data_uri import is_data_uri

WEB_SCHEMES = frozenset({"http", "https"})
# Digits alone are not an extension: `/v1.2`.
_EXTENSION = re.compile(r"(?=[0-9]*[A-Za-z])[0-9A-Za-z]{1,10}")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Special addresses that Python's registry lacks, at least in some versions: the protocol's own block (Oracle's metadata
# service had an address there), site-local addresses, and Azure's agent, which is reachable only inside that cloud and
# hands out certificates and keys. The metadata services of other clouds have link-local, shared or unique local
# addresses.
_SPECIAL_NETWORKS = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "fec0::/10", "168.63.129.16/32")))
# Prefixes of IPv6 addresses that are translated to the IPv4 address in their last 32 bits (RFC 6052, 8215).
_NAT64_NETWORKS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))


def scheme_of(uri: str) -> str | None:
    """Return the URI's scheme in lower case, `data` for a data URI, None for a path."""
    return "data" if is_data_uri(uri) else uris.scheme_of(uri)


def is_web(uri: str) -> bool:
    """Return True if the URI is an http(s) URL."""
    return scheme_of(uri) in WEB_SCHEMES


def local_path(uri: str) -> str | None:
    """Return the path of a local file or folder, None for any other URI. `~` is not expanded; `%20` is, in a `file://` URL."""
    scheme = scheme_of(uri)
    if scheme is None:
        return uri
    return file_url_path(uri) if scheme in LOCAL_SCHEMES else None


def extension_of(uri: str) -> str:
    """Return the extension of a URI's path, in its own upper or lower case; empty if there is none."""
    path = (uri.partition("#")[0] if is_web(uri) else uri).partition("?")[0]
    name = posixpath.basename(unquote(path.partition("://")[2].partition("/")[2]))
    extension = name.rpartition(".")[2] if "." in name else ""
    return extension if _EXTENSION.fullmatch(extension) else ""


def make_absolute(uri: str, folder: str) -> str:
    """Return a medium's URI in a form that does not depend on the manifest that names it.

    A relative path starts at `folder`, the folder of the manifest that names it, which may itself be a URI. Local paths
    lose `file://`, `.` and `..`, so that one file has one name; every other URI is returned as it is.
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


def is_below(uri: str, roots: Iterable[str]) -> bool:
    """Return True if a file is below one of the folders.

    Symbolic links of local paths are resolved. Other URIs must start with the folder's scheme, host or bucket, and
    path.
    """
    path = local_path(uri)
    if path is not None:
        return _find_real_path(path, roots) is not None
    return any(_has_prefix(uri, root) for root in roots)


def _has_prefix(uri: str, root: str) -> bool:
    if "::" in uri or scheme_of(uri) != scheme_of(root):
        return False
    names, above = (one.partition("://")[2].partition("?")[0].strip("/").split("/") for one in (uri, root))
    return not {"", ".", ".."} & set(names) and names[: len(above)] == above


def _find_real_path(path: str, roots: Iterable[str]) -> str | None:
    """Return the path, with links resolved, of a file below one of the local `roots`; None for a file outside them."""
    real = os.path.realpath(path)
    for root in map(local_path, roots):
        if root is not None:
            folder = os.path.realpath(root)
            if os.path.commonpath([real, folder]) == folder:
                return real
    return None


def find_allowed_path(path: str, roots: Iterable[str], chars_max: int) -> str:
    """Return the real path of a local file that a manifest may name, symbolic links resolved.

    Raise BadRow: `media_bad_uri`, or `media_forbidden` for a file outside `roots`, even if it does not exist.
    People who write manifests do not necessarily have the right to read this machine's disk.
    """
    if len(path) > chars_max:
        fail_row("media_bad_uri", f"the path has {len(path)} characters; at most {chars_max} are allowed")
    if "\0" in path:
        fail_row("media_bad_uri", "not a valid file path: it contains a null character")
    real = _find_real_path(path, roots)
    if real is None:
        fail_row(
            "media_forbidden",
            "the file is outside the folders that may be read; if it may be read, add its folder to media.allowed_roots",
        )
    return real


def check_scheme(uri: str, schemes: Collection[str]) -> None:
    """Raise BadRow if an object may not be read.

    `media_forbidden`: its scheme is not in `schemes`, or its URI is chained, such as `s3://…::file://…`. A key may have
    `::` in it. `media_bad_uri`: it has credentials in it, which errors of the storage would quote.
    """
    scheme = scheme_of(uri)
    if scheme not in schemes:
        fail_row("media_forbidden", f"media with the scheme {scheme!r} may not be read (media.schemes)")
    if holds_credentials(uri):
        fail_row(
            "media_bad_uri",
            "the URI has a user or a password in it: remove them, objects are read with the credentials of the process",
        )
    if "://" in uri.partition("::")[2]:
        fail_row("media_forbidden", "chained URIs (with '::' and a second URI) may not be read")


def is_public(address: str) -> bool:
    """Return True if an IP address, as the system resolves it, belongs to the public Internet.

    False for a private, loopback, link-local, multicast, shared, reserved or unspecified address, for an IPv6 address
    that contains such an IPv4 address, and for text that is not an address. Source: the IANA registries of
    special-purpose addresses.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    embedded = _find_embedded(parsed)
    if embedded is not None:
        return is_public(str(embedded))
    special = parsed.is_multicast or parsed.is_reserved or any(parsed in network for network in _SPECIAL_NETWORKS)
    return parsed.is_global and not special


def _find_embedded(address: _Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address inside an IPv6 address, None if there is none."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _NAT64_NETWORKS):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def encoded_length(size: int, mime: str) -> int:
    """Return the length in characters of the data URI of `size` bytes."""
    return len(f"data:{mime};base64,") + 4 * ((size + 2) // 3)
