"""Compaction and whole runs: outputs, `usage/` and what is bought stay the same. And the other commands of `arkbeam store`."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arkbeam.base.errors import StoreError
from arkbeam.base.faults import flip_bit
from arkbeam.store.compaction import CompactionOptions, compact_store
from arkbeam.store.row_groups import _read_footer

from tests.faults.conftest import published_rows
from tests.places import Place

ROWS = 40
SETTINGS = {"store.flush_rows": 2, "store.compact": False}  # YAML reads `off` as false


def read_usage(place: Place) -> list[Any]:
    """Return all rows of `usage/`, sorted."""
    return sorted(place.read("usage").to_pylist(), key=lambda row: str(row["client_request_id"]))


def folders(place: Place) -> dict[str, int]:
    """Return the number of segments by whether compaction has written them."""
    names = [path.parent.name.startswith("gathered") for path in (place.store / "segments").glob("*/*.parquet")]
    return {"gathered": sum(names), "of runs": len(names) - sum(names)}


def compact(place: Place, grace_h: float = 24.0) -> Any:
    """Compact the store in this process."""
    return compact_store(str(place.store), CompactionOptions(grace_s=3600 * grace_h, lease_s=0.2))


@pytest.fixture
def filled(place: Place) -> Place:
    """A place after a run that has written more than 16 small segments."""
    place.settings |= SETTINGS
    place.write_texts(ROWS)
    place.run()
    assert folders(place)["gathered"] == 0
    return place


def test_outputs_stay_the_same(filled: Place, emulator: Any, call: Callable[..., Any]) -> None:
    """Before, during and after the grace period, runs of two outputs publish the same rows and usage, and buy only what is new."""
    rows, usage = published_rows(filled), read_usage(filled)
    other = {"output.uri": str(filled.folder / "other")}
    filled.write_texts(ROWS + 10)
    assert filled.run(other)["requests_sent"] == 10
    filled.write_texts(ROWS)
    ended = call("store", "compact", str(filled.store), "--json")
    done = json.loads(ended.out)
    assert (ended.code, done["rows"], done["complete"]) == (0, ROWS + 10, True)
    assert folders(filled)["gathered"] == 1
    for removed in (0, done["replaced"]):
        note = filled.run()
        assert (note["requests_sent"], note["published"], note["all_runs"]["paid_twice"]) == (0, ROWS, 0)
        assert published_rows(filled) == rows
        assert read_usage(filled) == usage
        filled.write_texts(ROWS + 10)
        note = filled.run(other)
        assert (note["requests_sent"], note["all_runs"]["requests_paid"]) == (0, 10)
        filled.write_texts(ROWS)
        assert compact(filled, grace_h=0.0).removed == done["replaced"] - removed
    assert folders(filled) == {"gathered": 1, "of runs": 0}
    assert emulator.stats["paid"] == ROWS + 10


def test_killed_at_the_end_of_a_run(filled: Place, start: Callable[..., Any]) -> None:
    """A run compacts the store at its end; a kill in this leaves the output complete, and the next run goes on, and buys nothing."""
    rows, usage = published_rows(filled), read_usage(filled)
    arguments = filled.arguments("run", {"store.compact": "auto"})
    assert start(*arguments, ARKBEAM_FAULTS="compact.segment:kill:1").wait().code == -signal.SIGKILL
    assert (filled.output / "_SUCCESS").exists()
    note = filled.run({"store.compact": "auto"})
    assert (note["requests_sent"], published_rows(filled) == rows, read_usage(filled) == usage) == (0, True, True)
    assert folders(filled)["gathered"] == 1
    assert filled.leftovers == []


def test_beside_a_run(make_emulator: Any, make_place: Any, start: Callable[..., Any]) -> None:
    """A run that has planned on small segments publishes them, although they are replaced, and may be removed, meanwhile."""
    emulator = make_emulator(latency_ms=1500)
    place = make_place(emulator.url)
    place.settings |= SETTINGS | {"limits.requests_in_flight": ROWS}
    place.write_texts(ROWS)
    place.run()
    rows = published_rows(place)
    place.write_texts(ROWS + 1)
    run = start(*place.arguments("run"))
    emulator.wait_for("received", ROWS + 1)
    assert compact(place, grace_h=0.0).replaced > 16
    assert compact(place, grace_h=0.0).removed == 0
    ended = run.wait()
    assert ended.code == 0, ended.err
    assert rows < published_rows(place)
    assert (place.note["published"], emulator.stats["paid"]) == (ROWS + 1, ROWS + 1)
    assert compact(place, grace_h=0.0).removed > 16
    assert place.run()["requests_sent"] == 0


def test_a_gathered_segment_is_damaged(filled: Place, emulator: Any) -> None:
    """Publish finds a damaged row group although it reads only parts; the next run buys again, and `usage/` has both payments."""
    compact(filled, grace_h=0.0)
    compact(filled, grace_h=0.0)
    (path,) = (filled.store / "segments").glob("gathered-*/*.parquet")
    status = path.stat()
    flip_bit(str(path), 8 * (status.st_size // 2))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    _read_footer.cache_clear()
    for part in (filled.output / "embeddings").glob("*.parquet"):  # so that it is written again
        part.unlink()
    with pytest.raises(StoreError, match=r"set aside as .*: run again to buy its vectors again"):
        filled.run()
    note = filled.run()
    assert (note["requests_sent"], note["published"], note["all_runs"]["requests_paid"]) == (ROWS, ROWS, 2 * ROWS)
    assert emulator.stats["paid"] == 2 * ROWS


def test_stats(filled: Place, call: Callable[..., Any]) -> None:
    """The numbers are the same before and after compaction, apart from those of files; nothing is changed."""
    before = json.loads(call("store", "stats", str(filled.store), "--json").out)
    compact(filled)
    after = json.loads(call("store", "stats", str(filled.store), "--json").out)
    (model,) = before["models"].values()
    assert (before["vectors"], before["outputs"], model["requests"], model["vectors"]) == (ROWS, 1, ROWS, ROWS)
    assert model["text_tokens"] == filled.note["tokens"]["text"]
    same = ("vectors", "rejected", "outputs", "models", "cost_cny", "unreadable")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    assert before["segments"]["files"] == before["covered"] > 16
    assert (after["segments"]["files"], after["events"]["files"], after["covered"]) == (1, 1, 2)
    assert after["replaced"]["files"] == before["segments"]["files"]
    assert f"{ROWS} vectors" in call("store", "stats", str(filled.store)).out


def test_verify(filled: Place, call: Callable[..., Any]) -> None:
    """An undamaged store exits with 0; a bit flipped in any kind of file is found, and the exit code is 1."""
    compact(filled)
    ended = call("store", "verify", str(filled.store), "--json")
    assert (ended.code, json.loads(ended.out)["damaged"]) == (0, [])
    patterns = ("segments/gathered-*/*", "events/gathered-*/*", "segments/2*/*", "index/*", "replaced/*.json")
    paths = [sorted(filled.store.glob(pattern))[0] for pattern in patterns]
    for path in paths:
        flip_bit(str(path), 8 * (path.stat().st_size // 2))
    ended = call("store", "verify", str(filled.store), "--json")
    found = [line.partition(":")[0] for line in json.loads(ended.out)["damaged"]]
    assert (ended.code, sorted(found)) == (1, sorted(map(str, paths)))
    assert "5" in call("store", "verify", str(filled.store)).out


def test_gc(filled: Place, call: Callable[..., Any]) -> None:
    """Old folders of runs, old vectors of tokens without a segment, and `verified/` are removed; what is newer stays."""
    old, new = "20200101T000000-00000000-00000000", "21000101T000000-00000000-00000000"
    for run in (old, new):
        (filled.store / "runs" / run).mkdir(parents=True)
    multi = filled.store / "multi" / old
    multi.mkdir(parents=True)
    for number in (1 << 22, (4_000_000_000_000 << 22)):
        (multi / f"{number:016x}.parquet").write_bytes(b"x")
    (filled.store / "verified").mkdir()
    ended = call("store", "gc", str(filled.store), "--json")
    assert json.loads(ended.out) == {"runs": 1, "multi": 1, "verified": True, "stored": 0, "lost": 0}
    assert [path.name for path in (filled.store / "runs").iterdir()] == [new]
    assert len(list(multi.iterdir())) == 1
    assert filled.run()["requests_sent"] == 0


@pytest.mark.parametrize("command", ["compact", "stats", "verify", "gc"])
def test_no_store(call: Callable[..., Any], tmp_path: Path, command: str) -> None:
    """Without a store at the URI, each command exits with 2."""
    ended = call("store", command, str(tmp_path / "nowhere"))
    assert (ended.code, "there is no store" in ended.err) == (2, True)
