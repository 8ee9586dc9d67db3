"""What is the same for every row of a run."""

from dataclasses import dataclass, field

from pipeline.ark.models import Capabilities
from pipeline.media import MediaOptions
from pipeline.records import ServiceKind


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What rows are read for: the service, the model, and what is asked of it where a row says nothing."""

    service: ServiceKind
    model: str
    dimensions: int | None = None
    """As sent with every request; None: not sent."""
    instructions: str | None = None
    """Sent with rows that bring none of their own; None: not sent."""
    sparse: bool = False
    """Ask for sparse vectors, on rows of text alone."""
    capabilities: Capabilities | None = None
    """What the model can do; rows that ask for more are failures. None: rows are not checked against it."""
    media: MediaOptions = field(default_factory=MediaOptions)
