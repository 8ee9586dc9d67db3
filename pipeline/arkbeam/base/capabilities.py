"""What a model can do, what it costs and its limits, independent of the service that runs it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from arkbeam.base.records import TokenEstimate

MultiEmbedding = Literal["off", "plain", "zstd"]
"""Encoding of the per-token vectors that a request asks for: JSON numbers, or a zstd frame; `off`: not asked for."""


class EncodingFormat(StrEnum):
    """The request field `encoding_format`: how the service encodes vectors.

    NULL: JSON null is sent; ABSENT: the field is not sent.
    """

    BASE64 = "base64"
    FLOAT = "float"
    NULL = "null"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one model version accepts and returns, its prices and its limits per minute."""

    version: str
    """The version: six digits, yymmdd."""
    dimensions: tuple[int, ...]
    """Lengths of the dense vector that the model can return; the first is the default."""
    dimensions_field: bool
    """True if a request may contain the field `dimensions`."""
    sparse: bool
    """True if a text-only request may ask for a sparse vector."""
    instructions: bool
    """True if a request may contain the field `instructions`."""
    video: bool
    """True if a part may be a video."""
    mixed: bool
    """True if a request may have any number and mix of parts. False: at most one text and one image."""
    video_sampling: bool
    """True if a video part may contain sampling arguments (`fps` and others)."""
    multi_embedding: bool
    """True if a request may ask for per-token vectors."""
    context_tokens: int
    """Maximum number of tokens in one request."""
    price_text_cny_per_million: float
    """Price in CNY per million text tokens."""
    price_image_cny_per_million: float
    """Price in CNY per million image tokens; video frames count as images."""
    rpm: int
    """Requests per minute that an account may send to all models of the family together."""
    tpm: int
    """Tokens per minute, for all models of the family together."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, for example that this version is unknown or was shut down; empty for a known, live
    version."""
    cuts: tuple[int, ...] = ()
    """Lengths to which a vector may be cut when it is published, for versions whose service returns only longer
    ones."""


def exceeds_context(estimate: TokenEstimate, caps: Capabilities) -> bool:
    """Return True if the estimate is larger than the model's context.

    Use this for a warning only. The request is still sent, uncut; if the service rejects it, the row becomes a failure
    row.
    """
    return estimate.text + estimate.image > caps.context_tokens


def cost_cny(text_tokens: int, image_tokens: int, caps: Capabilities) -> float:
    """Return the price in CNY of these tokens: text and image tokens have separate prices, the output is free."""
    text = text_tokens * caps.price_text_cny_per_million
    image = image_tokens * caps.price_image_cny_per_million
    return (text + image) / 1_000_000
