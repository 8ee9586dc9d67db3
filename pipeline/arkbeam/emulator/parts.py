"""The parts of a request as the emulator understands them, and the tokens that each is billed. Pure.

Published formulas (contract page and fact sheet, section 10): an image takes w * h / 784 tokens, at most 1,312; a video's frames
count as image tokens and its time axis as text tokens; every request carries preset text, more of it with media; "hello" costs 20
text tokens, and the page's example (7 Chinese characters and one image) 31 text and 497 image tokens.
No tokenizer is published: the text counter here is not a real one, it is fitted to those two figures.
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
"""Taken for a video whose length nothing tells."""

PRESET_TOKENS = 6
"""Text around the instruction and the input, so that "hello" costs 20 in total."""
MEDIUM_PRESET_TOKENS = 3
"""Text around each image or video, so that the contract's example costs 31 text tokens."""

_LETTERS_PER_TOKEN = 6
_WORD_OR_SIGN = re.compile(r"[a-z0-9_]+|[^\W\u2e80-\U0010ffff]+|[^\s]", re.IGNORECASE)
_SLICE_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class TextPart:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image. `tiles` are its 8 x 8 mean colours, RGB, row by row; None where only a URL is known."""

    url: str
    width: int
    height: int
    tiles: bytes | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a video is cut into frames. The defaults are the vendor's policy for requests that don't say."""

    fps: float = 1.0
    max_video_tokens: int = 81_920
    min_frame_tokens: int = 128
    max_frame_tokens: int = 640
    min_frames: int = 16


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video. `duration_s` is None where nothing tells it, `digest` (of the bytes) where only a URL is known."""

    url: str
    duration_s: float | None = None
    sampling: Sampling = field(default_factory=Sampling)
    digest: bytes | None = None


Part = TextPart | ImagePart | VideoPart


class TokenVectors(StrEnum):
    """How the vectors of single tokens are to be written: as numbers, or compressed and in base64."""

    PLAIN = "plain"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A request that the contract allows. `model` is the Model ID behind the name that was asked for."""

    model: str
    parts: tuple[Part, ...]
    dimensions: int
    encoding_format: str = "float"
    instructions: str | None = None
    sparse: bool = False
    token_vectors: TokenVectors | None = None
    """None: not asked for."""


def name_modalities(parts: Sequence[Part]) -> str:
    """Name the kinds of input as the vendor's templates do: `text`, `image`, `text and image` and so on."""
    names = {TextPart: "text", ImagePart: "image", VideoPart: "video"}
    present = {names[type(part)] for part in parts}
    return " and ".join(name for name in names.values() if name in present)


def default_instructions(parts: Sequence[Part]) -> str:
    """The instruction made from the kinds of input: the vendor's corpus template (fact sheet, section 3)."""
    return f"Instruction:Compress the {name_modalities(parts)} into one word.\nQuery:"


def split_words(text: str) -> list[str]:
    """Split a text into words, single Chinese characters and signs."""
    return _WORD_OR_SIGN.findall(text)


def count_tokens(text: str, tokens_max: int | None = None) -> int:
    """Count tokens by script: a Chinese character or a sign is one, a word one for each six letters begun.

    Stops counting some way past `tokens_max`, so that an endless text costs little.
    """
    tokens = 0
    for start in range(0, len(text), _SLICE_CHARS):
        words = split_words(text[start : start + _SLICE_CHARS])
        tokens += len(words) + sum((len(word) - 1) // _LETTERS_PER_TOKEN for word in words)
        if tokens_max is not None and tokens > tokens_max:
            break
    return tokens


def image_tokens(width: int, height: int) -> int:
    """Tokens of an image: w * h / 784, rounded, at most 1,312."""
    return min(round(width * height / PIXELS_PER_TOKEN), IMAGE_TOKENS_MAX)


def video_frames(video: VideoPart) -> int:
    """Frames taken from a video: duration * fps, at least `min_frames`, and at most what the tokens allow.

    That is `max_video_tokens` / `min_frame_tokens`: 640 by default, as the vendor says.
    """
    sampling = video.sampling
    duration_s = VIDEO_DURATION_S_UNKNOWN if video.duration_s is None else video.duration_s
    frames_max = sampling.max_video_tokens // sampling.min_frame_tokens
    return max(sampling.min_frames, min(round(duration_s * sampling.fps), frames_max))


def video_tokens(video: VideoPart) -> tuple[int, int]:
    """Text and image tokens of a video.

    A frame gets an even part of `max_video_tokens`, within `min_frame_tokens` and `max_frame_tokens` (16 frames of 640
    to 640 frames of 128 by default: 10,240 to 81,920); its place on the time axis takes six text tokens.
    """
    frames, sampling = video_frames(video), video.sampling
    per_frame = max(sampling.min_frame_tokens, min(sampling.max_video_tokens // frames, sampling.max_frame_tokens))
    return frames * TOKENS_PER_TIMESTAMP, frames * per_frame


def count_parts(parts: Sequence[Part], instructions: str | None, tokens_max: int | None = None) -> Usage:
    """Count the tokens of the parts together with their instruction, the default one if None."""
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
    """Count what a request is billed. Counting stops some way past `tokens_max`."""
    return count_parts(request.parts, request.instructions, tokens_max)
