"""Looking at media before anything is paid for: are they there, are they what they should be, how large are they."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pipeline.media.data_uris import decode_data_uri, encoded_length, is_data_uri
from pipeline.media.files import look_at
from pipeline.media.kinds import Kind, detect_kind, measure_image
from pipeline.media.locations import check_url, is_passed_through
from pipeline.media.options import MediaOptions
from pipeline.media.refusal import Refusal, guard
from pipeline.records import Failure, Modality


class _SizeUnknown(Refusal):
    """The bytes at hand start like an image but don't tell its width and height."""


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What is known of a medium. All None for an http(s) URL, which only the service looks at."""

    version: str | None = None
    """Of a file that will be inlined: its state when it was looked at, for the fingerprint and for the sender."""
    mime: str | None = None
    size_px: tuple[int, int] | None = None
    """Width and height of an image; None for video."""
    wire_bytes: int | None = None
    """Length of what will be sent in place of the URI, where that is a data URI."""


def inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo | Failure:
    """Look at one medium. http(s) URLs pass; data URIs are decoded; files are checked by their first bytes.

    `uri` is absolute: what a manifest writes relative to its own folder goes through `make_absolute` first.

    Codes of failures: `media_bad_uri`, `media_bad_data_uri`, `media_mime` (the type named is not that of the bytes),
    `media_forbidden`, `media_missing`, `media_not_a_file`, `media_unreadable`, `media_changed`, `media_empty`,
    `media_not_image`, `media_not_video`, `media_too_small`, `media_too_large`.
    """
    return guard(uri, partial(_inspect, uri, modality, options))


def inspect_many(
    wanted: Collection[tuple[str, Modality]], options: MediaOptions
) -> dict[tuple[str, Modality], MediaInfo | Failure]:
    """Look at many media, `options.threads` at a time; what needs no storage is done in place."""
    looks: dict[tuple[str, Modality], MediaInfo | Failure] = {}
    stored = []
    for uri, modality in wanted:
        if is_passed_through(uri):
            looks[uri, modality] = inspect(uri, modality, options)
        else:
            stored.append((uri, modality))
    if stored:
        with ThreadPoolExecutor(min(options.threads, len(stored))) as pool:
            looks.update(zip(stored, pool.map(lambda one: inspect(one[0], one[1], options), stored), strict=True))
    return looks


def _inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo:
    if is_data_uri(uri):
        mime, data = decode_data_uri(uri)
        kind, size_px = check_bytes(data, len(data), modality, options)
        if mime not in (kind.mime, *kind.also_named):
            raise Refusal("media_mime", f"the data URI says {mime}, its bytes are {kind.mime}")
        if len(uri) > options.body_bytes_max:
            raise Refusal("media_too_large", f"{len(uri)} characters; a request holds {options.body_bytes_max}")
        return MediaInfo(None, mime, size_px, len(uri))
    if is_passed_through(uri):
        check_url(uri, options)
        return MediaInfo()
    found = look_at(uri, options.header_bytes, options)
    try:
        kind, size_px = check_bytes(found.head, found.size, modality, options)
    except _SizeUnknown:
        # Some keep their size far behind: TIFF, JPEG after long metadata. An image is small enough to read whole.
        if found.size <= options.header_bytes:
            raise
        found = look_at(uri, options.image_bytes_max, options)
        kind, size_px = check_bytes(found.head, found.size, modality, options)
    return MediaInfo(found.version, kind.mime, size_px, encoded_length(found.size, kind.mime))


def check_length(size: int, modality: Modality, options: MediaOptions) -> None:
    """Refuse what is empty, above the API's limit, or too long for a request body once it is base64."""
    if size == 0:
        raise Refusal("media_empty", "it has 0 bytes")
    if modality is Modality.IMAGE and size >= options.image_bytes_max:
        raise Refusal(
            "media_too_large", f"the image has {size} bytes and must have fewer than {options.image_bytes_max}"
        )
    if modality is Modality.VIDEO and size > options.video_bytes_max:
        raise Refusal("media_too_large", f"the video has {size} bytes and may have {options.video_bytes_max}")
    encoded = encoded_length(size, "video/quicktime")
    if encoded > options.body_bytes_max:
        raise Refusal("media_too_large", f"as base64 it has {encoded} bytes; a request holds {options.body_bytes_max}")


def check_bytes(
    head: bytes, size: int, modality: Modality, options: MediaOptions
) -> tuple[Kind, tuple[int, int] | None]:
    """Return a medium's format and size in pixels by its first bytes. Raises Refusal if the API would not take it."""
    check_length(size, modality, options)
    kind = detect_kind(head)
    if kind is None or kind.modality is not modality:
        what = "of no format that the API takes" if kind is None else kind.mime
        raise Refusal(f"media_not_{modality.value}", f"this is no {modality.value}: its first bytes are {what}")
    if modality is Modality.VIDEO:
        return kind, None
    size_px = measure_image(head, kind)
    if size_px is None:
        raise _SizeUnknown("media_not_image", f"it starts like {kind.mime}, but its width and height can't be read")
    width, height = size_px
    if min(width, height) < options.side_px_min:
        raise Refusal("media_too_small", f"{width} x {height} px; each side must have {options.side_px_min} or more")
    if width * height >= options.pixels_max:
        raise Refusal("media_too_large", f"{width} x {height} px; an image must have fewer than {options.pixels_max}")
    return kind, size_px
