"""Fitting images: what is changed, what is not, and that changed images look as before."""

import io
import math
from typing import Any

import numpy as np
import pytest
from arkbeam.app.config import parse_config
from arkbeam.ark.tokens import image_tokens
from arkbeam.base.bad_rows import BadRow
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import Fit, MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.checks import examine
from arkbeam.media.facts import ImageFacts
from arkbeam.media.files import guard
from arkbeam.media.fitting import apply_fit, plan_fit, scale
from arkbeam.media.headers import read_header
from arkbeam.media.kinds import JPEG, detect_kind
from arkbeam.media.options import FitOptions
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from tests.media.pictures import animation, data_uri, deep_colour, deep_grey, paint, picture, rotated, save

IMAGE = Modality.IMAGE
ON = FitOptions(transcode=True)
SIZES = st.tuples(st.integers(1, 40_000), st.integers(1, 40_000))


def _facts(data: bytes) -> ImageFacts:
    kind = detect_kind(data)
    assert kind is not None
    facts = read_header(data, kind, whole=True)
    assert facts is not None
    return facts


def _fit(data: bytes, options: FitOptions = ON) -> ImageFile.ImageFile | None:
    """Fit an image twice, to the same bytes and to the planned size and type; return None if it is left unchanged."""
    facts = _facts(data)
    fit = plan_fit(facts, options, 15)
    if fit is None:
        return None
    packed = apply_fit(data, facts, fit)
    assert apply_fit(data, facts, fit) == packed
    image = Image.open(io.BytesIO(packed))
    assert (image.size, image.get_format_mimetype()) == (fit.size_px, fit.mime)
    assert _facts(packed) == ImageFacts(_facts(packed).kind, fit.size_px, transparent=image.mode == "RGBA")
    return image


def _pixels(image: Image.Image, mode: str = "RGB") -> NDArray[np.int16]:
    return np.asarray(image.convert(mode)).astype(np.int16)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images' colours, from 0 to 255."""
    return float(np.abs(_pixels(one) - _pixels(other)).mean())


@pytest.mark.parametrize("pillow_format", ["TIFF", "SGI", "JPEG2000", "HEIF", "AVIF"])
def test_formats_that_stores_misname_become_jpeg(pillow_format: str) -> None:
    """Only the format changes; size and colours stay."""
    image = _fit(picture(pillow_format))
    assert image is not None
    assert image.size == (64, 48)
    assert _difference(image, paint()) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotated_pictures_are_turned_upright(pillow_format: str, orientation: int) -> None:
    """For all eight orientations, the result looks as in a viewer that applies EXIF, and has no EXIF."""
    tag = Image.Exif()
    tag[274] = orientation
    shown = Image.open(io.BytesIO(rotated(orientation, pillow_format="JPEG")))
    wanted = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # Image.Transpose, from the EXIF standard
    expected = shown if wanted is None else shown.transpose(Image.Transpose(wanted))
    image = _fit(rotated(orientation, pillow_format=pillow_format))
    if orientation == 1 and pillow_format != "TIFF":
        assert image is None
        return
    assert image is not None
    assert image.getexif() == {}
    assert _difference(image, expected) < 4


def test_sixteen_bits_keep_their_upper_half() -> None:
    """Dark stays dark and bright stays bright, in grey and in colour."""
    grey, colour = _fit(deep_grey()), _fit(deep_colour())
    assert grey is not None
    assert colour is not None
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64)
    assert np.abs(_pixels(grey, "L") - ramp).mean() < 3
    assert _difference(colour, paint()) < 4


def test_cmyk_becomes_rgb() -> None:
    """A CMYK image looks the same in RGB."""
    image = _fit(picture(mode="CMYK"))
    assert image is not None
    assert image.mode == "RGB"
    assert _difference(image, paint()) < 4


@pytest.mark.parametrize("pillow_format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_taken(pillow_format: str) -> None:
    """The other images are rotated, so a wrong choice would be seen."""
    image = _fit(animation(pillow_format))
    assert image is not None
    assert _difference(image, paint()) < 25 < _difference(paint().rotate(180), paint())


@pytest.mark.parametrize(
    ("transcode", "mime", "corner"),
    [
        (True, "image/png", (0, 0, 0, 0)),
        ("png", "image/png", (0, 0, 0, 0)),
        ("jpeg", "image/jpeg", (255, 255, 255, 255)),
    ],
)
def test_transparency_stays_or_is_put_on_white(transcode: Any, mime: str, corner: tuple[int, ...]) -> None:
    """JPEG has no transparency: the background becomes white, as on most web pages."""
    clear = paint(mode="RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 32, 24))
    image = _fit(save(clear, "TIFF"), FitOptions(transcode=transcode))
    assert image is not None
    assert image.get_format_mimetype() == mime
    assert image.convert("RGBA").getpixel((4, 4))[3] == corner[3]  # type: ignore[index]
    assert np.abs(_pixels(image.convert("RGBA").crop((2, 2, 6, 6)), "RGBA") - np.array(corner)).max() < 4


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (picture(size=(640, 480)), "image/jpeg"),
        (picture("PNG", (640, 480)), "image/png"),
        (picture("BMP", (640, 480)), "image/jpeg"),
        (picture("WEBP", (640, 480)), "image/jpeg"),
        (picture("TIFF", (640, 480), "RGBA"), "image/png"),
        (picture("TIFF", (640, 480)), "image/jpeg"),
    ],
)
def test_large_pictures_are_scaled_down(data: bytes, mime: str) -> None:
    """JPEG and PNG keep their format, other formats become one of the two; the image looks as before."""
    image = _fit(data, FitOptions(resize_max_pixels=30_000))
    assert image is not None
    assert (image.size, image.get_format_mimetype()) == ((200, 150), mime)
    assert _difference(image, paint((200, 150))) < 4


