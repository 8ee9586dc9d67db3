"""From a staged URI to what goes on the wire, just before it is sent."""

from functools import partial

from pipeline.media.data_uris import encode_data_uri
from pipeline.media.files import read_again
from pipeline.media.inspection import check_length
from pipeline.media.kinds import detect_kind
from pipeline.media.locations import is_passed_through
from pipeline.media.options import MediaOptions
from pipeline.media.refusal import Refusal, guard
from pipeline.records import Failure, Modality


def resolve(uri: str, modality: Modality, version: str | None, options: MediaOptions) -> str | Failure:
    """Return what is sent for a medium: http(s) URLs and data URIs as they are, files as a data URI of their bytes.

    The bytes must still be those of `version`, which the fingerprint was made of; else the row fails (`media_changed`)
    rather than get the vector of another picture. Other codes are those of `inspect`. It blocks: call it in a thread.
    """
    if is_passed_through(uri):
        return uri
    return guard(uri, partial(_inline, uri, modality, version, options))


def _inline(uri: str, modality: Modality, version: str | None, options: MediaOptions) -> str:
    bytes_max = options.image_bytes_max if modality is Modality.IMAGE else options.video_bytes_max
    found = read_again(uri, bytes_max + 1, options)
    if version is not None and found.version != version:
        raise Refusal("media_changed", f"it changed since it was read: version {version} then, {found.version} now")
    check_length(found.size, modality, options)
    kind = detect_kind(found.head)
    if kind is None or kind.modality is not modality:
        raise Refusal(f"media_not_{modality.value}", f"this is no {modality.value} that the API takes")
    return encode_data_uri(found.head, kind)
