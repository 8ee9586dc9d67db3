"""Images and videos as requests carry them: what the contract allows of them, and what can be read off their bytes.

Limits are the vendor's media rules (fact sheet, section 2), with 1 MB = 10^6 bytes: the stricter reading.
"""

import binascii
import io
import re
import struct

from PIL import Image, UnidentifiedImageError

from pipeline.emulator.parts import ImagePart, Sampling, VideoPart
from pipeline.emulator.replies import refuse

IMAGE_BYTES_MAX = 10_000_000
IMAGE_SIDE_PX_MIN = 15
IMAGE_PIXELS_MAX = 36_000_000 - 1
VIDEO_BYTES_MAX = 50_000_000

URL_IMAGE_SIDE_PX = 624
"""Width and height taken for an image behind a URL, which is not fetched: 497 tokens, as in the contract's example."""

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

_VIDEO_BRANDS_OLD_MOV = {b"moov", b"mdat", b"wide", b"free", b"skip"}


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
    if len(data) >= IMAGE_BYTES_MAX:
        raise refuse("InvalidParameter", param, f"the image has {len(data)} bytes, it must be below {IMAGE_BYTES_MAX}")
    return _read_picture(url, subtype, data, param)


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


def _read_picture(url: str, subtype: str, data: bytes, param: str) -> ImagePart:
    unsupported = "InvalidParameter.UnsupportedImageFormat"
    try:
        picture = Image.open(io.BytesIO(data), formats=_OPENED)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refuse("InvalidParameter", param, "the image has more than 36000000 pixels") from error
    except UnidentifiedImageError as error:
        raise refuse(unsupported, param, "the data is no image of a supported format") from error
    except Exception as error:  # Pillow's readers raise anything at all on damaged headers
        raise refuse(unsupported, param, "the image is damaged") from error
    with picture:
        if subtype not in _IMAGE_FORMATS[picture.format or ""]:
            raise refuse(unsupported, param, f"the data URI says {subtype}, the bytes are {picture.format}")
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
    if len(data) > VIDEO_BYTES_MAX:
        raise refuse("InvalidParameter", param, f"the video has {len(data)} bytes, at most {VIDEO_BYTES_MAX} are taken")
    found = detect_video(data)
    if found is None:
        raise refuse("InvalidParameter", param, "the data is no mp4, avi or mov video")
    if found != subtype:
        raise refuse("InvalidParameter", param, f"the data URI says {subtype}, the bytes are {found}")
    return VideoPart(url, video_duration_s(data), sampling)


def detect_video(data: bytes) -> str | None:
    """Tell `mp4`, `quicktime` or `avi` by the first bytes; None for anything else."""
    if data[4:8] == b"ftyp":
        return "quicktime" if data[8:12] == b"qt  " else "mp4"
    if data[4:8] in _VIDEO_BRANDS_OLD_MOV:
        return "quicktime"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    return None


def video_duration_s(data: bytes) -> float | None:
    """Read the duration off the movie header (`mvhd` of mp4 and mov, `avih` of avi); None where it isn't told."""
    try:
        if (at := data.find(b"mvhd")) >= 0:
            wide = data[at + 4] == 1  # version 1 has 64-bit times
            scale, length = struct.unpack_from(">IQ" if wide else ">II", data, at + (24 if wide else 16))
            return float(length / scale) if scale else None
        if (at := data.find(b"avih")) >= 0:
            frame_us, frames = struct.unpack_from("<I12xI", data, at + 8)
            return float(frame_us * frames / 1e6)
    except (struct.error, IndexError):
        return None
    return None
