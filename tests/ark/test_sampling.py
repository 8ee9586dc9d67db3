"""Sampling arguments of `video_url`: their ranges, and which value is used if several are set."""

import pickle
from typing import Any

import pytest
from arkbeam.ark.models import SAMPLING_RANGES, find_sampling_flaw, make_sampling, overlay_sampling
from arkbeam.base.records import VideoSampling
from hypothesis import given
from hypothesis import strategies as st

SAMPLINGS = st.builds(
    VideoSampling,
    fps=st.none() | st.floats(0.2, 5),
    max_video_tokens=st.none() | st.integers(10_240, 204_800),
    min_frame_tokens=st.none() | st.integers(16, 128),
    max_frame_tokens=st.none() | st.integers(128, 640),
    min_frames=st.none() | st.integers(5, 16),
)


@pytest.mark.parametrize(
    ("name", "low", "high", "step"),
    [
        ("fps", 0.2, 5, 1e-9),
        ("max_video_tokens", 10_240, 204_800, 1),
        ("min_frame_tokens", 16, 128, 1),
        ("max_frame_tokens", 128, 640, 1),
        ("min_frames", 5, 16, 1),
    ],
)
def test_ranges_are_the_documented_ones(name: str, low: float, high: float, step: float) -> None:
    """Both ends of each range are accepted; one step beyond them is rejected, with the name of the argument."""
    assert find_sampling_flaw({name: low}) is None
    assert find_sampling_flaw({name: high}) is None
    for value in (low - step, high + step):
        flaw = find_sampling_flaw({name: value})
        assert flaw is not None
        assert flaw.startswith(f"{name} is {value}")


def test_the_ranges_keep_the_smallest_frame_below_the_largest() -> None:
    """`min_frame_tokens` can never be above `max_frame_tokens`: their ranges meet in one value."""
    assert SAMPLING_RANGES["min_frame_tokens"][1] <= SAMPLING_RANGES["max_frame_tokens"][0]


@pytest.mark.parametrize(
    "values",
    [
        {"fps": "2"},
        {"fps": True},
        {"fps": float("nan")},
        {"fps": [2]},
        {"min_frames": 8.0},
        {"min_frames": True},
        {"max_video_tokens": 10**5_000},
        {"frames": 8},
        {"fps": 1, "url": "https://h/v.mp4"},
    ],
)
def test_what_is_no_such_argument_is_named(values: dict[str, Any]) -> None:
    """A wrong type, a fraction of an integer or an unknown name gives a message with the name, of bounded length."""
    flaw = find_sampling_flaw(values)
    assert flaw is not None
    assert list(values)[-1] in flaw
    assert len(flaw) < 200


def test_nothing_set_is_no_sampling() -> None:
    """An empty object is the same as a missing one; `fps` is always a float."""
    assert make_sampling({}) is None
    assert overlay_sampling(None, VideoSampling(), None) is None
    made = make_sampling({"fps": 1})
    assert made == VideoSampling(fps=1.0)
    assert made is not None
    assert repr(made.fps) == "1.0"


@given(SAMPLINGS, SAMPLINGS, SAMPLINGS)
def test_the_last_word_counts_argument_by_argument(run: VideoSampling, row: VideoSampling, part: VideoSampling) -> None:
    """The last layer that sets an argument decides it; an argument that no layer sets is not sent."""
    merged = overlay_sampling(run, row, part)
    expected = run.set_fields() | row.set_fields() | part.set_fields()
    assert (merged or VideoSampling()).set_fields() == expected
    assert (merged is None) == (not expected)
    assert find_sampling_flaw(expected) is None


def test_sampling_survives_pickling() -> None:
    """Beam pickles it for the workers."""
    sampling = VideoSampling(fps=2.0, min_frames=8)
    assert pickle.loads(pickle.dumps(sampling)) == sampling
