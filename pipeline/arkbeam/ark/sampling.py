"""The arguments of `video_url` that say how frames are taken out of a video: their ranges, and whose word counts."""

from collections.abc import Mapping

from arkbeam.base.records import VideoSampling

SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "fps": (0.2, 5),
    "max_video_tokens": (10_240, 204_800),
    "min_frame_tokens": (16, 128),
    "max_frame_tokens": (128, 640),
    "min_frames": (5, 16),
}
"""Smallest and largest value of each argument, as the vendor's Go client checks them.

They meet at 128, so that `min_frame_tokens` is never above `max_frame_tokens`.
"""


def find_sampling_flaw(values: Mapping[str, object]) -> str | None:
    """Say which argument is not as the API takes it, or None. `fps` may be a fraction, the others are whole numbers."""
    for name, value in values.items():
        if name not in SAMPLING_RANGES:
            return f"{name} is not known; there may be {', '.join(SAMPLING_RANGES)}"
        low, high = SAMPLING_RANGES[name]
        kinds = (int, float) if name == "fps" else (int,)
        if type(value) not in kinds or not low <= value <= high:  # type: ignore[operator]
            what = "a number" if name == "fps" else "a whole number"
            return f"{name} is {show_number(value)}; it must be {what} from {low:,} to {high:,}"
    return None


def show_number(value: object) -> str:
    """Write what should have been a number, in bounded length; Python itself refuses to write very long integers."""
    return "far out of range" if isinstance(value, int) and value.bit_length() > 64 else str(value)[:50]


def make_sampling(values: Mapping[str, float]) -> VideoSampling | None:
    """Make the sampling of checked arguments; None where there are none. One value has one form: `fps` is a float."""
    if not values:
        return None
    given = {name: float(value) if name == "fps" else int(value) for name, value in values.items()}
    return VideoSampling(**given)  # type: ignore[arg-type]


def overlay_sampling(*layers: VideoSampling | None) -> VideoSampling | None:
    """Put samplings over one another, argument by argument: a later layer's word counts."""
    merged: dict[str, float] = {}
    for layer in layers:
        if layer is not None:
            merged |= layer.set_fields()
    return make_sampling(merged)
