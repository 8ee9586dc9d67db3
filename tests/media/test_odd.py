"""Odd media, one in each row, through the whole job: the outcome without and with `media.fit`."""

import base64
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.make_docs import MEDIA_PAGE, read_table
from tests.media.pictures import (
    FAKES,
    animation,
    audio,
    bit_fields,
    cut,
    data_uri,
    deep_colour,
    deep_grey,
    film,
    gif_with_comment,
    insert_chunks,
    pad_film,
    paint,
    picture,
    piped_avi,
    png_chunk,
    rename,
    rotated,
    save,
    wide,
    without,
)
from tests.media.tiffs import BYTE, SHORT, tiff
from tests.places import Emulator, Place

FIT = {"media.fit.resize_max_pixels": 1_028_608, "media.fit.transcode": True}
_BROKEN = bytearray(picture("PNG"))
_BROKEN[60] ^= 0xFF
_TEXT = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))
_TEXTS = _TEXT * 3
_COLOUR = np.asarray(paint()).astype(np.uint16)
_GREY = _COLOUR[:, :, 0]

IMAGES: dict[str, tuple[str, bytes]] = {
    "JPEG": ("a.jpg", picture()),
    "JPEG named .png": ("b.png", picture(size=(65, 48))),
    "JPEG without a name's end": ("c", picture(size=(66, 48))),
    "JPEG, progressive": ("progressive.jpg", picture(progressive=True)),
    "JPEG with bytes behind its end": ("longer.jpg", picture(size=(67, 48)) + b"\0" * 100),
    "JPEG, CMYK": ("cmyk.jpg", picture(mode="CMYK")),
    "JPEG, rotated by EXIF": ("rotated.jpg", rotated(6)),
    "JPEG, 4000 x 3000": ("large.jpg", picture(size=(4_000, 3_000))),
    "JPEG, cut off": ("cut.jpg", cut(picture(), 0.9)),
    "JPEG of a few bytes": ("stump.jpg", picture()[:20]),
    "JPEG with an empty JFIF segment": (
        "nojfif.jpg",
        picture()[:2] + b"\xff\xe0\0\7JFIF\0" + picture(size=(68, 48))[20:],
    ),
    "JPEG-LS named .jpg": ("ls.jpg", b"\xff\xd8\xff\xf7\0\x0b\x08\0\x30\0\x40\1\1\x11\0" + bytes(60) + b"\xff\xd9"),
    "PNG": ("a.png", picture("PNG")),
    "PNG with texts of 9 MB": ("texts.png", insert_chunks(picture("PNG", (72, 48)), _TEXTS)),
    "PNG with a damaged text": ("text.png", insert_chunks(picture("PNG", (73, 48)), _TEXT[:-1] + b"x")),
    "PNG without pixels": ("nodata.png", picture("PNG")[:33] + png_chunk(b"IEND", b"")),
    "PNG, grey, 12 bits in 16": ("grey12.png", save(Image.fromarray(_GREY * np.uint16(16)), "PNG")),
    "PNG, grey, 16 bits": ("grey16.png", deep_grey()),
    "PNG, colour, 16 bits": ("colour16.png", deep_colour()),
    "PNG, animated": ("moves.png", animation("PNG")),
    "PNG, cut off": ("cut.png", cut(picture("PNG", (128, 96)))),
    "PNG without its end": ("noend.png", picture("PNG", (70, 48)).removesuffix(png_chunk(b"IEND", b""))),
    "PNG with a damaged pixel": ("broken.png", bytes(_BROKEN)),
    "PNG, 14 x 200": ("narrow.png", picture("PNG", (14, 200))),
    "PNG, 15 x 15": ("small.png", picture("PNG", (15, 15))),
    "PNG, 1 x 1": ("one.png", picture("PNG", (1, 1))),
    "PNG, 6000 x 6000": ("huge.png", wide("PNG", (6_000, 6_000))),
    "PNG, 9200 x 9000": ("vast.png", wide("PNG", (9_200, 9_000))),
    "PNG, 20000 x 60": ("long.png", picture("PNG", (20_000, 60))),
    "GIF": ("a.gif", picture("GIF")),
    "GIF, animated": ("moves.gif", animation("GIF")),
    "GIF without its last byte": ("noend.gif", picture("GIF", (68, 48))[:-1]),
    "GIF with a comment of 2,000,000 blocks": ("comment.gif", gif_with_comment(2_000_000)),
    "GIF, cut off": ("cut.gif", cut(picture("GIF"))),
    "WEBP": ("a.webp", picture("WEBP")),
    "WEBP, animated": ("moves.webp", animation("WEBP")),
    "WEBP, cut off": ("cut.webp", cut(picture("WEBP"))),
    "BMP": ("a.bmp", picture("BMP")),
    "BMP, 2000 x 1700, above 10 MB": ("large.bmp", picture("BMP", (2_000, 1_700))),
    "BMP, cut off": ("cut.bmp", cut(picture("BMP"))),
    "BMP with bit fields": ("fields.bmp", bit_fields((0xF00, 0xF0, 0xF), 16)),
    "DIB": ("a.dib", picture("DIB")),
    "TIFF": ("a.tiff", picture("TIFF")),
    "TIFF with transparency": ("clear.tiff", picture("TIFF", mode="RGBA")),
    "TIFF, CMYK, packed": ("packed.tiff", picture("TIFF", mode="CMYK", compression="tiff_lzw")),
    "TIFF of fractions": ("float.tiff", save(paint(mode="F"), "TIFF")),
    "TIFF of fractions in colour": ("floats.tiff", tiff(_COLOUR / 255, photometric=2, bits=32, sample_format=3)),
    "TIFF, 12 bits": ("grey12.tiff", tiff(_GREY * 16, bits=12)),
    "TIFF, 16 bits, zero is white": ("negative.tiff", tiff(_GREY * 257, bits=16, photometric=0)),
    "TIFF, 16 bits, in planes": ("planes.tiff", tiff(_COLOUR * 257, bits=16, photometric=2, planar=2)),
    "TIFF, palette of 8 bits": ("palette.tiff", tiff(_GREY, photometric=3, tags={320: (SHORT, [*range(256)] * 3)})),
    "TIFF, rotated by a byte": ("turned.tiff", tiff(_COLOUR, photometric=2, tags={274: (BYTE, [6])})),
    "TIFF, L*a*b*": ("lab.tiff", tiff(_COLOUR, photometric=8)),
    "TIFF, BigTIFF in big-endian order": ("big.tiff", tiff(_COLOUR, photometric=2, order=">", big=True)),
    "TIFF whose strip is said to be longer": (
        "longer.tiff",
        tiff(_COLOUR, photometric=2, tags={279: (SHORT, [9_600])}),
    ),
    "TIFF, cut off": ("cut.tiff", cut(picture("TIFF"))),
    "ICO": ("a.ico", picture("ICO")),
    "ICO, cut off": ("cut.ico", cut(picture("ICO"))),
    "ICNS": ("a.icns", picture("ICNS", (1_024, 1_024))),
    "ICNS, cut off": ("cut.icns", cut(picture("ICNS", (1_024, 1_024)))),
    "SGI": ("a.sgi", picture("SGI")),
    "SGI, cut off": ("cut.sgi", cut(picture("SGI"))),
    "JPEG 2000": ("a.jp2", picture("JPEG2000")),
    "JPEG 2000 with a box behind its pixels": (
        "behind.jp2",
        picture("JPEG2000", (66, 48)) + b"\0\0\0\x64xml " + bytes(92),
    ),
    "JPEG 2000, cut off": ("cut.jp2", cut(picture("JPEG2000"))),
    "HEIC": ("a.heic", picture("HEIF")),
    "HEIC, only its beginning": ("b.heic", FAKES["heic"]),
    "AVIF": ("a.avif", picture("AVIF")),
    "AVIF of the brand miaf": ("b.avif", rename(picture("AVIF"), b"ftypavif", b"ftypmiaf")),
    "Photoshop": ("a.psd", FAKES["psd"]),
    "SVG": ("a.svg", FAKES["svg"]),
    "PDF": ("a.pdf", FAKES["pdf"]),
    "HTML named .jpg": ("page.jpg", FAKES["html"]),
    "text": ("a.txt", FAKES["text"]),
    "WebM as image": ("a.webm", FAKES["webm"]),
    "nothing": ("empty.jpg", b""),
    "mp4 as image": ("film.jpg", film()),
}
"""Name in the table, name of the file, bytes."""
PADDED = {"JPEG of 9,999,999 bytes": 9_999_999, "JPEG of 10,000,000 bytes": 10_000_000}

