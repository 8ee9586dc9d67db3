"""Attempts at blocks: of several attempts at one block, only the newest one sends, and an earlier one ends first."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from arkbeam.base.errors import StoreError
from arkbeam.engine import attempts as module
from arkbeam.engine.attempts import DEAD_S, LEASE_S, RENEW_S, Attempt, Attempts, find_newer, list_open_before, next_name
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK = (3, 1)


@dataclass
class Files:
    """A store in memory, with the functions that the module calls. `lost`: processes that can't reach it."""

    names: dict[str, set[str]] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    current: str = ""

    def check(self) -> None:
        """Fail as a storage does that the current process can't reach."""
        if self.current in self.unreachable:
            raise StoreError("unreachable")

    def write_bytes(self, uri: str, _: bytes, **__: Any) -> None:
        """Write a file."""
        self.check()
        folder, name = uri.rsplit("/", 1)
        self.names.setdefault(folder, set()).add(name)

    def list_files(self, folder: str) -> list[str]:
        """List a folder."""
        self.check()
        return sorted(f"{folder}/{name}" for name in self.names.get(folder, ()))

    def write_mark(self, _: str, name: str, number: int, __: dict[str, str]) -> None:
        """Renew a mark."""
        self.check()
        self.marks[name] = str(number)

    def list_marks(self, _: str) -> dict[str, str]:
        """List the marks."""
        self.check()
        return dict(self.marks)


@dataclass
class World:
    """Some processes with one store and one clock; a wait of one of them lets the others act (`on_wait`)."""

    files: Files
    now_s: float = 0.0
    on_wait: Callable[[], None] = lambda: None

    def process(self, name: str) -> "Attempts":
        """Make a process that is alive."""

        def sleep(seconds: float) -> None:
            self.now_s += max(seconds, 0.01)
            self.on_wait()
            self.files.current = name

        made = Attempts(name, "run/blocks", clock=lambda: self.now_s, sleep=sleep)
        self.act(made)
        return made

    def act(self, one: Attempts) -> None:
        """Let a process renew, as it does every second."""
        self.files.current = one.process
        one.renew()

    def begin(self, one: Attempts) -> Attempt:
        """Let a process begin an attempt at the block."""
        self.files.current = one.process
        return one.begin(BLOCK)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with an empty store."""
    files = Files()
    for name in ("write_bytes", "list_files", "write_mark", "list_marks"):
        monkeypatch.setattr(module, name, getattr(files, name))
    return World(files)


def test_the_first_attempt_begins_at_once(world: World) -> None:
    """Without an earlier attempt nothing is waited for, and no earlier results are looked for."""
    attempt = world.begin(world.process("a"))
    assert (attempt.is_repeated, attempt.superseded, world.now_s) == (False, False, 0.0)


def test_an_older_attempt_ends_before_a_newer_one_begins(world: World) -> None:
    """The newer attempt waits until the older one has seen it and everything that it had sent is settled."""
    first, second = world.process("b"), world.process("a")
    older = world.begin(first)
    older.items = 2

    def settle() -> None:
        world.act(first)
        assert older.superseded
        older.items = max(0, older.items - 1)

    world.on_wait = settle
    newer = world.begin(second)
    assert (newer.is_repeated, newer.superseded, older.items) == (True, False, 0)
    assert not first._open


def test_a_dead_process_is_not_waited_for(world: World) -> None:
    """An attempt whose process does not renew its mark is given up after `DEAD_S`; its results are looked for."""
    world.begin(world.process("b"))
    newer = world.begin(world.process("a"))
    assert (newer.is_repeated, newer.superseded) == (True, False)
    assert DEAD_S <= world.now_s <= DEAD_S + 2 * RENEW_S


def test_a_dead_process_is_waited_for_once(world: World) -> None:
    """A process that has died with attempts at several blocks is found dead once, not again for each block."""
    first, second = world.process("b"), world.process("a")
    for block in (BLOCK, (3, 2), (3, 3)):
        first.begin(block)
    world.files.current = "a"
    assert all(second.begin(block).is_repeated for block in (BLOCK, (3, 2), (3, 3)))
    assert world.now_s <= DEAD_S + 2 * RENEW_S


def test_a_process_that_was_stopped_sends_nothing_more(world: World) -> None:
    """A process that wakes up may not send before its next renewal, and that shows it the newer attempt."""
    first = world.process("b")
    older = world.begin(first)
    assert first.may_send(world.now_s)
    world.begin(world.process("a"))
    assert not first.may_send(world.now_s)
    assert not older.superseded
    world.act(first)
    assert older.superseded
    assert first.may_send(world.now_s)


def test_a_process_without_its_store_stops_sending(world: World) -> None:
    """A process that can't reach the store sends for less than `LEASE_S`, and is dead for others only after that."""
    first = world.process("b")
    world.begin(first)
    world.files.unreachable.add("b")
    sending: list[float] = []

    def try_to_renew() -> None:
        with pytest.raises(StoreError):
            world.act(first)
        if first.may_send(world.now_s):
            sending.append(world.now_s)

    world.on_wait = try_to_renew
    second = world.process("a")
    world.begin(second)
    assert 0 < max(sending) < LEASE_S < DEAD_S <= world.now_s


def test_attempts_of_one_process_do_not_wait(world: World) -> None:
    """A newer attempt of the same process supersedes the older one at once; the engine hands its items over."""
    one = world.process("a")
    older = world.begin(one)
    newer = world.begin(one)
    assert (older.superseded, newer.superseded, newer.is_repeated, world.now_s) == (True, False, True, 0.0)


def test_an_attempt_that_is_done_is_not_waited_for(world: World) -> None:
    """An attempt ends when all of its rows were submitted and settled, before its bundle ends."""
    first = world.process("b")
    done = world.begin(first)
    done.is_submitted = True
    world.act(first)
    assert not first._open
    newer = world.begin(world.process("a"))
    assert (newer.is_repeated, world.now_s) == (True, 0.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("list", "write", "check"))), max_size=30))
@settings(max_examples=400)
def test_two_attempts_never_both_go_on(steps: list[tuple[str, str]]) -> None:
    """However the steps of attempts that begin at once are mixed, at most one of them finds nothing to wait for."""
    files: set[str] = set()
    names: dict[str, str] = {}
    at: dict[str, str] = {}
    for process, step in steps:
        if step == "list" and process not in at:
            names[process], at[process] = next_name(sorted(files), process), "listed"
        elif step == "write" and at.get(process) == "listed":
            files.add(names[process])
            at[process] = "written"
        elif step == "check" and at.get(process) == "written":
            seen = sorted(files)
            goes_on = not find_newer(seen, names[process]) and not list_open_before(seen, names[process])
            at[process] = "sends" if goes_on else "waits"
    assert list(at.values()).count("sends") <= 1


def test_the_mark_is_renewed_until_the_engine_closes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real files: a process shows itself every second; after `close` its thread ends."""
    monkeypatch.setattr(module, "RENEW_S", 0.01)
    one = Attempts("a", str(tmp_path / "blocks"))
    one.start()
    attempt = one.begin(BLOCK)
    two = Attempts("b", str(tmp_path / "blocks"))
    two.start()
    assert two.begin(BLOCK).is_repeated
    assert attempt.superseded
    one.close()
    two.close()
    for thread in threading.enumerate():
        if thread.name == "arkbeam-attempts":
            thread.join(5)
            assert not thread.is_alive()
