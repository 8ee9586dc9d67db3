"""Records of compaction: which files of the store are replaced by which, while both are there.

    <store>/replaced/<id>-<hash>.json

A compaction writes a record, then the new files that it names. Once all of them are in the store, the record is in
force: the old files do not count. Until then, the new ones do not count. So an attempt is never counted twice, and there
is no moment at which one is missing, wherever the compaction is killed.

When the old files have stayed for long enough, the record is written again as `final`: the new files count
unconditionally, and the old ones, which are then removed, do not. A final record stays for an hour more, for readers whose
listing of the store is older than the removal.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import orjson

from arkbeam.base.files import Listed, list_files, read_if_exists, remove_file, write_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import join
from arkbeam.store.layout import hash_content, replaced_folder
from arkbeam.store.listing import list_sources

_SUFFIX = ".json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replacement:
    """One record. `old` and `new` are names of segments and event files (`listing.source_name`)."""

    number: int
    """Id of the record, as of a segment."""
    written_s: float
    """Unix time at which it was written."""
    old: tuple[str, ...]
    new: tuple[str, ...]
    final: bool = False

    @property
    def names(self) -> frozenset[str]:
        """All files that it names."""
        return frozenset((*self.old, *self.new))


@dataclass(frozen=True, slots=True)
class Replaced:
    """The records of a store, as a listing of its files decides about them."""

    in_force: tuple[Replacement, ...] = ()
    void: tuple[Replacement, ...] = ()
    """Records of which a new file is missing, or of which another record in force has an old file."""

    @property
    def hidden(self) -> frozenset[str]:
        """The names of the files that do not count."""
        return frozenset(name for record in self.in_force for name in record.old) | frozenset(
            name for record in self.void for name in record.new
        )


def write_replacement(store_uri: str, record: Replacement) -> str:
    """Write a record; return its URI. Raise StoreError."""
    data = orjson.dumps(asdict(record))
    uri = join(replaced_folder(store_uri), f"{record.number:016x}-{hash_content(data)}{_SUFFIX}")
    write_bytes(uri, data)
    return uri


def remove_replacement(store_uri: str, record: Replacement) -> None:
    """Remove a record, and an earlier form of it."""
    for uri in _list_records(store_uri):
        if uri.rpartition("/")[2].startswith(f"{record.number:016x}-"):
            remove_file(uri)


def read_replacements(store_uri: str) -> list[Replacement]:
    """Read all records, sorted by id; of two with the same id, the final one.

    A damaged record is left out with a warning. Raise StoreError if the storage fails.
    """
    records: dict[int, Replacement] = {}
    for record in in_parallel(_read, _list_records(store_uri)):
        if record is not None and (record.final or record.number not in records):
            records[record.number] = record
    return [records[number] for number in sorted(records)]


def decide(records: Iterable[Replacement], listed: Mapping[str, Listed]) -> Replaced:
    """Decide which records are in force, given all segments and event files of the store.

    If two of them replace the same file, because two compactions ran at once, the one with the lower id counts.
    """
    in_force: list[Replacement] = []
    void: list[Replacement] = []
    taken: set[str] = set()
    for record in sorted(records, key=lambda record: (not record.final, record.number)):
        complete = record.final or all(name in listed for name in record.new)
        if complete and taken.isdisjoint(record.old):
            in_force.append(record)
            taken.update(record.old)
        else:
            void.append(record)
    return Replaced(tuple(in_force), tuple(void))


def list_current(store_uri: str) -> dict[str, Listed]:
    """List the segments and event files that count, by their names. Raise StoreError."""
    listed = list_sources(store_uri)
    # The records are read after the files are listed: files that appear in between do not count yet.
    hidden = decide(read_replacements(store_uri), listed).hidden
    return {name: one for name, one in listed.items() if name not in hidden}


def _list_records(store_uri: str) -> list[str]:
    found = list_files(replaced_folder(store_uri), _SUFFIX)
    return [uri for uri in found if not uri.rpartition("/")[2].startswith(".")]  # the mark of a compaction that runs


def _read(uri: str) -> Replacement | None:
    data = read_if_exists(uri)
    if data is None:
        return None  # removed since it was listed
    try:
        if hash_content(data) != uri.rpartition("-")[2].removesuffix(_SUFFIX):
            raise ValueError("its bytes differ from those that were written")
        record = orjson.loads(data)
        return Replacement(**record | {name: tuple(record[name]) for name in ("old", "new")})
    except (ValueError, TypeError, KeyError) as error:
        _log.warning(
            "%s is damaged and not used: usage/ may count attempts twice that compaction has copied (%s)", uri, error
        )
        return None
