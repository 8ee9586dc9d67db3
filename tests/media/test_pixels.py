"""What `media.fit` makes of pixels in every layout: the right colours, or `media_unfit`. Never other colours, never chance.

The images are written by tests, not by the library that decodes them.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.options import FitOptions
from numpy.typing import NDArray
from PIL import Image

from tests.media.pictures import data_uri, paint, picture, png_chunk, save
from tests.media.tiffs import BYTE, LONG, SHORT, tiff

Pixels = NDArray[Any]
WIDTH, HEIGHT = 64, 48
_DOWN, _ACROSS = np.mgrid[0:HEIGHT, 0:WIDTH]
COLOUR: Pixels = np.dstack([_ACROSS * 4, _DOWN * 5, np.full_like(_DOWN, 90)]).astype(np.uint8)
COLOUR[:10, :10] = 250, 20, 20
GREY: Pixels = ((_ACROSS * 2 + _DOWN * 3) * 255 // (2 * 63 + 3 * 47)).astype(np.uint8)
EXACT = MediaOptions(fit=FitOptions(transcode="png"))
TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, -1),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, 1),
}


def _fit(data: bytes, mime: str, options: MediaOptions = EXACT) -> tuple[Image.Image, MediaInfo] | str:
    """Inspect and fit an image twice, to the same bytes; return it as sent, or the code of its failure."""
    uri = data_uri(mime, data)
    info = inspect(uri, Modality.IMAGE, options)
    if isinstance(info, Failure):
        return info.code
    first, second = (load_medium(uri, Modality.IMAGE, info.version, options, info.fit) for _ in range(2))
    assert first == second
    if isinstance(first, Failure):
        return first.code
    assert isinstance(first, Inline)
    return Image.open(io.BytesIO(first.data)), info


def _error(data: bytes, expected: Pixels, mime: str = "image/tiff", options: MediaOptions = EXACT) -> float | None:
    """Return the largest difference from the expected colours; None if the image is refused as `media_unfit`."""
    made = _fit(data, mime, options)
    if isinstance(made, str):
        assert made == "media_unfit"
        return None
    mode = "RGBA" if expected.ndim == 3 and expected.shape[2] == 4 else "RGB"
    shown = np.asarray(made[0].convert(mode)).astype(int)
    expected = np.repeat(expected[:, :, None], 3, 2) if expected.ndim == 2 else expected
    assert shown.shape == expected.shape
    return float(np.abs(shown - expected).max())


def _deep(values: Pixels, bits: int) -> Pixels:
    """Spread 8-bit values over the range of so many bits."""
    if bits == 64:
        return values.astype(np.uint64) * np.uint64(0x0101010101010101)
    return (values / 255 * ((1 << bits) - 1)).round().astype(np.int64)


Layout = tuple[str, bytes, Pixels, bool]
"""A name, the file, the colours that it shows, and True if these must not be refused."""


def _layouts() -> Iterator[Layout]:
    """Yield layouts of a TIFF."""
    for order, big in itertools.product("<>", (False, True)):
        where = f"{'little' if order == '<' else 'big'}{' BigTIFF' if big else ''}"
        known = not (order == ">" and big)
        for make in (_grey_layouts, _colour_layouts, _other_layouts):
            yield from make(where, known, {"order": order, "big": big})


def _grey_layouts(where: str, known: bool, written: dict[str, Any]) -> Iterator[Layout]:
    for photometric, bits in itertools.product((0, 1), (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64)):
        stored = _deep(GREY, bits)
        shown = (stored / ((2.0**bits) - 1) * 255).round()
        shown = shown if photometric else 255 - shown
        for compression in ("none", "deflate", "packbits"):
            data = tiff(stored, photometric=photometric, bits=bits, compression=compression, strip_rows=20, **written)
            must = (
                known and bits in (1, 2, 4, 8, 16) and not (bits == 16 and photometric == 0 and written["order"] == ">")
            )
            yield f"grey {bits} photometric {photometric} {compression} {where}", data, shown, must


def _colour_layouts(where: str, known: bool, written: dict[str, Any]) -> Iterator[Layout]:
    for planar, bits, compression, tile in itertools.product(
        (1, 2), (4, 8, 10, 12, 16, 32), ("none", "deflate"), (None, 16)
    ):
        data = tiff(
            _deep(COLOUR, bits),
            photometric=2,
            bits=bits,
            planar=planar,
            compression=compression,
            tile=tile,
            **written,
        )
        yield (
            f"RGB {bits} planar {planar} {compression} tile {tile} {where}",
            data,
            COLOUR,
            known and bits in (8, 16),
        )
    for planar, bits, kind in itertools.product((1, 2), (8, 16), (1, 2)):
        clear = np.full((HEIGHT, WIDTH, 1), 255)
        clear[20:30, 20:40] = 128
        stored = (COLOUR * (clear / 255)).round() if kind == 1 else COLOUR
        data = tiff(
            _deep(np.dstack([stored, clear]), bits),
            photometric=2,
            bits=bits,
            planar=planar,
            extra=[kind],
            **written,
        )
        yield f"RGBA {bits} planar {planar} alpha {kind} {where}", data, np.dstack([COLOUR, clear]), known


def _other_layouts(where: str, known: bool, written: dict[str, Any]) -> Iterator[Layout]:
    for bits, wide in itertools.product((1, 2, 4, 8), (True, False)):
        colours = np.stack([np.linspace(0, 255, 1 << bits), np.linspace(255, 0, 1 << bits), np.full(1 << bits, 40)])
        stored, colours = _deep(GREY, bits), colours.round().astype(int)
        table = (colours * 257 if wide else colours).reshape(-1).tolist()
        data = tiff(stored, photometric=3, bits=bits, tags={320: (SHORT, table)}, **written)
        yield f"palette {bits} of {16 if wide else 8} bits {where}", data, colours.T[stored], known
    for kind, (turn, turned) in itertools.product((BYTE, SHORT, LONG), TURNS.items()):
        data = tiff(COLOUR, photometric=2, tags={274: (kind, [turn])}, **written)
        yield f"orientation {turn} as {kind} {where}", data, turned(COLOUR), known
    for planar in (1, 2):
        stored = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
        data = tiff(stored, photometric=6, planar=planar, tags={530: (SHORT, [1, 1])}, **written)
        yield f"YCbCr planar {planar} {where}", data, COLOUR, known
    for name, stored, settings in (
        ("float", GREY / 255, {"bits": 32, "sample_format": 3}),
        ("float RGB", COLOUR / 255, {"bits": 32, "sample_format": 3, "photometric": 2}),
        ("double", GREY / 255, {"bits": 64, "sample_format": 3}),
        ("signed 8", GREY.astype(int) - 128, {"sample_format": 2}),
        ("signed 16", _deep(GREY, 16) - 32_768, {"bits": 16, "sample_format": 2}),
        ("L*a*b*", COLOUR, {"photometric": 8}),
        ("planar L*a*b*", COLOUR, {"photometric": 8, "planar": 2}),
        ("5 inks", np.dstack([COLOUR, COLOUR[:, :, :2]]), {"photometric": 5, "tags": {332: (SHORT, [2])}}),
    ):
        yield f"{name} {where}", tiff(stored, **settings, **written), np.full_like(GREY, 1), False


def test_every_layout_of_a_tiff_is_shown_right_or_refused() -> None:
    """Over bit depths, byte orders, kinds of colours, planes, strips and tiles: the colours of the file, or media_unfit."""
    wrong, refused = [], []
    tolerance = {"YCbCr": 4, "palette": 1, "RGBA": 3}
    for name, data, expected, must in _layouts():
        error = _error(data, expected)
        if error is None and must:
            refused.append(name)
        if error is not None and error > tolerance.get(name.split()[0], 2):
            wrong.append(f"{name}: {error}")
    assert wrong == []
    assert refused == []


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_fewer_bits_in_16_keeps_its_brightness(bits: int) -> None:
    """A camera's 12 bits are often stored in 16 as they are. They are scaled by their own range, and this is told."""
    stored = _deep(GREY, bits)
    files = [
        (save(Image.fromarray(stored.astype(np.uint16)), "PNG"), "image/png"),
        (tiff(stored, bits=16), "image/tiff"),
        (tiff(stored, bits=16, order=">"), "image/tiff"),
    ]
    if bits < 16:
        files.append((tiff(stored, bits=16, sample_format=2), "image/tiff"))
    for data, mime in files:
        made = _fit(data, mime)
        assert not isinstance(made, str)
        image, info = made
        assert np.abs(np.asarray(image.convert("L")).astype(int) - GREY).max() <= 1
        assert info.fit is not None
        assert info.fit.recipe == (1 if bits == 16 else 2)
        assert (f"values of {bits} bits" in str(info.fit)) == (bits != 16)


