"""Turn a staged URI, just before sending, into what is sent for it: the URL, a signed URL, or the bytes.

A signed URL lets anyone who has it read one object for a limited time, without credentials.
"""

from functools import partial
from typing import Any

from arkbeam.base.bad_rows import fail_row
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.base.redaction import also_mask
from arkbeam.base.uris import open_object_store
from arkbeam.media.access import Access, find_access
from arkbeam.media.checks import prepare, readable_bytes_max
from arkbeam.media.data_uri import decode_data_uri, is_data_uri
from arkbeam.media.files import guard, read_for_sending, read_version
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import check_version
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import check_scheme, is_web


def load_medium(
    uri: str, modality: Modality, version: str | None, options: MediaOptions, fit: Fit | None = None
) -> str | Inline | Failure:
    """Return what is sent for a medium: its URL, a signed URL, or its bytes, as `media.access` says.

    Return a Failure (`media_changed`) if the medium no longer has the `version` in its fingerprint, so that a row never
    gets the vector of another image. All bytes are checked, and changed as `fit` says. Other codes are those of
    `inspect`, `media_unfit` and `media_unsigned`. It blocks: call it in a thread.
    """
    also_mask(options.url_ignore_params)
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
        whole = medium.head if len(medium.head) == medium.size else None
        check_version(version, medium.version, whole, of_web=is_web(uri))
        if medium.size > len(medium.head):
            fail_row("media_too_large", f"the file has {medium.size} bytes; at most {len(medium.head) - 1} are read")
        data = medium.head
    sent, kind = prepare(data, modality, fit, options)
    return Inline(kind.mime, sent)


def _load_signed(uri: str, version: str | None, options: MediaOptions) -> str:
    """Check the version and sign. A change between this and the service's download is not noticed."""
    check_version(version, read_version(uri, options), None)
    return _sign_url(uri, options)


def _sign_url(uri: str, options: MediaOptions) -> str:
    """Return a signed URL of an object, valid for `options.sign_lifetime_s`.

    It is signed with the credentials of the process. No request is made. A URL signed with temporary credentials
    expires with them. Raise BadRow (`media_unsigned`), and what the file system raises.
    """
    check_scheme(uri, options.schemes)
    filesystem, path = open_object_store(uri)
    try:
        url = _sign(filesystem, path, options.sign_lifetime_s)
    except NotImplementedError:
        fail_row("media_unsigned", f"{type(filesystem).__name__} can't sign URLs; inline the medium (media.access)")
    if not is_web(url):
        fail_row("media_unsigned", f"the signed URL of {type(filesystem).__name__} is not an http(s) URL")
    return url


def _sign(filesystem: Any, path: str, lifetime_s: int) -> str:
    """Sign with the file system; tosfs can't sign, so the vendor's client inside it does."""
    tos_client = getattr(filesystem, "tos_client", None)
    if tos_client is None:
        return str(_with_version_4(filesystem).sign(path, expiration=lifetime_s))
    from tos.enum import HttpMethodType  # noqa: PLC0415 - an extra

    bucket, _, key = path.partition("/")
    return str(tos_client.pre_signed_url(HttpMethodType.Http_Method_Get, bucket, key, expires=lifetime_s).signed_url)


def _with_version_4(filesystem: Any) -> Any:
    """Make s3fs sign with signature version 4.

    Its default is version 2, which newer buckets and other stores refuse.
    """
    settings = filesystem.storage_options.get("config_kwargs") or {}
    if "s3" not in filesystem.protocol or "signature_version" in settings:
        return filesystem
    options = {**filesystem.storage_options, "config_kwargs": {**settings, "signature_version": "s3v4"}}
    return type(filesystem)(*filesystem.storage_args, **options)  # fsspec returns the same instance for equal options
