"""Recover the journals of dead runs: store the replies that they hold, and record the requests without a reply as lost.

It may be interrupted at any step and done again, also by two processes at once, and stores and records nothing twice:

- Attempts that are in the store already are recognised by their client request ids. The files of the store are listed
  after the journal was read, so whoever finds a part of the journal removed finds what was in it.
- Two that read the same journal at the same time write the same files: ids and bytes follow from the attempts.
- On a local store a lock lets one at a time recover a run, because a process that lives on may append a reply to its
  journal after it was recovered (it is not stored). Objects are never appended to.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby

from arkbeam.base.errors import StoreError
from arkbeam.base.files import list_files, read_if_exists, remove_file, remove_files
from arkbeam.base.parallel import in_parallel
from arkbeam.base.redaction import redact
from arkbeam.base.uris import is_local, join, storage_errors
from arkbeam.store.events import write_events
from arkbeam.store.journal import MARK_SUFFIX, OBJECT_SUFFIX, decompress, lock, remove_in_order
from arkbeam.store.journal_records import Journaled, read_records
from arkbeam.store.layout import (
    events_folder,
    journals_folder,
    list_parquet,
    runs_of_output,
    segment_id,
    segments_folder,
    start_of_run,
)
from arkbeam.store.results import write_results
from arkbeam.store.segments import Attempt, Bought, is_damaged, read_columns

LOCK_WAIT_S = 5.0
"""How long to wait, for all processes together, until a process that is alive has written its segment."""
RECOVERY_WAIT_S = 300.0
"""How long to wait until another process has recovered the run."""
_POLL_S = 0.05
_RANDOM_BITS = 22  # of an id, as `layout.new_segment_id` makes it
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many replies were stored, and how many requests were recorded as lost."""

    stored: int = 0
    lost: int = 0

    def plus(self, other: "Recovered") -> "Recovered":
        """Return the sum."""
        return Recovered(self.stored + other.stored, self.lost + other.lost)


def recover_journals(store_uri: str, output_key: str) -> Recovered:
    """Recover what the dead runs of this output have paid for and did not store.

    Only the holder of the output may call this, because then all earlier runs of the output are dead, or must write
    nothing any more.
    """
    recovered = Recovered()
    for run in runs_of_output(journals_folder(store_uri), output_key):
        recovered = recovered.plus(recover_run(store_uri, run))
    return recovered


def find_unsettled(store_uri: str, run: str) -> set[str]:
    """Return the processes of a run whose journals hold replies, or requests without a result. They may be alive."""
    logs = [uri for uri in list_files(journals_folder(store_uri, run)) if not uri.endswith(MARK_SUFFIX)]
    logs.sort(key=lambda uri: (_process_of(uri), _place_of(uri)))
    found = set()
    for process, own in groupby(zip(logs, in_parallel(_read_log, logs), strict=True), lambda log: _process_of(log[0])):
        journaled = read_records(data for _, data in own)
        if journaled.replies or journaled.lost():
            found.add(process)
    return found


def recover_run(store_uri: str, run: str, only: Collection[str] | None = None) -> Recovered:
    """Recover the journals of one dead run, or those of some of its processes. See `recover_journals`."""
    folder = journals_folder(store_uri, run)
    with _alone(folder):
        return _recover_alone(store_uri, run, folder, only)


def _recover_alone(store_uri: str, run: str, folder: str, only: Collection[str] | None) -> Recovered:
    every = sorted({_process_of(uri) for uri in list_files(folder)})
    names = every if only is None else [name for name in every if name in only]
    processes = _take_over(folder, names)
    logs = list_files(folder)  # only now: nothing that counts is added to these journals any more
    stored = _StoredIds(store_uri, run)
    recovered = Recovered()
    done: list[list[str]] = []
    for process in processes:
        uris = sorted((uri for uri in logs if _process_of(uri) == process), key=_place_of)
        journaled = read_records(in_parallel(_read_log, uris))
        if journaled.damaged:
            place = redact(join(folder, process))
            _log.warning("%d damaged records in the journal %s are skipped", journaled.damaged, place)
        recovered = recovered.plus(_store(store_uri, run, journaled, stored))
        done.append(uris)
    remove_in_order(done)
    if is_local(store_uri):
        with suppress(OSError):  # not empty: a process that is alive still uses it
            os.rmdir(folder)
    return recovered


def _store(store_uri: str, run: str, journaled: Journaled, stored: "_StoredIds") -> Recovered:
    bought, lost = list(journaled.replies.values()), journaled.lost()
    if bought or lost:  # the journal of a process that ended normally is empty or removed: skip the look-up
        known = stored.above(journaled.segment)
        bought = [one for one in bought if one.attempt.client_request_id not in known]
        lost = [event for event in lost if event.attempt.client_request_id not in known]
    newest = max(journaled.newest_segment, int((start_of_run(run) or 0) * 1000) << _RANDOM_BITS)
    if bought:
        _write_bought(store_uri, run, _choose_id(newest, [one.attempt for one in bought]), bought)
    if lost:
        write_events(store_uri, run, _choose_id(newest, [one.attempt for one in lost]), lost)
    return Recovered(len(bought), len(lost))


