"""Tokens that a request will use, estimated before it is sent.

The vendor publishes no tokenizer for these models. Image and video formulas are its own; the rates for text are rounded
from samples. Pacing corrects the whole by what replies report, so that an estimate has to be cheap and steady, not
exact.
"""

import math
from collections.abc import Mapping

from arkbeam.base.records import Modality, Request, TokenEstimate, VideoSampling

PRESET_TEXT_TOKENS = 18
"""Text that the service puts around every request: a request of "hello" alone was billed 20 tokens."""
PRESET_IMAGE_TEXT_TOKENS = 8
"""Further text tokens of an image, from the contract page's example: 31 for seven Chinese characters and an image."""
PRESET_VIDEO_TEXT_TOKENS = 8
"""Further text tokens of a video beside its time axis: taken to be an image's."""
TIME_AXIS_TOKENS_PER_FRAME = 7
"""Text tokens of one place on a video's time axis. The one published sample (a short video, an image and a question:
13,800 image and 187 text tokens) leaves about 150 for some 20 frames."""

IMAGE_PIXELS_PER_TOKEN = 784
"""28 by 28 pixels."""
IMAGE_TOKENS_MAX = 1_312
"""Larger images are scaled down by the service."""

VIDEO_FRAMES_MIN, VIDEO_FRAMES_MAX = 16, 640
VIDEO_FRAME_TOKENS_MIN, VIDEO_FRAME_TOKENS_MAX = 128, 640
VIDEO_FPS = 1.0
"""Frames taken a second: the vendor's default elsewhere, taken to hold here."""
VIDEO_TOKENS_MAX = VIDEO_FRAMES_MAX * VIDEO_FRAME_TOKENS_MIN
"""81,920: the longest, unless `max_video_tokens` says otherwise."""
DEFAULT_SAMPLING = VideoSampling()

BOUND_PRESET_TEXT_TOKENS = 64
"""More than the service puts around any request by what was seen (18)."""
BOUND_DEFAULT_INSTRUCTION_TOKENS = 64
"""More than the bytes of the default instruction, `Compress the text and video into one word` in its template."""
BOUND_MEDIUM_TEXT_TOKENS = 32
"""More than the text that an image or a video brings by what was seen (8)."""
BOUND_TIME_AXIS_TOKENS_PER_FRAME = 16
"""More than one place on a video's time axis takes (7): a token for each byte of a time stamp and what is around it."""

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


def video_frames(duration_s: float, sampling: VideoSampling = DEFAULT_SAMPLING) -> int:
    """Frames taken from a video: `fps` a second, at least `min_frames`.

    At most as many as fit into `max_video_tokens` at `min_frame_tokens` each: 640 unless the sampling says otherwise.
    """
    fps = VIDEO_FPS if sampling.fps is None else sampling.fps
    if not (math.isfinite(duration_s) and duration_s >= 0 and math.isfinite(fps) and fps > 0):
        raise ValueError(f"a video can't be {duration_s} s long, sampled {fps} times a second")
    frames_max = _tokens_max(sampling) // (sampling.min_frame_tokens or VIDEO_FRAME_TOKENS_MIN)
    return min(max(math.ceil(duration_s * fps), sampling.min_frames or VIDEO_FRAMES_MIN), frames_max)


def video_tokens(duration_s: float, sampling: VideoSampling = DEFAULT_SAMPLING) -> int:
    """Image tokens of a video's frames: by default 16 to 640 frames of 640 down to 128 tokens.

    Both ends are the vendor's; in between, frames are taken to be as large as `max_video_tokens` allows, which is the
    most they can be.
    """
    frames = video_frames(duration_s, sampling)
    low = sampling.min_frame_tokens or VIDEO_FRAME_TOKENS_MIN
    high = sampling.max_frame_tokens or VIDEO_FRAME_TOKENS_MAX
    return frames * min(max(_tokens_max(sampling) // frames, low), high)


def _tokens_max(sampling: VideoSampling) -> int:
    return sampling.max_video_tokens or VIDEO_TOKENS_MAX


def estimate_request(
    request: Request,
    image_sizes: Mapping[str, tuple[int, int]],
    video_durations_s: Mapping[str, float] | None = None,
) -> TokenEstimate:
    """Estimate all tokens of a request.

    Text: its texts and instructions, what the service puts around them and around each image and video, and the time
    axis of videos. Image: images, and the frames of videos as they are sampled.

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
            duration_s = (video_durations_s or {}).get(part.value, 0.0)
            sampling = part.sampling or DEFAULT_SAMPLING
            text += PRESET_VIDEO_TEXT_TOKENS + TIME_AXIS_TOKENS_PER_FRAME * video_frames(duration_s, sampling)
            image += video_tokens(duration_s, sampling)
    return TokenEstimate(text, image)


def bound_request(request: Request, images_estimate: int) -> TokenEstimate:
    """The most that a request can use: for budgets, which must hold whatever the tokenizer does.

    Text: a token for each byte of UTF-8, since no tokenizer of bytes makes more, and generous room for what the service
    adds. Images: `images_estimate` as `estimate_request` gives it, which goes by the vendor's formula; beside a video, the
    largest for each. Videos: `max_video_tokens`, or the vendor's 81,920, and as many frames as fit into that.
    """
    text, image = BOUND_PRESET_TEXT_TOKENS, images_estimate
    text += BOUND_DEFAULT_INSTRUCTION_TOKENS if request.instructions is None else _count_bytes(request.instructions)
    kinds = [part.modality for part in request.parts]
    if Modality.VIDEO in kinds:
        image = kinds.count(Modality.IMAGE) * IMAGE_TOKENS_MAX
    for part in request.parts:
        if part.modality is Modality.TEXT:
            text += _count_bytes(part.value)
            continue
        text += BOUND_MEDIUM_TEXT_TOKENS
        if part.modality is Modality.VIDEO:
            sampling = part.sampling or DEFAULT_SAMPLING
            frames = _tokens_max(sampling) // (sampling.min_frame_tokens or VIDEO_FRAME_TOKENS_MIN)
            text += BOUND_TIME_AXIS_TOKENS_PER_FRAME * frames
            image += _tokens_max(sampling)
    return TokenEstimate(text, image)


def _count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
