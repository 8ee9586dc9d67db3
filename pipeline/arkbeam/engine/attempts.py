"""Attempts at blocks: of several attempts at one block, only the newest one sends.

A runner may repeat a bundle while its first attempt still runs, for example after the loss of another worker. The two
may be threads of one process, or two processes. The newer attempt supersedes the older one:

- In one process it takes over the items that the engine holds. Items that were not sent are not sent for the older one.
- Between processes, each attempt writes a file, `<run>/blocks/<block>/<number>.<process>`, and lists the folder of its
  block: after its own write, and then in each renewal. An attempt that sees a higher name sends nothing more. When the
  results of what it had sent are stored, it writes `<number>.<process>.ended`.
- An attempt that sees a lower name waits until that one has ended, or until its process is dead. Then it looks up what
  is stored, and sends the rest.
- A process renews a mark every `RENEW_S` seconds while it has attempts (`quota.marks`). It is dead for an observer who
  sees the same mark for `DEAD_S` seconds of the observer's clock. A process sends only while its last renewal *began* less than `LEASE_S` ago;
  each renewal includes the listings, so a process that was stopped sees newer attempts before it sends again.
- Another run of the output that takes this run for dead (`store.living`) tells it to stop, and then removes the files. So
  each renewal also looks for a stop (`look`), and an attempt whose file is gone sends nothing more.

With a store that lists finished writes, two attempts at one block never send at the same time: of two that write at once,
at least one lists the other. A process that stalls between the check and the sending still sends what it had admitted.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from arkbeam.base.errors import ArkbeamError, StoreError
from arkbeam.base.files import list_files, write_bytes
from arkbeam.base.uris import join
from arkbeam.quota.marks import list_marks, write_mark
from arkbeam.store.layout import run_folder

RENEW_S = 1.0
LEASE_S = 5.0
DEAD_S = 2 * LEASE_S
_ENDED = ".ended"


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt at a block, which is named by its shard and its number in the shard."""

    block: tuple[int, int] = (0, 0)
    is_repeated: bool = False
    """True if the block may have been worked on before: results of earlier attempts must be looked for."""
    superseded: bool = False
    """True if a newer attempt has begun: nothing more is sent for this one."""
    items: int = 0
    """Its items that the engine holds, or that wait for a second try. Only the engine's thread changes it."""
    is_submitted: bool = False
    """True if all of its rows have been given to the engine."""
    name: str = ""
    """The name of its file; empty if the run has one process."""
    was_listed: bool = False
    """True if a listing has had its file."""
    dead: frozenset[str] = frozenset()
    """Processes that died in earlier attempts at the block: their journals may hold replies that are not in the store."""


@dataclass(slots=True)
class Watched:
    """Marks of other processes, and since when each is unchanged, by the observer's monotonic clock."""

    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def note(self, marks: Mapping[str, str], now_s: float) -> None:
        """Note a listing of marks: tokens by process."""
        before = self._seen
        self._seen = {
            name: before[name] if before.get(name, ("",))[0] == token else (token, now_s)
            for name, token in marks.items()
        }

    def is_dead(self, process: str, now_s: float) -> bool:
        """True if the mark of a process is gone, or has not changed for `DEAD_S`."""
        return process not in self._seen or now_s - self._seen[process][1] >= DEAD_S


def find_newer(names: Sequence[str], own: str) -> bool:
    """True if a newer attempt than `own` is among the files of a block."""
    return any(name > own for name in names if not name.endswith(_ENDED))


def may_send(now_s: float, renewed_s: float) -> bool:
    """True if no process can have taken this one for dead. `renewed_s`: when its last renewal began."""
    return now_s - renewed_s < LEASE_S


def list_open_before(names: Sequence[str], own: str) -> list[str]:
    """Return the attempts before `own` that have not ended."""
    ended = {name.removesuffix(_ENDED) for name in names if name.endswith(_ENDED)}
    return [name for name in names if name < own and not name.endswith(_ENDED) and name not in ended]


def next_name(names: Sequence[str], process: str) -> str:
    """Return the name of an attempt that is newer than those in the folder of a block."""
    numbers = [int(name.partition(".")[0]) for name in names]
    return f"{max(numbers, default=0) + 1:06d}.{process}"


