"""What each version of the model can do, costs and allows; and what a config may therefore ask of it.

Everything hangs on the version, a six-digit date: names of models carry it, endpoints (`ep-…`) don't and need
`model.like`. Versions compare by date: one that this table does not know has what the newest known one before it has.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import date

from pipeline.errors import ConfigError
from pipeline.records import Failure, Modality, Request


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


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model makes the vectors, and what is asked of it. The `model:` section of the config."""

    name: str
    """Model ID with its date (`doubao-embedding-vision-251215`) or Endpoint ID (`ep-…`)."""
    dimensions: int | None = None
    """Length of the dense vectors, 1024 or 2048; unset: the field is not sent and the model's default holds."""
    sparse: bool = False
    """Ask for a sparse vector as well, on rows of text alone."""
    instructions: str | None = None
    """Sent verbatim with every request; unset: the service makes one up from the kinds of input."""
    like: str | None = None
    """The version an endpoint or an unknown name stands for: a dated Model ID or its six digits."""


# Prices and limits are per account and model family, the same for both live versions; for the two withdrawn versions
# nothing was published and they are taken to be the same. Sizes written 8k and 128k by the vendor are powers of two.
_V241215 = Capabilities(
    version="241215",
    dimensions=(3072,),
    dimensions_field=False,
    sparse=False,
    instructions=False,
    video=False,
    mixed=False,
    video_sampling=False,
    multi_embedding=False,
    context_tokens=8_192,
    price_text_cny_per_million=0.70,
    price_image_cny_per_million=1.80,
    rpm=15_000,
    tpm=1_200_000,
    notes=("model version 241215 was shut down in August 2025: expect the service to refuse it",),
)
_V250328 = replace(
    _V241215,
    version="250328",
    dimensions=(2048,),
    notes=("model version 250328 is no longer in the vendor's list of models: the service may refuse it",),
)
_V250615 = replace(
    _V250328,
    version="250615",
    dimensions=(2048, 1024),
    dimensions_field=True,
    sparse=True,
    video=True,
    mixed=True,
    context_tokens=131_072,
    notes=(),
)
_V251215 = replace(_V250615, version="251215", instructions=True, video_sampling=True, multi_embedding=True)

VERSIONS: dict[str, Capabilities] = {row.version: row for row in (_V241215, _V250328, _V250615, _V251215)}
"""The table, oldest first."""

_DATED_NAME = re.compile(r"(?:doubao|skylark)-embedding-vision-([0-9]{6})")
_LIKE = re.compile(r"(?:(?:doubao|skylark)-embedding-vision-)?([0-9]{6})")


def find_capabilities(options: ModelOptions) -> Capabilities:
    """Find what the configured model can do.

    Raises ConfigError when the name tells no version and `model.like` is missing, malformed or contradicts the name.
    """
    named = _DATED_NAME.fullmatch(options.name)
    like = None if options.like is None else _LIKE.fullmatch(options.like)
    if options.like is not None and like is None:
        raise ConfigError(
            f"model.like {options.like!r} is no version: give a dated name such as"
            f" doubao-embedding-vision-{_V251215.version}, or its six digits in quotes"
        )
    if named and like and named[1] != like[1]:
        raise ConfigError(
            f"model.name {options.name!r} and model.like {options.like!r} contradict each other: drop like"
        )
    version = named or like
    if version is None:
        raise ConfigError(
            f"model.name {options.name!r} does not tell its version: set model.like to the version behind it,"
            f" such as doubao-embedding-vision-{_V251215.version}"
        )
    return _capabilities_of(version[1], options.name)


def _capabilities_of(version: str, name: str) -> Capabilities:
    known = VERSIONS.get(version)
    if known is not None:
        return known
    try:
        date(2000 + int(version[:2]), int(version[2:4]), int(version[4:]))
    except ValueError:
        raise ConfigError(f"model {name!r}: version {version} is no date (yymmdd)") from None
    before = bisect_right(list(VERSIONS), version)
    if before == 0:
        raise ConfigError(f"model {name!r}: version {version} is older than {_V241215.version}, the first one known")
    base = list(VERSIONS.values())[before - 1]
    note = f"model {name!r}: version {version} is not known here; it is taken to be like {base.version}"
    return replace(base, version=version, notes=(note,))


def check_options(options: ModelOptions) -> Capabilities:
    """Refuse what the configured model can't do; return what it can.

    `dimensions` is restricted by the API's contract page, `sparse` and `instructions` by the vendor's model guide.
    Raises ConfigError naming the model and the rule.
    """
    caps = find_capabilities(options)
    who = f"model {options.name!r} (version {caps.version})"
    if options.dimensions is not None:
        if not caps.dimensions_field:
            raise ConfigError(
                f"{who} takes no dimensions, which {_V250615.version} and later do: it always returns"
                f" {caps.dimensions[0]}; remove model.dimensions"
            )
        if options.dimensions not in caps.dimensions:
            choices = " or ".join(str(choice) for choice in sorted(caps.dimensions))
            raise ConfigError(f"{who} makes vectors of {choices} dimensions: model.dimensions is {options.dimensions}")
    if options.sparse and not caps.sparse:
        raise ConfigError(f"{who} makes no sparse vectors, which {_V250615.version} and later do: remove model.sparse")
    if options.instructions is not None and not caps.instructions:
        raise ConfigError(
            f"{who} takes no instructions, which {_V251215.version} and later do: remove model.instructions,"
            " or put the instruction in front of the text"
        )
    return caps


def dimensions_stored(options: ModelOptions, caps: Capabilities) -> int:
    """Length of the dense vectors that the service will return."""
    return caps.dimensions[0] if options.dimensions is None else options.dimensions


def find_misfit(request: Request, caps: Capabilities) -> Failure | None:
    """Why the model can't take this one request, or None; the same rules as `check_options`, row by row."""
    kinds = [part.modality for part in request.parts]
    if not kinds:
        return Failure("input_empty", "the row has no text, image or video")
    if Modality.VIDEO in kinds and not caps.video:
        return Failure(
            "video_unsupported", f"model version {caps.version} takes no video; {_V250615.version} and later do"
        )
    if not caps.mixed and (kinds.count(Modality.TEXT) > 1 or kinds.count(Modality.IMAGE) > 1):
        return Failure("too_many_parts", f"model version {caps.version} takes at most one text and one image")
    if request.instructions is not None and not caps.instructions:
        return Failure("instructions_unsupported", f"model version {caps.version} takes no instructions")
    if request.sparse and not caps.sparse:
        return Failure("sparse_unsupported", f"model version {caps.version} makes no sparse vectors")
    if request.sparse and any(kind is not Modality.TEXT for kind in kinds):
        return Failure("sparse_needs_text_only", "a sparse vector can be asked for on text alone")
    return None


def cost_cny(usage_text_tokens: int, usage_image_tokens: int, caps: Capabilities) -> float:
    """Price in CNY of tokens as the service bills them: text and image apart, output free."""
    text = usage_text_tokens * caps.price_text_cny_per_million
    image = usage_image_tokens * caps.price_image_cny_per_million
    return (text + image) / 1_000_000
