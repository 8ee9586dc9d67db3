"""Find the manifests and cut them into shards."""

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from fsspec.core import has_magic

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact, redact_uri, strip_user_info
from arkbeam.base.uris import find_filesystem
from arkbeam.manifest.compression import ENDINGS, Compression, find_compression
from arkbeam.manifest.failures import list_named_manifests
from arkbeam.manifest.finding import FOOTER_THREADS, Found, WrittenFolder, find_failure_tables, find_files
from arkbeam.manifest.json_array import is_array
from arkbeam.manifest.lines import ends_with_cr
from arkbeam.manifest.options import Format, ManifestOptions
from arkbeam.manifest.storage import manifest_errors, read_start, version_of, without_query
from arkbeam.manifest.text import HEAD_BYTES, is_utf8_name

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
WHOLE = 2**63 - 1
"""The end of a shard that is a whole file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file to read. `label` is its name in default ids."""

    uri: str
    label: str
    format: Format
    compression: Compression | None
    """What the name says; the first bytes decide when the file is read."""
    bytes: int | None
    """Size of the file; None if the storage does not report it."""
    version: str = ""
    """Identifies this state of the file, as `storage.version_of` returns it; empty if unknown."""
    failures: tuple[str, ...] = ()
    """Failure tables that name rows of this manifest: only these rows are read. Empty: all rows are read."""
    other_names: tuple[str, ...] = ()
    """Other URIs under which the same file was found. It is read once, as `uri`."""
    is_utf8: bool = True
    """False: the file is in another encoding, so that it is not cut into shards."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a manifest that one worker reads.

    For uncompressed JSONL in UTF-8, `start` and `end` are byte offsets: the shard has the lines whose first byte is in
    [start, end). For Parquet they are numbers of row groups. For other formats, and if `failures` is set, the shard is
    the whole file, and so it is if the first bytes of a JSONL file show that it is compressed.
    """

    number: int
    manifest: str
    label: str
    format: Format
    compression: Compression | None
    start: int
    end: int
    version: str = ""
    """The manifest's version when it was cut; it must be the same when the shard is read."""
    failures: tuple[str, ...] = ()
    """As in `Manifest`."""
    bytes: int = 0
    """About how many bytes of the file the shard has; 0 if this is unknown. Only the progress display uses it."""
    rows: int = 0
    """How many rows it has, as far as the file says so without being read: in Parquet; otherwise 0."""


class _Cut(NamedTuple):
    """The place and the size of a shard, as in `Shard`."""

    start: int
    end: int
    bytes: int = 0
    rows: int = 0


def list_manifests(options: ManifestOptions, written: Sequence[WrittenFolder] = ()) -> list[Manifest]:
    """List the manifests that `options.uris` name, each file once, sorted by URI.

    A label is the path below the folder that all of `options.uris` have in common, so it does not change when a glob
    matches more files. A glob skips folders and hidden names (`manifest.globs`). A failure table, or a folder of failure
    tables, is replaced by the manifests that it names. `written` is what the run will write.

    Raise ManifestError if a file is missing, a glob matches nothing or what the run writes, or a format is unknown.
    """
    found = find_files(options.uris, written)
    if not found:
        raise ManifestError("manifest.uris is empty: name at least one file or glob")
    failures = find_failure_tables(found, written)
    if failures:
        return _list_named_by_failures(failures, found, options)
    root = posixpath.commonpath(folders) if (folders := _fixed_folders(options.uris)) else None
    return _tell_apart([_describe(one, root, options) for one in found])


