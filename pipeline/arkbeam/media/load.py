"""From a staged URI to what goes on the wire, just before it is sent."""

from functools import partial

from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media.access import Access
from arkbeam.media.checks import bytes_max, prepare
from arkbeam.media.data_uris import decode_data_uri, encode_data_uri, is_data_uri
from arkbeam.media.files import read_again, read_version
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import check_unchanged
from arkbeam.media.options import MediaOptions
from arkbeam.media.policy import route
from arkbeam.media.refusal import Refusal, guard
from arkbeam.media.signing import sign_url


def fetch(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Inline | Failure:
    """Return what is sent for a medium: its URL, a signed URL of it, or its bytes, as `route` says.

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


def resolve(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Failure:
    """Return what `fetch` does, bytes as a data URI: for whoever wants to see it in one piece."""
    fetched = fetch(uri, modality, version, options, fit)
    return encode_data_uri(fetched.data, fetched.mime) if isinstance(fetched, Inline) else fetched


def _sign(uri: str, version: str | None, options: MediaOptions) -> str:
    """The version is asked for once more; what is written between then and the service's download goes unnoticed."""
    check_unchanged(version, read_version(uri, options), None)
    return sign_url(uri, options)


def _inline(uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None) -> Inline:
    if is_data_uri(uri):
        data = decode_data_uri(uri)[1]
    else:
        found = read_again(uri, bytes_max(modality, options) + 1, options)
        check_unchanged(version, found.version, found.head if len(found.head) == found.size else None)
        if found.size > len(found.head):
            raise Refusal("media_too_large", f"it has {found.size} bytes; {len(found.head) - 1} are read at most")
        data = found.head
    sent, kind = prepare(data, modality, fit, options)
    return Inline(kind.mime, sent)
