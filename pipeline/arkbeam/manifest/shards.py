"""Find the manifests and cut them into shards."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow.parquet as pq
from fsspec.core import has_magic

from arkbeam.base.errors import ManifestError
from arkbeam.base.files import full_uri
from arkbeam.base.redaction import redact, strip_user_info
from arkbeam.manifest.failures import is_failure_table, list_named_manifests
from arkbeam.manifest.json_array import is_array
from arkbeam.manifest.lines import ends_with_cr
from arkbeam.manifest.options import Format, ManifestOptions
from arkbeam.manifest.storage import manifest_errors, version_of
from arkbeam.manifest.text import HEAD_BYTES, is_utf8_name

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_WHOLE = 2**63 - 1
_FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file to read. `label` is its name in default ids."""

    uri: str
    label: str
    format: Format
    compression: str | None
    bytes: int | None
    """Size of the file; None if the storage does not report it."""
    version: str = ""
    """Identifies this state of the file, as `storage.version_of` returns it; empty if unknown."""
    failures: tuple[str, ...] = ()
    """Failure tables that name rows of this manifest: only these rows are read. Empty: all rows are read."""
    is_utf8: bool = True
    """False: the file is in another encoding, so that it is not cut into shards."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a manifest that one worker reads.

    For uncompressed JSONL in UTF-8, `start` and `end` are byte offsets: the shard has the lines whose first byte is in
    [start, end). For Parquet they are numbers of row groups. For other formats, and if `failures` is set, the shard is
    the whole file.
    """

    number: int
    manifest: str
    label: str
    format: Format
    compression: str | None
    start: int
    end: int
    version: str = ""
    """The manifest's version when it was cut; it must be the same when the shard is read."""
    failures: tuple[str, ...] = ()
    """As in `Manifest`."""


def list_manifests(options: ManifestOptions) -> list[Manifest]:
    """List the manifests that `options.uris` name, each once, sorted by URI.

    A label is the path below the folder that all of `options.uris` have in common, so it does not change when a glob
    matches more files. A glob skips folders, and names that start with `_` or `.`, such as `_SUCCESS`. A failure table,
    or a folder of failure tables, is replaced by the manifests that it names.

    Raise ManifestError if a file is missing, a glob matches nothing, a format is unknown, or all files are empty.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for uri in options.uris:
        found.update(_find(uri))
    if not found:
        raise ManifestError("manifest.uris is empty: name at least one file or glob")
    failures = _find_failure_tables(found, options)
    if failures:
        return _list_named_by_failures(failures, found, options)
    root = posixpath.commonpath(folders) if (folders := _fixed_folders(options.uris)) else None
    manifests = [_describe(uri, found[uri], root, options) for uri in sorted(found)]
    if all(manifest.bytes == 0 for manifest in manifests):
        raise ManifestError(f"nothing to read: all manifests are empty files: {redact(', '.join(found))}")
    return manifests


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
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        ranges = list(pool.map(lambda manifest: _cut(manifest, bytes_max), manifests))
    shards: list[Shard] = []
    for manifest, cuts in zip(manifests, ranges, strict=True):
        for start, end in cuts:
            number = len(shards)
            shards.append(
                Shard(
                    number,
                    manifest.uri,
                    manifest.label,
                    manifest.format,
                    manifest.compression,
                    start,
                    end,
                    manifest.version,
                    manifest.failures,
                )
            )
    return shards


def _find_failure_tables(uris: Iterable[str], options: ManifestOptions) -> list[str]:
    """Return the files that are failure tables."""
    tables = [uri for uri in uris if _FORMATS.get(posixpath.splitext(uri.partition("?")[0])[1].lower()) == "parquet"]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return [uri for uri, found in zip(tables, pool.map(_holds_failures, tables), strict=True) if found]


def _holds_failures(uri: str) -> bool:
    try:
        with manifest_errors(uri):
            filesystem, path = fsspec.core.url_to_fs(uri)
            with filesystem.open(path, "rb") as stream:
                return is_failure_table(pq.read_schema(stream))
    except ManifestError:  # not a valid Parquet file: the error is reported when its rows are read
        return False


def _list_named_by_failures(
    failures: Sequence[str], found: Mapping[str, Any], options: ManifestOptions
) -> list[Manifest]:
    """Describe the manifests that failure tables name, sorted by URI."""
    others = sorted(found.keys() - set(failures))
    if others:
        raise ManifestError(
            f"manifest.uris names both failure tables, such as {redact(failures[0])}, and other manifests, such as"
            f" {redact(others[0])}: use one kind or the other in a run"
        )
    naming: dict[str, list[str]] = {}
    for uri in sorted(failures):
        for name in list_named_manifests(uri, options):
            naming.setdefault(name, []).append(uri)
    return [replace(_describe(name, {}, None, options), failures=tuple(uris)) for name, uris in sorted(naming.items())]


def _cut(manifest: Manifest, bytes_max: int) -> list[tuple[int, int]]:
    if manifest.failures:
        return [(0, _WHOLE)]
    if manifest.bytes == 0:
        return []
    if manifest.format == "parquet":
        return _cut_parquet(manifest.uri, bytes_max)
    is_plain = manifest.format in ("jsonl", "json") and manifest.compression is None and manifest.is_utf8
    if is_plain and manifest.bytes is not None:
        size = manifest.bytes
        if size > bytes_max and not _has_line_feeds(manifest):
            return [(0, _WHOLE)]
        return [(start, min(start + bytes_max, size)) for start in range(0, size, bytes_max)]
    return [(0, _WHOLE)]


def _has_line_feeds(manifest: Manifest) -> bool:
    """True if the rows of a JSON Lines or JSON file are lines that end with line feeds, as far as its start shows."""
    with manifest_errors(manifest.uri):
        filesystem, path = fsspec.core.url_to_fs(manifest.uri)
        with filesystem.open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    return not (ends_with_cr(head, manifest.format) or (manifest.format == "json" and is_array(head)))


def _cut_parquet(uri: str, bytes_max: int) -> list[tuple[int, int]]:
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        with filesystem.open(path, "rb") as stream:
            footer = pq.read_metadata(stream)
            sizes = [footer.row_group(index).total_byte_size for index in range(footer.num_row_groups)]
    cuts: list[tuple[int, int]] = []
    start = taken = 0
    for index, size in enumerate(sizes):
        if index > start and taken + size > bytes_max:
            cuts.append((start, index))
            start, taken = index, 0
        taken += size
    return [*cuts, (start, len(sizes))] if sizes else cuts


def _find(uri: str) -> dict[str, Mapping[str, Any]]:
    """Return the storage's information about each file that one URI of the config names."""
    if "::" in uri:
        raise ManifestError(
            f"manifest {redact(uri)} is a chained URL (with `::`), which is not supported: give the URI of the file itself"
        )
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        if has_magic(path) and not filesystem.exists(path):
            entries = list(filesystem.glob(path, detail=True).values())
            entries = [entry for entry in entries if entry["type"] != "directory" and not _is_hidden(entry["name"])]
            if not entries:
                raise ManifestError(f"no file matches {redact(uri)} in manifest.uris")
        else:
            entries = [filesystem.info(path)]
            if entries[0]["type"] == "directory":
                entries = _list_failure_tables(uri, filesystem, path)
        return {full_uri(filesystem, entry["name"]): entry for entry in entries}


