"""What a model can do, costs and allows, whichever service runs it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from arkbeam.base.records import TokenEstimate

MultiEmbedding = Literal["off", "plain", "zstd"]


class EncodingFormat(StrEnum):
    """How the dense vector is to be written in the reply. NULL sends JSON null, ABSENT leaves the field out."""

    BASE64 = "base64"
    FLOAT = "float"
    NULL = "null"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one version of the model takes, returns, costs and allows per minute."""

    version: str
    """Six digits, yymmdd."""
    dimensions: tuple[int, ...]
    """Lengths a dense vector can have; the first is the default."""
    dimensions_field: bool
    """Whether a request may carry `dimensions` at all."""
    sparse: bool
    """Whether a sparse vector can be asked for, on requests of text alone."""
    instructions: bool
    """Whether a request may carry `instructions`."""
    video: bool
    """Whether a part may be a video."""
    mixed: bool
    """Any mix and number of parts; False: at most one text and one image."""
    video_sampling: bool
    """Whether a video part may carry sampling arguments (`fps` and others)."""
    multi_embedding: bool
    """Whether one vector per token can be asked for."""
    context_tokens: int
    """Most tokens of one request."""
    price_text_cny_per_million: float
    """CNY for a million text tokens."""
    price_image_cny_per_million: float
    """CNY for a million image tokens, frames of videos included."""
    rpm: int
    """Requests per minute that an account may send to the model's whole family."""
    tpm: int
    """Tokens per minute, shared in the same way."""
    notes: tuple[str, ...] = ()
    """What the user should be told about how this row was chosen; empty for a live, known version."""
    cuts: tuple[int, ...] = ()
    """Lengths that a vector may be cut to when it is published, where the service makes no shorter ones itself."""


def exceeds_context(estimate: TokenEstimate, caps: Capabilities) -> bool:
    """Whether a request looks longer than the model's context.

    An estimate refuses nothing and nothing is cut: it is a warning, and what the service then refuses is a failure row.
    """
    return estimate.text + estimate.image > caps.context_tokens


def cost_cny(usage_text_tokens: int, usage_image_tokens: int, caps: Capabilities) -> float:
    """Price in CNY of tokens as the service bills them: text and image apart, output free."""
    text = usage_text_tokens * caps.price_text_cny_per_million
    image = usage_image_tokens * caps.price_image_cny_per_million
    return (text + image) / 1_000_000
