"""The words every room speaks: what a row asks for, what it cost, why it failed."""

from dataclasses import dataclass, fields
from enum import StrEnum


class Modality(StrEnum):
    """What a part of a request is. The values are what staged rows and statistics are labelled with."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


class ServiceKind(StrEnum):
    """Who makes the vectors. Part of the fingerprint: a stand-in's vector never passes for a real one."""

    ARK = "ark"
    STAND_IN = "stand-in"


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How the service takes frames out of a video; what is None is not sent. Ranges: `ark.models.SAMPLING_RANGES`."""

    fps: float | None = None
    """Frames taken a second, 0.2 to 5."""
    max_video_tokens: int | None = None
    """Most tokens of all frames together, 10,240 to 204,800."""
    min_frame_tokens: int | None = None
    """Fewest tokens of a frame, 16 to 128."""
    max_frame_tokens: int | None = None
    """Most tokens of a frame, 128 to 640."""
    min_frames: int | None = None
    """Fewest frames taken, 5 to 16."""

    def set_fields(self) -> dict[str, float | int]:
        """The arguments that are set, in the order of the declaration."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a request. `value` is the text itself, or the URI or data URI of an image or a video.

    `sampling` is a video's own; None: nothing is sent and the service's defaults hold.
    """

    modality: Modality
    value: str
    sampling: VideoSampling | None = None


@dataclass(frozen=True, slots=True)
class Inline:
    """The bytes of a medium and their type: sent as a data URI in place of the part's own URI."""

    mime: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One sample as a manifest row asks for it: all parts together become one vector.

    `instructions` None means that the field is not sent; `sparse` that a sparse vector is asked for as well.
    """

    parts: tuple[Part, ...]
    instructions: str | None = None
    sparse: bool = False

    @property
    def modality(self) -> Modality:
        """The heaviest part's modality: it decides time-outs and which estimate is corrected."""
        modalities = {part.modality for part in self.parts}
        for heavy in (Modality.VIDEO, Modality.IMAGE):
            if heavy in modalities:
                return heavy
        return Modality.TEXT


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the service counted them; None where it did not say."""

    prompt_tokens: int | None = None
    total_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens that a request is expected to use, split as the service prices them."""

    text: int
    image: int

    @property
    def total(self) -> int:
        """Text and image tokens together: what counts against the tokens per minute."""
        return self.text + self.image


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no vector: a stable code for machines, a message for people (bounded, without secrets)."""

    code: str
    message: str
