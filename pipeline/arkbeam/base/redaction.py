"""Prepare external text for logs, reports and failure rows: mask secrets, bound the length, fold to one line.

Call `redact` on every URL, header and server reply before it is quoted.
"""

import re
from collections.abc import Iterable

MASK = "***"
# Only this much of a text is searched for secrets; the rest is dropped, since it must not be shown unsearched.
_WINDOW_CHARS = 65_536

# Query parameters that are signatures or credentials in S3, TOS, GCS, OSS, COS, OBS, Azure, CloudFront, and common
# names.
_PARAMETERS = r"""
    x-(?:amz|tos|goog|oss|cos|obs)-[\w-]+ | x-signature | signature | sig | q-(?:signature|ak)
  | (?:oss|aws)?accesskeyid | googleaccessid | key-pair-id | policy
  | (?:security|access|auth|session|id|refresh)[_-]?token | token | auth_key
  | api[_-]?key | access[_-]?key | secret(?:[_-]?(?:access[_-]?)?key)? | password | passwd
"""
# `?name=value`, also if the URL is quoted inside another URL (%3F, %26, %3D) or escaped for HTML or JSON.
_QUERY = re.compile(
    rf"((?:[?&;]|%3f|%26|\\u0026)(?:{_PARAMETERS})(?:=|%3d))(?:(?!%26|\\u0026)[^&\s\"'<>\#`])+",
    re.IGNORECASE | re.VERBOSE,
)
_USER_INFO = re.compile(r"://[^/\s?#\"'<>`]*@")
# The same inside the query of another URL.
_USER_INFO_ENCODED = re.compile(r"(%3a%2f%2f)(?:(?!%2f)[^/\s?#&\"'<>`])*%40", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"\b(bearer|basic)(\s+)[^\s\"',;`]+", re.IGNORECASE)
_DATA_URI = re.compile(r"(data:[\w/+.-]{0,100};base64,)[A-Za-z0-9+/=_%-]+")
# Shorter secrets are not masked: they protect nothing, and masking every "x" would make the text unreadable.
_SECRET_CHARS_MIN = 6
_SPACE = re.compile(r"[\s\x00-\x1f\x7f]+")


def redact(text: str, chars_max: int = 500, *, secrets: Iterable[str] = ()) -> str:
    """Mask credentials in `text`, fold it to one line and cut it to `chars_max` characters.

    Masked: signatures and credentials in the query of a URL, user and password before a host, bearer and basic tokens,
    the payload of data URIs, and every string in `secrets`. Lone surrogates are replaced, so that the result can be
    encoded.
    """
    for secret in secrets:
        if len(secret) >= _SECRET_CHARS_MIN:
            text = text.replace(secret, MASK)
    text = _SPACE.sub(" ", _mask(_bound_search(text))).strip()
    return text if len(text) <= chars_max else text[: max(chars_max - 1, 0)] + "…"


def redact_uri(uri: str) -> str:
    """Mask the secrets of a URI without cutting it or folding its blanks, so that the file can be found again.

    A local path is returned unchanged.
    """
    return _mask(_bound_search(uri)) if "://" in uri else uri


def _mask(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    text = _DATA_URI.sub(r"\1…", text)
    text = _USER_INFO.sub(f"://{MASK}@", text)
    text = _USER_INFO_ENCODED.sub(rf"\1{MASK}%40", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    return _AUTHORIZATION.sub(rf"\1\2{MASK}", text)


def strip_user_info(uri: str) -> str:
    """Return the URI without user and password."""
    return _USER_INFO.sub("://", uri)


def _bound_search(text: str) -> str:
    """Cut a long text between two words: a password whose `@` was cut off would not be recognised."""
    if len(text) <= _WINDOW_CHARS:
        return text
    window = text[:_WINDOW_CHARS]
    return window[: max(window.rfind(gap) for gap in " \n\t\"'<>`") + 1] + "…"
