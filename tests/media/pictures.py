"""Images and videos of every kind, generated when needed: small, and always the same bytes."""

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from PIL import Image
from pillow_heif import register_heif_opener

Size = tuple[int, int]
register_heif_opener(thumbnails=False)


def paint(size: Size = (64, 48), mode: str = "RGB") -> Image.Image:
    """Make an image with two gradients: all sides differ, so that a rotation is visible."""
    width, height = size
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.dstack([across, down, np.full_like(across, 90)])).convert(mode)


def save(image: Image.Image, pillow_format: str, **options: Any) -> bytes:
    """Encode an image."""
    stream = io.BytesIO()
    image.save(stream, pillow_format, **options)
    return stream.getvalue()


def picture(pillow_format: str = "JPEG", size: Size = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    """Make and encode an image."""
    return save(paint(size, mode), pillow_format, **options)


def animation(pillow_format: str, size: Size = (64, 48)) -> bytes:
    """Encode three images as one animation."""
    frames = [paint(size).rotate(90 * turn) for turn in range(3)]
    return save(frames[0], pillow_format, save_all=True, append_images=frames[1:], duration=100)


def rotated(orientation: int, size: Size = (64, 48), pillow_format: str = "JPEG") -> bytes:
    """Make an image with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    return save(paint(size), pillow_format, exif=exif)


def deep_grey(size: Size = (64, 48)) -> bytes:
    """Make a grey PNG of 16 bits."""
    values = np.linspace(0, 65_535, size[0] * size[1]).astype(np.uint16).reshape(size[::-1])
    return save(Image.fromarray(values), "PNG")


def deep_colour(size: Size = (64, 48)) -> bytes:
    """Make a colour PNG of 16 bits a channel, which Pillow does not write."""
    width, height = size
    rows = np.asarray(paint(size)).astype(">u2") * 257
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in chunks)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def wide(pillow_format: str, size: Size) -> bytes:
    """Make an image of very many pixels in few bytes: black, one bit a pixel."""
    return save(Image.new("1", size), pillow_format)


def data_uri(mime: str, data: bytes) -> str:
    """Return the bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def cut(data: bytes, share: float = 0.5) -> bytes:
    """Truncate a file."""
    return data[: int(len(data) * share)]


def film(container: str = "mp4", seconds: int = 2, *, sound: bool = False, front: bool = False) -> bytes:
    """Make a video of 10 frames a second; `front`: with the index of an mp4 before its frames."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        audio = output.add_stream("aac", rate=8_000) if sound else None
        shade = paint((160, 120))
        for number in range(seconds * 10):
            shown = av.VideoFrame.from_image(shade.rotate(number))
            output.mux(video.encode(shown))
        output.mux(video.encode())
        if audio is not None:
            silence = np.zeros((1, 1_024), np.float32)
            for number in range(seconds * 8):
                heard = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
                heard.sample_rate, heard.pts = 8_000, number * 1_024
                output.mux(audio.encode(heard))
            output.mux(audio.encode())
    return move_index(stream.getvalue()) if front else stream.getvalue()


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split a video into its outer boxes."""
    found, at = [], 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found.append((name, data[at : at + length]))
        at += length
    return found


def move_index(data: bytes) -> bytes:
    """Move the index of a video to the front. Its offsets are then wrong, but only its header is read."""
    found = boxes(data)
    return b"".join(
        box
        for _, box in sorted(
            found, key=lambda one: [b"ftyp", b"moov"].index(one[0]) if one[0] in (b"ftyp", b"moov") else 2
        )
    )


def without(data: bytes, names: Sequence[bytes]) -> bytes:
    """Remove boxes from a video."""
    return b"".join(box for name, box in boxes(data) if name not in names)


def rename(data: bytes, old: bytes, new: bytes) -> bytes:
    """Give all boxes with a name another one of the same length."""
    return data.replace(old, new)


def audio(container: str = "mp4") -> bytes:
    """Make a file that has sound and no video."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        track = output.add_stream("aac" if container == "mp4" else "pcm_s16le", rate=8_000)
        for number in range(16):
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.int16), "s16", "mono")
            heard.sample_rate, heard.pts = 8_000, number * 1_024
            output.mux(track.encode(heard))
        output.mux(track.encode())
    return stream.getvalue()


def piped_avi() -> bytes:
    """Make an avi as a program writes it to a pipe: without its lengths."""
    data = bytearray(film("avi"))
    data[4:8] = b"\xff" * 4
    return bytes(data)


def insert_chunks(data: bytes, *chunks: bytes) -> bytes:
    """Put chunks behind the header of a PNG."""
    return data[:33] + b"".join(chunks) + data[33:]


def bit_fields(masks: Sequence[int], bits: int, size: Size = (64, 48)) -> bytes:
    """Make a bitmap whose channels have these masks."""
    width, height = size
    pixels = bytes(-(-width * bits // 32) * 4 * height)
    fields = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    start = 14 + len(fields) + 12
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + fields + struct.pack("<3I", *masks) + pixels


def gif_with_comment(blocks: int) -> bytes:
    """Make a GIF whose comment has so many sub-blocks of one byte."""
    data = picture("GIF")
    start = 13 + (3 << (data[10] & 7) + 1)
    return b"GIF89a" + data[6:start] + b"\x21\xfe" + b"\1a" * blocks + b"\0" + data[start:]


def pad_film(data: bytes, size: int) -> bytes:
    """Make a video longer with a box that players skip."""
    left = size - len(data)
    return data + struct.pack(">I4s", left, b"free") + bytes(left - 8)


FAKES = {
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "psd": b"8BPS\0\1" + bytes(40),
    "svg": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>\n',
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "html": b"<!DOCTYPE html><title>404</title>",
    "text": b"no picture at all\n",
    "webm": b"\x1a\x45\xdf\xa3" + bytes(60),
}
"""First bytes of files that the API does not accept as images or videos."""
