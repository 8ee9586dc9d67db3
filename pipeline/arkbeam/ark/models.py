"""What each version of the model can do, costs and allows; and what a config may therefore ask of it.

Everything hangs on the version, a six-digit date: names of models carry it, endpoints (`ep-…`) don't and need
`model.like`. Versions compare by date: one that this table does not know has what the newest known one before it has.
The contract page itself restricts `dimensions` alone; the rest is the vendor's model guide, which `model.allow`
overrides.
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
"""All models of the table: an account's limits are those of the family."""

SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "fps": (0.2, 5),
    "max_video_tokens": (10_240, 204_800),
    "min_frame_tokens": (16, 128),
    "max_frame_tokens": (128, 640),
    "min_frames": (5, 16),
}
"""Smallest and largest value of each argument, as the vendor's Go client checks them.

They meet at 128, so that `min_frame_tokens` is never above `max_frame_tokens`.
"""

ALLOWABLE = ("sparse", "instructions", "video_sampling", "multi_embedding")
"""What `model.allow` may name: capabilities that the vendor's guide gives to later versions."""


@dataclass(frozen=True, slots=True)
class PriceOptions:
    """What the account pays, where that is not the vendor's list price."""

    text_cny_per_million: float | None = None
    """CNY for a million text tokens; default: the model's in the vendor's list (0.70)."""
    image_cny_per_million: float | None = None
    """CNY for a million image tokens, frames of videos included; default: the model's in the vendor's list (1.80)."""

    def __post_init__(self) -> None:
        """Refuse what is no price."""
        for name in ("text_cny_per_million", "image_cny_per_million"):
            price = getattr(self, name)
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise ConfigError(f"model.prices.{name} is {price}; it must be a number that is not negative")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model makes the vectors, and what is asked of it. The `model:` section of the config."""

    name: str
    """Model ID with its date (`doubao-embedding-vision-251215`) or Endpoint ID (`ep-…`)."""
    dimensions: int | None = None
    """Length of the dense vectors, 1024 or 2048; unset: the field is not sent and the model's default holds. Version
    250328 makes 2048 alone: 1024 are cut from them and normalised when they are published."""
    sparse: bool = False
    """Ask for a sparse vector as well, on rows of text alone."""
    instructions: str | InstructionOptions | None = None
    """A text, sent verbatim with every request, or a scenario that builds each row's by the vendor's templates;
    unset: the service makes one up from the kinds of input, which the vendor advises against."""
    like: str | None = None
    """The version an endpoint or an unknown name stands for: a dated Model ID or its six digits."""
    encoding_format: EncodingFormat | None = EncodingFormat.BASE64
    """How vectors travel, not what they are: `base64`, `float`, `null` (quoted or not: the field is sent as JSON null),
    or `absent` (the field is not sent)."""
    multi_embedding: Literal["off", "plain", "zstd", False] = "off"
    """Ask for one vector per token as well: `plain` as numbers, about 25 kB a token, or `zstd`, a fifth of that. Kept
    as float16; plain numbers that float16 can't hold are rounded."""
    video: VideoSampling | None = None
    """How the service takes frames out of videos, where a row does not say."""
    allow: tuple[str, ...] = ()
    """Capabilities to use although the model's version is listed without them: `instructions`, `sparse`,
    `video_sampling`, `multi_embedding`."""
    prices: PriceOptions = field(default_factory=PriceOptions)
    """What the account pays."""

    def __post_init__(self) -> None:
        """Take YAML's null and off for the words that they stand for."""
        if self.encoding_format is None:
            object.__setattr__(self, "encoding_format", EncodingFormat.NULL)
        if self.multi_embedding is False:
            object.__setattr__(self, "multi_embedding", "off")

    @property
    def asks_multi(self) -> bool:
        """Whether one vector per token is asked for, in whichever encoding."""
        return self.multi_embedding not in (False, "off")


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
    """Find what the configured model can do, `model.allow` included.

    Raises ConfigError when the name tells no version and `model.like` is missing, malformed or contradicts the name, and
    when `model.allow` names no capability.
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
    return _price(options.prices, _allow(options, _capabilities_of(version[1], options.name)))


def _price(prices: PriceOptions, caps: Capabilities) -> Capabilities:
    paid = {"price_text_cny_per_million": prices.text_cny_per_million}
    paid |= {"price_image_cny_per_million": prices.image_cny_per_million}
    own: dict[str, Any] = {name: price for name, price in paid.items() if price is not None}
    return replace(caps, **own) if own else caps


def _allow(options: ModelOptions, caps: Capabilities) -> Capabilities:
    """Add what the user insists on; a note names what the table would have denied."""
    for name in options.allow:
        if name not in ALLOWABLE:
            raise ConfigError(f"model.allow has {name!r}, which is none of {', '.join(ALLOWABLE)}")
    added: dict[str, Any] = {name: True for name in options.allow if not getattr(caps, name)}
    if not added:
        return caps
    who = f"model {options.name!r} (version {caps.version})"
    note = f"{who} is listed without {', '.join(added)}; model.allow says otherwise"
    return replace(caps, notes=(*caps.notes, note), **added)


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


_DENIALS = {
    "sparse": ("makes no sparse vectors", _V250615.version, "remove model.sparse"),
    "instructions": (
        "takes no instructions",
        _V251215.version,
        "remove model.instructions and put the instruction in front of the text",
    ),
    "video_sampling": ("takes no sampling of videos", _V251215.version, "remove model.video"),
    "multi_embedding": ("makes no vectors of tokens", _V251215.version, "remove model.multi_embedding"),
}


def check_options(options: ModelOptions) -> Capabilities:
    """Refuse what the configured model can't do; return what it can.

    `dimensions` is restricted by the API's contract page, all else by the vendor's model guide. Raises ConfigError
    naming the model and the rule.
    """
    caps = find_capabilities(options)
    who = f"model {options.name!r} (version {caps.version})"
    choices = sorted({*caps.dimensions, *caps.cuts})
    if options.dimensions is not None and options.dimensions not in choices:
        raise ConfigError(
            f"{who} gives vectors of {' or '.join(map(str, choices))} dimensions: model.dimensions is"
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
            raise ConfigError(f"{who} {lacks}, {since} and later do: {remedy}, or list {capability} in model.allow")
    flaw = find_sampling_flaw(sampling)
    if flaw is not None:
        raise ConfigError(f"model.video.{flaw}")
    if isinstance(options.instructions, str):
        check_utf8("model.instructions", options.instructions)
    return caps


def notes(options: ModelOptions, caps: Capabilities) -> tuple[str, ...]:
    """List what the user should be told about the model and what is asked of it; `caps.notes` come first."""
    return (*caps.notes, *_list_advice(options, caps))


def _list_advice(options: ModelOptions, caps: Capabilities) -> Iterator[str]:
    if caps.instructions and options.instructions is None:
        yield (
            "model.instructions is not set: rows that bring none are sent without, and the service makes one up from the"
            " kinds of input; the vendor advises against that default, since it decides the quality of the vectors"
        )
    if options.asks_multi:
        token_kb = 25 if options.multi_embedding == "plain" else 5
        yield (
            f"model.multi_embedding is {options.multi_embedding}: replies hold about {token_kb} kB for each token, and a"
            " paid one that is longer than api.reply_bytes_max is lost: a video has 10,000 tokens and more"
        )


def dimensions_sent(options: ModelOptions, caps: Capabilities) -> int | None:
    """What goes into the field `dimensions` of every request; None: the field is not sent."""
    return options.dimensions if caps.dimensions_field else None


def dimensions_stored(options: ModelOptions, caps: Capabilities) -> int:
    """Length of the dense vectors that the service will return, and that are stored as received."""
    return dimensions_sent(options, caps) or caps.dimensions[0]


def dimensions_published(options: ModelOptions, caps: Capabilities) -> int:
    """Length of the dense vectors that are published.

    Where it is less than `dimensions_stored`, the first so many values are published, L2-normalised: the vendor's way
    to shorter vectors of version 250328.
    """
    return options.dimensions or caps.dimensions[0]


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
    if not caps.video_sampling and any(part.sampling is not None for part in request.parts):
        return Failure("sampling_unsupported", f"model version {caps.version} takes no sampling of videos")
    return None


def find_sampling_flaw(values: Mapping[str, object]) -> str | None:
    """Say which argument is not as the API takes it, or None. `fps` may be a fraction, the others are whole numbers."""
    for name, value in values.items():
        if name not in SAMPLING_RANGES:
            return f"{name} is not known; there may be {', '.join(SAMPLING_RANGES)}"
        low, high = SAMPLING_RANGES[name]
        kinds = (int, float) if name == "fps" else (int,)
        if type(value) not in kinds or not low <= value <= high:  # type: ignore[operator]
            what = "a number" if name == "fps" else "a whole number"
            return f"{name} is {show_number(value)}; it must be {what} from {low:,} to {high:,}"
    return None


def show_number(value: object) -> str:
    """Write what should have been a number, in bounded length; Python itself refuses to write very long integers."""
    return "far out of range" if isinstance(value, int) and value.bit_length() > 64 else str(value)[:50]


def make_sampling(values: Mapping[str, float]) -> VideoSampling | None:
    """Make the sampling of checked arguments; None where there are none. One value has one form: `fps` is a float."""
    if not values:
        return None
    given = {name: float(value) if name == "fps" else int(value) for name, value in values.items()}
    return VideoSampling(**given)  # type: ignore[arg-type]


def overlay_sampling(*layers: VideoSampling | None) -> VideoSampling | None:
    """Put samplings over one another, argument by argument: a later layer's word counts."""
    merged: dict[str, float] = {}
    for layer in layers:
        if layer is not None:
            merged |= layer.set_fields()
    return make_sampling(merged)
