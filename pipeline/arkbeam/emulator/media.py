"""Images and videos of requests: download from loopback URLs, check against the contract, read size or duration.

Limits are those of the vendor's guides, with 1 MB = 10^6 bytes for images, the stricter interpretation, and 50 MiB for
videos. The size and the mean colours of an image are read. The format and the duration of a video are read from its
header; frames are not decoded.

Media at loopback URLs are downloaded; no other host is contacted. A failed download is answered as by the service
(observed on its chat and image APIs): 400 InvalidParameter with one of two known messages.
"""

import binascii
import hashlib
import http.client
import io
import ipaddress
import re
import string
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import quote, urlsplit

from PIL import Image, UnidentifiedImageError

from arkbeam.emulator.parts import ImagePart, Part, Sampling, TextPart, VideoPart
from arkbeam.emulator.replies import ErrorReply, Rejected, reject

IMAGE_BYTES_MAX = 10_000_000
IMAGE_SIDE_PX_MIN = 15
IMAGE_PIXELS_MAX = 36_000_000 - 1
VIDEO_BYTES_MAX = 52_428_800

URL_IMAGE_SIDE_PX = 624
"""Assumed width and height of an image at a URL that is not downloaded: 497 tokens, as in the contract's example."""

TILES_PER_SIDE = 8

_DATA_URI = re.compile(r"data:(image|video)/([a-z0-9.+-]+);base64,")
_HTTP_URL = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)

_IMAGE_FORMATS = {
    "JPEG": {"jpeg", "jpg"},
    "MPO": {"jpeg", "jpg"},
    "PNG": {"png", "apng"},
    "GIF": {"gif"},
    "WEBP": {"webp"},
    "BMP": {"bmp"},
    "DIB": {"dib", "bmp"},
    "TIFF": {"tiff"},
    "ICO": {"x-icon", "vnd.microsoft.icon", "ico"},
    "ICNS": {"icns"},
    "SGI": {"sgi"},
    "JPEG2000": {"jp2", "jpeg2000"},
}
"""Pillow's name of each format, and its names in a data URI. MPO is a JPEG with several images."""
_OPENED = [name for name in _IMAGE_FORMATS if name != "MPO"]  # Pillow recognises MPO when it opens JPEG

_EXTENSIONS = {
    "JPEG": ("jpg", "jpeg"),
    "MPO": ("jpg", "jpeg"),
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp", "dib"),
    "DIB": ("dib", "bmp"),
    "TIFF": ("tif", "tiff"),
    "ICO": ("ico",),
    "ICNS": ("icns",),
    "SGI": ("sgi",),
    "JPEG2000": ("j2c", "j2k", "jp2", "jpc", "jpf", "jpx"),
    "mp4": ("mp4",),
    "avi": ("avi",),
    "quicktime": ("mov",),
}
"""Allowed extensions in the URL of a downloaded file of each format. Other extensions are not checked."""

DOWNLOAD_TIMEOUT_S = 10.0
"""As observed on the service. A slow download is aborted after at most twice this time."""

_CHUNK_BYTES = 1 << 16

_OLD_MOV_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip"}
_BOXES_MAX = 10_000
_UNKNOWN = {0, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}
"""Durations that mean "unknown": the movie header of a fragmented file has 0; all bits set mean undefined."""

_Box = tuple[bytes, int, int]


def read_image(url: object, param: str) -> ImagePart:
    """Check an `image_url.url`; read the image if the URL is a data URI. Raise Rejected."""
    if not isinstance(url, str):
        raise reject("InvalidParameter", param, "expected a string")
    if not url:
        raise reject("InvalidImageURL.EmptyURL", param)
    if url[:5].lower() != "data:":
        if not _HTTP_URL.fullmatch(url):
            raise reject("InvalidImageURL.InvalidFormat", param, "expected an http(s) URL or a data URI")
        return ImagePart(url, URL_IMAGE_SIDE_PX, URL_IMAGE_SIDE_PX, None)
    subtype, data = _decode_data_uri(url, "image", "InvalidImageURL.InvalidFormat", param)
    allowed = {name for name, called in _IMAGE_FORMATS.items() if subtype in called}
    return _read_image_data(url, data, f"the data URI says {subtype}", allowed, param)


