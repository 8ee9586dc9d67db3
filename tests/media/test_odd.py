"""Odd media, one in each row, through the whole job: the outcome without and with `media.fit`."""

import base64
import re
from pathlib import Path
from typing import Any

from scripts.make_docs import MEDIA_PAGE, read_table
from tests.media.pictures import (
    FAKES,
    animation,
    cut,
    data_uri,
    deep_colour,
    deep_grey,
    film,
    pad_film,
    paint,
    picture,
    png_chunk,
    rotated,
    save,
    wide,
    without,
)
from tests.places import Emulator, Place

FIT = {"media.fit.resize_max_pixels": 1_028_608, "media.fit.transcode": True}
_BROKEN = bytearray(picture("PNG"))
_BROKEN[60] ^= 0xFF

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
    "PNG": ("a.png", picture("PNG")),
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
    "GIF, cut off": ("cut.gif", cut(picture("GIF"))),
    "WEBP": ("a.webp", picture("WEBP")),
    "WEBP, animated": ("moves.webp", animation("WEBP")),
    "WEBP, cut off": ("cut.webp", cut(picture("WEBP"))),
    "BMP": ("a.bmp", picture("BMP")),
    "BMP, 2000 x 1700, above 10 MB": ("large.bmp", picture("BMP", (2_000, 1_700))),
    "BMP, cut off": ("cut.bmp", cut(picture("BMP"))),
    "DIB": ("a.dib", picture("DIB")),
    "TIFF": ("a.tiff", picture("TIFF")),
    "TIFF with transparency": ("clear.tiff", picture("TIFF", mode="RGBA")),
    "TIFF, CMYK, packed": ("packed.tiff", picture("TIFF", mode="CMYK", compression="tiff_lzw")),
    "TIFF of fractions": ("float.tiff", save(paint(mode="F"), "TIFF")),
    "TIFF, cut off": ("cut.tiff", cut(picture("TIFF"))),
    "ICO": ("a.ico", picture("ICO")),
    "ICO, cut off": ("cut.ico", cut(picture("ICO"))),
    "ICNS": ("a.icns", picture("ICNS", (1_024, 1_024))),
    "ICNS, cut off": ("cut.icns", cut(picture("ICNS", (1_024, 1_024)))),
    "SGI": ("a.sgi", picture("SGI")),
    "SGI, cut off": ("cut.sgi", cut(picture("SGI"))),
    "JPEG 2000": ("a.jp2", picture("JPEG2000")),
    "JPEG 2000, cut off": ("cut.jp2", cut(picture("JPEG2000"))),
    "HEIC": ("a.heic", picture("HEIF")),
    "HEIC, only its beginning": ("b.heic", FAKES["heic"]),
    "AVIF": ("a.avif", picture("AVIF")),
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
    "mp4 named .MP4": ("upper.MP4", film(seconds=3)),
    "mov": ("a.mov", film("mov")),
    "avi": ("a.avi", film("avi")),
    "mp4, cut off": ("cut.mp4", cut(film())),
    "mp4 without its index": ("unfinished.mp4", without(film(), [b"moov"])),
    "mp4 that PyAV can't open": ("odd.mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov"),
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
    service rejects only one image, whose damaged pixels only a decoder finds.
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
    assert rejected == {"PNG with a damaged pixel"}
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
