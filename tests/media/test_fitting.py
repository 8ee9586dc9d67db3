"""Making images fit: what is changed, what is left alone, and that pictures look as they did before."""

import io
import math
from typing import Any

import numpy as np
import pytest
from arkbeam.app.config import parse_config
from arkbeam.ark.tokens import image_tokens
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality
from arkbeam.media import Fit, MediaInfo, MediaOptions, inspect, resolve
from arkbeam.media.checks import examine
from arkbeam.media.data_uris import decode_data_uri, encode_data_uri
from arkbeam.media.fitting import apply_fit, plan_fit, scale
from arkbeam.media.headers import ImageFacts, read_header
from arkbeam.media.kinds import JPEG, detect_kind
from arkbeam.media.options import FitOptions
from arkbeam.media.refusal import Refusal, guard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from tests.media.pictures import animation, deep_colour, deep_grey, paint, picture, rotated, save

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
    """Make an image fit, twice, to the same bytes of what was promised; None where it is left alone."""
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
    """Mean difference of two pictures' colours, of 255."""
    return float(np.abs(_pixels(one) - _pixels(other)).mean())


@pytest.mark.parametrize("pillow_format", ["TIFF", "SGI", "JPEG2000", "HEIF", "AVIF"])
def test_formats_that_stores_misname_become_jpeg(pillow_format: str) -> None:
    """Only the format changes: size and colours stay."""
    image = _fit(picture(pillow_format))
    assert image is not None
    assert image.size == (64, 48)
    assert _difference(image, paint()) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotated_pictures_are_turned_upright(pillow_format: str, orientation: int) -> None:
    """All eight orientations come out as a viewer that heeds EXIF shows them, and without EXIF."""
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
    """A picture for print looks the same on a screen."""
    image = _fit(picture(mode="CMYK"))
    assert image is not None
    assert image.mode == "RGB"
    assert _difference(image, paint()) < 4


