"""From a staged URI to what is sent, just before it is sent: a URL, a signed URL, or the bytes.

Object stores sign URLs so that anyone who has one can read one object for some time without credentials.
"""

from functools import partial
from typing import Any

import fsspec

from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.base.refusal import refuse
from arkbeam.media.access import Access, find_access
from arkbeam.media.checks import prepare, readable_bytes_max
from arkbeam.media.files import guard, read_for_sending, read_version
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import check_version
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import check_scheme, decode_data_uri, is_data_uri, is_web


def load_medium(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Inline | Failure:
    """Return what is sent for a medium: its URL, a signed URL of it, or its bytes, as `media.access` says.

    The bytes must still be those of `version`, which the fingerprint was made of; else the row fails (`media_changed`)
    rather than get the vector of another picture. They are checked to their end and changed as `fit` says. Other codes
    are those of `inspect`, and `media_unfit`. It blocks: call it in a thread.
    """
    access = find_access(uri, modality, options.access)
    if access is Access.PASS and fit is None:
        return uri
    if access is Access.SIGN:
        return guard(uri, partial(_load_signed, uri, version, options))
    return guard(uri, partial(_load_bytes, uri, modality, version, options, fit))


def _load_bytes(uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None) -> Inline:
    if is_data_uri(uri):
        data = decode_data_uri(uri)[1]
    else:
        medium = read_for_sending(uri, readable_bytes_max(modality, options) + 1, options)
        check_version(version, medium.version, medium.head if len(medium.head) == medium.size else None)
        if medium.size > len(medium.head):
            refuse("media_too_large", f"it has {medium.size} bytes; {len(medium.head) - 1} are read at most")
        data = medium.head
    sent, kind = prepare(data, modality, fit, options)
    return Inline(kind.mime, sent)


def _load_signed(uri: str, version: str | None, options: MediaOptions) -> str:
    """The version is asked for once more; what is written between then and the service's download goes unnoticed."""
    check_version(version, read_version(uri, options), None)
    return _sign_url(uri, options)


def _sign_url(uri: str, options: MediaOptions) -> str:
    """Return a URL of an object that holds for `options.sign_lifetime_s`, signed with the credentials of the process.

    Nothing is asked of the store. One made with temporary credentials ends with them. Raises RowRefused (`media_unsigned`),
    and what the file system raises.
    """
    check_scheme(uri, options.schemes)
    filesystem, path = fsspec.core.url_to_fs(uri)
    try:
        url = _sign(filesystem, path, options.sign_lifetime_s)
    except NotImplementedError:
        refuse("media_unsigned", f"{type(filesystem).__name__} makes no signed URLs: inline it")
    if not is_web(url):
        refuse("media_unsigned", f"{type(filesystem).__name__} signed it as what is no http(s) URL")
    return url


def _sign(filesystem: Any, path: str, lifetime_s: int) -> str:
    """Sign with the file system, or, as tosfs does not, with the vendor's client below it."""
    tos_client = getattr(filesystem, "tos_client", None)
    if tos_client is None:
        return str(_with_version_4(filesystem).sign(path, expiration=lifetime_s))
    from tos.enum import HttpMethodType  # noqa: PLC0415 - an extra

    bucket, _, key = path.partition("/")
    return str(tos_client.pre_signed_url(HttpMethodType.Http_Method_Get, bucket, key, expires=lifetime_s).signed_url)


def _with_version_4(filesystem: Any) -> Any:
    """Let s3fs sign by version 4: by default it does so by version 2, which newer buckets and other stores refuse."""
    settings = filesystem.storage_options.get("config_kwargs") or {}
    if "s3" not in filesystem.protocol or "signature_version" in settings:
        return filesystem
    options = {**filesystem.storage_options, "config_kwargs": {**settings, "signature_version": "s3v4"}}
    return type(filesystem)(*filesystem.storage_args, **options)  # fsspec keeps one for equal options