VIDEOS: dict[str, tuple[str, bytes]] = {
    "mp4": ("a.mp4", film()),
    "mp4 with sound": ("sound.mp4", film(sound=True)),
    "mp4 with text behind its end": ("text.mp4", film(seconds=4) + b"text without any box " * 9),
    "mp4 with sound alone": ("sound-alone.mp4", audio()),
    "mp4 without its frames": ("index.mp4", without(film(), [b"mdat"])),
    "mp4, encrypted": ("drm.mp4", rename(film(), b"mp4v", b"encv")),
    "mp4 named .MP4": ("upper.MP4", film(seconds=3)),
    "mov": ("a.mov", film("mov")),
    "avi": ("a.avi", film("avi")),
    "mp4, cut off": ("cut.mp4", cut(film())),
    "mp4 without its index": ("unfinished.mp4", without(film(), [b"moov"])),
    "mp4 that PyAV can't open": ("odd.mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov"),
    "avi that was written to a pipe": ("piped.avi", piped_avi()),
    "avi with sound alone": ("sound-alone.avi", audio("avi")),
    "avi, cut off": ("cut.avi", cut(film("avi"))),
    "WebM as video": ("b.webm", FAKES["webm"]),
    "JPEG as video": ("picture.mp4", picture(size=(69, 48))),
    "mp4 of 48,000,000 bytes": ("long.mp4", pad_film(film(), 48_000_000)),
    "mp4 of 52,428,801 bytes": ("longer.mp4", pad_film(film(), 52_428_801)),
}


