"""Before a run publishes, what its dead processes had received is stored, and living processes are left alone."""

from dataclasses import replace
from typing import Any

import pytest
from arkbeam.engine.attempts import DEAD_S, RENEW_S, blocks_folder, processes_folder
from arkbeam.quota.marks import write_mark
from arkbeam.stages.embed.dead_processes import recover_dead_processes
from arkbeam.stages.spec import RunSpec
from arkbeam.store.journal import Journal, TakenOver, open_journal
from arkbeam.store.layout import events_folder, list_parquet
from arkbeam.store.recovery import Recovered
from arkbeam.store.segments import read_columns


@pytest.fixture
def spec(make_place: Any) -> RunSpec:
    """A run that may have several processes."""
    place = make_place("http://127.0.0.1:1/api/v3")
    place.write_texts(1)
    return replace(place.prepare().spec, many_processes=True)


class Clock:
    """A clock that only moves when somebody sleeps; `alive`, a process, renews its mark then and settles after a while."""

    def __init__(self, spec: RunSpec, alive: Journal, settles_after_s: float) -> None:
        self.now_s, self._spec, self._alive, self._settles_s = 0.0, spec, alive, settles_after_s
        self.renew()

    def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.now_s += seconds
        self.renew()
        if self.now_s >= self._settles_s:
            self._alive.unpaid("alive-1")

    def renew(self) -> None:
        """Renew the mark."""
        write_mark(_marks(self._spec), "alive", round(self.now_s), {"process": "alive"})


def _marks(spec: RunSpec) -> str:
    return processes_folder(blocks_folder(spec.store.uri, spec.run.name))


def _journal(spec: RunSpec, process: str) -> Journal:
    journal = open_journal(spec.store.uri, spec.run.name, process)
    journal.sent(f"{process}-1", bytes(16))
    return journal


@pytest.mark.parametrize("settles_after_s", [5.0, 20.0, 1_000.0])
def test_dead_processes_are_recovered(spec: RunSpec, settles_after_s: float) -> None:
    """A process whose mark stands still is recovered; one that is alive is waited for, within bounds, and not recovered."""
    alive, dead = _journal(spec, "alive"), _journal(spec, "dead")
    write_mark(_marks(spec), "dead", 7, {"process": "dead"})
    clock = Clock(spec, alive, settles_after_s)
    found = recover_dead_processes(spec, 60.0, lambda: clock.now_s, clock.sleep)
    assert found == Recovered(stored=0, lost=1)
    assert clock.now_s == pytest.approx(min(60.0, max(DEAD_S, settles_after_s)), abs=2 * RENEW_S)
    (uri,) = list_parquet(events_folder(spec.store.uri, spec.run.name))
    assert read_columns(uri, ["client_request_id"])["client_request_id"].to_pylist() == ["dead-1"]
    alive.sent("alive-2", bytes(16))  # its journal is its own
    with pytest.raises(TakenOver):
        dead.sent("dead-2", bytes(16))
    assert recover_dead_processes(replace(spec, many_processes=False)) == Recovered()
