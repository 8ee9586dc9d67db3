"""Decode data URIs in the form that the API takes, and say what is wrong with those in another one.

A message never quotes the payload.
"""

import binascii
import re

from arkbeam.base.bad_rows import fail_row
from arkbeam.base.records import Modality
from arkbeam.media.kinds import detect_kind

_HEAD = re.compile(r"data:((?:image|video)/[a-z0-9.+-]{1,40});base64,")
_TYPE = re.compile(r"(?:image|video)/[a-z0-9.+-]{1,40}")
_HEAD_CHARS_MAX = 1_000
_FORM = "a data URI must start with data:image/<format>;base64, or data:video/<format>;base64, in lower case"
# How the base64 of usual formats starts.
_STARTS = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGODdh": "image/gif",
    "R0lGODlh": "image/gif",
    "UklGR": "image/webp",
    "SUkqA": "image/tiff",
    "TU0AK": "image/tiff",
    "AAAA": "video/mp4",
}
_STARTS_LIST = tuple(_STARTS)
# No path that someone would use for a file has so long a name without a dot.
_BARE = re.compile(r"[A-Za-z0-9+/=_\s-]{64}")
_SHOWN = re.compile(
    r"data:(?:(?:image|video|audio|text|application)/[\w.+-]{1,80}(?=[;,\s]))?(?:;[\w=.-]{1,30}(?=[;,]))*,?",
    re.IGNORECASE,
)
_MP4 = re.compile(r"AAAA.[GWm2]Z0eX")


def is_data_uri(uri: str) -> bool:
    """Return True if the URI contains the medium's bytes: as a data URI, or as base64 without the beginning of one."""
    return uri[:5].lower() == "data:" or (uri.startswith(_STARTS_LIST) and is_bare_base64(uri))


def is_bare_base64(uri: str) -> bool:
    """Return True if the URI is the base64 of an image or a video alone."""
    if not uri.startswith(_STARTS_LIST) or not _BARE.match(uri):
        return False
    return not uri.startswith("AAAA") or _MP4.match(uri) is not None


def describe_data_uri(uri: str) -> str:
    """Return what a message shows of a URI that contains bytes: its type and parameters, never the payload."""
    head = _SHOWN.match(uri)
    return f"base64 of {len(uri)} characters" if head is None else f"{head[0]}…"


def decode_data_uri(uri: str) -> tuple[str, bytes]:
    """Return the type and the bytes of a data URI, `data:image/<format>;base64,<payload>`.

    Raise BadRow (`media_bad_data_uri`) for any other form; the message says what is different.
    """
    head = _HEAD.match(uri)
    if head is None:
        fail_row("media_bad_data_uri", f"{_find_fault(uri)}; {_FORM}")
    payload = uri[head.end() :]
    try:
        return head[1], binascii.a2b_base64(payload.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        fault = _find_payload_fault(payload) or str(error)
        fail_row("media_bad_data_uri", f"the payload of the data URI is not valid base64: {fault}")


def make_data_uri(data: bytes, modality: Modality) -> str:
    """Return the data URI of a medium's bytes, with the type that the bytes have. It is the same for the same bytes.

    If their format is unknown, the type is one that no medium has, and inspection refuses it.
    """
    kind = detect_kind(data)
    mime = f"{modality.value}/x-unknown" if kind is None else kind.mime
    return f"data:{mime};base64,{binascii.b2a_base64(data, newline=False).decode()}"


def _find_fault(uri: str) -> str:
    """Say how a URI differs from a data URI of the API."""
    if uri[:5].lower() != "data:":
        kind = next(kind for start, kind in _STARTS.items() if uri.startswith(start))
        return f"this is base64 alone, without its beginning 'data:{kind};base64,'"
    head, comma, _ = uri[:_HEAD_CHARS_MAX].partition(",")
    if not comma:
        return f"the data URI has no comma in its first {_HEAD_CHARS_MAX} characters"
    white = re.search(r"\s", head)
    if white is not None:
        return f"the data URI has {_name(white[0])} at character {white.start() + 1}"
    mime, *parameters = head[5:].split(";")
    faults = [
        (head[:5] != "data:", "'data:' has capitals"),
        (not mime, "the data URI has no type"),
        (mime != mime.lower(), "the type has capitals"),
        (not _TYPE.fullmatch(mime.lower()), "the type is not that of an image or a video"),
        (not parameters or parameters[-1].lower() != "base64", "the data URI is not said to be base64"),
        (len(parameters) > 1, "the data URI has a parameter besides base64, such as charset"),
    ]
    return next((fault for found, fault in faults if found), "'base64' has capitals")


def _find_payload_fault(payload: str) -> str:
    """Say what usual fault a payload has; empty if none is found."""
    odd = re.search(r"[^A-Za-z0-9+/=]", payload)
    if odd is None:
        return ""
    place = f"at character {odd.start() + 1} of the payload"
    if odd[0].isspace():
        return f"{_name(odd[0])} {place}"
    if odd[0] == "%":
        return f"it is percent-encoded ({place}): write +, / and = themselves"
    if odd[0] in "-_":
        return f"it is in the URL-safe alphabet ({place}): write + for - and / for _"
    return f"a character that base64 does not have, {place}"


def _name(white: str) -> str:
    return "a line break" if white in "\r\n" else "a blank"
