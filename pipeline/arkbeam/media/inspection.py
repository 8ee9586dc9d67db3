"""Looking at media before anything is paid for: are they there, are they what they should be, how large are they."""

from dataclasses import replace
from functools import partial

from arkbeam.base.records import Failure, Modality
from arkbeam.media.access import Access
from arkbeam.media.checks import MediaInfo, bytes_max, examine
from arkbeam.media.data_uris import decode_data_uri, is_data_uri
from arkbeam.media.files import look_at, read_range
from arkbeam.media.identity import content_version, digest_of
from arkbeam.media.kinds import detect_kind
from arkbeam.media.options import MediaOptions
from arkbeam.media.policy import check_passed, check_signed, route
from arkbeam.media.refusal import Refusal, guard


def inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo | Failure:
    """Look at one medium. What is passed on is judged by its URL, data URIs are decoded, all else by its first bytes.

    `uri` is absolute: what a manifest writes relative to its own folder goes through `make_absolute` first.

    Codes of failures: `media_bad_uri`, `media_bad_data_uri`, `media_mime` (the type named is not that of the bytes),
    `media_forbidden`, `media_missing`, `media_not_a_file`, `media_unreadable`, `media_changed`, `media_empty`,
    `media_not_image`, `media_not_video`, `media_damaged` (its header can't be read), `media_truncated`,
    `media_too_large` (bytes), `media_body_too_large` (bytes as base64), `media_too_small` (a side),
    `media_too_many_pixels`, `media_extension` (the service would take it for something else), and those of `media.http`.
    """
    return guard(uri, partial(_inspect, uri, modality, options))


def _inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo:
    if is_data_uri(uri):
        return _inspect_data_uri(uri, modality, options)
    access = route(uri, modality, options)
    if access is Access.PASS:
        check_passed(uri, modality, options)
        return MediaInfo()
    found = look_at(uri, options.header_bytes, options)
    inlined = access is Access.INLINE
    info = examine(found.head, found.size, modality, options, partial(_read_part, uri, options), inlined=inlined)
    if info is None:
        # Some keep what must be known far behind: TIFF, JPEG after long metadata. An image is small enough to read whole.
        found = look_at(uri, bytes_max(modality, options), options)
        info = examine(found.head, found.size, modality, options, partial(_read_part, uri, options), inlined=inlined)
    if info is None:
        raise Refusal("media_damaged", "its header can't be read")
    if access is Access.SIGN:
        check_signed(uri, modality, info.mime or "")
    return replace(info, version=found.version)


def _read_part(uri: str, options: MediaOptions, start: int, end: int) -> bytes:
    return read_range(uri, start, end, options)


def _inspect_data_uri(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo:
    mime, data = decode_data_uri(uri)
    info = examine(data, len(data), modality, options, lambda start, end: data[start:end])
    if info is None:
        raise Refusal("media_damaged", "its header can't be read")
    kind = detect_kind(data)
    if kind is not None and mime not in (kind.mime, *kind.also_named):
        raise Refusal("media_mime", f"the data URI says {mime}, its bytes are {kind.mime}")
    if options.identity == "content":  # the same as a file of these bytes
        info = replace(info, version=content_version(digest_of(data), ""))
    if info.fit is not None:
        return info
    if len(uri) > options.body_bytes_max:
        raise Refusal("media_body_too_large", f"{len(uri)} characters; a request holds {options.body_bytes_max}")
    return replace(info, mime=mime, wire_bytes=len(uri))