def test_what_fits_is_left_alone() -> None:
    """A plain image that is small enough is not changed by either option, so setting them does not embed it again."""
    both = FitOptions(resize_max_pixels=1_000_000, transcode=True)
    for data in (
        picture(),
        picture("PNG"),
        picture("PNG", mode="RGBA"),
        picture("WEBP"),
        picture("GIF"),
        picture("BMP"),
    ):
        assert plan_fit(_facts(data), both, 15) is None
    for data in (picture("TIFF"), picture(mode="CMYK"), animation("GIF"), rotated(6), picture("HEIF")):
        assert plan_fit(_facts(data), FitOptions(), 15) is None
        assert plan_fit(_facts(data), FitOptions(resize_max_pixels=1_000_000), 15) is None


def test_colour_profiles_are_kept_and_all_else_is_dropped() -> None:
    """Colour profiles are kept; when and where a photograph was taken is not sent."""
    exif = Image.Exif()
    exif[271] = "a camera"
    data = save(paint(), "TIFF", icc_profile=b"profile" * 20, exif=exif)
    image = _fit(data)
    assert image is not None
    assert image.info["icc_profile"] == b"profile" * 20
    assert image.getexif() == {}


@given(SIZES, st.none() | st.integers(784, 50_000_000), st.just(15))
def test_sizes_are_scaled_in_proportion_and_never_up(size: tuple[int, int], pixels_max: int | None, least: int) -> None:
    """At most the requested pixels, unless a side would get too short; sides stay in proportion to within a pixel."""
    width, height = scale(size, pixels_max, least)
    assert 0 < width <= size[0]
    assert 0 < height <= size[1]
    assert min(width, height) >= min(*size, least)
    if pixels_max is None or math.prod(size) <= pixels_max:
        assert (width, height) == size
    elif min(width, height) > least:
        assert width * height <= pixels_max
        factor = math.sqrt(pixels_max / math.prod(size))
        assert size[0] * factor - width < 1.001
        assert size[1] * factor - height < 1.001


def test_the_default_advice_costs_no_tokens() -> None:
    """1,028,608 pixels are the most that are billed: scaling down to them loses about one of 1,312 tokens."""
    assert image_tokens(*scale((4_000, 3_000), 1_028_608, 15)) >= 1_310


@given(
    st.sampled_from(["JPEG", "TIFF", "GIF", "PNG", "WEBP", "SGI", "JPEG2000", "HEIF"]),
    st.integers(0, 900),
    st.binary(min_size=1, max_size=6),
)
def test_damaged_pictures_are_refused_or_fitted(pillow_format: str, at: int, noise: bytes) -> None:
    """Decoders may raise anything; the result is an image as planned, or a failure."""
    data = picture(pillow_format)
    facts = _facts(data)
    fit = plan_fit(facts, FitOptions(resize_max_pixels=784, transcode=True), 15)
    assert fit is not None
    damaged = data[:at] + noise + data[at + len(noise) :]
    made = guard("a", lambda: apply_fit(damaged, facts, fit))
    if isinstance(made, Failure):
        assert made.code == "media_unfit"
    else:
        assert _facts(made).size_px == fit.size_px


def test_pixels_without_a_plain_meaning_are_refused() -> None:
    """The range of floating-point and 32-bit values is unknown."""
    for mode in ("F", "I"):
        data = save(
            Image.fromarray(np.linspace(-5, 10**6, 64 * 48).reshape(48, 64).astype(np.int32)).convert(mode), "TIFF"
        )
        fit = plan_fit(_facts(data), ON, 15)
        assert fit is not None
        with pytest.raises(BadRow, match="media_unfit"):
            apply_fit(data, _facts(data), fit)


def test_a_jpeg_of_very_many_scans_is_not_unpacked() -> None:
    """Each scan of a progressive JPEG takes as long as an image to decode."""
    data = picture(mode="CMYK", progressive=True)
    at = data.index(b"\xff\xda")
    scan = data[at : data.index(b"\xff\xda", at + 2)]
    bomb = data[:at] + scan * 500 + data[at:]
    fit = plan_fit(_facts(bomb), ON, 15)
    assert fit is not None
    with pytest.raises(BadRow, match="500 scans"):
        apply_fit(bomb, _facts(bomb), fit)


