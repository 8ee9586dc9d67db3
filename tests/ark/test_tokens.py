"""Estimates follow the vendor's formulas, or are close to its samples if there is no formula."""

from typing import Any

import pytest
from arkbeam.ark import tokens
from arkbeam.ark.tokens import (
    bound_request,
    estimate_request,
    estimate_text,
    estimate_texts,
    image_tokens,
    video_frames,
    video_tokens,
)
from arkbeam.base.records import Modality, Part, Request, TokenEstimate, VideoSampling
from arkbeam.emulator.parts import ImagePart, Sampling, TextPart, VideoPart, count_parts
from hypothesis import given
from hypothesis import strategies as st


def text(value: str) -> Part:
    """A text part."""
    return Part(Modality.TEXT, value)


IMAGE, VIDEO = Part(Modality.IMAGE, "i"), Part(Modality.VIDEO, "v")


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1280, 720, 1176),
        (1920, 1080, 1312),
        (28, 28, 1),
        (15, 15, 1),
        (29, 28, 2),
        (1014, 1014, 1312),
        (6000, 6000, 1312),
    ],
)
def test_image_tokens_follow_the_formula(width: int, height: int, expected: int) -> None:
    """Area / 784, at most 1,312; the two documented sizes are exact."""
    assert image_tokens(width, height) == expected


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_image_without_area_is_a_mistake(size: tuple[int, int]) -> None:
    """A size below one pixel is an error."""
    with pytest.raises(ValueError, match="pixels"):
        image_tokens(*size)


def test_video_tokens_meet_the_documented_bounds() -> None:
    """At most 16 frames: 16 frames of 640 tokens. At least 640 frames: 640 frames of 128 tokens."""
    assert video_tokens(0) == video_tokens(16) == 16 * 640
    assert video_tokens(640) == video_tokens(10**6) == 640 * 128
    assert video_tokens(8, VideoSampling(fps=5.0)) == 40 * 640


SAMPLINGS = st.builds(
    VideoSampling,
    fps=st.none() | st.floats(0.2, 5),
    max_video_tokens=st.none() | st.integers(10_240, 204_800),
    min_frame_tokens=st.none() | st.integers(16, 128),
    max_frame_tokens=st.none() | st.integers(128, 640),
    min_frames=st.none() | st.integers(5, 16),
)


@given(st.floats(0, 1e9), SAMPLINGS)
def test_video_tokens_stay_within_what_the_sampling_allows(duration_s: float, sampling: VideoSampling) -> None:
    """For any sampling, number and size of the frames and their total are within its limits."""
    frames, in_all = video_frames(duration_s, sampling), video_tokens(duration_s, sampling)
    assert frames >= (sampling.min_frames or tokens.VIDEO_FRAMES_MIN)
    assert in_all <= (sampling.max_video_tokens or tokens.VIDEO_TOKENS_MAX)
    low = sampling.min_frame_tokens or tokens.VIDEO_FRAME_TOKENS_MIN
    high = sampling.max_frame_tokens or tokens.VIDEO_FRAME_TOKENS_MAX
    assert low <= in_all / frames <= high


@given(st.floats(0, 1e9), st.floats(0.2, 5))
def test_unsampled_videos_stay_within_the_documented_bounds(duration_s: float, fps: float) -> None:
    """Without other arguments, every video is between the documented minimum and maximum."""
    assert 10_240 <= video_tokens(duration_s, VideoSampling(fps=fps)) <= tokens.VIDEO_TOKENS_MAX


@pytest.mark.parametrize(
    ("sampling", "frames", "in_all"),
    [
        (VideoSampling(), 100, 64_000),
        (VideoSampling(fps=0.2), 20, 12_800),
        (VideoSampling(max_video_tokens=10_240), 80, 10_240),
        (VideoSampling(max_video_tokens=10_240, min_frame_tokens=16), 100, 10_200),
        (VideoSampling(max_frame_tokens=128), 100, 12_800),
        (VideoSampling(fps=5.0, max_video_tokens=204_800), 500, 204_500),
    ],
)
def test_each_argument_changes_the_estimate(sampling: VideoSampling, frames: int, in_all: int) -> None:
    """A video of 100 s: each argument changes the number of frames or their size."""
    assert (video_frames(100.0, sampling), video_tokens(100.0, sampling)) == (frames, in_all)


@pytest.mark.parametrize(
    ("duration_s", "fps"), [(-1, 1), (float("nan"), 1), (float("inf"), 1), (5, 0), (5, float("nan"))]
)
def test_impossible_video_is_a_mistake(duration_s: float, fps: float) -> None:
    """An impossible duration or frame rate is an error."""
    with pytest.raises(ValueError, match="video"):
        video_tokens(duration_s, VideoSampling(fps=fps))


def test_hello_is_the_observed_20() -> None:
    """The only text whose bill is known is estimated exactly."""
    assert estimate_request(Request((text("hello"),)), {}) == TokenEstimate(20, 0)


def test_contract_example_is_estimated_closely() -> None:
    """The contract's text with an image was billed 31 text and 497 image tokens; the estimate is exact."""
    estimate = estimate_request(Request((text("天很蓝，海很深"), IMAGE)), {"i": (784, 497)})
    assert (estimate.text, estimate.image, estimate.total) == (31, 497, 528)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("", 0, 0),
        ("a", 1, 1),
        ("word " * 20, 25, 25),
        ("天" * 100, 60, 100),
        ("天空very blue", 3, 6),
        ("3.14159,2.71828", 5, 10),
        ("Привет мир", 3, 8),
        ("😀" * 10, 5, 30),
        ("\ud800", 1, 1),
    ],
)
def test_text_is_estimated_by_script(value: str, low: int, high: int) -> None:
    """A token is about four letters, two digits or punctuation marks, or one Chinese character; any string works."""
    assert low <= estimate_text(value) <= high


