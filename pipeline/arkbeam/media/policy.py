"""What is done with each medium, and what that asks of its name."""

import posixpath
import re
from urllib.parse import unquote, urlsplit

from arkbeam.base.records import Modality
from arkbeam.media.access import Access, find_access
from arkbeam.media.addresses import is_public, literal_address
from arkbeam.media.options import MediaOptions
from arkbeam.media.refusal import Refusal
from arkbeam.media.uris import check_url, is_web, scheme_of

VIDEO_EXTENSIONS = {"mp4": "video/mp4", "avi": "video/avi", "mov": "video/quicktime"}
# Extensions of the image formats of the API (vendor's guide to visual understanding, table of formats).
IMAGE_EXTENSIONS = {
    **dict.fromkeys(("jpg", "jpeg"), "image/jpeg"),
    **dict.fromkeys(("png", "apng"), "image/png"),
    "gif": "image/gif",
    "webp": "image/webp",
    **dict.fromkeys(("bmp", "dib"), "image/bmp"),
    **dict.fromkeys(("tif", "tiff"), "image/tiff"),
    "ico": "image/x-icon",
    "icns": "image/icns",
    "sgi": "image/sgi",
    **dict.fromkeys(("j2c", "j2k", "jp2", "jpc", "jpf", "jpx"), "image/jp2"),
}
# Digits alone are no extension: `/v1.2`.
_EXTENSION = re.compile(r"(?=[0-9]*[A-Za-z])[0-9A-Za-z]{1,10}")
_ADVICE = "rename it, or have it inlined (media.access)"


def route(uri: str, modality: Modality, options: MediaOptions) -> Access:
    """Say how a medium gets to the service. A data URI passes: it is what the service takes already."""
    scheme = scheme_of(uri) or "file"
    return Access.PASS if scheme == "data" else find_access(scheme, modality.value, options.access)


def check_passed(url: str, modality: Modality, options: MediaOptions) -> None:
    """Refuse a URL that the service can't fetch or would not take, as far as the URL itself tells.

    Codes: `media_bad_uri`, `media_forbidden` (its host is a private address), `media_extension`.
    """
    check_url(url, options)
    host = _host_of(url)
    address = literal_address(host)
    if (
        address is not None
        and not _is_loopback(address)
        and not is_public(address)
        and host not in options.allowed_hosts
    ):
        raise Refusal(
            "media_forbidden", f"its host is the address {address}, which is not public (media.allowed_hosts)"
        )
    if modality is Modality.VIDEO:
        check_video_extension(url)


def check_signed(uri: str, modality: Modality, mime: str) -> None:
    """Refuse a medium whose name would make the service take it for something else (`media_extension`)."""
    if modality is Modality.VIDEO:
        check_video_extension(uri)
    extension = extension_of(uri)
    told = {**VIDEO_EXTENSIONS, **IMAGE_EXTENSIONS}.get(extension.lower())
    if told is not None and told != mime:
        raise Refusal("media_extension", f"its name ends in .{extension}, its bytes are {mime}: {_ADVICE}")


def check_video_extension(uri: str) -> None:
    """Refuse a video that the service would fetch under a name that it does not take: upper case, or another format."""
    extension = extension_of(uri)
    if extension and extension not in VIDEO_EXTENSIONS:
        allowed = ", ".join(f".{name}" for name in VIDEO_EXTENSIONS)
        raise Refusal("media_extension", f"its name ends in .{extension}; the service takes {allowed}: {_ADVICE}")


def extension_of(uri: str) -> str:
    """Return the extension of a URI's path as it is written, empty where there is none."""
    path = (uri.partition("#")[0] if is_web(uri) else uri).partition("?")[0]
    name = posixpath.basename(unquote(path.partition("://")[2].partition("/")[2]))
    extension = name.rpartition(".")[2] if "." in name else ""
    return extension if _EXTENSION.fullmatch(extension) else ""


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError as error:  # brackets that don't match
        raise Refusal("media_bad_uri", "the URL's host can't be one") from error


def _is_loopback(address: str) -> bool:
    """Loopback is where a stand-in for the service runs, which can fetch it."""
    return address == "::1" or address.startswith("127.")
