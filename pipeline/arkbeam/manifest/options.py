"""The `manifest:` section of the config: which files are read, and what their columns hold."""

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
    """Names of the manifest's columns by what they hold; `text`, `image` and `video` take one name or a list of names.

    If none of `text`, `image`, `video` and `input` is set, the row's keys decide: `text`, `image` and `video`; or
    `input`; or `body`, which holds a whole request. If any of the four is set, the row's content is read from the set
    ones only. `instructions`, `sparse` and `video_sampling` are read in both cases.
    """

    id: str | None = None
    """Column with the row's id; not set: `id`, else `custom_id`. A row without an id gets `<file>:<row>`."""
    text: Names = ()
    """Column or columns with texts."""
    image: Names = ()
    """Column or columns with images. A cell holds a URL, a path or a data URI, or a list of them."""
    video: Names = ()
    """Column or columns with videos, in the same forms as images."""
    input: str | None = None
    """Column with a list of parts in the form of the API's `input` field; their order is kept."""
    instructions: str | None = None
    """Column with the row's own instructions, which are sent unchanged. An empty cell means `model.instructions`."""
    sparse: str | None = None
    """Column with `true` or `false`: whether the row asks for a sparse vector. A row with media and `true` becomes a
    failure row. An empty cell means `model.sparse`."""
    video_sampling: str | None = None
    """Column with an object that says how frames are taken from the row's videos. Keys: `fps`, `max_video_tokens`,
    `min_frame_tokens`, `max_frame_tokens`, `min_frames`; missing keys are taken from `model.video`."""

    def __post_init__(self) -> None:
        """Turn a single name into a tuple."""
        for name in ("text", "image", "video"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    @property
    def is_default(self) -> bool:
        """True if no content column is mapped, so that the row's keys decide what it asks for."""
        return not (self.text or self.image or self.video or self.input)


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Which manifests a run reads, and how."""

    uris: Names
    """Manifest files, one or a list: paths or URIs of any fsspec scheme, also with wildcards (`data/*.jsonl`). The
    `failures/` folder of an output may be given as well: the rows that failed are then read again from their own
    manifests."""
    columns: ColumnMap = ColumnMap()
    keep: Names = ()
    """Column or columns that are copied to the output, each value exactly. If files differ in the type of a column, it
    gets a type that holds all values, else it is text."""
    format: Literal["auto"] | Format = "auto"
    """`jsonl`, `csv`, `tsv` or `parquet`; `auto`: by the file name, without its ending `.gz` or `.zst`."""
    shard_bytes_max: int = 64 * MEBIBYTE
    """Uncompressed JSONL files and Parquet files are cut into shards of about this many bytes; other files are not
    cut."""
    roots: Names = ()
    """Folders from which manifests are read if a failure table names them. Not set: the working directory and the
    folder that contains the output with the failures; in an object store, its bucket."""
    line_bytes_max: int = 16 * MEBIBYTE
    """Most bytes of a line or record; a longer one becomes a failure row. The largest image that the API accepts fits
    as a data URI (13.4 MB); raise this limit for videos in data URIs."""
    parts_max: int = 256
    """Most parts of a row; a row with more becomes a failure row."""
    expanded_bytes_max: int = 64 * 1024 * MEBIBYTE
    """Most bytes that a `.gz` or `.zst` manifest, or a row group of Parquet, may expand to; above it the run stops."""
    expand_ratio_max: int = 200
    """The same limit as a multiple of the file's size; it applies once more than 64 MiB have been expanded."""

    def __post_init__(self) -> None:
        """Turn single names into tuples; in a list, repeated names count once."""
        for name in ("uris", "keep", "roots"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(dict.fromkeys(value)))


@dataclass(frozen=True, slots=True)
class ReadContext:
    """The settings of a run that requests and fingerprints depend on; the same for every row."""

    service: ServiceKind
    """Part of every fingerprint."""
    model: ModelSpec
    """The `model:` section, which holds for rows without their own settings, and what the model supports."""
    media: MediaOptions = field(default_factory=MediaOptions)
