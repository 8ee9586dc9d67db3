"""What the output holds before a run changes it: parts with the same content are kept and not written again.

`run.json` has a digest of the inputs of each part. The name of a part contains the hash of its bytes, so no writer, however
late, replaces a part by another one. A part is kept if it is listed with the size and the version (etag, or time of change)
that `run.json` has; with `--verify`, its bytes are read and must have their hash. `_SUCCESS` does not matter: each part is
checked by itself.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import orjson

from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, fetch_file, list_versions, read_if_exists, temporary_folder
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import full_uri, join, open_filesystem
from arkbeam.stages.spec import RunSpec

RUN_NOTE = "run.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartFile:
    """One published file. `path` is relative to the output."""

    path: str
    rows: int
    bytes: int
    sha256: str
    digest: str = ""
    """Hash of the inputs of the file; empty if they may change although their names do not."""
    version: str = ""
    """Version of the file in the output: for a file that is kept, when the commit began; for a new one, empty until it
    is listed in the commit."""
    kept: bool = False
    """True if an earlier run wrote the file."""
    totals: Mapping[str, Any] | None = None
    """For parts of `usage/`: sums over the requests in it."""

    @property
    def folder(self) -> str:
        """The first part of the path."""
        return self.path.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Earlier:
    """The parts of the output that can be kept, and what else a commit takes from the last `run.json`."""

    parts: Sequence[PartFile] = ()
    paid_twice: int | None = None
    """`all_runs.paid_twice`; None if it is not known."""
    model: str = ""
    """The resolved model of all vectors that this run publishes; empty if they may be of several."""
    _by_digest: dict[str, PartFile] = field(init=False, repr=False)
    _by_content: dict[tuple[str, str], PartFile] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_digest", {part.digest: part for part in self.parts if part.digest})
        object.__setattr__(self, "_by_content", {(part.folder, part.sha256): part for part in self.parts})

    def find(self, digest: str, spec: RunSpec) -> PartFile | None:
        """Return the part with these inputs, if it can be kept."""
        return _verify(self._by_digest.get(digest), spec)

    def find_content(self, folder: str, sha256: str, spec: RunSpec) -> PartFile | None:
        """Return the part of a folder with these bytes, if it can be kept."""
        return _verify(self._by_content.get((folder, sha256)), spec)


def read_earlier(spec: RunSpec, folders: Sequence[str], model: str) -> Earlier:
    """Read the last `run.json`, and list the parts. A note that can't be used costs time: all parts are written."""
    output_uri = spec.run.output_uri
    try:
        note = orjson.loads(read_if_exists(join(output_uri, RUN_NOTE)) or b"{}")
        parts = [parse_part(entry) for entry in note.get("files", []) if "digest" in entry]
        twice = note.get("all_runs", {}).get("paid_twice")
    except (StoreError, ValueError, TypeError, KeyError, AttributeError) as error:
        _log.warning("all parts of the output are written again: its run.json can't be used: %s", error)
        return Earlier(model=model)
    listed = list_parts(output_uri, folders) if parts else {}
    kept = [part for part in parts if is_unchanged(part, listed.get(part.path))]
    return Earlier(kept, twice if isinstance(twice, int) else None, model)


def list_parts(output_uri: str, folders: Sequence[str]) -> dict[str, Listed]:
    """List the Parquet files in folders of the output, by their paths in it."""
    # As a listing spells them: it may differ from the config (memory://bucket, memory:///bucket).
    uris = [full_uri(*open_filesystem(join(output_uri, folder))) for folder in folders]
    found = in_parallel(partial(list_versions, suffix=".parquet"), uris)
    return {
        f"{folder}/{one.uri[len(uri) :].lstrip('/')}": one
        for folder, uri, some in zip(folders, uris, found, strict=True)
        for one in some
    }


def is_unchanged(part: PartFile, listed: Listed | None) -> bool:
    """True if a part is listed with the size and the version that `run.json` has for it."""
    return listed is not None and bool(part.version) and (listed.size, listed.version) == (part.bytes, part.version)


def parse_part(entry: Mapping[str, Any]) -> PartFile:
    """Return a part as `files` in `run.json` describes it. Keys of later versions are ignored."""
    known = {one.name for one in fields(PartFile)}
    return PartFile(**{name: value for name, value in entry.items() if name in known})


def _verify(part: PartFile | None, spec: RunSpec) -> PartFile | None:
    """Return a part as one that is kept; None if `--verify` was given and its bytes are not those that were written."""
    if part is None:
        return None
    if spec.verify and _hash_file(join(spec.run.output_uri, part.path)) != part.sha256:
        _log.warning("%s is damaged and is written again", part.path)
        return None
    return replace(part, kept=True)


def _hash_file(uri: str) -> str:
    with temporary_folder() as folder:
        local = fetch_file(uri, folder)
        if local is None:
            return ""
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