def manifest_folders(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    """Return the folders of the manifests: the default for the folders from which media may be read."""
    return tuple(sorted({folder_of(manifest.uri) for manifest in manifests}))


def folder_of(uri: str) -> str:
    """Return the folder of a file, as a URI of the same scheme."""
    return uri.rpartition("/")[0] or "/"


def cut_shards(manifests: Sequence[Manifest], bytes_max: int) -> list[Shard]:
    """Cut manifests into shards of about `bytes_max` bytes, numbered in the order of the manifests.

    Uncompressed JSONL in UTF-8 is cut by size alone; Parquet is cut between row groups, whose sizes are read from the
    footer. Raise ManifestError if a footer, or the start of a JSON file that is to be cut, can't be read.
    """
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        ranges = list(pool.map(lambda manifest: _cut(manifest, bytes_max), manifests))
    shards: list[Shard] = []
    for manifest, cuts in zip(manifests, ranges, strict=True):
        for cut in cuts:
            number = len(shards)
            shards.append(
                Shard(
                    number,
                    manifest.uri,
                    manifest.label,
                    manifest.format,
                    manifest.compression,
                    cut.start,
                    cut.end,
                    manifest.version,
                    manifest.failures,
                    cut.bytes,
                    cut.rows,
                )
            )
    return shards


def _list_named_by_failures(
    failures: Sequence[str], found: Iterable[Found], options: ManifestOptions
) -> list[Manifest]:
    """Describe the manifests that failure tables name, sorted by URI."""
    others = sorted({one.uri for one in found}.difference(failures))
    if others:
        raise ManifestError(
            f"manifest.uris names both failure tables, such as {redact(failures[0])}, and other manifests, such as"
            f" {redact(others[0])}: use one kind or the other in a run"
        )
    naming: dict[str, list[str]] = {}
    for uri in sorted(failures):
        for name in list_named_manifests(uri, options):
            naming.setdefault(name, []).append(uri)
    return [replace(describe_manifest(name, options), failures=tuple(uris)) for name, uris in sorted(naming.items())]


def describe_manifest(uri: str, options: ManifestOptions) -> Manifest:
    """Describe one manifest by its name; its size and version are unknown. Raise ManifestError for an unknown format."""
    return _describe(Found(uri, uri, {}), None, options)


def _cut(manifest: Manifest, bytes_max: int) -> list[_Cut]:
    if manifest.failures:
        return [_Cut(0, WHOLE)]
    if manifest.bytes == 0:
        return []
    if manifest.format == "parquet":
        return _cut_parquet(manifest.uri, bytes_max)
    whole = _Cut(0, WHOLE, manifest.bytes or 0)
    is_plain = manifest.format in ("jsonl", "json") and manifest.compression is None and manifest.is_utf8
    if is_plain and manifest.bytes is not None:
        size = manifest.bytes
        if size > bytes_max and not _has_line_feeds(manifest):
            return [whole]
        ends = [(start, min(start + bytes_max, size)) for start in range(0, size, bytes_max)]
        return [_Cut(start, end, end - start) for start, end in ends]
    return [whole]


def _has_line_feeds(manifest: Manifest) -> bool:
    """True if the rows of a JSON Lines or JSON file are lines that end with line feeds, as far as its start shows."""
    head = read_start(manifest.uri, HEAD_BYTES)
    if find_compression(head) is not None or ends_with_cr(head, manifest.format):
        return False
    return not (manifest.format == "json" and is_array(head))


def _cut_parquet(uri: str, bytes_max: int) -> list[_Cut]:
    with manifest_errors(uri):
        filesystem, path = find_filesystem(uri)
        with filesystem.open(path, "rb") as stream:
            footer = pq.read_metadata(stream)
            groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
            sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    cuts: list[_Cut] = []
    start = taken = rows = 0
    for index, (size, count) in enumerate(sizes):
        if index > start and taken + size > bytes_max:
            cuts.append(_Cut(start, index, taken, rows))
            start, taken, rows = index, 0, 0
        taken += size
        rows += count
    return [*cuts, _Cut(start, len(sizes), taken, rows)] if sizes else cuts


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def split_endings(name: str) -> tuple[str, str, Compression | None]:
    """Split a file's name: `2024/a`, `.csv` and `gzip` for `2024/a.CSV.gz`."""
    stem, ending = posixpath.splitext(name)
    compression = ENDINGS.get(ending.lower())
    if compression is not None:
        stem, ending = posixpath.splitext(stem)
    return stem, ending.lower(), compression


def _fixed_folders(uris: Iterable[str]) -> list[str]:
    """Return the folder above each URI's first wildcard; an empty list if the URIs have different schemes."""
    folders = []
    schemes = set()
    for uri in uris:
        filesystem, path = find_filesystem(uri)
        schemes.add(_protocols(filesystem))
        names = path.split("/")[:-1]
        fixed = next((index for index, name in enumerate(names) if has_magic(name)), len(names))
        folders.append("/".join(names[:fixed]) or "/")
    return folders if len(schemes) == 1 and len({folder.startswith("/") for folder in folders}) == 1 else []


def _describe(found: Found, root: str | None, options: ManifestOptions) -> Manifest:
    uri, path = found.uri, find_filesystem(found.uri)[1]
    _check_name(uri)
    bare = strip_user_info(without_query(uri if root is None else path))
    label = bare if root is None else posixpath.relpath(bare, strip_user_info(root))
    _, ending, compression = split_endings(without_query(uri).rstrip())
    format_ = FORMATS.get(ending) if options.format == "auto" else options.format
    if format_ is None:
        raise ManifestError(f"manifest {redact(uri)}: the file name does not show the format: set manifest.format")
    if format_ == "parquet" and compression is not None:
        raise ManifestError(
            f"manifest {redact(uri)} is a Parquet file that was compressed as a whole, which is not supported: decompress it"
        )
    is_utf8 = is_utf8_name(options.encoding_of(format_)[0])
    size, version = found.info.get("size"), version_of(found.info)
    return Manifest(uri, label, format_, compression, size, version, other_names=found.other_names, is_utf8=is_utf8)


def _check_name(uri: str) -> None:
    """Raise ManifestError for a name that is not UTF-8, since the output could not name the file."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        shown = uri.encode("utf-8", "backslashreplace").decode()
        raise ManifestError(f"manifest {redact(shown)}: its path is not valid UTF-8: rename it") from None


def _tell_apart(manifests: list[Manifest]) -> list[Manifest]:
    """Label files that share a label, such as URLs that differ only in their queries, by their whole URIs."""
    uses = Counter(manifest.label for manifest in manifests)
    return [
        replace(manifest, label=redact_uri(manifest.uri)) if uses[manifest.label] > 1 else manifest
        for manifest in manifests
    ]
