"""The protocol of `store/PROTOCOL.md`, checked with a model: several runs of one output, whose processes die and stand still.

The code under test is the real one (attempts, claims, watches, taking over); the store, the time and the threads are
simulated. Each call of the store is a step, after which other threads may act first. A process that stands still does so
between any two steps, also between a check and what it allows. The clocks of processes differ.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from arkbeam.app import take_over
from arkbeam.app.take_over import TakeOver
from arkbeam.base.errors import ArkbeamError, OutputInUse
from arkbeam.base.files import Listed
from arkbeam.engine import attempts
from arkbeam.engine.attempts import RENEW_S, Attempts, blocks_folder
from arkbeam.store import claim, living
from arkbeam.store.claim import LEASE_S, check_claim, look_at_mark, release_claim, wait_for_mark
from arkbeam.store.living import Watches, is_running
from arkbeam.store.run_files import note_uri
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

OUTPUT, STORE = "memory://protocol/out", "memory://protocol/store"
BLOCKS, ROWS = 2, 25
ANSWER_S = 1.0


class Killed(BaseException):
    """Ends the threads of a process that is killed."""


@dataclass(eq=False)
class Process:
    """A process: its threads die and stand still together."""

    offset_s: float
    is_killed: bool = False
    stands_until_s: float = 0.0
    disturbed: int = 0
    """How often it was killed or made to stand still."""
    repeated: int = 0
    """How many of its requests others have sent again."""


class Actor:
    """A thread that runs only while the model lets it."""

    def __init__(self, model: "Model", process: Process, act: Callable[[], None]) -> None:
        self.process, self.wake_s, self.is_done = process, model.now_s, False
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)

        def run() -> None:
            self._turn.acquire()
            model.current = self
            with suppress(Killed, ArkbeamError):
                if not process.is_killed:
                    act()
            self.is_done = True
            self._paused.release()

        threading.Thread(target=run, daemon=True).start()

    def step(self) -> None:
        """Let the thread act until it pauses."""
        self._turn.release()
        self._paused.acquire()

    def pause(self) -> None:
        """Let others act; called by the thread itself."""
        self._paused.release()
        self._turn.acquire()
        if self.process.is_killed:
            raise Killed


@dataclass
class Model:
    """The store, the time, the processes, and what they have paid for and committed."""

    now_s: float = 1000.0
    files: dict[str, bytes] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    actors: list[Actor] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    current: Any = None
    payers: dict[tuple[int, int], Process] = field(default_factory=dict)
    """The process that has sent a row last."""
    stored: set[tuple[int, int]] = field(default_factory=set)
    recovered: set[str] = field(default_factory=set)
    changes: list[tuple[str, Process]] = field(default_factory=list)
    """Runs and processes that changed the output, in order."""
    complete: list[int] = field(default_factory=list)
    """How many rows were stored when an output was marked complete."""
    order: random.Random = field(default_factory=lambda: random.Random(0))

    # What takes the place of `base.files`, and of time.

    def step(self) -> None:
        """Let other threads act before this one goes on."""
        actor = self.current
        actor.pause()
        self.current = actor

    def read_if_exists(self, uri: str) -> bytes | None:
        """Read a file."""
        self.step()
        return self.files.get(uri)

    def write_bytes(self, uri: str, data: bytes, **_: Any) -> None:
        """Write a file."""
        self.step()
        self.files[uri] = data
        self.versions[uri] += 1

    def remove_file(self, uri: str) -> None:
        """Remove a file."""
        self.step()
        self.files.pop(uri, None)

    def list_files(self, folder: str) -> list[str]:
        """List a folder. What is done with the listing may be done much later."""
        self.step()
        return [listed.uri for listed in self._below(folder)]

    def list_versions(self, folder: str) -> list[Listed]:
        """List a folder with versions."""
        self.step()
        return self._below(folder)

    def write_mark(self, folder: str, name: str, number: int, _: Any) -> None:
        """Renew a mark."""
        self.write_bytes(f"{folder}/{name}.{number}", b"")
        self.files.pop(f"{folder}/{name}.{number - 2}", None)

    def list_marks(self, folder: str) -> dict[str, str]:
        """List marks."""
        names = sorted(uri.rpartition("/")[2].rpartition(".") for uri in self.list_files(folder))
        return {name: number for name, _, number in sorted(names, key=lambda one: int(one[2]))}

    def list_runs(self, *_: str) -> list[str]:
        """List the runs that have a folder."""
        self.step()
        return sorted({uri.split("/")[5] for uri in self.files if uri.startswith(f"{STORE}/runs/")})

    def _below(self, folder: str) -> list[Listed]:
        found = sorted(uri for uri in self.files if uri.startswith(f"{folder}/"))
        return [Listed(uri, 0, str(self.versions[uri])) for uri in found]

    def clock(self) -> float:
        """The clock of the current process."""
        return float(self.now_s + self.current.process.offset_s)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.current.wake_s = self.now_s + max(seconds, 0.05)
        self.step()

    def advance(self, seconds: float) -> None:
        """Let all threads act for a time, in any order."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            ready = [one for one in self.actors if not one.is_done and self._is_due(one)]
            while ready:
                one = self.order.choice(ready)
                self.current = one
                one.step()
                if one.is_done or not self._is_due(one):
                    ready.remove(one)
            self.actors = [one for one in self.actors if not one.is_done]
            self.now_s += 0.25

    def _is_due(self, actor: Actor) -> bool:
        return actor.process.is_killed or max(actor.wake_s, actor.process.stands_until_s) <= self.now_s

    # What processes do.

    def start(self, process: Process, act: Callable[[], None]) -> None:
        """Start a thread of a process."""
        if process not in self.processes:
            self.processes.append(process)
        self.actors.append(Actor(self, process, act))

    def submit(self, run: str, process: Process, *, takes_over: bool) -> None:
        """Do what `app.job` does."""
        if takes_over:
            identity = SimpleNamespace(output_uri=OUTPUT, name=run, output_key="key")
            limits, store = SimpleNamespace(drain_s=0.0), SimpleNamespace(uri=STORE)
            spec: Any = SimpleNamespace(run=identity, store=store, limits=limits)
            TakeOver(spec, lambda _: None, clock=self.clock, sleep=self.sleep).run()
        watches = Watches(STORE, (), LEASE_S, self.clock, self.sleep)
        if watches.judge(self.list_runs()):
            raise OutputInUse("in use")
        before = wait_for_mark(OUTPUT, run, LEASE_S, self.sleep)
        is_lost = threading.Event()
        self.start(process, lambda: self._beat(OUTPUT, run, is_lost))
        self.write_bytes(note_uri(STORE, run, "running"), b'{"many_processes": true}')
        watches.ended = [] if before is None else [before]
        others = [one for one in self.list_runs() if one != run]
        living_runs = watches.judge(others)
        for one in watches.watched if not living_runs else ():
            self.write_bytes(f"{STORE}/runs/{one}/stop.json", b"{}")
        if living_runs or watches.find_revived(others):
            self._end(run)
            raise OutputInUse("in use")
        self.recovered.update(others)
        for one in others:
            for uri in (*self.list_files(f"{STORE}/runs/{one}/blocks"), *self.list_files(f"{STORE}/runs/{one}")):
                self.remove_file(uri)
        for number in range(2):
            self._start_worker(run, Process(self.order.uniform(-500, 500)), number)
        while len(self.stored) < BLOCKS * ROWS and not is_lost.is_set():
            self.sleep(RENEW_S)
        if not is_lost.is_set():
            self._commit(run, process)
        self._end(run)

    def _end(self, run: str) -> None:
        release_claim(OUTPUT, run)
        for uri in self.list_files(f"{STORE}/runs/{run}"):
            self.remove_file(uri)

    def _beat(self, folder: str, run: str, is_lost: threading.Event) -> None:
        number = 0
        while is_running(STORE, run) or number < 5:
            self.sleep(LEASE_S / 4)
            number += 1
            if look_at_mark(folder, run, number, renew=True) is not None:
                is_lost.set()
                self.write_bytes(f"{STORE}/runs/{run}/stop.json", b"{}")
                return

    def _commit(self, run: str, process: Process) -> None:
        for _ in range(3):
            check_claim(OUTPUT, run)
            self.sleep(5 * RENEW_S)
            self.changes.append((run, process))
        self.complete.append(len(self.stored))

    def _start_worker(self, run: str, process: Process, first: int) -> None:
        is_stopped = threading.Event()

        def look() -> None:
            if self.read_if_exists(f"{STORE}/runs/{run}/stop.json") is not None:
                is_stopped.set()

        one = Attempts(
            f"{run}-{first}",
            blocks_folder(STORE, run),
            look,
            lambda: is_running(STORE, run),
            self.clock,
            self.sleep,
        )

        def renew() -> None:
            while one.tick():
                self.sleep(RENEW_S)

        def work() -> None:
            for number in range(BLOCKS):
                self._send((first + number) % BLOCKS, run, one, is_stopped)

        self.start(process, renew)
        self.start(process, work)

    def _send(self, block: int, run: str, one: Attempts, is_stopped: threading.Event) -> None:
        attempt = one.begin((0, block), is_stopped.is_set)
        for row in [(block, row) for row in range(ROWS)]:
            while not one.may_send(self.clock()) and not (attempt.superseded or is_stopped.is_set()):
                self.sleep(0.5)
            if attempt.superseded or is_stopped.is_set():
                return
            if row in self.stored:
                continue
            if row in self.payers:
                self.payers[row].repeated += 1
            self.payers[row] = self.current.process
            attempt.items = 1
            self.sleep(ANSWER_S)  # the process may be killed, or stand still
            if run not in self.recovered:  # otherwise its journal is recovered, and it stores nothing more
                self.stored.add(row)
            attempt.items = 0
        one.end(attempt)


