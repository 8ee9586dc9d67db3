"""What is the same for every row of a run."""

from dataclasses import dataclass, field

from arkbeam.ark.instructions import InstructionOptions
from arkbeam.base.capabilities import Capabilities, EncodingFormat, MultiEmbedding
from arkbeam.base.records import ServiceKind, VideoSampling
from arkbeam.media import MediaOptions


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What rows are read for: the service, the model, and what is asked of it where a row says nothing."""

    service: ServiceKind
    model: str
    dimensions: int | None = None
    """As sent with every request; None: not sent."""
    instructions: str | InstructionOptions | None = None
    """Sent with rows that bring none of their own: a text as it is, or built for each row; None: not sent."""
    sparse: bool = False
    """Ask for sparse vectors, on rows of text alone."""
    capabilities: Capabilities | None = None
    """What the model can do; rows that ask for more are failures. None: rows are not checked against it."""
    media: MediaOptions = field(default_factory=MediaOptions)
    encoding_format: EncodingFormat = EncodingFormat.BASE64
    """As sent with every request; a row's body may repeat it."""
    multi_embedding: MultiEmbedding = "off"
    """Whether vectors of tokens are asked for, which is part of the fingerprint, and in which encoding, which is not."""
    video: VideoSampling | None = None
    """How frames are taken out of videos where a row does not say."""
    dimensions_published: int | None = None
    """Length of the vectors in the output, which a row's body may repeat; None: `dimensions`."""
