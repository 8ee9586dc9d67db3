"""Estimate the tokens of a request before it is sent.

The vendor publishes no tokenizer for these models. The formulas for images and videos are the vendor's; the rates for
text are rounded from samples. The quota control corrects estimates by the usage in replies, so an estimate must be
cheap and consistent, not exact.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arkbeam.base.records import Modality, Request, TokenEstimate, VideoSampling

PRESET_TEXT_TOKENS = 18
"""Text tokens that the service adds to every request: a request with only "hello" was billed 20 tokens."""
PRESET_IMAGE_TEXT_TOKENS = 8
"""Text tokens that the service adds for an image; source: the contract page's example, 31 for seven Chinese characters
and an image."""
PRESET_VIDEO_TEXT_TOKENS = 8
"""Text tokens that the service adds for a video, besides its time axis: assumed to be the same as for an image."""
TIME_AXIS_TOKENS_PER_FRAME = 7
"""Text tokens per frame for the time axis of a video. In the only published sample (a short video, an image and a
question: 13,800 image and 187 text tokens), about 150 text tokens remain for about 20 frames."""

IMAGE_PIXELS_PER_TOKEN = 784
"""28 by 28 pixels per token."""
IMAGE_TOKENS_MAX = 1_312
"""Larger images are scaled down by the service."""

VIDEO_FRAMES_MIN, VIDEO_FRAMES_MAX = 16, 640
VIDEO_FRAME_TOKENS_MIN, VIDEO_FRAME_TOKENS_MAX = 128, 640
VIDEO_FPS = 1.0
"""Frames sampled per second: the vendor's default for its other models, assumed to be the default here."""
VIDEO_TOKENS_MAX = VIDEO_FRAMES_MAX * VIDEO_FRAME_TOKENS_MIN
"""81,920: the maximum for a video, unless `max_video_tokens` is set."""
DEFAULT_SAMPLING = VideoSampling()

BOUND_PRESET_TEXT_TOKENS = 64
"""Upper bound of the text tokens that the service adds to a request; observed: 18."""
BOUND_DEFAULT_INSTRUCTION_TOKENS = 64
"""Upper bound of the default instructions: more than the bytes of the template with `Compress the text and video into
one word`."""
BOUND_MEDIUM_TEXT_TOKENS = 32
"""Upper bound of the text tokens that the service adds for an image or a video; observed: 8."""
BOUND_TIME_AXIS_TOKENS_PER_FRAME = 16
"""Upper bound of the text tokens per frame for the time axis of a video (estimate: 7): one token per byte of a time
stamp and the text around it."""

_TOKENS_PER_LETTER = 0.25  # ASCII letters and spaces: about four to a token
_TOKENS_PER_SIGN = 0.5  # ASCII digits and punctuation: about two to a token
_TOKENS_PER_WIDE = 0.7  # Chinese characters, which are three bytes each: 0.6 to 1
_SIGNS = b"0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def estimate_text(text: str) -> int:
    """Estimate the tokens of a text, without the tokens that the service adds.

    The number of wide (Chinese) characters follows from the UTF-8 length: with b bytes in n characters, (b - n) / 2
    characters are wide if every character has one or three bytes. A two-byte letter (Cyrillic, accents) then counts as
    half a letter and half a wide character, an emoji (four bytes) as one and a half wide characters.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    wide = (len(encoded) - len(text)) / 2
    signs = len(encoded) - len(encoded.translate(None, _SIGNS))
    letters = len(text) - wide - signs
    return max(0, math.ceil(letters * _TOKENS_PER_LETTER + signs * _TOKENS_PER_SIGN + wide * _TOKENS_PER_WIDE))


def estimate_texts(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return what `estimate_text` returns for each text; it is faster."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    chars, sizes = (np.fromiter(map(len, some), np.int64, len(texts)) for some in (texts, encoded))
    bare = np.fromiter((len(data.translate(None, _SIGNS)) for data in encoded), np.int64, len(texts))
    wide, signs = (sizes - chars) / 2, sizes - bare
    letters = chars - wide - signs
    tokens = np.ceil(letters * _TOKENS_PER_LETTER + signs * _TOKENS_PER_SIGN + wide * _TOKENS_PER_WIDE)
    return np.maximum(tokens, 0).astype(np.int64)


def image_tokens(width: int, height: int) -> int:
    """Return the tokens of an image of this size in pixels: area / 784, rounded up, at most 1,312.

    Raise ValueError if a side is less than 1 pixel.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image can't be {width} by {height} pixels")
    return min(-(-width * height // IMAGE_PIXELS_PER_TOKEN), IMAGE_TOKENS_MAX)


def video_frames(duration_s: float, sampling: VideoSampling = DEFAULT_SAMPLING) -> int:
    """Return the number of frames that the service samples from a video: `fps` per second, at least `min_frames`.

    At most as many as fit into `max_video_tokens` at `min_frame_tokens` each: 640 by default. Raise ValueError for an
    impossible duration or rate.
    """
    fps = VIDEO_FPS if sampling.fps is None else sampling.fps
    if not (math.isfinite(duration_s) and duration_s >= 0 and math.isfinite(fps) and fps > 0):
        raise ValueError(f"impossible video: duration {duration_s} s, {fps} frames per second")
    frames_max = _tokens_max(sampling) // (sampling.min_frame_tokens or VIDEO_FRAME_TOKENS_MIN)
    return min(max(math.ceil(duration_s * fps), sampling.min_frames or VIDEO_FRAMES_MIN), frames_max)


def video_tokens(duration_s: float, sampling: VideoSampling = DEFAULT_SAMPLING) -> int:
    """Return the image tokens of a video: by default from 16 frames of 640 tokens to 640 frames of 128 tokens.

    The vendor publishes both ends. Between them, frames are assumed to be as large as `max_video_tokens` allows: the
    largest possible size.
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

    Text tokens: texts and instructions, what the service adds for the request and for each image and video, and the
    time axes of videos. Image tokens: images, and the sampled frames of videos.

    `image_sizes` has (width, height) in pixels and `video_durations_s` has seconds, both by the value of the part. An
    image of unknown size counts as the largest image, a video of unknown duration as the shortest video. (Most sizes
    are unknown; the quota control corrects the estimates by a running ratio.)
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
    """Return an upper bound of the tokens of a request, for budgets in money.

    Text tokens: one per UTF-8 byte (a byte-level tokenizer makes no more) plus a generous bound for what the service
    adds. Image tokens: `images_estimate` from `estimate_request`, which uses the vendor's formula; if there is also a
    video, each image counts as the largest. Videos: `max_video_tokens`, or the vendor's 81,920, with as many frames as
    fit into that.
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
