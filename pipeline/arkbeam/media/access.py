"""Choose how a medium gets to the service: as the URL in the manifest, as base64, or as a signed URL.

Also refuse media that the service would not accept that way, as far as their names and formats show.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from arkbeam.base.bad_rows import fail_row
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Modality
from arkbeam.base.uris import LOCAL_SCHEMES
from arkbeam.media.uris import WEB_SCHEMES, extension_of, is_public, scheme_of
from arkbeam.media.weburl import check_url, parse_allowed_hosts


class Access(StrEnum):
    """How a medium gets to the service."""

    PASS = "pass"  # noqa: S105 - no password
    """The URL is sent unchanged; only the service reads the medium."""
    INLINE = "inline"
    """The medium is read here and sent as base64."""
    SIGN = "sign"
    """The medium is inspected here; a signed URL is made just before sending, and the service reads the medium."""


Medium = Literal["image", "video"]
AccessRules = Mapping[str, Access | Mapping[Medium, Access]]
"""By scheme: one access for all its media, or one for each modality."""

# Schemes of the same storage: a scheme without a rule uses the rule of another scheme in its group.
_SAME_STORAGE = (("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss"), ("file", "local"))
# Schemes whose URLs can be signed: by s3fs, gcsfs and adlfs, and for tos by the vendor's client inside tosfs.
# ossfs and fsspec's HDFS file system can't sign.
_SIGNABLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "tos"})

# The service determines the format of what it fetches from the extension. Image formats: vendor's guide to visual
# understanding, table of image formats.
_VIDEO_EXTENSIONS = {"mp4": "video/mp4", "avi": "video/avi", "mov": "video/quicktime"}
_IMAGE_EXTENSIONS = {
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
_ADVICE = "rename it, or inline it (media.access)"


def find_access(uri: str, modality: Modality, rules: AccessRules) -> Access:
    """Return how a medium gets to the service.

    A data URI is sent unchanged. Otherwise the rule of the URI's scheme decides, else the rule of another scheme of the
    same storage, else the default.
    """
    scheme = scheme_of(uri) or "file"
    if scheme == "data":
        return Access.PASS
    medium: Medium = "video" if modality is Modality.VIDEO else "image"
    for name in _same_schemes(scheme):
        rule = rules.get(name)
        access = rule.get(medium) if isinstance(rule, Mapping) else rule
        if access is not None:
            return access
    if scheme in WEB_SCHEMES:
        return Access.PASS
    return Access.SIGN if scheme == "tos" else Access.INLINE


def _same_schemes(scheme: str) -> tuple[str, ...]:
    """Return all schemes of the same storage, the given one first."""
    for names in _SAME_STORAGE:
        if scheme in names:
            return scheme, *(name for name in names if name != scheme)
    return (scheme,)


def check_rules(rules: AccessRules, schemes: tuple[str, ...]) -> None:
    """Raise ConfigError for impossible rules. `schemes`: those of the object stores that a manifest may name."""
    known = {*WEB_SCHEMES, *LOCAL_SCHEMES, *schemes}
    for scheme, rule in rules.items():
        key = f"media.access.{scheme}"
        if scheme not in known:
            raise ConfigError(f"{key}: manifests may not name media with this scheme (media.schemes)")
        wanted = [*rule.values()] if isinstance(rule, Mapping) else [rule]
        possible = _possible_access(scheme)
        for access in wanted:
            if access not in possible:
                raise ConfigError(f"{key}: {access.value} is not possible; use {' or '.join(possible)}")


def _possible_access(scheme: str) -> tuple[Access, ...]:
    if scheme in WEB_SCHEMES:
        return Access.PASS, Access.INLINE
    return (Access.INLINE, Access.SIGN) if scheme in _SIGNABLE else (Access.INLINE,)


def check_passed(url: str, modality: Modality, url_chars_max: int, allowed_hosts: tuple[str, ...]) -> None:
    """Refuse a URL that the service can't fetch or would not accept, as far as the URL shows it.

    A loopback address is not refused: a stand-in for the service on this machine can fetch from there. Raise BadRow:
    `media_bad_uri`, `media_forbidden` (the host is a private address), `media_extension`.
    """
    parsed = check_url(url, url_chars_max)
    address = parsed.address
    if address is not None and not (address == "::1" or address.startswith("127.") or is_public(address)):
        allowed = parse_allowed_hosts(allowed_hosts)
        if not allowed.has_host(parsed) and not allowed.has_address(address):
            fail_row(
                "media_forbidden",
                f"the host is the address {address}, which is not public; if it may be used, add it to media.allowed_hosts",
            )
    if modality is Modality.VIDEO:
        _check_video_extension(url)


def check_signed(uri: str, modality: Modality, mime: str) -> None:
    """Raise BadRow (`media_extension`) if the name would make the service take the medium for another format.

    A video must have an extension that the service accepts, or none.
    """
    if modality is Modality.VIDEO:
        _check_video_extension(uri)
    extension = extension_of(uri)
    declared = {**_VIDEO_EXTENSIONS, **_IMAGE_EXTENSIONS}.get(extension.lower())
    if declared is not None and declared != mime:
        fail_row("media_extension", f"the name ends in .{extension}, but the bytes are {mime}; {_ADVICE}")


def _check_video_extension(uri: str) -> None:
    """Refuse a video whose extension the service does not accept: in upper case, or of another format."""
    extension = extension_of(uri)
    if extension and extension not in _VIDEO_EXTENSIONS:
        allowed = ", ".join(f".{name}" for name in _VIDEO_EXTENSIONS)
        fail_row("media_extension", f"the name ends in .{extension}; the service accepts {allowed}; {_ADVICE}")
