"""Prepare external text for logs, reports and failure rows: mask secrets, bound the length, fold to one line.

Call `redact` on every URL, header and server reply before it is quoted.
"""

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from arkbeam.base.signing import SECRET_PARAMETERS

MASK = "***"
# Only this much of a text is searched for secrets; the rest is dropped, since it must not be shown unsearched.
_WINDOW_CHARS = 65_536

# A separator and the name of a parameter: `?name=`, `&name=`, `;name=`, `#name=`, also if the URL is quoted inside
# another URL (%3F, %26, %3D; %253F if it is quoted twice) or escaped for HTML or JSON. The name may be encoded too.
_PARAMETER = re.compile(
    r"(&amp;|[?&;#]|%(?:25)*(?:3f|26|3b|23)|\\u0026)([\w.%\[\]$:-]{1,128}?)(?:=|%(?:25)*3d|\\u003d)", re.IGNORECASE
)
_VALUE = re.compile(r"(?:(?!%(?:25)*26|\\u0026)[^&\s\"'<>\#`])+", re.IGNORECASE)
# Parts of a name that make its value a secret, wherever they stand in it.
_SECRET_PART = re.compile(
    r"token|secret|passw|passphrase|signature|credential|jwt|hmac|session[_-]?id|sessid|access[_-]?key|api[_-]?key"
)
# Words that make it a secret if the name ends with them. They also occur in other names, so they must be whole words.
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\[\].:$]+")
_SECRET_END = re.compile(
    r"(?:.*[_-])?(?:key|ak|sk|sign|sig|pwd|pass|auth|authorization|sid|policy|hdnts|hdnea|hdntl)[_-]?"
    r"|x-(?:amz|tos|goog|oss|cos|obs)-[\w-]+|q-[\w-]+|(?:secret|private|auth|app|sign|enc|client)key|key[_-]pair[_-]id"
)
# A parameter such as `key=images/1.png` names a file.
_FILE_NAME = re.compile(r"[^&\s\"'<>#`]*\.[A-Za-z][A-Za-z0-9]{1,4}(?=[&\s\"'<>#`]|$)")
# What follows `#` is not sent to a server. It is a secret only in the reply of a login.
_SECRET_FRAGMENT = re.compile(r".*(?:token|secret|passw|jwt|session|api[_-]?key).*")
_further: set[str] = set()

_STORE = re.compile(r"s3[an]?|gs|gcs|oss|tos|cosn?|obs|memory|az|adl|wasbs?|abfss?", re.IGNORECASE)
_CONTAINER = re.compile(r"az|adl|wasbs?|abfss?", re.IGNORECASE)
_USER_NAMED = re.compile(r"(?<=://)[^/\s?#\"'<>`]+(?=@)")
_SLASHES = r"(?:://|:\\/\\/)"
# Behind these schemes, `container@account` has no secret in it.
_USER_INFO_SHOWN = re.compile(
    rf"((?<!az)(?<!wasb)(?<!wasbs)(?<!abfs)(?<!abfss){_SLASHES})[^/\s?#\"'<>`]*@", re.IGNORECASE
)
_USER_INFO = re.compile(rf"({_SLASHES})[^/\s?#\"'<>`]*@")
# A password with a `/`, `?` or `#` in it, as keys of object stores have. Behind `host:` comes a number, a port.
_USER_INFO_OF_STORE = re.compile(
    rf"\b((?:s3[an]?|gs|gcs|oss|tos|cosn?|obs|az|wasbs?|abfss?){_SLASHES})"
    r"(?:[^/\s:@]{0,512}(?::|%3a)(?!//|\\/)[^\s\"'<>`@]{0,512}(?:@|%40)|[^/\s@]{1,512}%40)",
    re.IGNORECASE,
)
_USER_INFO_ODD = re.compile(
    rf"({_SLASHES})[^/\s:@?#]{{0,512}}:(?![0-9]{{0,5}}(?:[/?#\s\"'<>`]|$))[^\s\"'<>`@]{{0,512}}@"
)
# The same inside the query of another URL.
_USER_INFO_ENCODED = re.compile(
    r"(%(?:25)*3a(?:%(?:25)*2f){2})(?:(?!%(?:25)*2f)[^/\s?#&\"'<>`])*%(?:25)*40", re.IGNORECASE
)
_AUTHORIZATION = re.compile(r"\b(bearer|basic)(\s+)[^\s\"',;`]+", re.IGNORECASE)
_DATA_URI = re.compile(
    r"(\bdata:\s?(?:[\w.+-]{1,60}/[\w.+*-]{1,80}\s?(?:;\s?[^,;\s\"]{0,100}){0,8}|(?:;\s?[^,;\s\"]{1,100}){1,8}),(?:\s|\\[rnt]){0,4})"
    r"[A-Za-z0-9+/=_%-]+(?:(?:[\r\n\t]|\\[rnt])+[A-Za-z0-9+/=_%-]+|\s+[A-Za-z0-9+/=_-]{16,})*",
    re.IGNORECASE,
)
# Shorter secrets are not masked: they protect nothing, and masking every "x" would make the text unreadable.
_SECRET_CHARS_MIN = 6
_SPACE = re.compile(r"[\s\x00-\x1f\x7f]+")


