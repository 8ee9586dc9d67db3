"""The `manifest:` section of the config: which files, and what their columns mean."""

from dataclasses import dataclass, field
from typing import Literal

from arkbeam.ark.wire import ModelSpec
from arkbeam.base.records import ServiceKind
from arkbeam.media.options import MediaOptions

MEBIBYTE = 1024 * 1024

Format = Literal["jsonl", "csv", "tsv", "parquet"]
Names = tuple[str, ...] | str


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Names of the manifest's columns by what they hold; `text`, `image` and `video` may be one name or a list.

    With none of `text`, `image`, `video` and `input` set, a row's own keys decide: `text`, `image`, `video`, or `input`,
    or `body`; with any of them set, only those are read. `id` unset means `id` or `custom_id`. The last three are read
    in either case.
    """

    id: str | None = None
    """The rows' own ids; a row without one gets `<file>:<row>`."""
    text: Names = ()
    """Texts."""
    image: Names = ()
    """Images: URLs, paths, or data URIs."""
    video: Names = ()
    """Videos, likewise."""
    input: str | None = None
    """A list of parts as the API takes it, kept in its order."""
    instructions: str | None = None
    """A row's own instructions, sent verbatim; an empty cell takes `model.instructions`."""
    sparse: str | None = None
    """Whether a row asks for a sparse vector, `true` (a failure beside media) or `false`; an empty cell takes
    `model.sparse`."""
    video_sampling: str | None = None
    """How frames are taken out of a row's videos: an object of `fps`, `max_video_tokens`, `min_frame_tokens`,
    `max_frame_tokens`, `min_frames`; what it leaves out is taken from `model.video`."""

    def __post_init__(self) -> None:
        """Make a tuple of what was written as one name."""
        for name in ("text", "image", "video"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def is_default(self) -> bool:
        """Whether a row's own keys decide what it asks for."""
        return not (self.text or self.image or self.video or self.input)


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Which manifests a run reads, and how."""

    uris: Names
    """Files and globs, of any fsspec scheme."""
    columns: ColumnMap = ColumnMap()
    keep: Names = ()
    """Columns carried to the output as they are."""
    format: Literal["auto"] | Format = "auto"
    """`auto`: by the file's name, below `.gz` and `.zst`."""
    shard_bytes_max: int = 64 * MEBIBYTE
    """Plain JSONL and Parquet are cut into shards of about this size."""
    roots: Names = ()
    """Folders below which a table of failures, given as a manifest, may name manifests; none: the working directory and
    the folder that the output with the failures lies in, or its bucket."""
    line_bytes_max: int = 16 * MEBIBYTE
    """A longer line or record is a failure row. The largest image the API takes fits as a data URI (13.4 MB); for videos
    in data URIs raise it."""
    parts_max: int = 256
    """A row of more parts is a failure row."""
    expanded_bytes_max: int = 64 * 1024 * MEBIBYTE
    """A `.gz` or `.zst` manifest that expands beyond this can't be read."""
    expand_ratio_max: int = 200
    """Nor one that expands to more than this many times its size, once it is above 64 MiB."""

    def __post_init__(self) -> None:
        """Make tuples of what was written as one name; what is named twice counts once."""
        for name in ("uris", "keep", "roots"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(dict.fromkeys(value)))


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What the rows of a run are read for; the same for every row."""

    service: ServiceKind
    """Part of every fingerprint."""
    model: ModelSpec
    """What is asked of the model where a row says nothing, and what a row may ask for."""
    media: MediaOptions = field(default_factory=MediaOptions)
