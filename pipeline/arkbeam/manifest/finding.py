"""Find the files that `manifest.uris` names, each once."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact
from arkbeam.base.uris import find_filesystem, full_uri, is_chained, join
from arkbeam.manifest.failures import is_failure_table
from arkbeam.manifest.globs import LocalSearch, Pattern, RemoteSearch, is_hidden
from arkbeam.manifest.storage import is_absent, is_web, manifest_errors, without_query

FOOTER_THREADS = 16
"""How many footers of Parquet files are read at once."""
_PARQUET_ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """A folder, or a single file, that the run writes, so that it can't be a manifest of the run."""

    key: str
    """The key of the config that names its place, such as `output.uri`."""
    uri: str
    example: str = ""
    """The path in it of a file of the kind that the run writes; it need not exist. Empty: `uri` is a file."""


@dataclass(frozen=True, slots=True)
class Found:
    """One file: what identifies it, its URI, the storage's information about it, and other URIs that lead to it."""

    identity: str
    """The real path of a local file, the URI of any other."""
    uri: str
    info: Mapping[str, Any]
    other_names: tuple[str, ...] = ()


def find_files(uris: Iterable[str], written: Sequence[WrittenFolder] = ()) -> list[Found]:
    """Find the files that paths, URIs and globs name, each once, sorted by URI. A folder of failure tables is its files.

    Of several names of one local file, the name with the fewest symbolic links is used. Raise ManifestError if a file is
    missing, if a glob matches nothing, or if it matches files such as those in `written`.
    """
    infos: dict[str, Mapping[str, Any]] = {}
    names: dict[str, list[str]] = {}
    for uri in uris:
        for identity, name, info in _find(uri, written):
            if name not in infos:
                names.setdefault(identity, []).append(name)
                infos[name] = info
    found = []
    for identity, same in names.items():
        first, *others = _plainest_first(same)
        found.append(Found(identity, first, infos[first], tuple(others)))
    return sorted(found, key=lambda one: one.uri)


def find_failure_tables(found: Sequence[Found], written: Sequence[WrittenFolder] = ()) -> list[str]:
    """Return the URIs of the files that are failure tables.

    Raise ManifestError if any other file lies in one of the folders in `written`.
    """
    tables = [one.uri for one in found if without_query(one.uri).lower().endswith(_PARQUET_ENDINGS)]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        failures = [uri for uri, holds in zip(tables, pool.map(_holds_failures, tables), strict=True) if holds]
    places = {_identify(*find_filesystem(folder.uri)): folder for folder in written}
    for one in found:
        keys = [folder.key for place, folder in places.items() if f"{one.identity}/".startswith(f"{place}/")]
        if keys and one.uri not in failures:
            raise ManifestError(
                f"manifest {redact(one.uri)} is a file that this run writes ({keys[0]}): set another {keys[0]}, or name other"
                " files in manifest.uris"
            )
    return failures


def _find(uri: str, written: Sequence[WrittenFolder]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield each file that one URI of the config names: what identifies it, its URI, and the storage's information."""
    if is_chained(uri):
        raise ManifestError(
            f"manifest {redact(uri)} is a chained URL (with `::`), which is not supported: give the URI of the file itself"
        )
    with manifest_errors(uri):
        filesystem, path = find_filesystem(uri)
        filesystem.invalidate_cache()
        if _is_glob(uri, filesystem, path):
            pattern = Pattern.of(path)
            local = isinstance(filesystem, LocalFileSystem)
            search = LocalSearch(pattern) if local else RemoteSearch(filesystem, path, pattern)
            entries = list(search.find())
            _check_apart(uri, search, written)
            if not entries:
                raise ManifestError(f"no file matches {redact(uri)} in manifest.uris")
        else:
            infos = [filesystem.info(path)]
            if infos[0]["type"] == "directory":
                infos = _list_failure_tables(uri, filesystem, path)
            entries = [(_identify(filesystem, info["name"]), info["name"], info) for info in infos]
    for identity, name, info in entries:
        yield identity, full_uri(filesystem, name), info


def _is_glob(uri: str, filesystem: Any, path: str) -> bool:
    """True if a path has wildcards, and no file has just this name. In a URL, `?` starts the query."""
    if is_web(uri):
        return has_magic(path.replace("?", "")) and not _answers(filesystem, path)
    return has_magic(path) and not filesystem.exists(path)


def _answers(filesystem: Any, url: str) -> bool:
    """False if a server says that it has nothing under a URL. Raise what fsspec raises for any other failure."""
    try:
        filesystem.info(url)  # `exists` is False after any failure; its argument `strict` is too new
    except FileNotFoundError as error:
        if is_absent(error, url):
            return False
        raise
    return True


def _identify(filesystem: Any, path: str) -> str:
    return os.path.realpath(path) if isinstance(filesystem, LocalFileSystem) else full_uri(filesystem, path)


def _plainest_first(names: list[str]) -> list[str]:
    """Sort the paths of one file: those with the fewest links first, then those without `..`."""

    def effort(path: str) -> tuple[int, bool, str]:
        parents = accumulate(path.split("/"), "{}/{}".format)
        return sum(map(os.path.islink, parents)), os.path.normpath(path) != path, path

    return sorted(names, key=effort) if len(names) > 1 else names


def _check_apart(uri: str, search: LocalSearch | RemoteSearch, written: Sequence[WrittenFolder]) -> None:
    """Raise ManifestError if a glob matches files such as those that the run will write.

    A glob that starts inside such a folder is not checked here: it matches only what exists already.
    """
    for folder in written:
        place = _identify(*find_filesystem(folder.uri))
        inside = f"{search.root}/".startswith(f"{place}/")
        if not inside and search.would_find(join(place, folder.example) if folder.example else place):
            raise ManifestError(
                f"{redact(uri)} in manifest.uris also matches the files that this run writes to {redact(folder.uri)}"
                f" ({folder.key}): the next run would read them as manifests. Set {folder.key} to a place outside, or"
                " make the pattern narrower"
            )


def _list_failure_tables(uri: str, filesystem: Any, path: str) -> list[Any]:
    """Return the files of a folder of failure tables. Raise ManifestError for any other folder."""
    entries = [entry for entry in filesystem.ls(path, detail=True) if not is_hidden(entry["name"].rpartition("/")[2])]
    files = [entry for entry in entries if entry["type"] != "directory" and entry["name"].endswith(".parquet")]
    if not files or not _holds_failures(full_uri(filesystem, files[0]["name"])):
        folder = redact(uri)
        raise ManifestError(
            f"manifest {folder} is a folder: name the files in it, for example {folder.rstrip('/')}/*.jsonl"
        )
    return files


def _holds_failures(uri: str) -> bool:
    """True if a file is a failure table. Raise ManifestError if the storage fails: its rows would be read as new ones."""
    try:
        with manifest_errors(uri):
            filesystem, path = find_filesystem(uri)
            with filesystem.open(path, "rb") as stream:
                return is_failure_table(pq.read_schema(stream))
    except ManifestError as error:
        if isinstance(error.__cause__, pa.ArrowInvalid):  # not a Parquet file: reported when its rows are read
            return False
        raise
