"""Images and videos as requests carry them: what the contract allows of them, and what can be read off their bytes.

Limits are the vendor's media rules (fact sheet, section 2), with 1 MB = 10^6 bytes: the stricter reading.
"""

import binascii
import hashlib
import io
import re
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from arkbeam.emulator.download import download, is_loopback
from arkbeam.emulator.parts import ImagePart, Part, Sampling, TextPart, VideoPart
from arkbeam.emulator.replies import refuse
from arkbeam.emulator.video import detect_video, video_duration_s

IMAGE_BYTES_MAX = 10_000_000
IMAGE_SIDE_PX_MIN = 15
IMAGE_PIXELS_MAX = 36_000_000 - 1
VIDEO_BYTES_MAX = 52_428_800

URL_IMAGE_SIDE_PX = 624
"""Width and height taken for an image behind a URL that is not fetched: 497 tokens, as in the contract's example."""

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
"""Pillow's name of each format, and how a data URI may call it. MPO is a JPEG with more pictures behind the first."""
_OPENED = [name for name in _IMAGE_FORMATS if name != "MPO"]  # Pillow finds those behind JPEG by itself

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
"""How the URL of a fetched file of each format may end, if it ends in any of these."""


def read_image(url: object, param: str) -> ImagePart:
    """Check an `image_url.url` and read the picture if it is inlined. Raises Refused."""
    if not isinstance(url, str):
        raise refuse("InvalidParameter", param, "expected a string")
    if not url:
        raise refuse("InvalidImageURL.EmptyURL", param)
    if url[:5].lower() != "data:":
        if not _HTTP_URL.fullmatch(url):
            raise refuse("InvalidImageURL.InvalidFormat", param, "expected an http(s) URL or a data URI")
        return ImagePart(url, URL_IMAGE_SIDE_PX, URL_IMAGE_SIDE_PX, None)
    subtype, data = _decode_data_uri(url, "image", "InvalidImageURL.InvalidFormat", param)
    allowed = {name for name, called in _IMAGE_FORMATS.items() if subtype in called}
    return _read_picture(url, data, f"the data URI says {subtype}", allowed, param)


def see_part(part: Part, param: str) -> Part:
    """Fetch what a loopback URL points at and look at it; other parts come back as they are. Raises Refused."""
    if isinstance(part, TextPart) or not is_loopback(part.url):
        return part
    if isinstance(part, ImagePart):
        data = download(part.url, IMAGE_BYTES_MAX, "image_url")
        return _read_picture(
            part.url, data, *_told_by_extension(part.url, set(_IMAGE_FORMATS)), f"{param}.image_url.url"
        )
    data = download(part.url, VIDEO_BYTES_MAX, "video_url")
    told, allowed = _told_by_extension(part.url, {"mp4", "quicktime", "avi"})
    return _read_film(part.url, data, told, allowed, part.sampling, f"{param}.video_url.url")


def _told_by_extension(url: str, any_format: set[str]) -> tuple[str, set[str]]:
    extension = urlsplit(url).path.rpartition(".")[2].lower()
    allowed = {name for name, extensions in _EXTENSIONS.items() if extension in extensions}
    return f"the URL ends in {extension}", allowed or any_format


def _decode_data_uri(url: str, kind: str, code: str, param: str) -> tuple[str, bytes]:
    head = _DATA_URI.match(url)
    if head is None or head[1] != kind:
        raise refuse(code, param, f"expected data:{kind}/<format>;base64,<data> in lower case")
    try:
        data = binascii.a2b_base64(url[head.end() :].encode("ascii"), strict_mode=True)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are both
        raise refuse(code, param, "the data is no valid base64") from error
    if not data:
        raise refuse(code, param, "the data URI is empty")
    return head[2], data


def _read_picture(url: str, data: bytes, told: str, allowed: set[str], param: str) -> ImagePart:
    """Look at a picture that, by what is told of it, must be of one of the allowed formats."""
    unsupported = "InvalidParameter.UnsupportedImageFormat"
    if len(data) >= IMAGE_BYTES_MAX:
        raise refuse("InvalidParameter", param, f"the image has {IMAGE_BYTES_MAX} bytes or more")
    try:
        picture = Image.open(io.BytesIO(data), formats=_OPENED)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refuse("InvalidParameter", param, "the image has more than 36000000 pixels") from error
    except UnidentifiedImageError as error:
        raise refuse(unsupported, param, "the data is no image of a supported format") from error
    except Exception as error:  # Pillow's readers raise anything at all on damaged headers
        raise refuse(unsupported, param, "the image is damaged") from error
    with picture:
        if picture.format not in allowed:
            raise refuse(unsupported, param, f"{told}, the bytes are {picture.format}")
        width, height = picture.size
        if min(width, height) < IMAGE_SIDE_PX_MIN:
            raise refuse("InvalidParameter", param, f"the image is {width}x{height}, both sides must exceed 14 px")
        if width * height > IMAGE_PIXELS_MAX:
            raise refuse("InvalidParameter", param, f"the image is {width}x{height}, it must be below 36000000 pixels")
        try:
            tiles = _mean_colours(picture)
        except Exception as error:  # as above, on damaged bodies
            raise refuse(unsupported, param, "the image is damaged or cut off") from error
    return ImagePart(url, width, height, tiles)


def _mean_colours(picture: Image.Image) -> bytes:
    picture.draft("RGB", (TILES_PER_SIDE * 8, TILES_PER_SIDE * 8))  # JPEG: decode at a fraction of the size
    sides = (TILES_PER_SIDE, TILES_PER_SIDE)
    return picture.convert("RGB").resize(sides, Image.Resampling.BOX).tobytes()


def read_video(url: object, sampling: Sampling, param: str) -> VideoPart:
    """Check a `video_url.url` and read the duration if the video is inlined. Raises Refused."""
    if not isinstance(url, str):
        raise refuse("InvalidParameter", param, "expected a string")
    if url[:5].lower() != "data:":
        if not _HTTP_URL.fullmatch(url):
            raise refuse("InvalidParameter", param, "expected an http(s) URL or a data URI")
        return VideoPart(url, None, sampling)
    subtype, data = _decode_data_uri(url, "video", "InvalidParameter", param)
    return _read_film(url, data, f"the data URI says {subtype}", {subtype}, sampling, param)


def _read_film(url: str, data: bytes, told: str, allowed: set[str], sampling: Sampling, param: str) -> VideoPart:
    if len(data) > VIDEO_BYTES_MAX:
        raise refuse("InvalidParameter", param, f"the video has more than {VIDEO_BYTES_MAX} bytes")
    found = detect_video(data)
    if found is None:
        raise refuse("InvalidParameter", param, "the data is no mp4, avi or mov video")
    if found not in allowed:
        raise refuse("InvalidParameter", param, f"{told}, the bytes are {found}")
    return VideoPart(url, video_duration_s(data), sampling, hashlib.blake2b(data, digest_size=16).digest())
