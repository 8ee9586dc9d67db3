"""The `manifest:` section of the config: which files are read, and what their columns hold."""

from dataclasses import dataclass, field
from typing import Literal

from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ConfigError
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.text import is_text_encoding
from arkbeam.media.options import MediaOptions

MEBIBYTE = 1024 * 1024

Format = Literal["jsonl", "json", "csv", "tsv", "parquet"]
Names = tuple[str, ...] | str


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Names of the manifest's columns by what they hold; `text`, `image` and `video` take one name or a list of names.

    If none of `text`, `image`, `video` and `input` is set, the row's keys decide: `text`, `image` and `video`; or
    `input`; or `body`, which holds a whole request. If any of the four is set, the row's content is read from the set
    ones only. `instructions`, `sparse` and `video_sampling` are read in both cases.
    """

    id: str | None = None
    """Column with the row's id. Not set: `id`, or `custom_id` if `id` is missing, empty or blank. A row without an id
    gets `<file>:<row>`."""
    text: Names = ()
    """Column or columns with texts."""
    image: Names = ()
    """Column or columns with images. A cell holds a URL, a path or a data URI, or a list of them; in Parquet also the
    bytes: a binary column, or a struct `{bytes, path}`."""
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


def _check_encoding(key: str, encoding: str | None) -> None:
    if encoding is not None and not is_text_encoding(encoding):
        raise ConfigError(f"{key}: Python has no text encoding {encoding[:50]!r}; use a name such as gb18030 or cp1252")


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How CSV and TSV files are written."""

    delimiter: str | None = None
    """The character between two cells. Not set: a comma in CSV, a tab in TSV, or what a first line such as `sep=;`
    says. `\\t` is a tab."""
    quote: str | None = None
    """The character around cells that may hold delimiters, line ends and, doubled, the character itself. Not set: `"` in
    CSV, none in TSV. An empty string: none; then quotes are characters like any other."""
    escape: str | None = None
    """The character, such as a backslash, that takes its meaning from a quote, delimiter, line end or escape character
    behind it. Before any other character it stands for itself. Not set: none; `"a \\"b\\""` as Spark and MySQL write it
    needs `'\\'`."""
    header: bool | Names = True
    """`true`: the first line names the columns. For a file without such a line, the list of the names."""
    encoding: str | None = None
    """Encoding of CSV and TSV files; not set: `manifest.encoding`."""
    lines_max: int = 10_000
    """Most lines of a record. A quote that is still open after so many lines is taken for a stray one."""
    inner_records: bool = False
    """Also accept a record in which a line looks like a record of its own. By default such a record becomes a failure
    row, because it is what two stray quotes make of the records between them."""

    def __post_init__(self) -> None:
        """Normalise the delimiter of a tab and the list of names. Raise ConfigError for values without a meaning."""
        object.__setattr__(self, "delimiter", "\t" if self.delimiter == "\\t" else self.delimiter)
        if not isinstance(self.header, bool):
            object.__setattr__(self, "header", (self.header,) if isinstance(self.header, str) else tuple(self.header))
        used = {"delimiter": self.delimiter, "quote": self.quote or None, "escape": self.escape}
        for name, char in used.items():
            if char is not None and (len(char) != 1 or char in "\r\n\0"):
                raise ConfigError(
                    f"manifest.csv.{name}: must be one character, and not a line end; it is {char[:20]!r}"
                )
        quote = '"' if self.quote is None else self.quote
        if quote and quote == self.escape:
            raise ConfigError("manifest.csv.escape: must not be the quote; leave it out if quotes in cells are doubled")
        if not {self.delimiter or ",", self.delimiter or "\t"}.isdisjoint({quote, self.escape}):
            raise ConfigError("manifest.csv: delimiter, quote and escape must be different characters")
        if not self.header:
            raise ConfigError(
                "manifest.csv.header: must be true, or the names of the columns of a file without a header"
            )
        if self.lines_max < 1:
            raise ConfigError(f"manifest.csv.lines_max: must be at least 1; it is {self.lines_max}")
        _check_encoding("manifest.csv.encoding", self.encoding)


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Which manifests a run reads, and how."""

    uris: Names
    """Manifest files, one or a list: paths or URIs of any fsspec scheme, also with wildcards (`data/*.jsonl`, and `**` for
    any folders). Wildcards match no hidden names, which start with `.` or `_`; links are followed. The `failures/` folder
    of an output may be given as well: the rows that failed are then read again from their own manifests."""
    columns: ColumnMap = ColumnMap()
    keep: Names = ()
    """Column or columns that are copied to the output, each value exactly. If files differ in the type of a column, it
    gets a type that holds all values, else it is text. A column that the file lacks is taken, as text, from the folders
    of its path, such as `day=2024-01-01/`."""
    format: Literal["auto"] | Format = "auto"
    """`jsonl`, `json` (one array, or lines as in `jsonl`), `csv`, `tsv` or `parquet`; `auto`: by the file name, without
    its ending `.gz`, `.zst`, `.bz2` or `.xz`."""
    shard_bytes_max: int = 64 * MEBIBYTE
    """Uncompressed JSONL files in UTF-8 and Parquet files are cut into shards of about this many bytes; other files are
    not cut."""
    roots: Names = ()
    """Folders from which manifests are read if a failure table names them. Not set: the working directory and the
    folder that contains the output with the failures; in an object store, its bucket."""
    line_bytes_max: int = 16 * MEBIBYTE
    """Most bytes of a line or record; a longer one becomes a failure row. The largest image that the API accepts fits
    as a data URI (13.4 MB); raise this limit for videos in data URIs. For Parquet rows that hold the bytes of media,
    `media.body_bytes_max` is the limit if it is larger."""
    parts_max: int = 256
    """Most parts of a row; a row with more becomes a failure row."""
    expanded_bytes_max: int = 64 * 1024 * MEBIBYTE
    """Most bytes that a compressed manifest, or a row group of Parquet, may expand to; above it the run stops."""
    expand_ratio_max: int = 200
    """The same limit as a multiple of the file's size; it applies once more than 64 MiB have been expanded."""
    encoding: str = "utf-8"
    """Encoding of JSONL, JSON, CSV and TSV files: any text encoding of Python, such as `gb18030`, `cp1252`, `utf-16` or
    `shift_jis`."""
    csv: CsvOptions = CsvOptions()

    def __post_init__(self) -> None:
        """Turn single names into tuples; in a list, repeated names count once."""
        for name in ("uris", "keep", "roots"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(dict.fromkeys(value)))
        _check_encoding("manifest.encoding", self.encoding)

    def encoding_of(self, kind: Format) -> tuple[str, str]:
        """Return the encoding of text files of a format, and the key of the config that sets it."""
        if kind in ("csv", "tsv"):
            return self.csv.encoding or self.encoding, "manifest.csv.encoding"
        return self.encoding, "manifest.encoding"


@dataclass(frozen=True, slots=True)
class ReadContext:
    """The settings of a run that requests and fingerprints depend on; the same for every row."""

    service: ServiceKind
    """Part of every fingerprint."""
    model: ModelSpec
    """The `model:` section, which holds for rows without their own settings, and what the model supports."""
    media: MediaOptions = field(default_factory=MediaOptions)