def _list_failure_tables(uri: str, filesystem: Any, path: str) -> list[Any]:
    """Return the files of a folder of failure tables. Raise ManifestError for any other folder."""
    entries = [entry for entry in filesystem.ls(path, detail=True) if not _is_hidden(entry["name"])]
    files = [entry for entry in entries if entry["type"] == "file" and entry["name"].endswith(".parquet")]
    if not files or not _holds_failures(full_uri(filesystem, files[0]["name"])):
        folder = redact(uri).rstrip("/")
        raise ManifestError(f"manifest {folder} is a folder: name the files in it, for example {folder}/*.jsonl")
    return files


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(("_", "."))


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _fixed_folders(uris: Iterable[str]) -> list[str]:
    """Return the folder above each URI's first wildcard; an empty list if the URIs have different schemes."""
    folders = []
    schemes = set()
    for uri in uris:
        filesystem, path = fsspec.core.url_to_fs(uri)
        schemes.add(_protocols(filesystem))
        names = path.split("/")[:-1]
        fixed = next((index for index, name in enumerate(names) if has_magic(name)), len(names))
        folders.append("/".join(names[:fixed]) or "/")
    return folders if len(schemes) == 1 and len({folder.startswith("/") for folder in folders}) == 1 else []


def _describe(uri: str, info: Mapping[str, Any], root: str | None, options: ManifestOptions) -> Manifest:
    path = fsspec.core.url_to_fs(uri)[1]
    bare = strip_user_info(uri if root is None else path).partition("?")[0]
    label = bare if root is None else posixpath.relpath(bare, strip_user_info(root))
    stem, ending = posixpath.splitext(uri.partition("?")[0] if "://" in uri else uri)
    compression = _COMPRESSIONS.get(ending.lower())
    if compression is not None:
        ending = posixpath.splitext(stem)[1]
    format_ = _FORMATS.get(ending.lower()) if options.format == "auto" else options.format
    if format_ is None:
        raise ManifestError(f"manifest {redact(uri)}: the file name does not show the format: set manifest.format")
    if format_ == "parquet" and compression is not None:
        raise ManifestError(
            f"manifest {redact(uri)} is a Parquet file that was compressed as a whole, which is not supported: decompress it"
        )
    is_utf8 = is_utf8_name(options.encoding_of(format_)[0])
    return Manifest(uri, label, format_, compression, info.get("size"), version_of(info), is_utf8=is_utf8)
