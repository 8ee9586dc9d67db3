"""The parts of a request as the stand-in understands them, and the instruction it works with when none is sent."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum


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
