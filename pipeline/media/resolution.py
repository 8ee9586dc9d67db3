"""From a staged URI to what goes on the wire, just before it is sent."""

from functools import partial

from pipeline.media.access import Access
from pipeline.media.checks import bytes_max, prepare
from pipeline.media.data_uris import decode_data_uri, encode_data_uri, is_data_uri
from pipeline.media.files import look_at, read_again
from pipeline.media.fitting import Fit
from pipeline.media.options import MediaOptions
from pipeline.media.policy import route
from pipeline.media.refusal import Refusal, guard
from pipeline.media.signing import sign_url
from pipeline.records import Failure, Modality


def resolve(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Failure:
    """Return what is sent for a medium: its URL, a signed URL of it, or a data URI of its bytes, as `route` says.

    The bytes must still be those of `version`, which the fingerprint was made of; else the row fails (`media_changed`)
    rather than get the vector of another picture. They are checked to their end and changed as `fit` says. Other codes
    are those of `inspect`, and `media_unfit`. It blocks: call it in a thread.
    """
    access = route(uri, modality, options)
    if access is Access.PASS and fit is None:
        return uri
    if access is Access.SIGN:
        return guard(uri, partial(_sign, uri, version, options))
    return guard(uri, partial(_inline, uri, modality, version, options, fit))


def _sign(uri: str, version: str | None, options: MediaOptions) -> str:
    """The version is asked for once more; what is written between then and the service's download goes unnoticed."""
    _require_version(look_at(uri, 1, options).version, version)
    return sign_url(uri, options)


def _require_version(found: str, version: str | None) -> None:
    if version is not None and found != version:
        raise Refusal("media_changed", f"it changed since it was read: version {version} then, {found} now")


def _inline(uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None) -> str:
    if is_data_uri(uri):
        return encode_data_uri(*prepare(decode_data_uri(uri)[1], modality, fit, options))
    found = read_again(uri, bytes_max(modality, options) + 1, options)
    _require_version(found.version, version)
    if found.size > len(found.head):
        raise Refusal("media_too_large", f"it has {found.size} bytes; {len(found.head) - 1} are read at most")
    return encode_data_uri(*prepare(found.head, modality, fit, options))