DATA_URIS = {
    "data URI, PNG": data_uri("image/png", picture("PNG", (71, 48))),
    "data URI, TIFF": data_uri("image/tiff", picture("TIFF", (72, 48))),
    "data URI, PNG that is said to be JPEG": data_uri("image/jpeg", picture("PNG")),
    "data URI, image/PNG": data_uri("image/PNG", picture("PNG")),
    "data URI, no base64": data_uri("image/png", picture("PNG"))[:-3] + "*==",
    "data URI, JPEG cut off": data_uri("image/jpeg", cut(picture())),
    "data URI with a charset": data_uri("image/png", picture("PNG")).replace(";", ";charset=utf-8;", 1),
    "data URI, BASE64": data_uri("image/png", picture("PNG")).replace("base64", "BASE64", 1),
    "data URI with line breaks": "data:image/png;base64," + base64.encodebytes(picture("PNG")).decode(),
    "data URI, URL-safe": "data:image/png;base64," + base64.urlsafe_b64encode(bytes(range(250, 256)) * 9).decode(),
    "base64 without its beginning": data_uri("image/png", picture("PNG")).partition(",")[2],
}


def _write(folder: Path) -> list[dict[str, Any]]:
    """Write all files; return the rows of the manifest."""
    rows: list[dict[str, Any]] = []
    for modality, files in (("image", IMAGES), ("video", VIDEOS)):
        for name, (file, data) in files.items():
            (folder / file).write_bytes(data)
            rows.append({"id": name, modality: file})
    for name, size in PADDED.items():
        (folder / f"{size}.jpg").write_bytes(picture().ljust(size, b"\0"))
        rows.append({"id": name, "image": f"{size}.jpg"})
    rows += [{"id": name, "image": uri} for name, uri in DATA_URIS.items()]
    largest = f"{min(PADDED.values())}.jpg"
    rows.append({"id": "5 images of 9,999,999 bytes in a row", "image": [largest] * 5})
    rows.append({"id": "a good image beside one that is cut off", "image": ["a.jpg", "cut.jpg"]})
    rows.append({"id": "no such file", "image": "nowhere.jpg"})
    return rows


def _outcomes(place: Place) -> dict[str, str]:
    """Return the outcome of each row, as in the table."""
    said = {}
    for row in place.read("embeddings").select(["id", "media_changes"]).to_pylist():
        changes = [change.removeprefix("parts[0]: ").replace("->", "→") for change in row["media_changes"] or ()]
        said[row["id"]] = "; ".join(changes) or "published as it is"
    for row in place.read("failures").select(["id", "code", "message"]).to_pylist():
        reason = re.sub(r" ?Request id: \S+", "", row["message"].rpartition(str(place.folder))[2])
        reason = re.sub(r"^\S*…?: ", "", reason).removesuffix(".")
        said[row["id"]] = f"`{row['code']}`: {reason}"
    return said


def run_odd_media(place: Place, emulator: Emulator) -> str:
    """Run the job over all inputs, as they are and with `media.fit`; return the README's table of what they become.

    Checks that nothing that fails here is paid for, and that what `media.fit` does not change is not bought again. The
    emulator, which decodes images with Pillow, rejects one with damaged pixels, and those that Pillow does not read.
    """
    rows = _write(place.folder)
    place.write_rows(rows)
    settings = {"manifest.line_bytes_max": 64_000_000, "limits.failures_allowed": "100%"}
    place.run(settings)
    plain = _outcomes(place)
    bought = emulator.stats["paid"]
    assert bought == place.read("usage").num_rows
    place.run({**settings, **FIT})
    fitted = _outcomes(place)
    changed = {name for name, outcome in fitted.items() if "→" in outcome}
    assert emulator.stats["paid"] == bought + len(changed)  # unchanged media are not embedded again
    rejected = {
        row["id"] for row in place.read("failures").to_pylist() if not row["code"].startswith(("media_", "request_"))
    }
    assert rejected == {
        "PNG with a damaged pixel",
        "PNG with a damaged text",
        "PNG with texts of 9 MB",
        "JPEG with an empty JFIF segment",
        "BMP with bit fields",
    }
    names = [row["id"] for row in rows]
    assert len(names) >= 40
    assert set(plain) == set(fitted) == set(names)
    lines = ["| input | without `media.fit` | with `media.fit` |", "|---|---|---|"]
    lines += [
        f"| {name} | {plain[name]} | {'the same' if fitted[name] == plain[name] else fitted[name]} |" for name in names
    ]
    return "\n".join(lines)


def test_odd_media_become_what_the_readme_says(place: Place, emulator: Emulator) -> None:
    """Each becomes a row or a failure that says why, as the table says; `python -m scripts.make_docs --media` writes it."""
    assert run_odd_media(place, emulator) == read_table(MEDIA_PAGE, "odd media")