def test_several_pictures_in_a_jpeg_are_its_first() -> None:
    """An MPO file, which phones write, is a JPEG with further images after it."""
    other = paint((640, 480)).rotate(180)
    image = _fit(save(paint((640, 480)), "MPO", save_all=True, append_images=[other]), FitOptions(30_000))
    assert image is not None
    assert _difference(image, paint((200, 150))) < 4


def test_data_uris_are_fitted_as_files_are() -> None:
    """The images of data URIs are fitted too."""
    uri = data_uri("image/tiff", picture("TIFF"))
    options = MediaOptions(fit=ON)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    assert info.fit == Fit((64, 48), "image/jpeg", "64x48 image/tiff")
    sent = load_medium(uri, IMAGE, None, options, info.fit)
    assert isinstance(sent, Inline)
    assert sent.mime == "image/jpeg"
    assert load_medium(uri, IMAGE, None, MediaOptions()) == uri


def test_urls_are_never_fitted() -> None:
    """A URL that the service fetches is never fitted."""
    assert inspect("https://a.example/a.tiff", IMAGE, MediaOptions(fit=ON)) == MediaInfo()


def test_what_is_signed_is_not_fitted() -> None:
    """A signed image is checked unchanged, but not against the limit of a request body."""
    data = picture("TIFF")
    options = MediaOptions(body_bytes_max=100, fit=ON)
    signed = examine(data, len(data), IMAGE, options, lambda start, end: b"", inlined=False)
    assert signed == MediaInfo(None, "image/tiff", (64, 48))
    other = picture("HEIF")
    with pytest.raises(BadRow, match="media_not_image"):
        examine(other, len(other), IMAGE, options, lambda start, end: b"", inlined=False)


def test_larger_sources_are_read_where_they_become_smaller() -> None:
    """An image that will be made smaller may have more bytes and pixels than the API accepts, up to limits of its own."""
    data = picture("BMP", (200, 100))
    uri = data_uri("image/bmp", data)

    def look(**fit: Any) -> MediaInfo | Failure:
        return inspect(uri, IMAGE, MediaOptions(image_bytes_max=10_000, pixels_max=10_000, fit=FitOptions(**fit)))

    def code(outcome: MediaInfo | Failure) -> str:
        assert isinstance(outcome, Failure)
        return outcome.code

    assert code(look()) == "media_too_many_pixels"
    assert isinstance(look(resize_max_pixels=5_000), MediaInfo)
    assert code(look(resize_max_pixels=5_000, source_pixels_max=19_999)) == "media_too_many_pixels"
    assert code(look(resize_max_pixels=5_000, source_bytes_max=len(data))) == "media_too_large"
    assert isinstance(look(resize_max_pixels=5_000, source_bytes_max=len(data) + 1), MediaInfo)


def test_a_fitted_picture_is_held_against_the_limits_too() -> None:
    """An image that is still too large after encoding fails, with its measured size."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (80, 80, 4), dtype=np.uint8))
    uri = data_uri("image/tiff", save(noise, "TIFF"))
    options = MediaOptions(image_bytes_max=10_000, fit=ON)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    sent = load_medium(uri, IMAGE, None, options, info.fit)
    assert isinstance(sent, Failure)
    assert sent.code == "media_too_large"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["media.fit.resize_max_pixels=700"], "resize_max_pixels is 700; it must be 784"),
        (["media.fit.source_pixels_max=100000000"], "source_pixels_max is 100000000"),
        (["media.fit.transcode=webp"], "media.fit.transcode"),
        (["media.fit.resize=true"], "did you mean media.fit.resize_max_pixels?"),
    ],
)
def test_impossible_wishes_are_config_errors(settings: list[str], words: str) -> None:
    """A limit that nothing can meet, an unknown format, and a wrong key are config errors."""
    raw = {"manifest": {"uris": "a"}, "model": {"name": "m"}, "store": {"uri": "s"}, "output": {"uri": "o"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("jpeg", "jpeg"), ("png", "png")])
def test_transcode_is_a_switch_or_a_format(word: str, value: Any) -> None:
    """YAML's booleans and the two formats are accepted."""
    raw = {"manifest": {"uris": "a"}, "model": {"name": "m"}, "store": {"uri": "s"}, "output": {"uri": "o"}}
    fit = parse_config(raw, [f"media.fit.transcode={word}"]).media.fit
    assert fit.transcode is value if isinstance(value, bool) else fit.transcode == value


def test_a_choice_is_told_and_identified() -> None:
    """The change names both sizes and types; its key contains only the result."""
    fit = plan_fit(ImageFacts(JPEG, (4_000, 3_000), cmyk=True, orientation=6), FitOptions(1_028_608, True), 15)
    assert fit is not None
    assert str(fit) == "4000x3000 image/jpeg (CMYK, rotated) -> 878x1171 image/jpeg"
    assert fit.key == "1 878x1171 image/jpeg"