@pytest.mark.parametrize("pillow_format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_taken(pillow_format: str) -> None:
    """The others are turned, so that they would be seen."""
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
    """JPEG knows no transparency: what is behind a picture is white, as on most pages."""
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
    """JPEG and PNG stay what they are, everything else becomes one of them; it looks as before."""
    image = _fit(data, FitOptions(resize_max_pixels=30_000))
    assert image is not None
    assert (image.size, image.get_format_mimetype()) == ((200, 150), mime)
    assert _difference(image, paint((200, 150))) < 4


def test_what_fits_is_left_alone() -> None:
    """Neither rule touches a plain picture that is small enough, so it is not bought again when they are set."""
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
    """Colours mean what they meant; where and when a photograph was taken is not sent on."""
    exif = Image.Exif()
    exif[271] = "a camera"
    data = save(paint(), "TIFF", icc_profile=b"profile" * 20, exif=exif)
    image = _fit(data)
    assert image is not None
    assert image.info["icc_profile"] == b"profile" * 20
    assert image.getexif() == {}


@given(SIZES, st.none() | st.integers(784, 50_000_000), st.just(15))
def test_sizes_are_scaled_in_proportion_and_never_up(size: tuple[int, int], pixels_max: int | None, least: int) -> None:
    """At most the pixels asked for, unless a side would get too short; sides stay in proportion to within a pixel."""
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
    """1,028,608 pixels are the most that are billed: scaling down to them loses a token or so of 1,312."""
    assert image_tokens(*scale((4_000, 3_000), 1_028_608, 15)) >= 1_310


@given(
    st.sampled_from(["JPEG", "TIFF", "GIF", "PNG", "WEBP", "SGI", "JPEG2000", "HEIF"]),
    st.integers(0, 900),
    st.binary(min_size=1, max_size=6),
)
def test_damaged_pictures_are_refused_or_fitted(pillow_format: str, at: int, noise: bytes) -> None:
    """Decoders may raise anything; what comes out is a picture as promised or a refusal."""
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
    """Fractions and 32 bits could be anything."""
    for mode in ("F", "I"):
        data = save(
            Image.fromarray(np.linspace(-5, 10**6, 64 * 48).reshape(48, 64).astype(np.int32)).convert(mode), "TIFF"
        )
        fit = plan_fit(_facts(data), ON, 15)
        assert fit is not None
        with pytest.raises(Refusal, match="media_unfit"):
            apply_fit(data, _facts(data), fit)


def test_a_jpeg_of_very_many_scans_is_not_unpacked() -> None:
    """Each scan of a progressive JPEG costs as much time as a picture."""
    data = picture(mode="CMYK", progressive=True)
    at = data.index(b"\xff\xda")
    scan = data[at : data.index(b"\xff\xda", at + 2)]
    bomb = data[:at] + scan * 500 + data[at:]
    fit = plan_fit(_facts(bomb), ON, 15)
    assert fit is not None
    with pytest.raises(Refusal, match="500 scans"):
        apply_fit(bomb, _facts(bomb), fit)


def test_several_pictures_in_a_jpeg_are_its_first() -> None:
    """What phones write as MPO is a JPEG with more behind it."""
    other = paint((640, 480)).rotate(180)
    image = _fit(save(paint((640, 480)), "MPO", save_all=True, append_images=[other]), FitOptions(30_000))
    assert image is not None
    assert _difference(image, paint((200, 150))) < 4


def test_data_uris_are_fitted_as_files_are() -> None:
    """The bytes are at hand, whoever inlined them."""
    kind = detect_kind(picture("TIFF"))
    assert kind is not None
    uri = encode_data_uri(picture("TIFF"), kind.mime)
    options = MediaOptions(fit=ON)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    assert info.fit == Fit((64, 48), "image/jpeg", "64x48 image/tiff")
    sent = resolve(uri, IMAGE, None, options, info.fit)
    assert isinstance(sent, str)
    assert decode_data_uri(sent)[0] == "image/jpeg"
    assert resolve(uri, IMAGE, None, MediaOptions()) == uri


def test_urls_are_never_fitted() -> None:
    """What the service fetches, it gets as it is."""
    assert inspect("https://a.example/a.tiff", IMAGE, MediaOptions(fit=ON)) == MediaInfo()


def test_what_is_signed_is_not_fitted() -> None:
    """The service fetches it itself: it is held against the limits as it is, but not against that of a body."""
    data = picture("TIFF")
    options = MediaOptions(body_bytes_max=100, fit=ON)
    signed = examine(data, len(data), IMAGE, options, lambda start, end: b"", inlined=False)
    assert signed == MediaInfo(None, "image/tiff", (64, 48))
    other = picture("HEIF")
    with pytest.raises(Refusal, match="media_not_image"):
        examine(other, len(other), IMAGE, options, lambda start, end: b"", inlined=False)


def test_larger_sources_are_read_where_they_become_smaller() -> None:
    """More bytes and pixels than the API takes are taken when they will not be sent, up to bounds of their own."""
    data = picture("BMP", (200, 100))
    kind = detect_kind(data)
    assert kind is not None
    uri = encode_data_uri(data, kind.mime)

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
    """What is still too large once it is packed fails, with its measured size."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (80, 80, 4), dtype=np.uint8))
    data = save(noise, "TIFF")
    kind = detect_kind(data)
    assert kind is not None
    uri = encode_data_uri(data, kind.mime)
    options = MediaOptions(image_bytes_max=10_000, fit=ON)
    info = inspect(uri, IMAGE, options)
    assert isinstance(info, MediaInfo)
    sent = resolve(uri, IMAGE, None, options, info.fit)
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
    """A bound that nothing could meet, a format that is none of ours, a wrong name."""
    raw = {"manifest": {"uris": "a"}, "model": {"name": "m"}, "store": {"uri": "s"}, "output": {"uri": "o"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ("jpeg", "jpeg"), ("png", "png")])
def test_transcode_is_a_switch_or_a_format(word: str, value: Any) -> None:
    """YAML's own words are taken as they are."""
    raw = {"manifest": {"uris": "a"}, "model": {"name": "m"}, "store": {"uri": "s"}, "output": {"uri": "o"}}
    fit = parse_config(raw, [f"media.fit.transcode={word}"]).media.fit
    assert fit.transcode is value if isinstance(value, bool) else fit.transcode == value


def test_a_choice_is_told_and_identified() -> None:
    """The change is told with both sizes and types; to the identity only what is made matters."""
    fit = plan_fit(ImageFacts(JPEG, (4_000, 3_000), cmyk=True, orientation=6), FitOptions(1_028_608, True), 15)
    assert fit is not None
    assert str(fit) == "4000x3000 image/jpeg (CMYK, rotated) -> 878x1171 image/jpeg"
    assert fit.key == "1 878x1171 image/jpeg"
