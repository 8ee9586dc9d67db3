"""Promise 1: if a run is killed at any moment, the same command completes it and pays little twice.

With ARKBEAM_PROMISES=all in the environment all 50 points are tested, otherwise two of each phase.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from arkbeam.emulator.options import EmulatorOptions

from tests.faults.conftest import published_rows
from tests.places import Emulator, Place, run_emulator
from tests.warm import WarmProcess

ALL = os.environ.get("ARKBEAM_PROMISES") == "all"
POINTS_A_PHASE = 2  # unless ARKBEAM_PROMISES asks for all
ROWS = 300
IN_FLIGHT = 8
FLUSH_ROWS = 32
SETTINGS = {
    "limits.requests_in_flight": IN_FLIGHT,
    "limits.failures_allowed": "10%",
    "store.flush_rows": FLUSH_ROWS,
    "manifest.shard_bytes_max": 4_096,
    "manifest.keep": ["note"],
}
PAID = "paid"  # not a named fault: the test sends SIGKILL after this number of paid requests


def draw_points(seed: int) -> dict[str, list[str]]:
    """Draw the points of each phase: a named fault, and the number of the hit at which the process is killed."""
    chance = random.Random(seed)

    def some(point: str, most: int, times: int) -> list[str]:
        return [f"{point}:kill:{number}" for number in chance.sample(range(1, most + 1), times)]

    files = ("file.write", "file.commit", "file.written")
    return {
        "read": [
            *some("read.chunk", 5, 2),
            *some("read.summary", 5, 2),
            *(entry for name in files for entry in some(f"{name}@*/rows/*", 5, 1)),
            *some("file.commit@*/unreadable/*", 2, 1),
        ],
        "plan": [
            *some("plan.bucket", 1, 1),
            *some("plan.deal", 3, 1),
            *some("plan.dealt", 3, 1),
            *some("plan.settle", 1, 1),
            *(entry for name in files for entry in some(f"{name}@*/buyers/*", 3, 1)),
        ],
        "embed": [
            *some("embed.sending", 250, 4),
            *some("embed.answered", 250, 4),
            *(f"{PAID}:kill:{number}" for number in chance.sample(range(1, 240), 4)),
        ],
        "flush": [
            *some("store.flush", 7, 2),
            *some("store.flushed", 7, 1),
            *(entry for name in files for entry in some(f"{name}@*/segments/*", 7, 2)),
        ],
        "publish": [
            *some("publish.begin", 1, 1),
            *some("publish.part@usage", 1, 1),
            *(entry for name in files for entry in some(f"{name}@*/out/embeddings/*", 1, 1)),
            *some("file.commit@*/out/failures/*", 1, 1),
            *(entry for name in files[1:] for entry in some(f"{name}@*/out/usage/*", 1, 1)),
        ],
        "commit": [
            *some("commit.clean", 1, 1),
            *some("commit.note", 1, 1),
            *some("file.commit@*/run.json", 1, 1),
            *some("commit.success", 1, 1),
            *some("file.commit@*/_SUCCESS", 1, 1),
            *some("file.written@*/_SUCCESS", 1, 1),
        ],
    }


POINTS = draw_points(seed=7)


@dataclass(frozen=True)
class Undisturbed:
    """What all points share: an emulator, a manifest, and the rows that an undisturbed run publishes."""

    emulator: Emulator
    manifest: Path
    distinct: int
    expected: set[tuple[Any, ...]]
    failures: int

    def place(self, folder: Path) -> Place:
        """Make a place with a store and an output of its own."""
        folder.mkdir(exist_ok=True)
        return Place(folder, self.emulator.url, {**SETTINGS, "manifest.uris": [str(self.manifest)]})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[Undisturbed]:
    """Run once without a fault, on a manifest with duplicates and unreadable rows."""
    folder = tmp_path_factory.mktemp("killed")
    with run_emulator(warm, EmulatorOptions(latency_ms=20, jitter_ms=20)) as emulator:
        maker = Place(folder, emulator.url)
        rows: list[Any] = [{"id": f"id-{at}", "text": f"row number {at % 280}", "note": f"n{at}"} for at in range(ROWS)]
        rows[70] = rows[210] = "{broken"
        shared = Undisturbed(emulator, maker.write_rows(rows), 0, set(), 0)
        place = shared.place(folder / "undisturbed")
        note = place.run()
        assert (note["published"], note["failed"]) == (ROWS - 2, 2)
        assert note["to_buy"] == emulator.stats["paid"]
        yield replace(shared, distinct=note["to_buy"], expected=published_rows(place), failures=2)


def kill_at(point: str, place: Place, undisturbed: Undisturbed, start: Callable[..., Any]) -> None:
    """Run until the process is killed at a point; fail if it does not reach the point."""
    if not point.startswith(PAID):
        ended = start(*place.arguments("run"), ARKBEAM_FAULTS=point).wait()
        assert ended.code == -signal.SIGKILL, f"{point} was not reached: {ended.err}"
        return
    before = undisturbed.emulator.stats["paid"]
    run = start(*place.arguments("run"))
    undisturbed.emulator.wait_for("paid", before + int(point.rpartition(":")[2]))
    run.send(signal.SIGKILL)
    assert run.wait().code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", POINTS)
def test_killed(
    phase: str,
    undisturbed: Undisturbed,
    tmp_path: Path,
    start: Any,
    read_published: Any,
    assert_bill: Any,
    figures: Any,
) -> None:
    """The same command publishes what an undisturbed run does; at most the in-flight requests are paid twice.

    `usage/` equals the bill. In the phases that send, it may also have requests that were about to be sent at the kill.
    """
    points = POINTS[phase] if ALL else random.Random(phase).sample(POINTS[phase], POINTS_A_PHASE)
    for number, point in enumerate(points):
        place = undisturbed.place(tmp_path / str(number))
        before = undisturbed.emulator.stats
        kill_at(point, place, undisturbed, start)
        assert (place.output / "_SUCCESS").exists() == point.startswith("file.written@*/_SUCCESS")
        at_kill = undisturbed.emulator.stats["paid"] - before["paid"]
        note = place.run()
        after = undisturbed.emulator.stats
        bill = {
            "paid": after["paid"] - before["paid"],
            "tokens": {name: count - before["tokens"][name] for name, count in after["tokens"].items()},
        }
        twice = bill["paid"] - undisturbed.distinct
        above = place.read("usage").num_rows - bill["paid"]
        rows = read_published(place)
        figures(
            f"| {phase} | `{point.replace(':kill', '')}` | {at_kill} | {twice} | {above} | {len(rows)} of {len(undisturbed.expected)} |"
        )
        assert twice <= IN_FLIGHT
        if phase not in ("embed", "flush"):
            assert twice == 0
        assert_bill(place, bill, above=IN_FLIGHT if phase in ("embed", "flush") else 0)
        assert rows == undisturbed.expected
        assert note["failed"] == place.read("failures").num_rows == undisturbed.failures
        assert place.leftovers == []


def test_the_points_cover_every_phase() -> None:
    """There are 50 points: at least five for each phase."""
    assert sum(map(len, POINTS.values())) == 50
    assert min(map(len, POINTS.values())) >= 5
