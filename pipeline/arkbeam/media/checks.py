"""Whether the API takes a medium, by its bytes: each rule with its own code, what was measured, and the limit.

`examine` sees the first bytes when manifests are read, `prepare` all of them just before they are sent.
"""

import sys
from dataclasses import dataclass, replace

from arkbeam.base.records import Modality
from arkbeam.base.refusal import refuse
from arkbeam.media.fitting import Fit, apply_fit, plan_fit
from arkbeam.media.headers import ImageFacts, can_read_heic, read_header
from arkbeam.media.kinds import HEIC, Kind, describe_unknown, detect_kind
from arkbeam.media.options import FitOptions, MediaOptions
from arkbeam.media.truncation import find_cut
from arkbeam.media.uris import encoded_length
from arkbeam.media.video import Reader, read_duration_s


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What is known of a medium. All None for an http(s) URL, which only the service looks at."""

    version: str | None = None
    """Of a file that will be inlined: its state when it was looked at, for the fingerprint and for the sender."""
    mime: str | None = None
    size_px: tuple[int, int] | None = None
    """Width and height of an image as it will be sent; None for video."""
    wire_bytes: int | None = None
    """Length of what will be sent in place of the URI, where that is a data URI; None where it is still to be made."""
    duration_s: float | None = None
    """Length of a video, where its container tells it and PyAV is installed."""
    fit: Fit | None = None
    """What will be changed about an image before it is sent."""


def readable_bytes_max(modality: Modality, options: MediaOptions) -> int:
    """Most bytes that a file may have to be worth reading: more where it is going to be made smaller."""
    if modality is Modality.VIDEO:
        return options.video_bytes_max
    return max(options.image_bytes_max, options.fit.source_bytes_max if options.fit.is_set else 0)


def examine(
    head: bytes, size: int, modality: Modality, options: MediaOptions, read: Reader, *, inlined: bool = True
) -> MediaInfo | None:
    """Tell what a medium of `size` bytes is and what it will be sent as; None when its first bytes don't tell.

    `read` gives further bytes of videos. What is not `inlined`, but signed, is sent as it is, by its URL: it is not made
    fit, nor held against the limit of a request's body. Raises RowRefused if the API would not take it.
    """
    if not inlined:
        options = replace(options, fit=FitOptions(), body_bytes_max=sys.maxsize)
    if size == 0:
        refuse("media_empty", "it has 0 bytes")
    kind = _require_kind(head, modality, options)
    wire_bytes = encoded_length(size, kind.mime) if inlined else None
    if modality is Modality.VIDEO:
        check_size(size, kind, options)
        _require_complete(head, size, kind)
        return MediaInfo(None, kind.mime, None, wire_bytes, read_duration_s(head, size, kind, read))
    whole = len(head) >= size
    facts = read_header(head, kind, whole=whole)
    if facts is None or (facts.undecided and options.fit.is_set):
        if not whole:
            check_source_bytes(size, options)
            return None
        _require_complete(head, size, kind)
        refuse("media_damaged", f"it starts like {kind.mime}, but its header can't be read")
    fit = plan_fit(facts, options.fit, options.side_px_min)
    check_pixels(facts, fit, options)
    if fit is None:
        check_size(size, kind, options)
    else:
        check_source_bytes(size, options)
    _require_complete(head, size, kind, facts.bytes_min)
    sent_px, mime = (facts.size_px, kind.mime) if fit is None else (fit.size_px, fit.mime)
    return MediaInfo(None, mime, sent_px, None if fit else wire_bytes, None, fit)


def _require_kind(head: bytes, modality: Modality, options: MediaOptions) -> Kind:
    kind = detect_kind(head)
    if kind is not None and kind.modality is modality and (kind.taken or options.fit.transcode):
        if kind is HEIC and not can_read_heic():
            refuse(f"media_not_{modality.value}", f"it is {kind.mime}; to transcode it install the extra heif")
        return kind
    what = describe_unknown(head) if kind is None else kind.mime
    advice = (
        " (media.fit.transcode makes it one)"
        if kind is not None and not kind.taken and modality is kind.modality
        else ""
    )
    refuse(f"media_not_{modality.value}", f"it is {what}, and no {modality.value} that the API takes{advice}")


def _require_complete(data: bytes, size: int, kind: Kind, bytes_min: int = 0) -> None:
    cut = find_cut(data, size, kind)
    if cut is None and bytes_min > size:
        cut = f"its directory tells of {bytes_min} bytes, it has {size}"
    if cut is not None:
        refuse("media_truncated", f"it is cut off: {cut}")


def check_size(size: int, kind: Kind, options: MediaOptions) -> None:
    """Refuse what is above the API's limit, or too long for a request body once it is base64."""
    if kind.modality is Modality.IMAGE and size >= options.image_bytes_max:
        refuse("media_too_large", f"the image has {size} bytes and must have fewer than {options.image_bytes_max}")
    if kind.modality is Modality.VIDEO and size > options.video_bytes_max:
        refuse("media_too_large", f"the video has {size} bytes and may have {options.video_bytes_max}")
    encoded = encoded_length(size, kind.mime)
    if encoded > options.body_bytes_max:
        refuse("media_body_too_large", f"as base64 it has {encoded} bytes; a request holds {options.body_bytes_max}")


def check_source_bytes(size: int, options: MediaOptions) -> None:
    """Refuse an image that is too long to be read whole."""
    limit = readable_bytes_max(Modality.IMAGE, options)
    if size >= limit:
        refuse("media_too_large", f"the image has {size} bytes and must have fewer than {limit}")


def check_pixels(facts: ImageFacts, fit: Fit | None, options: MediaOptions) -> None:
    """Refuse sides and areas that the API does not take, and those that we don't unpack to change them."""
    width, height = facts.size_px if fit is None else fit.size_px
    if min(width, height) < options.side_px_min:
        refuse("media_too_small", f"{width} x {height} px; each side must have {options.side_px_min} or more")
    if width * height >= options.pixels_max:
        refuse(
            "media_too_many_pixels",
            f"{width} x {height} = {width * height} px; an image must have fewer than {options.pixels_max}",
        )
    width, height = facts.size_px
    if fit is not None and width * height > options.fit.source_pixels_max:
        refuse(
            "media_too_many_pixels",
            f"{width} x {height} = {width * height} px; one is changed of at most {options.fit.source_pixels_max}",
        )


def prepare(data: bytes, modality: Modality, fit: Fit | None, options: MediaOptions) -> tuple[bytes, Kind]:
    """Check the whole bytes of a medium and make them fit as was chosen; return what is sent and its format.

    Raises RowRefused, with the codes of `inspect` and `media_unfit` (it could not be changed as it was to be).
    """
    if not data:
        refuse("media_empty", "it has 0 bytes")
    kind = _require_kind(data, modality, options)
    facts = None if modality is Modality.VIDEO or fit is None else read_header(data, kind, whole=True)
    _require_complete(data, len(data), kind, 0 if facts is None else facts.bytes_min)
    if fit is None:
        check_size(len(data), kind, options)
        return data, kind
    if facts is None:
        refuse("media_damaged", f"it starts like {kind.mime}, but its header can't be read")
    if plan_fit(facts, options.fit, options.side_px_min) != fit:
        refuse("media_unfit", "its whole header asks for another change than its beginning did")
    changed = apply_fit(data, facts, fit)
    sent = _require_kind(changed, modality, options)
    check_size(len(changed), sent, options)
    return changed, sent
