"""Before a run publishes, what its dead processes had received is stored, and living processes are waited for."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from arkbeam.engine.attempts import DEAD_S, RENEW_S, blocks_folder, processes_folder
from arkbeam.quota.marks import write_mark
from arkbeam.stages.embed.dead_processes import settle_processes
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
    """A process whose mark stands still is recovered. One that is alive is waited for, and stopped if it takes too long."""
    alive, dead = _journal(spec, "alive"), _journal(spec, "dead")
    write_mark(_marks(spec), "dead", 7, {"process": "dead"})
    clock = Clock(spec, alive, settles_after_s)
    found = settle_processes(spec, 60.0, lambda: clock.now_s, clock.sleep)
    lost = ["dead-1"] if settles_after_s < 60.0 else ["alive-1", "dead-1"]
    assert found == Recovered(stored=0, lost=len(lost))
    assert clock.now_s == pytest.approx(min(60.0, max(DEAD_S, settles_after_s)), abs=2 * RENEW_S)
    uris = list_parquet(events_folder(spec.store.uri, spec.run.name))
    recorded = [read_columns(uri, ["client_request_id"])["client_request_id"].to_pylist() for uri in uris]
    assert sorted(name for names in recorded for name in names) == lost
    for process, journal in (("alive", alive), ("dead", dead)):
        with pytest.raises(TakenOver) if f"{process}-1" in lost else nullcontext():
            journal.sent(f"{process}-2", bytes(16))
    assert settle_processes(replace(spec, many_processes=False)) == Recovered()
