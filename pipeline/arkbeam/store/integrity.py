"""Check that files of the store are as they were written, and set damaged ones aside without losing their cost.

The vectors of a damaged segment are bought again, but what they cost the first time must still count. So each attempt
that can be read from the segment is recorded as an event of kind `lost`, in the run that paid for it. A file from which
nothing can be read is set aside under a name that ends in `.unreadable`. The cost of these files is missing from
`usage/`; `run.json` has their number.

Read verifies each segment as a whole once, before an index file covers it (`store.index`).
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import list_files, move_file, read_bytes
from arkbeam.base.records import Failure, Usage
from arkbeam.base.uris import join
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.layout import (
    damaged_folder,
    events_folder,
    is_gathered,
    list_parquet,
    run_of,
    runs_of_output,
    salvaged_run,
    segment_id,
)
from arkbeam.store.listing import is_event_file, list_sources, source_name
from arkbeam.store.multi import is_multi_damaged
from arkbeam.store.replaced import decide, read_replacements
from arkbeam.store.segments import Attempt, is_damaged, read_columns

UNREADABLE_SUFFIX = ".unreadable"
_TOKENS = tuple(field.name for field in schema.USAGE_FIELDS)
_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


def is_whole(store_uri: str, uri: str) -> bool:
    """True if a segment and its per-token vectors are byte for byte as they were written.

    Raise StoreError if the storage fails, since the files may then be undamaged.
    """
    return not is_damaged(uri) and not is_multi_damaged(store_uri, uri)


def read_or_set_aside(store_uri: str, uri: str, read: Callable[[], _Read]) -> _Read:
    """Return what `read` returns for a segment that is needed.

    Raise StoreError if the segment can't be read. A damaged segment is set aside first, since otherwise no run could
    publish; the message then says where the file is now.
    """
    try:
        return read()
    except StoreError as error:
        if is_whole(store_uri, uri):
            raise
        advice = f"set aside as {set_aside(store_uri, uri)}: run again to buy its vectors again"
        raise StoreError(f"{error}; {advice}") from error


def set_aside(store_uri: str, uri: str) -> str:
    """Move a damaged segment to `damaged/`, so that its vectors are bought again; return its new URI.

    The attempts that can be read from it are recorded as lost first. If a kill interrupts this, it is safe to call it
    again. Raise StoreError if the file can't be moved.
    """
    run, name = run_of(uri), uri.rpartition("/")[2]
    events = [] if _is_counted_elsewhere(store_uri, uri) else _salvage(read_bytes(uri))
    if events is None:
        name += UNREADABLE_SUFFIX
        _log.warning("nothing can be read from %s: its cost is missing from usage/", uri)
    elif events:
        recorded = _recorded_ids(store_uri, salvaged_run(run), apart_from=uri)
        events = [event for event in events if event.attempt.client_request_id not in recorded]
        if events:
            write_events(store_uri, salvaged_run(run), segment_id(uri), events)
    target = join(damaged_folder(store_uri, run), name)
    move_file(uri, target)
    return target


def count_unreadable(store_uri: str, output_key: str) -> int:
    """Count the files of an output's runs that were set aside with unknown cost."""
    runs = runs_of_output(damaged_folder(store_uri), output_key)
    return sum(len(list_files(damaged_folder(store_uri, run), UNREADABLE_SUFFIX)) for run in runs)


def _is_counted_elsewhere(store_uri: str, uri: str) -> bool:
    """True if the attempts in a file are also in others, which count instead of it or will count once it is away.

    Those of a gathered segment are in gathered events. Old and new files of a compaction have the same attempts.
    """
    name = source_name(uri)
    if is_gathered(run_of(uri)) and not is_event_file(name):
        return True
    replaced = decide(read_replacements(store_uri), list_sources(store_uri))
    return any(
        name in record.names and not (record.final and name in record.new) for record in replaced.in_force
    ) or any(name in record.new for record in replaced.void)


def _recorded_ids(store_uri: str, run: str, *, apart_from: str) -> set[str]:
    """Return the client request ids in a run's events: its journal may have been recorded before."""
    names: set[str] = set()
    for uri in list_parquet(events_folder(store_uri, run)):
        if uri != apart_from and not is_damaged(uri):
            names.update(read_columns(uri, ["client_request_id"])[0].to_pylist())
    return names


def _salvage(data: bytes) -> list[Event] | None:
    """Return a `lost` event for each paid attempt that can be read from a damaged file; None if none can be read."""
    columns = _readable_columns(data)
    fingerprints, names = columns.get("fingerprint"), columns.get("client_request_id")
    if fingerprints is None or names is None or len(fingerprints) != len(names):
        return None
    if not all(isinstance(one, bytes) and len(one) == schema.FINGERPRINT_BYTES for one in fingerprints):
        return None
    paid = columns.get("paid") or [True] * len(names)
    nothing = [None] * len(names)
    tokens = zip(*(columns.get(name) or nothing for name in _TOKENS), strict=True)
    failure = Failure("damaged", "the store's copy of the reply was damaged")
    return [
        Event(EventKind.LOST, Attempt(fingerprint, name, 1, 0.0), failure, _plausible(Usage(*counts)))
        for fingerprint, name, counts, was_paid in zip(fingerprints, names, tokens, paid, strict=True)
        if was_paid and name
    ]


def _readable_columns(data: bytes) -> dict[str, list[Any]]:
    """Return the columns with attempts and usage that can be read, with verified checksums."""
    found: dict[str, list[Any]] = {}
    try:
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        for name in ("fingerprint", "client_request_id", "paid", *_TOKENS):
            try:
                found[name] = reader.read(columns=[name], use_threads=False).column(0).to_pylist()
            except (pa.ArrowException, OSError, ValueError, IndexError, KeyError):
                continue
    except (pa.ArrowException, OSError, ValueError):
        return {}
    return found


def _plausible(usage: Usage) -> Usage:
    """Return the counts if they add up, else no counts: `usage/` then estimates them from a later answer to the request."""
    counts = (usage.prompt_tokens, usage.total_tokens, usage.text_tokens, usage.image_tokens)
    if None in counts or min(counts) < 0 or usage.text_tokens + usage.image_tokens != usage.total_tokens:  # type: ignore[type-var, operator]
        return Usage()
    return usage