def _choose_id(newest: int, attempts: Sequence[Attempt]) -> int:
    """Return the id of the file with some attempts: the same for the same attempts, another one for others.

    It is above `newest`, the last id that the journal names, so that a part of the journal that is left after the
    removal was interrupted is compared with this file.
    """
    names = "\n".join(attempt.client_request_id for attempt in attempts).encode()
    place = int.from_bytes(hashlib.blake2b(names, digest_size=4).digest())
    return ((newest >> _RANDOM_BITS) + 1 << _RANDOM_BITS) + place


def _write_bought(store_uri: str, run: str, segment: int, bought: Sequence[Bought]) -> None:
    multi = any(one.reply.multi is not None for one in bought)
    write_results(store_uri, run, segment, bought, len(bought[0].reply.dense), multi=multi)


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """Keep other processes from recovering the journals in a local folder during the block.

    Raise StoreError if another one takes too long.
    """
    if not is_local(folder):
        yield
        return
    with storage_errors("lock", folder):
        try:
            file = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # there are no journals
            file = None
    if file is None:
        yield
        return
    try:
        if not _wait_for_lock(file, time.monotonic() + RECOVERY_WAIT_S):
            raise StoreError(
                f"another process has recovered {folder} for {RECOVERY_WAIT_S:g} s: run again when it ends"
            )
        yield
    finally:
        os.close(file)


def _take_over(folder: str, processes: Sequence[str]) -> list[str]:
    """Remove the marks of processes; return the processes without a mark, which store nothing any more.

    A process that writes a segment keeps its mark. If it takes too long, its journal is left to a later run.
    """
    if not is_local(folder):
        remove_files(join(folder, process + MARK_SUFFIX) for process in processes)
        return list(processes)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    taken = [process for process in processes if _remove_mark(join(folder, process + MARK_SUFFIX), deadline_s)]
    if len(taken) < len(processes):
        _log.warning(
            "%d processes of an earlier run are alive and do not end: what they hold is not recovered by this run",
            len(processes) - len(taken),
        )
    return taken


def _remove_mark(path: str, deadline_s: float) -> bool:
    """Remove a local mark under its lock; return False if a process holds the lock until the deadline."""
    with storage_errors("lock", path):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # a journal of an earlier version, or one whose recovery was interrupted
            return True
        try:
            if not _wait_for_lock(file, deadline_s):
                return False
            remove_file(path)
            return True
        finally:
            os.close(file)


def _wait_for_lock(file: int, deadline_s: float) -> bool:
    while not _try_lock(file):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _try_lock(file: int) -> bool:
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(slots=True)
class _StoredIds:
    """The client request ids in the segments and event files of a run. Each file is read once, when it is needed."""

    store_uri: str
    run: str
    _read: dict[str, list[str]] = field(default_factory=dict)

    def above(self, segment: int) -> set[str]:
        """Return the ids in the files with ids above a segment's. The files are listed anew."""
        folders = (segments_folder(self.store_uri, self.run), events_folder(self.store_uri, self.run))
        wanted = [uri for folder in folders for uri in list_parquet(folder) if segment_id(uri) > segment]
        missing = [uri for uri in wanted if uri not in self._read]
        self._read.update(zip(missing, in_parallel(_client_ids, missing), strict=True))
        return {name for uri in wanted for name in self._read[uri]}


def _client_ids(uri: str) -> list[str]:
    """Return the client request ids in a file; none if it is damaged, since Read will then set it aside."""
    try:
        table = read_columns(uri, ["client_request_id"])
    except StoreError:
        if is_damaged(uri, ["client_request_id"]):
            return []
        raise
    names: list[str] = table.column(0).to_pylist()
    return names


def _read_log(uri: str) -> bytes:
    data = read_if_exists(uri) or b""  # a process that is alive may have settled it
    if not data or not uri.endswith(OBJECT_SUFFIX):
        return data
    try:
        return decompress(data)
    except (OSError, ValueError) as error:
        _log.warning("the journal %s is damaged and skipped: %s", redact(uri), error)
        return b""


def _process_of(uri: str) -> str:
    """Return the process in the name of a journal's file: `<process>.<generation>[-<number>].log`, or `<process>.log`."""
    return uri.rpartition("/")[2].partition(".")[0]


def _place_of(uri: str) -> tuple[int, ...]:
    """Return generation and number in the name of a journal's file."""
    place = uri.rpartition("/")[2].split(".")[1]
    return tuple(map(int, place.split("-"))) if place[0].isdigit() else ()
