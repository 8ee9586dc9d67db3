"""Signed URLs: object stores let whoever has one read one object for some time, without credentials."""

from typing import Any

import fsspec

from arkbeam.media.options import MediaOptions
from arkbeam.media.refusal import Refusal
from arkbeam.media.uris import check_scheme, is_web


def sign_url(uri: str, options: MediaOptions) -> str:
    """Return a URL of an object that holds for `options.sign_lifetime_s`, signed with the credentials of the process.

    Nothing is asked of the store. One made with temporary credentials ends with them. Raises Refusal (`media_unsigned`),
    and what the file system raises.
    """
    check_scheme(uri, options)
    filesystem, path = fsspec.core.url_to_fs(uri)
    try:
        url = _sign(filesystem, path, options.sign_lifetime_s)
    except NotImplementedError as error:
        raise Refusal("media_unsigned", f"{type(filesystem).__name__} makes no signed URLs: inline it") from error
    if not is_web(url):
        raise Refusal("media_unsigned", f"{type(filesystem).__name__} signed it as what is no http(s) URL")
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
