"""Estimates are the vendor's formulas where there are any, and close to its samples where there are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ark import tokens
from pipeline.ark.tokens import estimate_request, estimate_text, image_tokens, video_tokens
from pipeline.records import Modality, Part, Request, TokenEstimate


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
    """Area over 784, at most 1,312; the two documented sizes are met exactly."""
    assert image_tokens(width, height) == expected


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_image_without_area_is_a_mistake(size: tuple[int, int]) -> None:
    """Sizes below one pixel are refused, not priced."""
    with pytest.raises(ValueError, match="pixels"):
        image_tokens(*size)


def test_video_tokens_meet_the_documented_bounds() -> None:
    """Below 16 frames 16 of 640 tokens are billed, above 640 frames 640 of 128."""
    assert video_tokens(0) == video_tokens(16) == 16 * 640
    assert video_tokens(640) == video_tokens(10**6) == 640 * 128
    assert video_tokens(8, fps=5) == 40 * 640


@given(st.floats(0, 1e9), st.floats(0.2, 5))
def test_video_tokens_stay_within_bounds(duration_s: float, fps: float) -> None:
    """Any video is between the shortest and the longest."""
    assert tokens.VIDEO_TOKENS_MIN <= video_tokens(duration_s, fps) <= tokens.VIDEO_TOKENS_MAX


@pytest.mark.parametrize(
    ("duration_s", "fps"), [(-1, 1), (float("nan"), 1), (float("inf"), 1), (5, 0), (5, float("nan"))]
)
def test_impossible_video_is_a_mistake(duration_s: float, fps: float) -> None:
    """Lengths and rates that no video has are refused."""
    with pytest.raises(ValueError, match="video"):
        video_tokens(duration_s, fps)


def test_hello_is_the_observed_20() -> None:
    """The one text whose bill is known is estimated exactly."""
    assert estimate_request(Request((text("hello"),)), {}) == TokenEstimate(20, 0)


def test_contract_example_is_estimated_closely() -> None:
    """The contract's text with an image was billed 31 text and 497 image tokens."""
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
    """About four letters, two signs or one Chinese character make a token; no string is too odd to be counted."""
    assert low <= estimate_text(value) <= high


@given(st.text(), st.text())
def test_longer_text_has_no_fewer_tokens(head: str, tail: str) -> None:
    """An estimate is never negative, grows with the text, and rounds up once."""
    whole, parts = estimate_text(head + tail), estimate_text(head) + estimate_text(tail)
    assert 0 <= estimate_text(head) <= whole <= parts <= whole + 1


def test_all_parts_and_instructions_are_counted() -> None:
    """Text tokens come from texts, instructions and what the service adds; image tokens from images and videos."""
    request = Request((text("天" * 10), IMAGE, VIDEO, text("天" * 10)), instructions="天" * 10)
    expected_text = tokens.PRESET_TEXT_TOKENS + 3 * 7 + tokens.PRESET_IMAGE_TEXT_TOKENS + tokens.VIDEO_TEXT_TOKENS
    assert estimate_request(request, {}) == TokenEstimate(expected_text, 1312 + 10_240)
    known = estimate_request(request, {"i": (280, 280)}, {"v": 60.0})
    assert known == TokenEstimate(expected_text, 100 + 60 * 640)
