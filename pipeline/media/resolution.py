"""From a staged URI to what goes on the wire, just before it is sent."""

from functools import partial

from pipeline.media.checks import bytes_max, prepare
from pipeline.media.data_uris import decode_data_uri, encode_data_uri, is_data_uri
from pipeline.media.files import read_again
from pipeline.media.fitting import Fit
from pipeline.media.locations import is_passed_through
from pipeline.media.options import MediaOptions
from pipeline.media.refusal import Refusal, guard
from pipeline.records import Failure, Modality


def resolve(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Failure:
    """Return what is sent for a medium: http(s) URLs and data URIs as they are, files as a data URI of their bytes.

    The bytes must still be those of `version`, which the fingerprint was made of; else the row fails (`media_changed`)
    rather than get the vector of another picture. They are checked to their end and changed as `fit` says. Other codes
    are those of `inspect`, and `media_unfit`. It blocks: call it in a thread.
    """
    if is_passed_through(uri) and fit is None:
        return uri
    return guard(uri, partial(_inline, uri, modality, version, options, fit))


def _inline(uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None) -> str:
    if is_data_uri(uri):
        return encode_data_uri(*prepare(decode_data_uri(uri)[1], modality, fit, options))
    found = read_again(uri, bytes_max(modality, options) + 1, options)
    if version is not None and found.version != version:
        raise Refusal("media_changed", f"it changed since it was read: version {version} then, {found.version} now")
    if found.size > len(found.head):
        raise Refusal("media_too_large", f"it has {found.size} bytes; {len(found.head) - 1} are read at most")
    return encode_data_uri(*prepare(found.head, modality, fit, options))