@given(st.text(), st.text())
def test_longer_text_has_no_fewer_tokens(head: str, tail: str) -> None:
    """An estimate is never negative, does not decrease with more text, and is rounded up once."""
    whole, parts = estimate_text(head + tail), estimate_text(head) + estimate_text(tail)
    assert 0 <= estimate_text(head) <= whole <= parts <= whole + 1


@given(st.lists(st.text(st.characters() | st.sampled_from("0.和")), max_size=4))
def test_texts_are_estimated_together_as_each_of_them_is(texts: list[str]) -> None:
    """`estimate_texts` agrees with `estimate_text`, also for lone surrogates."""
    assert estimate_texts(texts).tolist() == [estimate_text(value) for value in texts]


def test_all_parts_and_instructions_are_counted() -> None:
    """Texts, instructions, additions and time axes are text tokens; images and frames are image tokens."""
    request = Request((text("天" * 10), IMAGE, VIDEO, text("天" * 10)), instructions="天" * 10)
    preset = tokens.PRESET_TEXT_TOKENS + tokens.PRESET_IMAGE_TEXT_TOKENS + tokens.PRESET_VIDEO_TEXT_TOKENS
    unknown = estimate_request(request, {})
    assert unknown == TokenEstimate(preset + 3 * 7 + 16 * tokens.TIME_AXIS_TOKENS_PER_FRAME, 1312 + 10_240)
    known = estimate_request(request, {"i": (280, 280)}, {"v": 60.0})
    assert known == TokenEstimate(preset + 3 * 7 + 60 * tokens.TIME_AXIS_TOKENS_PER_FRAME, 100 + 60 * 640)


def test_a_videos_own_sampling_is_in_the_estimate() -> None:
    """Fewer and smaller frames have fewer text and image tokens."""
    sampled = Part(Modality.VIDEO, "v", VideoSampling(min_frames=5, max_frame_tokens=200))
    estimate = estimate_request(Request((sampled,)), {})
    preset = tokens.PRESET_TEXT_TOKENS + tokens.PRESET_VIDEO_TEXT_TOKENS
    assert estimate == TokenEstimate(preset + 5 * tokens.TIME_AXIS_TOKENS_PER_FRAME, 5 * 200)


def test_the_published_video_sample_is_estimated_closely() -> None:
    """The vendor's sample of a short video, an image and a question was billed 187 text and 13,800 image tokens."""
    request = Request((text("视频和图片里有什么"), VIDEO, IMAGE))
    estimate = estimate_request(request, {}, {"v": 20.0})
    assert 150 <= estimate.text <= 220
    assert 12_000 <= estimate.image <= 15_000


SAMPLINGS = st.builds(
    VideoSampling,
    fps=st.sampled_from([None, 0.2, 5.0]),
    max_video_tokens=st.sampled_from([None, 10_240, 50_000, 204_800]),
    min_frame_tokens=st.sampled_from([None, 16, 128]),
    max_frame_tokens=st.sampled_from([None, 128, 640]),
    min_frames=st.sampled_from([None, 5, 16]),
)
PARTS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text(max_size=200)),
        st.tuples(st.just("image"), st.tuples(st.integers(15, 4_000), st.integers(15, 4_000))),
        st.tuples(st.just("video"), st.tuples(st.floats(0, 10_000), SAMPLINGS)),
    ),
    min_size=1,
    max_size=6,
)


@given(PARTS, st.none() | st.text(max_size=50), st.booleans())
def test_a_bound_is_never_passed(drawn: list[Any], instructions: str | None, sizes_known: bool) -> None:
    """Neither the emulator's bill, which has its own rules, nor an estimate is above the bound."""
    ours: list[Part] = []
    theirs: list[TextPart | ImagePart | VideoPart] = []
    sizes: dict[str, tuple[int, int]] = {}
    durations_s: dict[str, float] = {}
    for number, (kind, value) in enumerate(drawn):
        name = f"{kind}-{number}"
        if kind == "text":
            ours.append(text(value))
            theirs.append(TextPart(value))
        elif kind == "image":
            sizes |= {name: value} if sizes_known else {}
            ours.append(Part(Modality.IMAGE, name))
            theirs.append(ImagePart(name, value[0], value[1], None))
        else:
            durations_s[name], sampling = value
            ours.append(Part(Modality.VIDEO, name, sampling))
            theirs.append(VideoPart(name, value[0], Sampling(**sampling.set_fields())))
    request = Request(tuple(ours), instructions)
    bound = bound_request(request, estimate_request(request, sizes).image)
    estimated = estimate_request(request, sizes, durations_s)
    billed = count_parts(theirs, instructions)
    assert bound.text >= max(estimated.text, billed.text_tokens or 0)
    assert bound.image >= max(estimated.image, billed.image_tokens or 0)


def test_bounds_are_of_use() -> None:
    """A bound is a few times the bill, not a hundred times, so that a budget can be used."""
    request = Request((text("a short title"), IMAGE), "Instruction:Compress the text and image into one word.\nQuery:")
    assert bound_request(request, 900) == TokenEstimate(text=64 + 13 + 61 + 32, image=900)
