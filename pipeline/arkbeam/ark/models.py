"""What each model version can do, its prices and limits, and the checks of the config and of requests against them.

The version, a six-digit date, decides. Model IDs contain it; Endpoint IDs (`ep-…`) do not and need `model.like`.
Versions are compared by date: an unknown version is treated like the newest known version before it. The API's contract
page restricts only `dimensions`; the other rules come from the vendor's model guide, and `model.allow` overrides them.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any, Literal

from arkbeam.ark.instructions import InstructionOptions, check_utf8
from arkbeam.base.capabilities import Capabilities, EncodingFormat
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import Failure, Modality, Request, VideoSampling

MODEL_FAMILY = "doubao-embedding-vision"
"""The family of all models in the table. The limits of an account apply to the whole family."""

SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "fps": (0.2, 5),
    "max_video_tokens": (10_240, 204_800),
    "min_frame_tokens": (16, 128),
    "max_frame_tokens": (128, 640),
    "min_frames": (5, 16),
}
"""Smallest and largest value of each sampling argument of `video_url`, as the vendor's Go client checks them.

The ranges of `min_frame_tokens` and `max_frame_tokens` meet at 128, so the minimum is never above the maximum.
"""

ALLOWABLE = ("sparse", "instructions", "video_sampling", "multi_embedding")
"""Capabilities that `model.allow` may list: those that the vendor's guide grants only to later versions."""


@dataclass(frozen=True, slots=True)
class PriceOptions:
    """Prices that the account pays, if they differ from the vendor's list prices."""

    text_cny_per_million: float | None = None
    """Price in CNY per million text tokens. Default: the vendor's list price of the model (0.70)."""
    image_cny_per_million: float | None = None
    """Price in CNY per million image tokens, which include video frames. Default: the vendor's list price of the model
    (1.80)."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a price that is negative or not finite."""
        for name in ("text_cny_per_million", "image_cny_per_million"):
            price = getattr(self, name)
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"model.prices.{name} is {price}; it must be a number that is at least 0")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model makes the vectors and what each request asks for. The `model:` section of the config."""

    name: str
    """Model ID with its date (`doubao-embedding-vision-251215`) or Endpoint ID (`ep-…`, needs `like`)."""
    dimensions: int | None = None
    """Length of the dense vectors, 1024 or 2048. Unset: the field is not sent and the service uses the model's default.
    Version 250328 returns only 2048: with 1024, the vectors are cut to 1024 values and L2-normalised when they are
    published."""
    sparse: bool = False
    """Ask for a sparse vector as well. Text-only rows only."""
    instructions: str | InstructionOptions | None = None
    """A string that is sent unchanged with every request, or a section that builds the string of each row from the
    vendor's templates. Unset: the service derives instructions from the modalities of the row; the vendor advises
    against that."""
    like: str | None = None
    """The model version behind an Endpoint ID or another name without a date: a Model ID with its date, or the six
    digits in quotes."""
    encoding_format: EncodingFormat | None = EncodingFormat.BASE64
    """How the service encodes the vectors in replies; the values are the same. `base64` or `float`; `null` (with or
    without quotes): send JSON null; `absent`: do not send the field."""
    multi_embedding: Literal["off", "plain", "zstd", False] = "off"
    """Ask for per-token vectors as well: `plain` (numbers, about 25 kB per token in the reply) or `zstd` (about a fifth
    of that). They are stored as float16; numbers from `plain` are rounded to float16."""
    video: VideoSampling | None = None
    """How the service samples frames from videos. A row can override each argument."""
    allow: tuple[str, ...] = ()
    """Capabilities to use although the vendor's guide does not list them for the model version: `instructions`,
    `sparse`, `video_sampling`, `multi_embedding`."""
    prices: PriceOptions = field(default_factory=PriceOptions)
    """Prices that the account pays, if they differ from the vendor's list prices."""

    def __post_init__(self) -> None:
        """Convert YAML's null and off, which are not strings, to the options that they mean."""
        if self.encoding_format is None:
            object.__setattr__(self, "encoding_format", EncodingFormat.NULL)
        if self.multi_embedding is False:
            object.__setattr__(self, "multi_embedding", "off")

    @property
    def asks_multi(self) -> bool:
        """True if requests ask for per-token vectors, in any encoding."""
        return self.multi_embedding not in (False, "off")


