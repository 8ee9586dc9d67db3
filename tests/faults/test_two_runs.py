"""Promise 8: two concurrent runs can share a store; an output has one run at a time, and can be used again after a kill."""

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest


def good(count: int, first: int = 0) -> list[dict[str, str]]:
    """Return rows that the service accepts."""
    return [{"id": f"id-{number}", "text": f"text {number}"} for number in range(first, first + count)]


def test_two_outputs_of_one_store(make_emulator: Any, make_place: Any, start: Any, assert_vectors: Any) -> None:
    """Two concurrent runs on one store both complete; only rows that are in both manifests may be paid twice."""
    emulator = make_emulator(latency_ms=50)
    place = make_place(emulator.url)
    places = []
    for name, first in (("a", 0), ("b", 200)):
        place.write_rows(good(400, first), f"{name}.jsonl")
        settings = {"manifest.uris": [str(place.folder / f"{name}.jsonl")], "output.uri": str(place.folder / name)}
        places.append(replace(place, settings=settings))
    runs = [start(*one.arguments("run")) for one in places]
    assert [run.wait().code for run in runs] == [0, 0]
    stats = emulator.stats
    assert stats["paid_distinct"] == 600
    assert stats["paid"] <= 800
    for one, first in zip(places, (0, 200), strict=True):
        table = one.read_from(one.settings["output.uri"], "embeddings")
        assert sorted(table["id"].to_pylist()) == sorted(row["id"] for row in good(400, first))
        assert_vectors(table, lambda row: [("text", f"text {row['id'].removeprefix('id-')}")])


def test_two_runs_of_one_output(make_emulator: Any, make_place: Any, start: Any, call: Callable[..., Any]) -> None:
    """A second run of an output in use exits with 6, names the first run and sends nothing; the first run completes."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_rows(good(200))
    first = start(*place.arguments("run"))
    emulator.wait_for("received", 1)
    (running,) = (path.name for path in (place.store / "runs").iterdir())
    ended = call(*place.arguments("run"))
    assert ended.code == 6
    assert running in ended.err
    assert first.wait().code == 0
    assert emulator.stats["received"] == 200
    assert place.note["run"] == running


def test_a_killed_runs_output(make_emulator: Any, make_place: Any, start: Any, call: Callable[..., Any]) -> None:
    """On local files another run can use the output immediately after a kill."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_rows(good(200))
    first = start(*place.arguments("run"))
    emulator.wait_for("received", 20)
    first.send(signal.SIGKILL)
    first.wait()
    ended = call(*place.arguments("run"))
    assert ended.code == 0
    assert place.note["published"] == 200
    assert place.leftovers == []


@pytest.mark.slow
def test_an_output_on_an_object_store(
    make_emulator: Any, make_place: Any, start: Any, call: Callable[..., Any], s3: Any
) -> None:
    """On an object store a second run waits for one lease: it exits with 6 if the first still renews, and takes over if it was killed."""
    emulator = make_emulator(latency_ms=400)
    place = make_place(emulator.url)
    place.write_rows(good(400))
    place.settings |= {"output.uri": s3.uri("out"), "limits.requests_in_flight": 8}
    first = start(*place.arguments("run"))
    emulator.wait_for("received", 8)
    before = emulator.stats["received"]
    ended = call(*place.arguments("run"))
    assert ended.code == 6
    assert "is in use by run" in ended.err
    first.send(signal.SIGKILL)
    first.wait()
    assert before < emulator.stats["received"] < 400
    ended = call(*place.arguments("run", {"limits.requests_in_flight": 200}))
    assert ended.code == 0
    stats = emulator.stats
    assert stats["paid_distinct"] == 400
    assert stats["paid"] <= 400 + 8 + 256
