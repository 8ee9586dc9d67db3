"""Refuse media that the API would not accept, judged by their bytes. Each rule has its own failure code.

`examine` checks the first bytes while manifests are read; `prepare` checks all bytes just before they are sent.
"""

import sys
from dataclasses import dataclass, replace
from typing import NoReturn

from arkbeam.base.bad_rows import BadRow, fail_row
from arkbeam.base.records import Modality
from arkbeam.decoding.ranges import Reader
from arkbeam.media.facts import ImageFacts
from arkbeam.media.fitting import Fit, apply_fit, decode, held_bytes, measure_depth, plan_fit
from arkbeam.media.headers import can_read_heic, is_packed_bitmap, read_header
from arkbeam.media.kinds import BMP, DIB, HEIC, SGI, Kind, describe_unknown, detect_kind
from arkbeam.media.options import FitOptions, MediaOptions
from arkbeam.media.truncation import find_truncation
from arkbeam.media.uris import encoded_length
from arkbeam.media.video import examine_film

_DECODED = (BMP, DIB, SGI)  # whether these are complete, only decoding tells
_TRUNCATED = "truncated"  # in the decoder's error
_RESIZE_ADVICE = "; media.fit.resize_max_pixels scales inlined images down"


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What inspection finds out about a medium.

    All None for a URL that is sent unchanged: only the service reads it.
    """

    version: str | None = None
    """The version of the file when it was inspected (`media.identity`). None if the file was not read."""
    mime: str | None = None
    size_px: tuple[int, int] | None = None
    """Width and height of an image as it will be sent; None for a video."""
    wire_bytes: int | None = None
    """Length of the data URI that will be sent; None if it is not known yet (`fit`), or if a URL will be sent."""
    duration_s: float | None = None
    """Duration of a video; None for an image, if the container does not contain it, or if PyAV is not installed."""
    fit: Fit | None = None
    """How an image will be changed before it is sent; None: not at all."""
    held_bytes: int | None = None
    """About how many bytes memory holds while the image is changed; None: it is not."""


def readable_bytes_max(modality: Modality, options: MediaOptions) -> int:
    """Return the maximum number of bytes that are read of a file.

    It is above the API's limit for images if they may be scaled down.
    """
    if modality is Modality.VIDEO:
        return options.video_bytes_max
    return max(options.image_bytes_max, options.fit.source_bytes_max if options.fit.is_set else 0)


def examine(
    head: bytes, size: int, modality: Modality, options: MediaOptions, read: Reader, *, inlined: bool = True
) -> MediaInfo | None:
    """Check a medium of `size` bytes by its first bytes; return what it is, or None if more bytes are needed to tell.

    `read` returns further bytes of a video. A medium that is not `inlined` is sent unchanged, as a signed URL: it is
    not fitted, and the limit of request bodies does not apply. Raise BadRow if the API would not accept it.
    """
    if not inlined:
        options = replace(options, fit=FitOptions(), body_bytes_max=sys.maxsize)
    if size == 0:
        fail_row("media_empty", "the medium is empty (0 bytes)")
    kind = _require_kind(head, modality, options)
    wire_bytes = encoded_length(size, kind.mime) if inlined else None
    if modality is Modality.VIDEO:
        check_size(size, kind, options)
        _require_complete(head, size, kind)
        duration_s = examine_film(head, size, kind, read, options.look_s)
        return MediaInfo(mime=kind.mime, wire_bytes=wire_bytes, duration_s=duration_s)
    whole = len(head) >= size
    facts = read_header(head, kind, whole=whole, size=size, read=read, look_s=options.look_s)
    fit = None if facts is None else plan_fit(facts, options.fit, options.side_px_min)
    if facts is None or _needs_all(facts, fit, size, options):
        if not whole:
            check_source_bytes(size, options)
            return None
        _require_complete(head, size, kind)
        if facts is None:
            fail_row("media_damaged", f"the bytes start like {kind.mime}, but the header can't be read")
    if fit is not None and facts.unfit:
        fail_row("media_unfit", facts.unfit)
    check_pixels(facts, fit, options)
    if fit is None:
        check_size(size, kind, options)
    else:
        check_source_bytes(size, options)
    _require_complete(head, size, kind)
    if facts.bytes_min > size:
        _require_decodable(head, facts, options)
    if fit is not None and facts.ranged:
        fit = plan_fit(measure_depth(head, facts, options.look_s), options.fit, options.side_px_min)
    if fit is None:
        return MediaInfo(mime=kind.mime, size_px=facts.size_px, wire_bytes=wire_bytes)
    return MediaInfo(mime=fit.mime, size_px=fit.size_px, fit=fit, held_bytes=held_bytes(size, facts, fit))


def _needs_all(facts: ImageFacts, fit: Fit | None, size: int, options: MediaOptions) -> bool:
    """Return True if all bytes of an image are needed to tell what becomes of it."""
    return (
        (facts.undecided and options.fit.is_set)
        or (fit is not None and facts.ranged and not facts.unfit)
        or facts.bytes_min > size
    )


def _require_kind(head: bytes, modality: Modality, options: MediaOptions) -> Kind:
    kind = detect_kind(head)
    if kind is not None and kind.modality is modality and (kind.accepted or options.fit.transcode):
        if kind is HEIC and not can_read_heic():
            fail_row(f"media_not_{modality.value}", f"this is {kind.mime}; install the extra `heif` to convert it")
        return kind
    what = describe_unknown(head) if kind is None else kind.mime
    convertible = kind is not None and not kind.accepted and modality is kind.modality
    advice = "; media.fit.transcode converts inlined images of this format" if convertible else ""
    article = "an" if modality is Modality.IMAGE else "a"
    fail_row(
        f"media_not_{modality.value}", f"this is {what}, not {article} {modality.value} that the API accepts{advice}"
    )


def _require_complete(data: bytes, size: int, kind: Kind) -> None:
    cut = find_truncation(data, size, kind)
    if cut is not None:
        fail_row("media_truncated", f"truncated: {cut}")


def _require_decodable(data: bytes, facts: ImageFacts, options: MediaOptions) -> None:
    """Decode an image of which the directory declares more bytes than there are: often its pixels are all there."""
    cut = f"truncated: the directory declares {facts.bytes_min} bytes; the file has {len(data)}"
    if facts.unfit:
        fail_row("media_truncated", cut)
    answer, _ = decode("check", data, facts, options.look_s)
    if "error" in answer:
        fail_row("media_truncated", cut)


def _require_decoded(data: bytes, kind: Kind, options: MediaOptions) -> None:
    """Decode an image of which only this tells if it is complete. Another error than that is left to the service."""
    facts = read_header(data, kind, whole=True)
    if facts is None:
        fail_row("media_damaged", f"the bytes start like {kind.mime}, but the header can't be read")
    if is_packed_bitmap(data, kind):
        return
    answer, _ = decode("check", data, facts, options.look_s)
    if _TRUNCATED in answer.get("error", "").lower():
        _fail_truncated(answer["error"])


def _apply(data: bytes, facts: ImageFacts, fit: Fit, options: MediaOptions) -> bytes:
    try:
        return apply_fit(data, facts, fit, options.look_s)
    except BadRow as refused:
        if _TRUNCATED in refused.failure.message.lower():
            _fail_truncated(refused.failure.message)
        raise


def _fail_truncated(error: str) -> NoReturn:
    fail_row("media_truncated", f"truncated: {error.rpartition(': ')[2]}")


def check_size(size: int, kind: Kind, options: MediaOptions) -> None:
    """Raise BadRow for a medium above the API's limit, or too large for a request body as base64."""
    if kind.modality is Modality.IMAGE and size >= options.image_bytes_max:
        advice = _RESIZE_ADVICE if options.fit.resize_max_pixels is None else ""
        fail_row(
            "media_too_large", f"the image has {size} bytes; it must have fewer than {options.image_bytes_max}{advice}"
        )
    if kind.modality is Modality.VIDEO and size > options.video_bytes_max:
        fail_row("media_too_large", f"the video has {size} bytes; at most {options.video_bytes_max} are allowed")
    encoded = encoded_length(size, kind.mime)
    if encoded > options.body_bytes_max:
        fail_row(
            "media_body_too_large",
            f"the medium has {encoded} bytes as base64; a request may have at most {options.body_bytes_max};"
            " in an object store, `sign` in media.access avoids this limit",
        )


