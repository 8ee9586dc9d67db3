"""Media behind loopback URLs are really fetched: the one network that the stand-in has. It asks no other host.

What fails is answered as the service does (seen on its chat and image APIs): 400 InvalidParameter, with one of two
sentences that the vendor's users know.
"""

import http.client
import ipaddress
import string
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

from arkbeam.emulator.replies import ErrorReply, Refused

TIMEOUT_S = 10.0
"""As observed of the service. A server that trickles is left after at most twice that."""

_CHUNK_BYTES = 1 << 16


def is_loopback(url: str) -> bool:
    """Tell whether an http(s) URL points at this machine: localhost, 127.0.0.0/8 or ::1."""
    if url[:4].lower() != "http":  # a data URI, perhaps of many megabytes
        return False
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # brackets that don't match
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def download(url: str, bytes_max: int, param: str) -> bytes:
    """Fetch a loopback URL; of more than `bytes_max` bytes only one more is returned. It blocks. Raises Refused."""
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        with _OPENER.open(quote(url, safe=string.punctuation), timeout=TIMEOUT_S) as answer:
            return _read(answer, bytes_max + 1, deadline_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _failed(f"Error while downloading: {url}, status code: {error.code}", param) from error
    except TimeoutError as error:
        raise _failed(f"Timeout while downloading url={url}.", param) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _failed(f"Timeout while downloading url={url}.", param) from error
        raise _failed(f"Error while downloading: {url}", param) from error
    except (http.client.HTTPException, OSError, ValueError, OverflowError) as error:
        raise _failed(f"Error while downloading: {url}", param) from error


def _read(answer: Any, bytes_max: int, deadline_s: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while size < bytes_max and (chunk := answer.read1(min(_CHUNK_BYTES, bytes_max - size))):
        chunks.append(chunk)
        size += len(chunk)
        if time.monotonic() > deadline_s:
            raise TimeoutError
    if size < bytes_max and answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(chunks)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead away from this machine: it is a failed download."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


# No proxies of the environment either: they would not reach our loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())


def _failed(message: str, param: str) -> Refused:
    return Refused(ErrorReply("InvalidParameter", param, message=message))
