"""Finding manifests and cutting them into shards."""

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
from arkbeam.manifest.failures import is_failures, named_manifests
from arkbeam.manifest.options import Format, ManifestOptions
from arkbeam.manifest.storage import manifest_errors, version_of

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_WHOLE = 2**63 - 1
_FOOTER_THREADS = 16


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file to read. `label` names it in default ids and in the output's `manifest` column."""

    uri: str
    label: str
    format: Format
    compression: str | None
    bytes: int | None
    """None where the storage does not tell."""
    version: str = ""
    """Tells this state of the file from others; empty where the storage does not tell."""
    failures: tuple[str, ...] = ()
    """Tables of failures that name rows of this manifest, which alone are read; none: all rows are."""


@dataclass(frozen=True, slots=True)
class Shard:
    """What one worker reads of a manifest.

    `start` and `end` are bytes for plain JSONL: the shard has the lines whose first byte lies in that range. For Parquet
    they are row groups. For all else, and where `failures` name the rows to read, the shard is the whole file.
    """

    number: int
    manifest: str
    label: str
    format: Format
    compression: str | None
    start: int
    end: int
    version: str = ""
    """The manifest's when it was cut: it must be the same when it is read."""
    failures: tuple[str, ...] = ()


def list_manifests(options: ManifestOptions) -> list[Manifest]:
    """List the manifests of all URIs in the order of their URIs, each once.

    A label is the path below the folder that all of `options.uris` share, so that it does not change when a glob finds
    more files. A glob skips folders and names that start with `_` or `.`, which mark things such as `_SUCCESS`.
    Tables of failures stand for the manifests that they name; a folder may be given that holds nothing else.
    Raises ManifestError for a missing file, a glob that finds nothing, a format that can't be told, and when all files
    together are empty.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for uri in options.uris:
        found.update(_find(uri))
    if not found:
        raise ManifestError("manifest.uris is empty: name at least one file or glob")
    failures = _find_failures(found, options)
    if failures:
        return _list_named_by_failures(failures, found, options)
    root = posixpath.commonpath(folders) if (folders := _fixed_folders(options.uris)) else None
    manifests = [_describe(uri, found[uri], root, options) for uri in sorted(found)]
    if all(manifest.bytes == 0 for manifest in manifests):
        raise ManifestError(f"nothing to read: {redact(', '.join(found))} holds no bytes")
    return manifests


def manifest_folders(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    """The folders that manifests lie in: where a manifest's own media may be, unless the config says otherwise."""
    return tuple(sorted({folder_of(manifest.uri) for manifest in manifests}))


def folder_of(uri: str) -> str:
    """The folder of a file, as a URI of the same scheme."""
    return uri.rpartition("/")[0] or "/"


def cut_shards(manifests: Sequence[Manifest], bytes_max: int) -> list[Shard]:
    """Cut manifests into shards of about `bytes_max`, numbered in order, those of one manifest consecutively.

    Plain JSONL is cut by size alone and Parquet between row groups, whose sizes are read from its footer. Raises
    ManifestError when a footer can't be read.
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


def _find_failures(uris: Iterable[str], options: ManifestOptions) -> list[str]:
    """Return those files that are tables of failures."""
    tables = [uri for uri in uris if _FORMATS.get(posixpath.splitext(uri.partition("?")[0])[1].lower()) == "parquet"]
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return [uri for uri, found in zip(tables, pool.map(_holds_failures, tables), strict=True) if found]


def _holds_failures(uri: str) -> bool:
    try:
        with manifest_errors(uri):
            filesystem, path = fsspec.core.url_to_fs(uri)
            with filesystem.open(path, "rb") as stream:
                return is_failures(pq.read_schema(stream))
    except ManifestError:  # no Parquet file after all: whoever reads its rows says so
        return False


def _list_named_by_failures(
    failures: Sequence[str], found: Mapping[str, Any], options: ManifestOptions
) -> list[Manifest]:
    """Describe the manifests that tables of failures name, in the order of their URIs."""
    others = sorted(found.keys() - set(failures))
    if others:
        raise ManifestError(
            f"manifest.uris names failures, such as {redact(failures[0])}, beside other manifests, such as"
            f" {redact(others[0])}: give the one or the other"
        )
    naming: dict[str, list[str]] = {}
    for uri in sorted(failures):
        for name in named_manifests(uri, options):
            naming.setdefault(name, []).append(uri)
    return [replace(_describe(name, {}, None, options), failures=tuple(uris)) for name, uris in sorted(naming.items())]


def _cut(manifest: Manifest, bytes_max: int) -> list[tuple[int, int]]:
    if manifest.failures:
        return [(0, _WHOLE)]
    if manifest.bytes == 0:
        return []
    if manifest.format == "parquet":
        return _cut_parquet(manifest.uri, bytes_max)
    if manifest.format == "jsonl" and manifest.compression is None and manifest.bytes is not None:
        size = manifest.bytes
        return [(start, min(start + bytes_max, size)) for start in range(0, size, bytes_max)]
    return [(0, _WHOLE)]


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
    """Return what the storage says of each file that one configured URI names."""
    if "::" in uri:
        raise ManifestError(f"chained URLs are not supported: {redact(uri)}")
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        if has_magic(path) and not filesystem.exists(path):
            entries = list(filesystem.glob(path, detail=True).values())
            entries = [entry for entry in entries if entry["type"] != "directory" and not _is_mark(entry["name"])]
            if not entries:
                raise ManifestError(f"no file matches {redact(uri)}")
        else:
            entries = [filesystem.info(path)]
            if entries[0]["type"] == "directory":
                entries = _list_failures(uri, filesystem, path)
        return {full_uri(filesystem, entry["name"]): entry for entry in entries}


def _list_failures(uri: str, filesystem: Any, path: str) -> list[Any]:
    """Return the files of a folder of failures. Raises ManifestError for any other folder."""
    entries = [entry for entry in filesystem.ls(path, detail=True) if not _is_mark(entry["name"])]
    files = [entry for entry in entries if entry["type"] == "file" and entry["name"].endswith(".parquet")]
    if not files or not _holds_failures(full_uri(filesystem, files[0]["name"])):
        folder = redact(uri).rstrip("/")
        raise ManifestError(f"{folder} is a folder: name files in it, such as {folder}/*.jsonl")
    return files


def _is_mark(name: str) -> bool:
    return name.rpartition("/")[2].startswith(("_", "."))


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _fixed_folders(uris: Iterable[str]) -> list[str]:
    """The folders above each URI's first wildcard; none when the URIs share no scheme."""
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
        raise ManifestError(f"can't tell the format of {redact(uri)} by its name: set manifest.format")
    if format_ == "parquet" and compression is not None:
        raise ManifestError(f"{redact(uri)}: a Parquet file is compressed inside; unpack it")
    return Manifest(uri, label, format_, compression, info.get("size"), version_of(info))