def redact(text: str, chars_max: int = 500, *, secrets: Iterable[str] = ()) -> str:
    """Mask credentials in `text`, fold it to one line and cut it to `chars_max` characters.

    Masked: signatures and credentials in the query of a URL, `access_token` and the like in its fragment, user and
    password before a host, bearer and basic tokens, the payload of data URIs, and every string in `secrets`. Lone
    surrogates are replaced, so that the result can be encoded.
    """
    for secret in secrets:
        if len(secret) >= _SECRET_CHARS_MIN:
            text = text.replace(secret, MASK)
    text = _SPACE.sub(" ", _mask(_bound_search(text))).strip()
    return text if len(text) <= chars_max else text[: max(chars_max - 1, 0)] + "…"


def also_mask(names: Iterable[str]) -> None:
    """Mask the values of further query parameters in this process from here on (`media.url_ignore_params`)."""
    _further.update(name.lower() for name in names)


def _mask_parameters(text: str) -> str:
    """Mask the values of parameters that are secrets. The value of another one is searched too: it may be a URL."""
    parts: list[str] = []
    done = at = 0
    while found := _PARAMETER.search(text, at):
        at = found.end()
        if _is_secret(found[1], found[2], text, at) and (value := _VALUE.match(text, at)):
            parts += [text[done:at], MASK]
            done = at = value.end()
    return "".join([*parts, text[done:]])


def _is_secret(separator: str, name: str, text: str, at: int) -> bool:
    """Return True if the parameter whose value starts `at` this place of the text must not be shown."""
    while (decoded := unquote(name)) != name:
        name = decoded
    if separator in ("#", "%23"):
        return _SECRET_FRAGMENT.fullmatch(name.lower()) is not None
    if _is_secret_part(name):
        return True
    return is_secret_name(name) and not _FILE_NAME.match(text, at)


def is_secret_name(name: str) -> bool:
    """Return True if the values of a parameter or header with this name are secrets."""
    return _is_secret_part(name) or _SECRET_END.fullmatch(_WORD_START.sub("_", name).lower()) is not None


def _is_secret_part(name: str) -> bool:
    name = name.lower()
    return name in SECRET_PARAMETERS or name in _further or _SECRET_PART.search(name) is not None


def redact_uri(uri: str) -> str:
    """Mask the secrets of a URI without cutting it or folding its blanks, so that the file can be found again.

    A local path is returned unchanged.
    """
    return _mask(_bound_search(uri)) if "://" in uri else uri


def _mask(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    text = _DATA_URI.sub(r"\1…", text)
    for pattern in (_USER_INFO_OF_STORE, _USER_INFO_SHOWN, _USER_INFO_ODD):
        text = pattern.sub(rf"\1{MASK}@", text)
    text = _USER_INFO_ENCODED.sub(rf"\1{MASK}%40", text)
    text = _mask_parameters(text)
    return _AUTHORIZATION.sub(rf"\1\2{MASK}", text)


def secrets_of(uri: str) -> list[str]:
    """Return the secrets in a URI, as they are written there and decoded, for messages that quote them alone.

    They are the user, password, and values of secret query parameters.
    """
    found = [match[0] for match in _USER_NAMED.finditer(uri)]
    parts = [part for user in found for part in (user, *user.split(":", 1))]
    at = 0
    while parameter := _PARAMETER.search(uri, at):
        at = parameter.end()
        if _is_secret(parameter[1], parameter[2], uri, at) and (value := _VALUE.match(uri, at)):
            parts.append(value[0])
            at = value.end()
    return sorted(
        {text for part in parts for text in (part, unquote(part), quote(part, safe=""))}, key=len, reverse=True
    )


def holds_credentials(uri: str) -> bool:
    """Return True if the URI of an object has a user or a password in it, as `s3://key:secret@bucket/name` has.

    A URI such as `abfss://container@account…/name` names a container. `hdfs`, `ftp`, `http` and other schemes that take
    a user are not judged.
    """
    scheme, _, rest = uri.partition("://")
    if not _STORE.fullmatch(scheme):
        return False
    authority = unquote(rest.partition("/")[0])
    user, at, _ = authority.rpartition("@")
    if at:
        return ":" in user or not _CONTAINER.fullmatch(scheme)
    return ":" in authority and "@" in unquote(rest)  # a `/` in the password


def strip_user_info(uri: str) -> str:
    """Return the URI without user and password."""
    return _USER_INFO.sub(r"\1", uri)


def _bound_search(text: str) -> str:
    """Cut a long text between two words: a password whose `@` was cut off would not be recognised."""
    if len(text) <= _WINDOW_CHARS:
        return text
    window = text[:_WINDOW_CHARS]
    return window[: max(window.rfind(gap) for gap in " \n\t\"'<>`") + 1] + "…"