def check_source_bytes(size: int, options: MediaOptions) -> None:
    """Raise BadRow for an image that is too large to be read completely."""
    limit = readable_bytes_max(Modality.IMAGE, options)
    if size >= limit:
        fail_row("media_too_large", f"the image has {size} bytes; it must have fewer than {limit}")


def check_pixels(facts: ImageFacts, fit: Fit | None, options: MediaOptions) -> None:
    """Raise BadRow for image sizes that the API does not accept, and for images too large to be decoded here."""
    width, height = facts.size_px if fit is None else fit.size_px
    if min(width, height) < options.side_px_min:
        fail_row(
            "media_too_small",
            f"the image is {width} x {height} px; each side must have at least {options.side_px_min} px",
        )
    if width * height >= options.pixels_max:
        advice = _RESIZE_ADVICE if options.fit.resize_max_pixels is None else ""
        fail_row(
            "media_too_many_pixels",
            f"the image is {width} x {height} = {width * height} px; it must have fewer than {options.pixels_max}{advice}",
        )
    width, height = facts.size_px
    if fit is not None and width * height > options.fit.source_pixels_max:
        fail_row(
            "media_too_many_pixels",
            f"the image is {width} x {height} = {width * height} px; images of at most {options.fit.source_pixels_max} px are"
            " scaled or converted (media.fit.source_pixels_max)",
        )


def prepare(data: bytes, modality: Modality, fit: Fit | None, options: MediaOptions) -> tuple[bytes, Kind]:
    """Check all bytes of a medium and change them as `fit` says; return the bytes to send and their format.

    Raise BadRow with the codes of `inspect`, and `media_unfit` if the image can't be changed as planned. Decoding is done
    by a worker process.
    """
    if not data:
        fail_row("media_empty", "the medium is empty (0 bytes)")
    kind = _require_kind(data, modality, options)
    _require_complete(data, len(data), kind)
    if fit is None:
        check_size(len(data), kind, options)
        if kind in _DECODED:
            _require_decoded(data, kind, options)
        return data, kind
    facts = read_header(data, kind, whole=True, look_s=options.look_s)
    if facts is None:
        fail_row("media_damaged", f"the bytes start like {kind.mime}, but the header can't be read")
    if facts.ranged:
        facts = replace(facts, repairs=replace(facts.repairs, bits=fit.bits), recipe=fit.recipe)
    if plan_fit(facts, options.fit, options.side_px_min) != fit:
        fail_row("media_unfit", "the complete header requires another change than was planned from the first bytes")
    changed = _apply(data, facts, fit, options)
    sent = _require_kind(changed, modality, options)
    check_size(len(changed), sent, options)
    return changed, sent
