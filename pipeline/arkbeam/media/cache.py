"""The results of media inspection in earlier runs. An entry is used only if the storage still reports its version.

The key of an entry is a hash of the URI and of the options that inspection depends on. So no secret in a URI is stored,
and a change of these options makes the entry useless.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from arkbeam import __version__
from arkbeam.base.records import Modality
from arkbeam.base.schema import MEDIA
from arkbeam.media.checks import MediaInfo
from arkbeam.media.options import MediaOptions

KEY_BYTES = 16
# Options that do not change what inspection finds: permissions are checked before the cache is used, and the others
# concern speed or sending.
_WITHOUT_EFFECT = {
    "allowed_roots", "schemes", "threads", "allowed_hosts", "sign_lifetime_s", "http_timeout_s", "url_ignore_params", "http",
}  # fmt: skip

Entry = tuple[str, MediaInfo]
"""The version of a medium, and the result of its inspection."""


def rules_of(options: MediaOptions) -> bytes:
    """Return a hash of what inspection depends on: its options, and the version of this package."""
    fields = dataclasses.asdict(options)
    kept = sorted((name, value) for name, value in fields.items() if name not in _WITHOUT_EFFECT)
    return blake2b(repr((__version__, kept)).encode(), digest_size=KEY_BYTES).digest()


def key_of(uri: str, modality: Modality, rules: bytes) -> bytes:
    """Return the key of a URI's entry; `rules` is from `rules_of`."""
    data = f"{modality.value} {uri}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=KEY_BYTES, key=rules).digest()


class MediaCache(Protocol):
    """Stores entries from run to run."""

    def load(self) -> "CachedMedia":
        """Return the entries of earlier runs."""
        ...

    def add(self, entries: Mapping[bytes, Entry]) -> None:
        """Store new entries, by key."""
        ...


def media_table(entries: Mapping[bytes, Entry]) -> pa.Table:
    """Return entries as a MEDIA table."""
    columns = [
        pa.array(list(entries), MEDIA.field("key").type),
        pa.array([version for version, _ in entries.values()], pa.string()),
        pa.array([orjson.dumps(info).decode() for _, info in entries.values()], pa.string()),
    ]
    return pa.table(columns, schema=MEDIA)


class CachedMedia:
    """A MEDIA table with lookup by key. If several entries have one key, the first is used."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self._keys = _words(self._table["key"])
        self._order = np.argsort(self._keys[:, 0], kind="stable")
        self._sorted = self._keys[self._order, 0]

    @property
    def is_empty(self) -> bool:
        """True if there are no entries."""
        return len(self._keys) == 0

    def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Look up many keys; None for keys without an entry."""
        if self.is_empty or not keys:
            return [None] * len(keys)
        wanted = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        places = np.minimum(np.searchsorted(self._sorted, wanted[:, 0]), len(self._sorted) - 1)
        rows = self._order[places]
        hits = (self._keys[rows] == wanted).all(axis=1)
        found = self._table.select(["version", "facts"]).take(pa.array(rows[hits]))
        entries = iter(zip(found["version"].to_pylist(), found["facts"].to_pylist(), strict=True))
        return [_read_entry(*next(entries)) if hit else None for hit in hits.tolist()]


def merge(tables: Iterable[pa.Table]) -> pa.Table:
    """Merge MEDIA tables, given from the newest to the oldest; keep the first entry of each key."""
    table = pa.concat_tables([MEDIA.empty_table(), *tables]).combine_chunks()
    keys = _words(table["key"])
    _, first = np.unique(keys, axis=0, return_index=True)
    return table.take(pa.array(np.sort(first)))


def _words(column: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """View 16-byte keys as pairs of 64-bit numbers."""
    array = column.combine_chunks()
    if len(array) == 0:
        return np.empty((0, 2), np.uint64)
    words = np.frombuffer(array.buffers()[1], "<u8").reshape(-1, 2)
    return words[array.offset : array.offset + len(array)]


def _read_entry(version: str, facts: str) -> Entry | None:
    """Decode an entry; None if it has the format of another version of this package."""
    try:
        info: MediaInfo = _from_json(MediaInfo, orjson.loads(facts))
    except (TypeError, ValueError, AttributeError):
        return None
    return version, info


def _from_json(kind: Any, value: Any) -> Any:
    """Convert JSON back to a dataclass, with the tuples in it."""
    if isinstance(kind, types.UnionType):
        kind = next((one for one in typing.get_args(kind) if one is not types.NoneType), None)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _from_json(hints.get(name), inner) for name, inner in value.items()})  # type: ignore[operator]
    return tuple(value) if isinstance(value, list) else value