def fetch_part(part: Part, param: str) -> Part:
    """Download and read the image or video at a loopback URL; return other parts unchanged. Raise Rejected."""
    if isinstance(part, TextPart) or not is_loopback(part.url):
        return part
    if isinstance(part, ImagePart):
        data = download(part.url, IMAGE_BYTES_MAX, "image_url")
        return _read_image_data(
            part.url, data, *_formats_by_extension(part.url, set(_IMAGE_FORMATS)), f"{param}.image_url.url"
        )
    data = download(part.url, VIDEO_BYTES_MAX, "video_url")
    reason, allowed = _formats_by_extension(part.url, {"mp4", "quicktime", "avi"})
    return _read_video_data(part.url, data, reason, allowed, part.sampling, f"{param}.video_url.url")


def _formats_by_extension(url: str, any_format: set[str]) -> tuple[str, set[str]]:
    """Return the reason, for a message, and the formats that the extension of a URL allows."""
    extension = urlsplit(url).path.rpartition(".")[2].lower()
    allowed = {name for name, extensions in _EXTENSIONS.items() if extension in extensions}
    return f"the URL ends in {extension}", allowed or any_format


def _decode_data_uri(url: str, kind: str, code: str, param: str) -> tuple[str, bytes]:
    head = _DATA_URI.match(url)
    if head is None or head[1] != kind:
        raise reject(code, param, f"expected data:{kind}/<format>;base64,<data> in lower case")
    try:
        data = binascii.a2b_base64(url[head.end() :].encode("ascii"), strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are subclasses
        raise reject(code, param, "the data is not valid base64") from error
    if not data:
        raise reject(code, param, "the data URI is empty")
    return head[2], data


def _read_image_data(url: str, data: bytes, reason: str, allowed: set[str], param: str) -> ImagePart:
    """Read an image and check it. `reason` says why only the `allowed` formats are, for the message. Raise Rejected."""
    unsupported = "InvalidParameter.UnsupportedImageFormat"
    if len(data) >= IMAGE_BYTES_MAX:
        raise reject("InvalidParameter", param, f"the image has {IMAGE_BYTES_MAX} bytes or more")
    try:
        picture = Image.open(io.BytesIO(data), formats=_OPENED)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise reject("InvalidParameter", param, "the image has more than 36000000 pixels") from error
    except UnidentifiedImageError as error:
        raise reject(unsupported, param, "the data is not an image of a supported format") from error
    except Exception as error:  # Pillow's readers can raise any exception on damaged headers
        raise reject(unsupported, param, "the image is damaged") from error
    with picture:
        if picture.format not in allowed:
            raise reject(unsupported, param, f"{reason}, the bytes are {picture.format}")
        width, height = picture.size
        if min(width, height) < IMAGE_SIDE_PX_MIN:
            raise reject("InvalidParameter", param, f"the image is {width}x{height}, both sides must exceed 14 px")
        if width * height > IMAGE_PIXELS_MAX:
            raise reject("InvalidParameter", param, f"the image is {width}x{height}, it must be below 36000000 pixels")
        try:
            tiles = _mean_colours(picture)
        except Exception as error:  # the same for damaged image data
            raise reject(unsupported, param, "the image is damaged or cut off") from error
    return ImagePart(url, width, height, tiles)


def _mean_colours(picture: Image.Image) -> bytes:
    picture.draft("RGB", (TILES_PER_SIDE * 8, TILES_PER_SIDE * 8))  # JPEG: decode at a fraction of the size
    sides = (TILES_PER_SIDE, TILES_PER_SIDE)
    return picture.convert("RGB").resize(sides, Image.Resampling.BOX).tobytes()


def read_video(url: object, sampling: Sampling, param: str) -> VideoPart:
    """Check a `video_url.url`; read the duration if the URL is a data URI. Raise Rejected."""
    if not isinstance(url, str):
        raise reject("InvalidParameter", param, "expected a string")
    if url[:5].lower() != "data:":
        if not _HTTP_URL.fullmatch(url):
            raise reject("InvalidParameter", param, "expected an http(s) URL or a data URI")
        return VideoPart(url, None, sampling)
    subtype, data = _decode_data_uri(url, "video", "InvalidParameter", param)
    return _read_video_data(url, data, f"the data URI says {subtype}", {subtype}, sampling, param)


def _read_video_data(
    url: str, data: bytes, reason: str, allowed: set[str], sampling: Sampling, param: str
) -> VideoPart:
    if len(data) > VIDEO_BYTES_MAX:
        raise reject("InvalidParameter", param, f"the video has more than {VIDEO_BYTES_MAX} bytes")
    found = detect_video(data)
    if found is None:
        raise reject("InvalidParameter", param, "the data is not an mp4, avi or mov video")
    if found not in allowed:
        raise reject("InvalidParameter", param, f"{reason}, the bytes are {found}")
    return VideoPart(url, video_duration_s(data), sampling, hashlib.blake2b(data, digest_size=16).digest())


def is_loopback(url: str) -> bool:
    """Return True if an http(s) URL has a loopback host: localhost, 127.0.0.0/8 or ::1."""
    if url[:4].lower() != "http":  # a data URI, perhaps of many megabytes
        return False
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # unbalanced brackets
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def download(url: str, bytes_max: int, param: str) -> bytes:
    """Download a loopback URL; at most `bytes_max` + 1 bytes are returned. It blocks. Raise Rejected."""
    deadline_s = time.monotonic() + DOWNLOAD_TIMEOUT_S
    try:
        with _OPENER.open(quote(url, safe=string.punctuation), timeout=DOWNLOAD_TIMEOUT_S) as answer:
            return _read_answer(answer, bytes_max + 1, deadline_s)
    except urllib.error.HTTPError as error:
        with error:
            raise _fail_download(f"Error while downloading: {url}, status code: {error.code}", param) from error
    except TimeoutError as error:
        raise _fail_download(f"Timeout while downloading url={url}.", param) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _fail_download(f"Timeout while downloading url={url}.", param) from error
        raise _fail_download(f"Error while downloading: {url}", param) from error
    except (http.client.HTTPException, OSError, ValueError, OverflowError) as error:
        raise _fail_download(f"Error while downloading: {url}", param) from error


def _read_answer(answer: Any, bytes_max: int, deadline_s: float) -> bytes:
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
    """Treats a redirect as a failed download: it could lead to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: the redirect is not followed."""


# Without the proxies of the environment: they can't reach this machine's loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())


def _fail_download(message: str, param: str) -> Rejected:
    return Rejected(ErrorReply("InvalidParameter", param, message=message))


def detect_video(data: bytes) -> str | None:
    """Return `mp4`, `quicktime` or `avi` by the first bytes; None for anything else."""
    if data[4:8] == b"ftyp":
        return "quicktime" if data[8:12] == b"qt  " else "mp4"
    if data[4:8] in _OLD_MOV_BOXES:
        return "quicktime"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def video_duration_s(data: bytes) -> float | None:
    """Return the duration from the header; None if the header has none.

    mp4 and mov (ISO 14496-12): `moov/mvhd`, or `moov/mvex/mehd` of a fragmented file. avi: the first header, `avih`.
    """
    try:
        return _avi_duration_s(data) if data[:4] == b"RIFF" else _movie_duration_s(data)
    except struct.error:  # the header is cut off
        return None


def _movie_duration_s(data: bytes) -> float | None:
    movie = _find(data, b"moov", (0, len(data)))
    header = None if movie is None else _find(data, b"mvhd", movie)
    if movie is None or header is None:
        return None
    at = header[0]
    if data[at : at + 1] == b"\1":  # version 1 has 64-bit times
        scale, length = struct.unpack_from(">IQ", data, at + 20)
    else:
        scale, length = struct.unpack_from(">II", data, at + 12)
    if length in _UNKNOWN:
        length = _fragmented_length(data, movie)
    return length / scale if scale and length else None


def _fragmented_length(data: bytes, movie: tuple[int, int]) -> int:
    extends = _find(data, b"mvex", movie)
    header = None if extends is None else _find(data, b"mehd", extends)
    if header is None:
        return 0
    wide = data[header[0] : header[0] + 1] == b"\1"
    return int(struct.unpack_from(">Q" if wide else ">I", data, header[0] + 4)[0])


def _find(data: bytes, kind: bytes, within: tuple[int, int]) -> tuple[int, int] | None:
    """Return where the content of the first box of this kind starts and ends, or None."""
    boxes = islice(_boxes(data, *within), _BOXES_MAX)
    return next(((start, end) for found, start, end in boxes if found == kind), None)


def _boxes(data: bytes, at: int, end: int) -> Iterator[_Box]:
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        elif size == 0:  # up to the end
            size = end - at
        if size < head:
            return
        yield kind, at + head, min(at + size, end)
        at += size


def _avi_duration_s(data: bytes) -> float | None:
    if data[12:16] != b"LIST" or data[20:28] != b"hdrlavih":
        return None
    frame_us, frames = struct.unpack_from("<I12xI", data, 32)
    return frame_us * frames / 1e6 or None