@dataclass(slots=True)
class Attempts:
    """The attempts of this process at blocks. Safe to use from several threads.

    Without `folder`, the run has one process. With it, `renew` must be called every `RENEW_S` seconds while there are
    attempts; `start` does it.
    """

    process: str = ""
    folder: str | None = None
    look: Callable[[], None] = lambda: None
    """Called in each renewal: stops the engine if the run has to stop. Raises StoreError."""
    is_running: Callable[[], bool] = lambda: True
    """False if the run has ended. Raises StoreError."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _newest: dict[tuple[int, int], Attempt | None] = field(default_factory=dict)
    _open: list[Attempt] = field(default_factory=list)
    _watched: Watched = field(default_factory=Watched)
    _renewed_s: float = -math.inf
    _renewals: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to show, in a thread, that the process is alive while it has attempts, until `close`."""
        threading.Thread(target=self._keep, name="arkbeam-attempts", daemon=True).start()

    def close(self) -> None:
        """Let the thread end. The mark stays until the run's folder is removed."""
        self._closed.set()

    def begin(self, block: tuple[int, int], is_stopped: Callable[[], bool] = lambda: False) -> Attempt:
        """Begin an attempt; wait until earlier attempts of other processes at the block have ended, or are dead.

        The attempt is superseded at once if a newer one has begun meanwhile. Raise StoreError; ArkbeamError if another
        run has ended this one.
        """
        with self._lock:
            attempt = Attempt(block, is_repeated=block in self._newest)
            before, self._newest[block] = self._newest.get(block), attempt
            if before is not None:
                before.superseded = True
        if self.folder is not None:
            self._begin_shared(attempt, is_stopped)
        return attempt

    def end(self, attempt: Attempt) -> None:
        """Note that everything of an attempt is stored or failed. Raise StoreError."""
        with self._lock:
            if self._newest.get(attempt.block) is attempt:
                self._newest[attempt.block] = None
            if attempt not in self._open:
                return
            self._open.remove(attempt)
        self._write(attempt, _ENDED)

    def may_send(self, now_s: float) -> bool:
        """True unless other processes may take this one for dead."""
        return self.folder is None or may_send(now_s, self._renewed_s)

    def renew(self) -> None:
        """Renew the mark, look for a stop and for newer attempts, and end the attempts of which nothing is left to do.

        The mark is written first: an observer who has told this run to stop either sees it, or is seen here. Raise
        StoreError.
        """
        began_s = self.clock()
        write_mark(self._marks_folder, self.process, self._renewals, {"process": self.process})
        self._renewals += 1
        self.look()
        with self._lock:
            held = list(self._open)
        for attempt in held:
            self._list(attempt)
            if attempt.items == 0 and (attempt.superseded or attempt.is_submitted):
                self.end(attempt)
        self._renewed_s = began_s

    def tick(self) -> bool:
        """Renew the mark if there are attempts; return False if the run has ended. Raise StoreError."""
        if not self._open:
            return self.is_running()  # a mark would make the folder of an ended run again
        self.renew()
        return True

    def _keep(self) -> None:
        while not self._closed.wait(RENEW_S):
            try:
                if not self.tick():
                    return
            except StoreError:
                continue  # nothing is sent after `LEASE_S`; the engine's own writes report a storage that stays away

    def _begin_shared(self, attempt: Attempt, is_stopped: Callable[[], bool]) -> None:
        if not self.may_send(self.clock()):
            self.renew()  # before the attempt shows itself, so that nobody takes the process for dead
        attempt.name = next_name(self._list(attempt), self.process)
        self._write(attempt)
        self.look()  # after the attempt has shown itself
        if not self.is_running():
            raise ArkbeamError("another run of this output has ended this run: it sends nothing more")
        with self._lock:
            self._open.append(attempt)
        checked_s = self.clock()
        while True:
            names = self._list(attempt)
            others = [name for name in list_open_before(names, attempt.name) if _process_of(name) != self.process]
            attempt.is_repeated |= min(names, default=attempt.name) < attempt.name
            if others:
                self._watched.note(list_marks(self._marks_folder), self.clock())
            alive = [name for name in others if not self._watched.is_dead(_process_of(name), self.clock())]
            if not alive or attempt.superseded or is_stopped() or self._closed.is_set():
                attempt.dead = frozenset(_process_of(name) for name in others) - {_process_of(name) for name in alive}
                return
            self.sleep(max(0.0, checked_s + RENEW_S - self.clock()))
            checked_s = self.clock()

    @property
    def _marks_folder(self) -> str:
        return processes_folder(self.folder or "")

    def _folder_of(self, attempt: Attempt) -> str:
        return join(self.folder or "", "{:06d}-{:06d}".format(*attempt.block))

    def _write(self, attempt: Attempt, suffix: str = "") -> None:
        write_bytes(join(self._folder_of(attempt), attempt.name + suffix), b"", durable=False)

    def _list(self, attempt: Attempt) -> list[str]:
        """List the attempts at a block; the attempt is superseded if there is a newer one, or if its own file is gone."""
        names = [uri.rpartition("/")[2] for uri in list_files(self._folder_of(attempt))]
        if attempt.name:
            is_listed = attempt.name in names
            attempt.superseded |= find_newer(names, attempt.name) or (attempt.was_listed and not is_listed)
            attempt.was_listed |= is_listed
        return names


def _process_of(name: str) -> str:
    return name.partition(".")[2]


def processes_folder(folder: str) -> str:
    """Return the folder of the marks of a run's processes, given that of its blocks."""
    return join(folder, "processes")


def blocks_folder(store_uri: str, run: str) -> str:
    """Return the folder in which the processes of a run show what they work on."""
    return join(run_folder(store_uri, run), "blocks")