class Protocol(RuleBasedStateMachine):
    """Runs are started, processes are killed and stand still, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.patched, self.runs = Model(), pytest.MonkeyPatch(), 0
        for module in (attempts, claim, living):
            for name in (
                "read_if_exists",
                "write_bytes",
                "remove_file",
                "list_files",
                "list_versions",
                "write_mark",
                "list_marks",
            ):
                if hasattr(module, name):
                    self.patched.setattr(module, name, getattr(self.model, name))
        self.patched.setattr(take_over, "list_runs", self.model.list_runs)
        stop = b"{}"
        self.patched.setattr(
            take_over,
            "write_stop_of",
            lambda _, run, __: self.model.write_bytes(f"{STORE}/runs/{run}/stop.json", stop),
        )

    @rule(takes_over=st.booleans(), seed=st.integers(0, 999))
    def start_run(self, takes_over: bool, seed: int) -> None:
        """Start a run of the output."""
        self.model.order.seed(seed)
        self.runs += 1
        run, process = f"run-{self.runs:02d}", Process(seed - 500.0)
        self.model.start(process, lambda: self.model.submit(run, process, takes_over=takes_over))

    @rule(seconds=st.sampled_from([1, 3, 6, 12, 20]))
    def wait(self, seconds: int) -> None:
        """Let time pass."""
        self.model.advance(seconds)

    @rule(number=st.integers(0, 20))
    def kill(self, number: int) -> None:
        """Kill a process."""
        if self.model.processes:
            process = self.model.processes[-1 - number % len(self.model.processes)]
            process.is_killed = True
            process.disturbed += 1

    @rule(number=st.integers(0, 20), seconds=st.sampled_from([3, 11, 25, 60]))
    def stand_still(self, number: int, seconds: int) -> None:
        """Let a process stand still."""
        if self.model.processes:
            process = self.model.processes[-1 - number % len(self.model.processes)]
            process.stands_until_s = self.model.now_s + seconds
            process.disturbed += 1

    @invariant()
    def paid_once(self) -> None:
        """A request is sent again only if it was in flight when its process was killed or stood still; each has one in flight."""
        assert all(process.repeated <= process.disturbed for process in self.model.processes)

    @invariant()
    def one_writer(self) -> None:
        """When another run has changed the output, an earlier one does at most the step that it had checked before."""
        runs = [run for run, _ in self.model.changes]
        for run in set(runs):
            last = len(runs) - 1 - runs[::-1].index(run)
            foreign = [other for other in runs[runs.index(run) : last] if other != run]
            assert not foreign or runs[runs.index(foreign[0]) :].count(run) <= 1

    @invariant()
    def all_rows(self) -> None:
        """An output is complete only if all rows are."""
        assert all(rows == BLOCKS * ROWS for rows in self.model.complete)

    def teardown(self) -> None:
        """A last run, that nothing disturbs, completes the output; then all threads end."""
        try:
            for process in self.model.processes:
                process.is_killed = True
                process.disturbed += 1
            before = len(self.model.complete)
            process = Process(0.0)
            self.model.start(process, lambda: self.model.submit("run-99", process, takes_over=False))
            self.model.advance(90)
            assert len(self.model.complete) == before + 1
            assert self.model.complete[-1] == BLOCKS * ROWS
            self.paid_once()
        finally:
            for process in self.model.processes:
                process.is_killed = True
            self.model.advance(0.25)
            self.patched.undo()


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=40, stateful_step_count=16, deadline=None)


def test_a_run_that_stands_still_in_its_commit() -> None:
    """It does the step that it had checked; another run publishes meanwhile, and the output has no second writer."""
    protocol = Protocol()
    protocol.start_run(takes_over=False, seed=1)
    while not protocol.model.changes:
        protocol.model.advance(1)
    protocol.stand_still(len(protocol.model.processes) - 1, 60)
    protocol.start_run(takes_over=False, seed=2)
    protocol.wait(120)
    protocol.one_writer()
    assert [run for run, _ in protocol.model.changes].count("run-02") == 3
    protocol.teardown()
