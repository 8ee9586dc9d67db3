"""Tokens that a request will use, estimated before it is sent.

The vendor publishes no tokenizer for these models. Image and video formulas are its own; the rates for text are rounded
from samples. Pacing corrects the whole by what replies report, so that an estimate has to be cheap and steady, not
exact.
"""

import math
from collections.abc import Mapping

from pipeline.records import Modality, Request, TokenEstimate

PRESET_TEXT_TOKENS = 18
"""Text that the service puts around every request: a request of "hello" alone was billed 20 tokens."""
PRESET_IMAGE_TEXT_TOKENS = 8
"""Further text tokens of an image, from the contract page's example: 31 for seven Chinese characters and an image."""
VIDEO_TEXT_TOKENS = 150
"""Text tokens of a video's time axis, from the one published sample."""

IMAGE_PIXELS_PER_TOKEN = 784
"""28 by 28 pixels."""
IMAGE_TOKENS_MAX = 1_312
"""Larger images are scaled down by the service."""

VIDEO_FRAMES_MIN, VIDEO_FRAMES_MAX = 16, 640
VIDEO_FRAME_TOKENS_MIN, VIDEO_FRAME_TOKENS_MAX = 128, 640
VIDEO_TOKENS_MIN = VIDEO_FRAMES_MIN * VIDEO_FRAME_TOKENS_MAX
"""10,240: the shortest video, and what one of unknown length is taken for."""
VIDEO_TOKENS_MAX = VIDEO_FRAMES_MAX * VIDEO_FRAME_TOKENS_MIN
"""81,920: the longest."""

_TOKENS_PER_LETTER = 0.25  # ASCII letters and spaces: about four to a token
_TOKENS_PER_SIGN = 0.5  # ASCII digits and punctuation: about two to a token
_TOKENS_PER_WIDE = 0.7  # Chinese characters, which are three bytes each: 0.6 to 1
_SIGNS = b"0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def estimate_text(text: str) -> int:
    """Estimate the tokens of a text alone, without what the service adds.

    Script is told by UTF-8 arithmetic: with b bytes in n characters, (b - n) / 2 characters are wide if all are of one
    or three bytes. A two-byte letter (Cyrillic, accents) then counts as half of each kind, an emoji as one and a half
    wide ones.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    wide = (len(encoded) - len(text)) / 2
    signs = len(encoded) - len(encoded.translate(None, _SIGNS))
    letters = len(text) - wide - signs
    return max(0, math.ceil(letters * _TOKENS_PER_LETTER + signs * _TOKENS_PER_SIGN + wide * _TOKENS_PER_WIDE))


def image_tokens(width: int, height: int) -> int:
    """Tokens of an image of this size in pixels: area / 784, rounded up, at most 1,312."""
    if width < 1 or height < 1:
        raise ValueError(f"an image can't be {width} by {height} pixels")
    return min(-(-width * height // IMAGE_PIXELS_PER_TOKEN), IMAGE_TOKENS_MAX)


def video_tokens(duration_s: float, fps: float = 1.0) -> int:
    """Image tokens of a video's frames: 16 to 640 frames of 640 down to 128 tokens.

    Both ends are the vendor's; in between, frames are taken to be as large as `VIDEO_TOKENS_MAX` allows, which is the
    most they can be.
    """
    if not (math.isfinite(duration_s) and duration_s >= 0 and math.isfinite(fps) and fps > 0):
        raise ValueError(f"a video can't be {duration_s} s long, sampled {fps} times a second")
    frames = min(max(math.ceil(duration_s * fps), VIDEO_FRAMES_MIN), VIDEO_FRAMES_MAX)
    return frames * min(max(VIDEO_TOKENS_MAX // frames, VIDEO_FRAME_TOKENS_MIN), VIDEO_FRAME_TOKENS_MAX)


def estimate_request(
    request: Request,
    image_sizes: Mapping[str, tuple[int, int]],
    video_durations_s: Mapping[str, float] | None = None,
) -> TokenEstimate:
    """Estimate all tokens of a request, preset text included.

    `image_sizes` gives (width, height) in pixels and `video_durations_s` seconds by a part's value. An image that is in
    neither counts as the largest, a video as the shortest (most are not known: pacing's running ratio corrects them).
    """
    text, image = PRESET_TEXT_TOKENS, 0
    if request.instructions is not None:
        text += estimate_text(request.instructions)
    for part in request.parts:
        if part.modality is Modality.TEXT:
            text += estimate_text(part.value)
        elif part.modality is Modality.IMAGE:
            size = image_sizes.get(part.value)
            text += PRESET_IMAGE_TEXT_TOKENS
            image += IMAGE_TOKENS_MAX if size is None else image_tokens(*size)
        else:
            duration_s = (video_durations_s or {}).get(part.value)
            text += VIDEO_TEXT_TOKENS
            image += VIDEO_TOKENS_MIN if duration_s is None else video_tokens(duration_s)
    return TokenEstimate(text, image)
