"""Data URIs: `data:image/<format>;base64,<payload>`, as the API's contract page writes them."""

import binascii
import re

from arkbeam.media.refusal import Refusal

_HEAD = re.compile(r"data:((?:image|video)/[a-z0-9.+-]{1,40});base64,")


def is_data_uri(uri: str) -> bool:
    """Tell whether the URI carries its bytes itself."""
    return uri[:5].lower() == "data:"


def decode_data_uri(uri: str) -> tuple[str, bytes]:
    """Return type and bytes of a data URI. Raises Refusal unless it is exactly what the API takes."""
    head = _HEAD.match(uri)
    if head is None:
        raise Refusal("media_bad_data_uri", "a data URI must start with data:image/<format>;base64, in lower case")
    try:
        data = binascii.a2b_base64(uri[head.end() :].encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refusal("media_bad_data_uri", f"the data URI is not valid base64: {error}") from error
    return head[1], data


def encode_data_uri(data: bytes, mime: str) -> str:
    """Return the bytes as a data URI of their own type."""
    return f"data:{mime};base64,{binascii.b2a_base64(data, newline=False).decode('ascii')}"


def encoded_length(size: int, mime: str) -> int:
    """Length in characters of the data URI of `size` bytes."""
    return len(f"data:{mime};base64,") + 4 * ((size + 2) // 3)
