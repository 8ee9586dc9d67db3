"""Which runs of an output are alive, although their claim on it is free.

A run may have processes on several machines, of which some live on when the process that started it has ended. Each shows
signs in the folder of the run, `runs/<run>/`:

- The process that started the run holds a lock (local stores), or renews a mark four times per lease (`claim.show_alive`).
- A process that sends renews a mark every second (`engine.attempts`), and so does one that writes the output
  (`stages.presence`). Staged rows and notes on the progress are further signs.

Whoever wants to know watches the listing of the folder. A run is dead if nothing changes for a lease. File times are not
compared with any clock.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson

from arkbeam.base.files import Listed, list_versions, read_if_exists
from arkbeam.base.uris import is_local
from arkbeam.store.claim import LEASE_S, LOCK_NAME, is_locked
from arkbeam.store.layout import run_folder
from arkbeam.store.run_files import RUNNING, note_name, note_uri

LOOK_S = 1.0
START_S = 900.0
_WORK = ("blocks/", "counts/", "progress/", "rows/")
"""Folders of a run in which its processes write."""


class Verdict(StrEnum):
    """What is known of a run."""

    DEAD = "dead"
    ALIVE = "alive"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Watch:
    """The signs of one run. All times are of the observer's monotonic clock."""

    lease_s: float = LEASE_S
    seen: Collection[object] = frozenset()
    _began_s: float | None = None
    _changed_s: float = 0.0

    def note(self, signs: Collection[object], now_s: float) -> None:
        """Note a listing that is complete at `now_s`: what it has changes if the run is alive."""
        if self._began_s is None:
            self._began_s = self._changed_s = now_s
        elif signs != self.seen:
            self._changed_s = now_s
        self.seen = signs

    def verdict(self, now_s: float) -> Verdict:
        """Return dead if nothing has changed for a lease; alive if something has changed after a lease."""
        if self._began_s is None:
            return Verdict.UNKNOWN
        if now_s - self._changed_s >= self.lease_s:
            return Verdict.DEAD
        return Verdict.ALIVE if self._changed_s - self._began_s >= self.lease_s else Verdict.UNKNOWN


def is_running(store_uri: str, run: str) -> bool:
    """True if a run has its folder in the store: it has not ended, and no other run has removed what it left."""
    return read_if_exists(note_uri(store_uri, run, RUNNING)) is not None


@dataclass(slots=True)
class Watches:
    """Watches runs of an output until it is known which of them are alive.

    `ended`: runs whose first process has ended. A run of one process is then dead. `start_s`: for how long a job that was
    handed to an engine counts as alive although no process works for it: the engine may have no place for it. Clocks of two
    machines are compared for this alone.
    """

    store_uri: str
    ended: Collection[str] = ()
    lease_s: float = LEASE_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    wall: Callable[[], float] = time.time
    start_s: float = START_S
    _watches: dict[str, Watch] = field(default_factory=dict)

    @property
    def watched(self) -> list[str]:
        """The runs that were watched: they may have several processes."""
        return list(self._watches)

    def judge(self, runs: Sequence[str]) -> list[str]:
        """Return the runs that are alive, after one lease, or two if there are signs at first. Raise StoreError."""
        verdicts: dict[str, Verdict] = {}
        while unknown := [run for run in runs if verdicts.get(run, Verdict.UNKNOWN) is Verdict.UNKNOWN]:
            if verdicts:
                self.sleep(min(LOOK_S, self.lease_s / 10))
            verdicts |= {run: self.look(run) for run in unknown}
        return [run for run in runs if verdicts[run] is Verdict.ALIVE]

    def look(self, run: str) -> Verdict:
        """Look once at the signs of a run. Raise StoreError."""
        is_here = is_local(self.store_uri)
        if is_here and is_locked(run_folder(self.store_uri, run)):
            return Verdict.ALIVE
        if (is_here or run in self.ended) and self.has_one_process(run):
            return Verdict.DEAD
        signs = list_signs(self.store_uri, run)
        names = [one.uri.rpartition(f"/{run}/")[2] for one in signs]
        if not names or note_name("result") in names:  # it has ended
            return Verdict.DEAD
        watch = self._watches.setdefault(run, Watch(self.lease_s))
        watch.note(signs, self.clock())
        verdict = watch.verdict(self.clock())
        return Verdict.ALIVE if verdict is Verdict.DEAD and self._may_begin(run, names) else verdict

    def find_revived(self, runs: Sequence[str]) -> list[str]:
        """Return the runs that have shown a sign since they were found dead. Raise StoreError.

        A process that wakes up after a long stop shows itself before it sends. So a caller that has told dead runs to
        stop, and finds no sign after that, can be sure that none of them goes on.
        """
        return [
            run for run in runs if run in self._watches and self._watches[run].seen != list_signs(self.store_uri, run)
        ]

    def has_one_process(self, run: str) -> bool:
        """True if a run says that only the process that started it works for it. Raise StoreError."""
        return self._read_note(run).get("many_processes") is False  # a run of an earlier version says nothing

    def _may_begin(self, run: str, names: Sequence[str]) -> bool:
        """True for a job that was handed to an engine a short time ago, if no process has worked for it or was told to stop."""
        submitted_s = self._read_note(run).get("submitted_s")
        if submitted_s is None or self.wall() - submitted_s >= self.start_s:
            return False
        has_begun = any(name.startswith(_WORK) for name in names)
        return not has_begun and read_if_exists(note_uri(self.store_uri, run, "stop")) is None

    def _read_note(self, run: str) -> dict[str, Any]:
        try:
            note = orjson.loads(read_if_exists(note_uri(self.store_uri, run, RUNNING)) or b"{}")
            return note if isinstance(note, dict) else {}
        except ValueError:
            return {}


def list_signs(store_uri: str, run: str) -> Collection[Listed]:
    """Return what changes in the folder of a run that is alive: not what an observer changes. Raise StoreError."""
    listed = list_versions(run_folder(store_uri, run))
    return frozenset(one for one in listed if not one.uri.endswith((f"/{LOCK_NAME}", "/stop.json")))