def test_colours_of_12_bits_in_16_are_refused() -> None:
    """Of 16 bits a channel the decoder keeps the upper 8: of 12 bits in 16, nearly nothing would be left."""
    for data, mime in (
        (tiff(_deep(COLOUR, 12), bits=16, photometric=2), "image/tiff"),
        (_deep_png(_deep(COLOUR, 12)), "image/png"),
    ):
        assert _fit(data, mime) == "media_unfit"
    assert _error(_deep_png(_deep(COLOUR, 16)), COLOUR, "image/png") == 0
    assert _error(_deep_png(COLOUR * 0), COLOUR * 0, "image/png") == 0


def _deep_png(values: Pixels) -> bytes:
    """Write a colour PNG of 16 bits a channel."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, body) for name, body in chunks)


@pytest.mark.parametrize("kind", ["group3", "group4"])
def test_fax_data_are_shown_right_or_refused(kind: str) -> None:
    """With bits in either order. Data that end too early, or in another order than the file says, are refused."""
    shown = np.where(GREY > 127, 255, 0)
    original = save(Image.fromarray(GREY > 127), "TIFF", compression=kind)
    tags = Image.open(io.BytesIO(original)).tag_v2  # type: ignore[attr-defined]
    packed = original[tags[273][0] :][: tags[279][0]]
    code = {"group3": "fax3", "group4": "fax4"}[kind]
    written: dict[str, Any] = {"bits": 1, "compression": code, "photometric": tags[262]}
    for fill_order in (1, 2):
        assert _error(tiff(GREY > 127, packed=packed, fill_order=fill_order, **written), shown) == 0
    assert _error(tiff(GREY > 127, packed=packed, tags={266: (SHORT, [2])}, **written), shown) is None
    assert _error(tiff(GREY > 127, packed=packed[: len(packed) // 2], **written), shown) is None


def test_pixels_that_a_jpeg_in_a_tiff_lacks_are_not_sent() -> None:
    """A strip with fewer rows than the TIFF declares is refused; the decoder leaves the others as the memory was."""
    whole, half = (save(Image.fromarray(GREY[:rows]), "JPEG", quality=95) for rows in (HEIGHT, HEIGHT // 2))
    error = _error(tiff(GREY, packed=whole, compression="jpeg"), GREY)
    assert error is not None
    assert error < 3
    assert _error(tiff(GREY, packed=half, compression="jpeg"), GREY) is None


def test_fine_colours_are_kept() -> None:
    """Lines of a pixel in red and blue keep their colours in the JPEG."""
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (255, 0, 0), (0, 0, 255)
    error = _error(
        save(Image.fromarray(stripes), "TIFF"), stripes, options=MediaOptions(fit=FitOptions(transcode=True))
    )
    assert error is not None
    assert error < 40


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (2, 0, 1), (0, 1, 2)])
def test_channels_of_jpeg_2000_are_put_in_order(order: tuple[int, int, int]) -> None:
    """The box `cdef` tells which channel is red; channels in order are a fit of the first recipe."""
    channels = np.dstack([COLOUR[:, :, channel] for channel in order])
    data = save(Image.fromarray(channels), "JPEG2000", irreversible=False)
    entries = b"".join(struct.pack(">HHH", place, 0, colour + 1) for place, colour in enumerate(order))
    box = struct.pack(">I4sH", 10 + len(entries), b"cdef", 3) + entries
    at = data.index(b"jp2h") - 4
    end = at + int.from_bytes(data[at : at + 4], "big")
    defined = data[:at] + struct.pack(">I", end - at + len(box)) + data[at + 4 : end] + box + data[end:]
    assert _error(defined, COLOUR, "image/jp2") == 0
    made = _fit(defined, "image/jp2")
    assert not isinstance(made, str)
    assert made[1].fit is not None
    assert made[1].fit.recipe == (1 if order == (0, 1, 2) else 2)


def test_what_was_right_before_keeps_its_fingerprint() -> None:
    """The key of a fit is that of earlier versions, except for images whose pixels were wrong."""
    size = f"{WIDTH}x{HEIGHT} image/png"
    keys = {
        "1 " + size: [
            tiff(COLOUR, photometric=2),
            tiff(GREY, photometric=0),
            tiff(_deep(GREY, 16), bits=16),
            tiff(_deep(COLOUR, 16), bits=16, photometric=2),
            tiff(_deep(COLOUR, 16), bits=16, photometric=2, planar=2, compression="deflate"),
            tiff(COLOUR, photometric=2, tags={274: (SHORT, [3])}),
        ],
        "2 " + size: [
            tiff(_deep(GREY, 16), bits=16, photometric=0),
            tiff(_deep(GREY, 12), bits=16),
            tiff(_deep(GREY, 12), bits=12),
            tiff(_deep(COLOUR, 16), bits=16, photometric=2, planar=2),
            tiff(COLOUR, photometric=2, tags={274: (BYTE, [3])}),
            tiff(COLOUR, photometric=6, planar=2),
            tiff(GREY, photometric=3, tags={320: (SHORT, list(range(256)) * 3)}),
        ],
    }
    for key, files in keys.items():
        for number, data in enumerate(files):
            info = inspect(data_uri("image/tiff", data), Modality.IMAGE, EXACT)
            assert isinstance(info, MediaInfo), number
            assert info.fit is not None
            assert info.fit.key == key, number


def test_large_images_are_scaled_in_bands_as_at_once() -> None:
    """In bands of rows, so that memory is bounded, the result is that of scaling the whole."""
    large = paint((3_000, 3_100), "RGBA")
    options = MediaOptions(fit=FitOptions(resize_max_pixels=200_000))
    made = _fit(save(large, "PNG", compress_level=1), "image/png", options)
    assert not isinstance(made, str)
    whole = large.resize(made[0].size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(made[0]).astype(int) - np.asarray(whole)).max() <= 1


def test_cmyk_and_unusual_jpegs_are_converted() -> None:
    """An empty JFIF segment, comments and application data do not matter; inverted CMYK is converted."""
    plain = picture()
    odd = plain[:2] + b"\xff\xe0\0\2" + b"\xff\xfe\0\6abcd" + plain[plain.index(b"\xff\xdb") :]
    options = MediaOptions(fit=FitOptions(resize_max_pixels=1_000))
    shown, expected = _fit(odd, "image/jpeg", options), _fit(plain, "image/jpeg", options)
    assert not isinstance(shown, str)
    assert not isinstance(expected, str)
    assert np.array_equal(np.asarray(shown[0]), np.asarray(expected[0]))


@pytest.mark.parametrize("tag", [256, 258, 259, 262, 273, 274, 277, 279, 284, 320, 338, 339])
def test_a_tag_without_values_is_as_if_it_were_absent(tag: int) -> None:
    """A TIFF with an empty tag is sent, changed or refused; nothing is raised."""
    data = tiff(COLOUR, photometric=2, tags={tag: (SHORT, [])})
    info = inspect(data_uri("image/tiff", data), Modality.IMAGE, EXACT)
    assert not isinstance(info, Failure) or info.code in ("media_damaged", "media_truncated", "media_unfit")