# Prices and limits apply per account and model family and are the same for both live versions. For the two withdrawn
# versions nothing was published; the same values are assumed. The vendor writes context sizes as 8k and 128k; they are
# powers of two.
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
    cuts=(1024,),
    notes=("model version 250328 is no longer in the vendor's list of models: the service may refuse it",),
)
_V250615 = replace(
    _V250328,
    version="250615",
    dimensions=(2048, 1024),
    dimensions_field=True,
    cuts=(),
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
    """Return the capabilities of the configured model, including `model.allow` and the configured prices.

    Raise ConfigError if the name contains no version and `model.like` is missing or malformed, if `model.like`
    contradicts the name, or if `model.allow` lists an unknown capability.
    """
    named = _DATED_NAME.fullmatch(options.name)
    like = None if options.like is None else _LIKE.fullmatch(options.like)
    if options.like is not None and like is None:
        raise ConfigError(
            f"model.like {options.like!r} is not a model version: use a Model ID with its date, such as"
            f" doubao-embedding-vision-{_V251215.version}, or its six digits in quotes"
        )
    if named and like and named[1] != like[1]:
        raise ConfigError(
            f"model.name {options.name!r} and model.like {options.like!r} contradict each other: remove model.like"
        )
    version = named or like
    if version is None:
        raise ConfigError(
            f"model.name {options.name!r} does not contain a model version: set model.like to its version,"
            f" such as doubao-embedding-vision-{_V251215.version}"
        )
    return _price(options.prices, _allow(options, _capabilities_of(version[1], options.name)))


def _price(prices: PriceOptions, caps: Capabilities) -> Capabilities:
    paid = {"price_text_cny_per_million": prices.text_cny_per_million}
    paid |= {"price_image_cny_per_million": prices.image_cny_per_million}
    own: dict[str, Any] = {name: price for name, price in paid.items() if price is not None}
    return replace(caps, **own) if own else caps


def _allow(options: ModelOptions, caps: Capabilities) -> Capabilities:
    """Add the capabilities in `model.allow`, with a note about those that the table does not list."""
    for name in options.allow:
        if name not in ALLOWABLE:
            raise ConfigError(f"model.allow contains {name!r}; allowed are {', '.join(ALLOWABLE)}")
    added: dict[str, Any] = {name: True for name in options.allow if not getattr(caps, name)}
    if not added:
        return caps
    who = f"model {options.name!r} (version {caps.version})"
    note = f"{who} is listed without {', '.join(added)}; used anyway because of model.allow"
    return replace(caps, notes=(*caps.notes, note), **added)


def _capabilities_of(version: str, name: str) -> Capabilities:
    known = VERSIONS.get(version)
    if known is not None:
        return known
    try:
        date(2000 + int(version[:2]), int(version[2:4]), int(version[4:]))
    except ValueError:
        raise ConfigError(f"model {name!r}: version {version} is not a date (yymmdd)") from None
    before = bisect_right(list(VERSIONS), version)
    if before == 0:
        raise ConfigError(
            f"model {name!r}: version {version} is older than {_V241215.version}, the first known version"
        )
    base = list(VERSIONS.values())[before - 1]
    note = f"model {name!r}: version {version} is unknown; it is treated like version {base.version}"
    return replace(base, version=version, notes=(note,))


# By capability: what a model without it does, the first version that has it, and the remedy.
_DENIALS = {
    "sparse": ("does not return sparse vectors", _V250615.version, "remove model.sparse"),
    "instructions": (
        "does not accept instructions",
        _V251215.version,
        "remove model.instructions and put the instruction before the text",
    ),
    "video_sampling": ("does not accept video sampling", _V251215.version, "remove model.video"),
    "multi_embedding": ("does not return per-token vectors", _V251215.version, "remove model.multi_embedding"),
}


def check_options(options: ModelOptions) -> Capabilities:
    """Check the configured options against the model version; return its capabilities.

    Sources of the rules: the API's contract page for `dimensions`, the vendor's model guide for the rest. Raise
    ConfigError, with the model and the rule, for an option that the model does not support.
    """
    caps = find_capabilities(options)
    who = f"model {options.name!r} (version {caps.version})"
    choices = sorted({*caps.dimensions, *caps.cuts})
    if options.dimensions is not None and options.dimensions not in choices:
        raise ConfigError(
            f"{who} returns vectors of {' or '.join(map(str, choices))} dimensions, but model.dimensions is"
            f" {show_number(options.dimensions)}"
        )
    sampling = {} if options.video is None else options.video.set_fields()
    asked = {
        "sparse": options.sparse,
        "instructions": options.instructions is not None,
        "video_sampling": bool(sampling),
        "multi_embedding": options.asks_multi,
    }
    for capability, (lacks, since, remedy) in _DENIALS.items():
        if asked[capability] and not getattr(caps, capability):
            raise ConfigError(
                f"{who} {lacks}; versions from {since} on do: {remedy}, or list {capability} in model.allow"
            )
    flaw = find_sampling_flaw(sampling)
    if flaw is not None:
        raise ConfigError(f"model.video.{flaw}")
    if isinstance(options.instructions, str):
        check_utf8("model.instructions", options.instructions)
    return caps


def list_notes(options: ModelOptions, caps: Capabilities) -> tuple[str, ...]:
    """Return the warnings for the user about the model and the options; `caps.notes` come first."""
    return (*caps.notes, *_list_advice(options, caps))


def _list_advice(options: ModelOptions, caps: Capabilities) -> Iterator[str]:
    if caps.instructions and options.instructions is None:
        yield (
            "model.instructions is not set: for rows without their own instructions, the service derives them from the modalities;"
            " the vendor advises against that default, because instructions decide the quality of the vectors"
        )
    if options.asks_multi:
        token_kb = 25 if options.multi_embedding == "plain" else 5
        yield (
            f"model.multi_embedding is {options.multi_embedding}: replies have about {token_kb} kB per token, and a reply larger than"
            " api.reply_bytes_max is billed but can't be used; a video has 10,000 tokens or more"
        )


def dimensions_sent(options: ModelOptions, caps: Capabilities) -> int | None:
    """Return the value of the field `dimensions` in every request; None: the field is not sent."""
    return options.dimensions if caps.dimensions_field else None


def dimensions_stored(options: ModelOptions, caps: Capabilities) -> int:
    """Return the length of the dense vectors that the service returns; they are stored as received."""
    return dimensions_sent(options, caps) or caps.dimensions[0]


def dimensions_published(options: ModelOptions, caps: Capabilities) -> int:
    """Return the length of the dense vectors that are published.

    If it is less than `dimensions_stored`, each vector is cut to its first values and L2-normalised: this is the
    vendor's method for shorter vectors of version 250328.
    """
    return options.dimensions or caps.dimensions[0]


def find_misfit(request: Request, caps: Capabilities) -> Failure | None:
    """Return why the model can't process this request, or None. The rules of `check_options`, applied to one row."""
    kinds = [part.modality for part in request.parts]
    if not kinds:
        return Failure("input_empty", "the row has no text, image or video")
    if Modality.VIDEO in kinds and not caps.video:
        return Failure(
            "video_unsupported",
            f"model version {caps.version} does not accept videos; versions from {_V250615.version} on do",
        )
    if not caps.mixed and (kinds.count(Modality.TEXT) > 1 or kinds.count(Modality.IMAGE) > 1):
        return Failure("too_many_parts", f"model version {caps.version} accepts at most one text and one image")
    if request.instructions is not None and not caps.instructions:
        return Failure("instructions_unsupported", f"model version {caps.version} does not accept instructions")
    if request.sparse and not caps.sparse:
        return Failure("sparse_unsupported", f"model version {caps.version} does not return sparse vectors")
    if request.sparse and any(kind is not Modality.TEXT for kind in kinds):
        return Failure("sparse_needs_text_only", "sparse vectors are only for text-only rows")
    if not caps.video_sampling and any(part.sampling is not None for part in request.parts):
        return Failure("sampling_unsupported", f"model version {caps.version} does not accept video sampling")
    return None


def find_sampling_flaw(values: Mapping[str, object]) -> str | None:
    """Return what is wrong with the first invalid sampling argument, or None.

    `fps` may be a fraction; the others are integers.
    """
    for name, value in values.items():
        if name not in SAMPLING_RANGES:
            return f"{name} is not a sampling argument; allowed are {', '.join(SAMPLING_RANGES)}"
        low, high = SAMPLING_RANGES[name]
        kinds = (int, float) if name == "fps" else (int,)
        if type(value) not in kinds or not low <= value <= high:  # type: ignore[operator]
            what = "a number" if name == "fps" else "a whole number"
            return f"{name} is {show_number(value)}; it must be {what} from {low:,} to {high:,}"
    return None


def show_number(value: object) -> str:
    """Format a value for an error message, with a bounded length. Python refuses to format very long integers."""
    return "far out of range" if isinstance(value, int) and value.bit_length() > 64 else str(value)[:50]


def make_sampling(values: Mapping[str, float]) -> VideoSampling | None:
    """Make a VideoSampling from checked arguments; None if there are none.

    `fps` becomes a float, the others integers.
    """
    if not values:
        return None
    given = {name: float(value) if name == "fps" else int(value) for name, value in values.items()}
    return VideoSampling(**given)  # type: ignore[arg-type]


def overlay_sampling(*layers: VideoSampling | None) -> VideoSampling | None:
    """Merge samplings argument by argument: a value in a later layer overrides the value in an earlier one."""
    merged: dict[str, float] = {}
    for layer in layers:
        if layer is not None:
            merged |= layer.set_fields()
    return make_sampling(merged)
