"""Check every byte of a store, and remove what neither runs nor compactions remove."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, exists, list_folders, list_versions, read_bytes, remove_files, remove_folder
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import join
from arkbeam.store.entries import by_size
from arkbeam.store.layout import (
    SUFFIX,
    events_folder,
    hash_content,
    hash_in_name,
    index_folder,
    journals_folder,
    media_folder,
    multi_folder,
    replaced_folder,
    run_folder,
    run_of,
    segment_id,
    segments_folder,
    start_of_run,
)
from arkbeam.store.multi import is_multi_damaged
from arkbeam.store.recovery import Recovered, recover_run

_FOLDERS = (segments_folder, events_folder, index_folder, media_folder, replaced_folder)
_DAY_S = 86_400.0


@dataclass(slots=True)
class Verified:
    """The result of reading every file of a store."""

    files: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    """What is wrong with each damaged file, in one line that begins with its URI."""


def verify_store(store_uri: str, on_file: Callable[[Verified], None] = lambda _: None) -> Verified:
    """Read every segment with its per-token vectors, every event file and every cache, and compare them with their hashes.

    Files without a hash in their name are decoded, with the checksums of their pages. Nothing is changed. `on_file` is
    called after each file. Raise StoreError if the storage fails.
    """
    done = Verified()
    files = [one for folder in _FOLDERS for one in list_versions(folder(store_uri)) if not _is_hidden(one.uri)]
    for some, in_flight in by_size(store_uri, files):
        for file, flaw in zip(some, in_parallel(partial(_find_flaw, store_uri), some, in_flight), strict=True):
            if flaw is None:
                continue
            done.files += 1
            done.bytes += file.size
            if flaw:
                done.damaged.append(f"{file.uri}: {flaw}")
            on_file(done)
    for listed in list_versions(multi_folder(store_uri), SUFFIX):  # they were read with their segments
        done.files += 1
        done.bytes += listed.size
    return done


def _is_hidden(uri: str) -> bool:
    return uri.rpartition("/")[2].startswith(".")


def _find_flaw(store_uri: str, file: Listed) -> str | None:
    """Return what is wrong with a file, an empty string for nothing, None if the file is no longer there."""
    try:
        data = read_bytes(file.uri)
    except StoreError:
        if exists(file.uri):
            raise
        return None
    wanted = hash_in_name(file.uri).removesuffix(".json")
    if wanted and hash_content(data) != wanted:
        return "its bytes differ from those that were written"
    if not file.uri.endswith(SUFFIX):
        return ""
    try:
        reader = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        for group in range(0 if wanted else reader.metadata.num_row_groups):
            reader.read_row_group(group, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"it can't be decoded: {error}"
    is_segment = file.uri.startswith(f"{segments_folder(store_uri)}/")
    if is_segment and is_multi_damaged(store_uri, file.uri, reader.schema_arrow.metadata or {}):
        return "its per-token vectors are damaged or missing"
    return ""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What was removed: folders of dead runs, per-token vectors without a segment, and `verified/` of earlier versions.

    `stored` and `lost`: replies and requests in journals of dead runs, which are in segments and event files instead.
    """

    runs: int
    multi: int
    verified: bool
    stored: int = 0
    lost: int = 0


def collect_garbage(store_uri: str, age_days: float) -> Garbage:
    """Remove what nothing else removes, if it is at least so old. Raise StoreError.

    A run's folder is removed, and its journals are recovered, by the next run of its output: they stay if there is no
    such run. Per-token vectors are written before their segment: they stay if their run was killed in between.
    """
    oldest_s = time.time() - age_days * _DAY_S
    recovered = Recovered()
    for run in _list_old(journals_folder(store_uri), oldest_s):
        recovered = recovered.plus(recover_run(store_uri, run))
    runs = _list_old(run_folder(store_uri), oldest_s)
    for run in runs:
        remove_folder(run_folder(store_uri, run))
    orphans = list(_find_orphans(store_uri, oldest_s))
    remove_files(orphans)
    verified = join(store_uri, "verified")
    has_verified = exists(verified)
    if has_verified:
        remove_folder(verified)
    return Garbage(len(runs), len(orphans), has_verified, recovered.stored, recovered.lost)


def _list_old(folder: str, oldest_s: float) -> list[str]:
    """Return the runs with a folder below `folder` that began before `oldest_s`. Names without a start are left out."""
    return [run for run in list_folders(folder) if (start_of_run(run) or oldest_s) < oldest_s]


def _find_orphans(store_uri: str, oldest_s: float) -> Iterator[str]:
    multi = list_versions(multi_folder(store_uri), SUFFIX)
    segments = {(run_of(one.uri), segment_id(one.uri)) for one in list_versions(segments_folder(store_uri), SUFFIX)}
    for one in multi:
        written_s = (segment_id(one.uri) >> 22) / 1000  # `layout.new_segment_id`
        if (run_of(one.uri), segment_id(one.uri)) not in segments and written_s < oldest_s:
            yield one.uri
