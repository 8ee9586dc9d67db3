"""The parts of a request as the emulator represents them, and the number of tokens that it bills for them. Pure.

Published formulas (contract page and vendor's guides): an image has w * h / 784 tokens, at most 1,312; the
frames of a video are image tokens and its time axis is text tokens; the service adds preset text to every request, and
more with media; "hello" costs 20 text tokens, and the page's example (7 Chinese characters and one image) costs 31 text
and 497 image tokens. No tokenizer is published: the text counter here is a simple rule that fits these two figures.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from arkbeam.base.records import Usage

PIXELS_PER_TOKEN = 28 * 28
IMAGE_TOKENS_MAX = 1_312
TOKENS_PER_TIMESTAMP = 6
VIDEO_DURATION_S_UNKNOWN = 10.0
"""Assumed duration of a video whose duration is unknown."""

PRESET_TOKENS = 6
"""Tokens of the preset text of a request, chosen so that "hello" costs 20 in total."""
MEDIUM_PRESET_TOKENS = 3
"""Tokens of the preset text of an image or video, chosen so that the contract's example costs 31 text tokens."""

_LETTERS_PER_TOKEN = 6
_WORD_OR_SIGN = re.compile(r"[a-z0-9_]+|[^\W\u2e80-\U0010ffff]+|[^\s]", re.IGNORECASE)
_SLICE_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text part."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image part. `tiles`: the mean colours of its 8 x 8 tiles, RGB, row by row; None if only the URL is known."""

    url: str
    width: int
    height: int
    tiles: bytes | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How frames are sampled from a video. The defaults are the vendor's for requests without sampling arguments."""

    fps: float = 1.0
    max_video_tokens: int = 81_920
    min_frame_tokens: int = 128
    max_frame_tokens: int = 640
    min_frames: int = 16


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video part. `duration_s`: None if unknown. `digest`: a hash of its bytes; None if only the URL is known."""

    url: str
    duration_s: float | None = None
    sampling: Sampling = field(default_factory=Sampling)
    digest: bytes | None = None


Part = TextPart | ImagePart | VideoPart


class TokenVectors(StrEnum):
    """How per-token vectors are encoded in the reply: as numbers, or as base64 of a zstd frame."""

    PLAIN = "plain"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request that the contract allows. `model` is the Model ID that the requested name stands for."""

    model: str
    parts: tuple[Part, ...]
    dimensions: int
    encoding_format: str = "float"
    instructions: str | None = None
    sparse: bool = False
    token_vectors: TokenVectors | None = None
    """None: per-token vectors were not asked for."""


def name_modalities(parts: Sequence[Part]) -> str:
    """Return the modalities in the words of the vendor's templates: `text`, `image`, `text and image` and so on."""
    names = {TextPart: "text", ImagePart: "image", VideoPart: "video"}
    present = {names[type(part)] for part in parts}
    return " and ".join(name for name in names.values() if name in present)


def default_instructions(parts: Sequence[Part]) -> str:
    """Return the instructions of a request that has none: the vendor's corpus template."""
    return f"Instruction:Compress the {name_modalities(parts)} into one word.\nQuery:"


def split_words(text: str) -> list[str]:
    """Split a text into words, single Chinese characters and punctuation marks."""
    return _WORD_OR_SIGN.findall(text)


def count_tokens(text: str, tokens_max: int | None = None) -> int:
    """Count the tokens of a text.

    A Chinese character or a punctuation mark is one token; a word has one token per six letters, rounded up.
    Counting stops soon after `tokens_max`, so that a very long text costs little time.
    """
    tokens = 0
    for start in range(0, len(text), _SLICE_CHARS):
        words = split_words(text[start : start + _SLICE_CHARS])
        tokens += len(words) + sum((len(word) - 1) // _LETTERS_PER_TOKEN for word in words)
        if tokens_max is not None and tokens > tokens_max:
            break
    return tokens


def image_tokens(width: int, height: int) -> int:
    """Return the tokens of an image of this size in pixels: w * h / 784, rounded, at most 1,312."""
    return min(round(width * height / PIXELS_PER_TOKEN), IMAGE_TOKENS_MAX)


def video_frames(video: VideoPart) -> int:
    """Return the number of frames sampled from a video: duration * fps, at least `min_frames`.

    At most `max_video_tokens` / `min_frame_tokens`: 640 by default, which is the vendor's figure.
    """
    sampling = video.sampling
    duration_s = VIDEO_DURATION_S_UNKNOWN if video.duration_s is None else video.duration_s
    frames_max = sampling.max_video_tokens // sampling.min_frame_tokens
    return max(sampling.min_frames, min(round(duration_s * sampling.fps), frames_max))


def video_tokens(video: VideoPart) -> tuple[int, int]:
    """Return the text tokens and the image tokens of a video.

    Each frame has an equal share of `max_video_tokens`, between `min_frame_tokens` and `max_frame_tokens` (by default
    from 16 frames of 640 to 640 frames of 128: 10,240 to 81,920 tokens), and six text tokens for the time axis.
    """
    frames, sampling = video_frames(video), video.sampling
    per_frame = max(sampling.min_frame_tokens, min(sampling.max_video_tokens // frames, sampling.max_frame_tokens))
    return frames * TOKENS_PER_TIMESTAMP, frames * per_frame


def count_parts(parts: Sequence[Part], instructions: str | None, tokens_max: int | None = None) -> Usage:
    """Count the tokens of the parts and the instructions (the default ones if None)."""
    instructions = default_instructions(parts) if instructions is None else instructions
    text = PRESET_TOKENS + count_tokens(instructions, tokens_max)
    image = 0
    for part in parts:
        match part:
            case TextPart():
                text += count_tokens(part.text, tokens_max)
            case ImagePart():
                text += MEDIUM_PRESET_TOKENS
                image += image_tokens(part.width, part.height)
            case VideoPart():
                of_axis, of_frames = video_tokens(part)
                text += MEDIUM_PRESET_TOKENS + of_axis
                image += of_frames
    return Usage(prompt_tokens=text + image, total_tokens=text + image, text_tokens=text, image_tokens=image)


def count_usage(request: EmbeddingRequest, tokens_max: int | None = None) -> Usage:
    """Count the tokens that a request is billed. Counting stops soon after `tokens_max`."""
    return count_parts(request.parts, request.instructions, tokens_max)
