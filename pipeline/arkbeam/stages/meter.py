"""What the stages of a run have done so far, for the progress display.

Each process counts its own work. If a run has several processes, each also writes its counts to a note in the run's
folder every few seconds, and the display adds up the notes. The counts are for people: work that a runner repeats
counts twice, and a lost note costs nothing.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base.errors import StoreError
from arkbeam.base.files import exists, list_files, read_if_exists, write_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import join, reads_in_flight
from arkbeam.engine.outcomes import Counts, Status, Stop, StopKind
from arkbeam.engine.registry import find_engine
from arkbeam.quota.use import FoundLimits
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import run_folder
from arkbeam.store.run_files import note_uri

NOTE_S = 2.0  # time between two notes of a process
NOTES_MAX = 128  # most notes that the display reads at a time
CODES_MAX = 50  # most failure codes that are counted one by one
OTHER = "other codes"


class Phase(IntEnum):
    """What a run does; a later phase has a greater value."""

    READING = 0
    PLANNING = 1
    EMBEDDING = 2
    PUBLISHING = 3
    COMPACTING = 4
    """The output is complete, or kept; small files of the store are gathered."""


@dataclass(slots=True)
class Work:
    """What the stages have done. `bytes_read` counts bytes of the manifests as they are stored.

    `files_found` and `files_read` count files of the store that no index file covers. The tokens are the estimates for
    the requests to send. `codes` counts the rows that failed, by code.
    """

    phase: Phase = Phase.READING
    rows_read: int = 0
    rows_unreadable: int = 0
    bytes_read: int = 0
    files_found: int = 0
    files_read: int = 0
    rows_planned: int = 0
    to_buy: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    parts_planned: int = 0
    parts_written: int = 0
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def rows_to_plan(self) -> int:
        """The rows that were read and have a request."""
        return self.rows_read - self.rows_unreadable

    def plus(self, other: "Work") -> "Work":
        """Return the work of two processes; the phase is the later one."""
        names = [one.name for one in fields(self) if one.name not in ("phase", "codes")]
        counts = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Work(max(self.phase, other.phase), **counts, codes=_add(self.codes, other.codes))


@dataclass(frozen=True, slots=True)
class Progress:
    """The work of a run, and the state of its engines; None if no process has an engine."""

    work: Work
    status: Status | None = None
    is_known: bool = True
    """False if the run has several processes, and none of them has told what it does."""

    def plus(self, other: "Progress") -> "Progress":
        """Return the progress of two processes together."""
        both = [one for one in (self.status, other.status) if one is not None]
        status = both[0].plus(both[1]) if len(both) == 2 else next(iter(both), None)
        return Progress(self.work.plus(other.work), status, self.is_known or other.is_known)


_lock = threading.Lock()
_works: dict[str, Work] = {}
_notes: dict[str, str] = {}  # by run: the URI of the note that this process writes


def note_work(spec: RunSpec, phase: Phase, **amounts: int) -> None:
    """Add to the counts of `Work` in this process, and note which phase it is in."""
    with _lock:
        work = _work_of(spec)
        work.phase = phase
        for name, amount in amounts.items():
            setattr(work, name, getattr(work, name) + amount)


def note_failures(spec: RunSpec, codes: pa.ChunkedArray) -> dict[str, int]:
    """Count failed rows by their codes; return these counts, by the names under which they are counted."""
    if len(codes) == 0:
        return {}
    found = {one["values"]: one["counts"] for one in pc.value_counts(codes).to_pylist()}
    with _lock:
        work = _work_of(spec)
        before, work.codes = work.codes, _add(work.codes, found)
        return {name: rows - before.get(name, 0) for name, rows in work.codes.items() if rows != before.get(name)}


def read_progress(spec: RunSpec) -> Progress:
    """Return the progress of a run. If it may have several processes, read the notes of the others. Raise StoreError."""
    own = _own_progress(spec)
    if not spec.many_processes:
        return own
    total = own
    for one in _read_notes(spec):
        total = total.plus(one)
    return total


def forget_work(run: str) -> None:
    """Forget the counts of a run in this process."""
    with _lock:
        _works.pop(run, None)
        _notes.pop(run, None)


def _add(codes: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return the sum of two counts. Above `CODES_MAX` different codes, further ones are counted together."""
    total = dict(codes)
    for code, rows in more.items():
        name = code if code in total or len(total) < CODES_MAX else OTHER
        total[name] = total.get(name, 0) + rows
    return total


def _work_of(spec: RunSpec) -> Work:
    """Return the counts of a run. The first call in a worker process starts the thread that writes its note."""
    work = _works.get(spec.run.name)
    if work is None:
        _works.clear()  # a process has one run at a time
        _notes.clear()
        work = _works[spec.run.name] = Work()
        if spec.many_processes:
            uri = _notes[spec.run.name] = join(progress_folder(spec), f"{os.getpid()}-{secrets.token_hex(4)}.json")
            threading.Thread(target=_keep_note, args=(spec, uri), name="arkbeam-note", daemon=True).start()
    return work


def _own_progress(spec: RunSpec) -> Progress:
    with _lock:
        found = _works.get(spec.run.name)
        work = Work() if found is None else replace(found)
    engine = find_engine(spec.run.name)
    status = None if engine is None else engine.status()
    return Progress(work, status, is_known=not spec.many_processes or found is not None)


def _keep_note(spec: RunSpec, uri: str) -> None:
    """Write this process's note while its run is the one that it works for. Nothing is written if nothing changed."""
    last = Progress(Work())
    while spec.run.name in _works:
        time.sleep(NOTE_S)
        progress = _own_progress(spec)
        if _same(progress, last) or spec.run.name not in _works:
            continue
        try:
            if not exists(note_uri(spec.run_files_uri, spec.run.name, "shards")):
                return  # the run has ended: its folder is not made again
            write_bytes(uri, orjson.dumps({"work": progress.work, "status": progress.status}), durable=False)
        except StoreError:
            continue  # the next note has all counts; the stages report a store that stays unreachable
        last = progress


def _same(one: Progress, other: Progress) -> bool:
    """True if only times differ: an idle process writes no note, so it makes no folder of an ended run again."""
    plain = (replace(p.status, seconds=0.0, paused_s=0.0) if p.status is not None else None for p in (one, other))
    return one.work == other.work and next(plain) == next(plain)


def progress_folder(spec: RunSpec) -> str:
    """Return the folder of the notes of a run's processes."""
    return join(run_folder(spec.store.uri, spec.run.name), "progress")


def _read_notes(spec: RunSpec) -> Iterator[Progress]:
    """Read the notes of the other processes."""
    own = _notes.get(spec.run.name)
    uris = [uri for uri in list_files(progress_folder(spec), ".json") if uri != own][:NOTES_MAX]
    for data in in_parallel(read_if_exists, uris, reads_in_flight(spec.store.uri)):
        if data is not None:
            yield _parse(orjson.loads(data))


def _parse(note: Mapping[str, Any]) -> Progress:
    work, status = note["work"], note["status"]
    parsed = Work(**work | {"phase": Phase(work["phase"])})
    if status is None:
        return Progress(parsed)
    stop = status["stop"] and Stop(**status["stop"] | {"kind": StopKind(status["stop"]["kind"])})
    counts, found = Counts(**status["counts"]), FoundLimits(**status["found"])
    return Progress(parsed, Status(**status | {"counts": counts, "found": found, "stop": stop}))
