"""Records that every room uses: what a row asks for, what it cost, why it failed."""

from dataclasses import dataclass, fields
from enum import StrEnum


class Modality(StrEnum):
    """The kind of a part of a request. The values appear in staged rows and statistics."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


class ServiceKind(StrEnum):
    """Which kind of service makes the vectors.

    It is part of the fingerprint, so that a vector of a stand-in (the emulator) is never used as a real one.
    """

    ARK = "ark"
    STAND_IN = "stand-in"


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How the service samples frames from a video.

    Arguments that are None are not sent. Ranges: `ark.models.SAMPLING_RANGES`.
    """

    fps: float | None = None
    """Frames sampled per second of video, 0.2 to 5."""
    max_video_tokens: int | None = None
    """Maximum tokens of all frames together, 10,240 to 204,800."""
    min_frame_tokens: int | None = None
    """Minimum tokens per frame, 16 to 128."""
    max_frame_tokens: int | None = None
    """Maximum tokens per frame, 128 to 640."""
    min_frames: int | None = None
    """Minimum number of frames, 5 to 16."""

    def set_fields(self) -> dict[str, float | int]:
        """Return the arguments that are not None, in the order in which they are declared."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a request. `value` is the text, or the URI or data URI of an image or a video.

    `sampling` applies to this video only; None: no sampling arguments are sent and the service uses its defaults.
    """

    modality: Modality
    value: str
    sampling: VideoSampling | None = None


@dataclass(frozen=True, slots=True)
class Inline:
    """The bytes and MIME type of an image or video that are sent as a data URI instead of the part's own URI."""

    mime: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of a manifest row: all parts together become one vector.

    `instructions` None: the field is not sent. `sparse` True: the request asks for a sparse vector as well.
    """

    parts: tuple[Part, ...]
    instructions: str | None = None
    sparse: bool = False

    @property
    def modality(self) -> Modality:
        """The modality of the most expensive part: video, else image, else text.

        It selects the time-out and the token estimate.
        """
        modalities = {part.modality for part in self.parts}
        for heavy in (Modality.VIDEO, Modality.IMAGE):
            if heavy in modalities:
                return heavy
        return Modality.TEXT


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the service counted them; None if the reply does not contain the count."""

    prompt_tokens: int | None = None
    total_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens that a request is expected to use, split by price: text and image."""

    text: int
    image: int

    @property
    def total(self) -> int:
        """Text and image tokens together: they count against the tokens per minute."""
        return self.text + self.image


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no vector: a stable code for programs and a message for people (bounded length, no secrets)."""

    code: str
    message: str
