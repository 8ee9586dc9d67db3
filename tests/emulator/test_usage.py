"""The token formulas, compared with the vendor's published figures."""

import pytest
from arkbeam.base.records import Usage
from arkbeam.emulator.parts import (
    ImagePart,
    Sampling,
    TextPart,
    VideoPart,
    count_parts,
    count_tokens,
    image_tokens,
    video_frames,
    video_tokens,
)
from hypothesis import given
from hypothesis import strategies as st

URL = "https://example.com/a.jpg"


def test_hello() -> None:
    """The word "hello" costs 20 text tokens with the preset text, as observed on the live service."""
    assert count_parts([TextPart("hello")], None) == Usage(20, 20, 20, 0)


def test_the_contracts_example() -> None:
    """The page's text and image cost what its reply says: 31 text and 497 image tokens."""
    parts: list[TextPart | ImagePart | VideoPart] = [TextPart("天很蓝，海很深"), ImagePart(URL, 624, 624, None)]
    assert count_parts(parts, None) == Usage(528, 528, 31, 497)


@pytest.mark.parametrize(
    ("size", "tokens"), [((1280, 720), 1176), ((1920, 1080), 1312), ((28, 28), 1), ((15, 15), 0), ((1014, 1014), 1311)]
)
def test_image_tokens(size: tuple[int, int], tokens: int) -> None:
    """An image costs w * h / 784, rounded, and never more than 1,312."""
    assert image_tokens(*size) == tokens


@pytest.mark.parametrize(
    ("duration_s", "frames", "tokens"),
    [(None, 16, 10_240), (1.0, 16, 10_240), (100.0, 100, 64_000), (200.0, 200, 81_800), (5_000.0, 640, 81_920)],
)
def test_video_tokens(duration_s: float | None, frames: int, tokens: int) -> None:
    """By default a video has 16 to 640 frames and costs 10,240 to 81,920 image tokens, and 6 text tokens a frame."""
    assert video_tokens(VideoPart(URL, duration_s)) == (6 * frames, tokens)


def test_video_sampling() -> None:
    """Sampling arguments change the number of frames and what a frame costs."""
    sampling = Sampling(fps=0.2, min_frames=5, max_frame_tokens=200, max_video_tokens=204_800)
    assert video_tokens(VideoPart(URL, 60.0, sampling)) == (12 * 6, 12 * 200)
    fast = Sampling(fps=5.0, min_frame_tokens=64, max_video_tokens=20_000)
    assert video_tokens(VideoPart(URL, 30.0, fast)) == (150 * 6, 150 * 133)


@given(
    st.floats(0, 1e6) | st.none(),
    st.builds(
        Sampling,
        fps=st.floats(0.2, 5),
        max_video_tokens=st.integers(10_240, 204_800),
        min_frame_tokens=st.integers(16, 128),
        max_frame_tokens=st.integers(128, 640),
        min_frames=st.integers(5, 16),
    ),
)
def test_sampling_is_kept(duration_s: float | None, sampling: Sampling) -> None:
    """For any duration, the tokens per frame and per video are within the sampling arguments."""
    video = VideoPart(URL, duration_s, sampling)
    frames, (_, tokens) = video_frames(video), video_tokens(video)
    assert frames >= sampling.min_frames
    assert sampling.min_frame_tokens * frames <= tokens <= sampling.max_frame_tokens * frames
    assert tokens <= sampling.max_video_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("  \n", 0), ("a b", 2), ("abcdefg", 2), ("海", 1), ("海a海", 3), ("!!", 2), ("мир", 1)],
)
def test_text_tokens(text: str, tokens: int) -> None:
    """A Chinese character or a punctuation mark is one token; a word has one token per six letters, rounded up."""
    assert count_tokens(text) == tokens


def test_counting_stops() -> None:
    """A very long text is not counted to its end, but the count is above the limit."""
    assert 1_000 < count_tokens("a " * 1_000_000, 1_000) < 20_000


def test_instructions_are_text() -> None:
    """The tokens of the instructions are billed instead of those of the default instructions."""
    short = count_parts([TextPart("hello")], "").text_tokens
    long = count_parts([TextPart("hello")], "one two three").text_tokens
    assert (short, long) == (7, 10)
