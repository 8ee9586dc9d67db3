"""Which runs are alive is found out from what they write, by the observer's clock."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from arkbeam.base.files import remove_folder, write_bytes
from arkbeam.store.claim import show_alive
from arkbeam.store.layout import run_folder
from arkbeam.store.living import Verdict, Watch, Watches, is_running
from arkbeam.store.run_files import note_uri
from hypothesis import given
from hypothesis import strategies as st

LEASE_S = 10.0


@dataclass
class World:
    """A store, and a clock that only waits move; after each of them something happens."""

    store: str
    now_s: float = 1000.0
    then: Callable[[], None] = lambda: None
    ended: list[str] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.then()

    def watches(self) -> Watches:
        """Return an observer."""
        return Watches(self.store, self.ended, LEASE_S, lambda: self.now_s, self.sleep)

    def write(self, run: str, name: str) -> None:
        """Write a file of a run."""
        write_bytes(f"{run_folder(self.store, run)}/{name}", str(self.now_s).encode())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world with a run of several processes."""
    write_bytes(note_uri(str(tmp_path), "run", "running"), b'{"many_processes": true}')
    return World(str(tmp_path))


def test_a_run_without_signs_is_dead_after_a_lease(world: World) -> None:
    """Not earlier: a process may renew its mark late."""
    assert world.watches().judge(["run"]) == []
    assert LEASE_S <= world.now_s - 1000 <= LEASE_S + 1


def test_a_run_with_signs_after_a_lease_is_alive(world: World) -> None:
    """Marks of its processes, staged rows and notes are signs, though nobody holds its claim."""
    world.then = lambda: world.write("run", f"blocks/processes/7-ab.{world.now_s:.0f}")
    assert world.watches().judge(["run"]) == ["run"]
    assert world.now_s - 1000 <= LEASE_S + 2


def test_a_run_that_ends_while_it_is_watched_is_dead(world: World) -> None:
    """Signs at first do not count if they end; a folder that is removed is that of a run that has ended."""
    world.then = lambda: world.write("run", f"row.{world.now_s:.0f}") if world.now_s < 1003 else None
    assert world.watches().judge(["run"]) == []
    assert world.now_s - 1000 <= LEASE_S + 4
    world.then, before_s = lambda: remove_folder(run_folder(world.store, "run")), world.now_s
    assert world.watches().judge(["run"]) == []
    assert world.now_s - before_s <= 1


def test_a_lock_decides_at_once(world: World) -> None:
    """On a local store, a run whose first process lives is alive, and one of one process is dead without it."""
    write_bytes(note_uri(world.store, "single", "running"), b'{"many_processes": false}')
    with show_alive(run_folder(world.store, "single"), "single"):
        assert world.watches().judge(["single"]) == ["single"]
    assert world.watches().judge(["single"]) == []
    assert world.now_s == 1000


def test_a_process_that_wakes_up_is_noticed(world: World) -> None:
    """After a stop was written, a new mark shows that the run goes on; what the observer writes is no sign."""
    watches = world.watches()
    assert watches.judge(["run"]) == []
    world.write("run", "stop.json")
    assert watches.find_revived(["run"]) == []
    world.write("run", "blocks/processes/7-ab.1")
    assert watches.find_revived(["run"]) == ["run"]


def test_a_run_is_running_until_its_folder_is_removed(world: World) -> None:
    """This is what workers ask before they begin."""
    assert is_running(world.store, "run")
    remove_folder(run_folder(world.store, "run"))
    assert not is_running(world.store, "run")


@given(st.lists(st.floats(0.1, LEASE_S - 0.1), min_size=1), st.integers(0, 3))
def test_a_run_that_renews_in_time_is_never_dead(waits_s: list[float], offset_s: int) -> None:
    """However its renewals fall between the looks of the observer, and whatever the observer's clock shows."""
    watch, now_s = Watch(LEASE_S), float(10**offset_s)
    for sign, wait_s in enumerate(waits_s):
        watch.note([sign], now_s)
        assert watch.verdict(now_s + wait_s) is not Verdict.DEAD
        now_s += wait_s
    watch.note([len(waits_s) - 1], now_s := now_s + LEASE_S)
    assert watch.verdict(now_s) is not Verdict.UNKNOWN
