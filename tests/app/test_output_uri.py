"""Outputs with a date or a run's id in their URI: names, one store for all, and the newest one."""

import json
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from arkbeam.app.output_uri import find_outputs, resolve, stands_for
from arkbeam.app.run_note import write_run_note
from arkbeam.base.errors import ConfigError
from arkbeam.store.claim import show_alive
from arkbeam.store.layout import key_of_run
from arkbeam.store.outputs import find_output_key

STARTED_S = datetime(2026, 11, 26, 23, 59, 58, tzinfo=UTC).timestamp()
TREE = {
    "s3://b/out": ["2026-11-25", "2026-11-26", "2026-1-2", "old"],
    "s3://b/out/2026-11-26": [],
    "s3://b/out/2026-11-25": ["20261125T010000-00000000", "20261125T020000-00000000", "notes"],
}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/{run_date}", "s3://b/2026-11-26"),
        ("/out/{run_date}/r-{run_id}", "/out/2026-11-26/r-20261126T235958-0a1b2c3d"),
        ("/out/{1,2}/{", "/out/{1,2}/{"),
        ("/out", "/out"),
    ],
)
def test_names_are_replaced(uri: str, expected: str) -> None:
    """The date is that of the start in UTC; the id has start and random digits; other braces stay; the result matches."""
    assert resolve(uri, STARTED_S, "0a1b2c3d4e") == expected
    assert stands_for(uri, expected)
    assert stands_for(uri, f"{expected}/")
    assert not stands_for(uri, f"{expected}x")


def test_the_newest_output_comes_first() -> None:
    """The folders that a URI stands for are found from the newest to the oldest; others are left out."""

    def found(uri: str) -> list[str]:
        return list(find_outputs(uri, lambda folder: TREE.get(folder, [])))

    assert found("s3://b/out/{run_date}") == ["s3://b/out/2026-11-26", "s3://b/out/2026-11-25"]
    assert found("s3://b/out/{run_date}/{run_id}/v/") == [
        "s3://b/out/2026-11-25/20261125T020000-00000000/v",
        "s3://b/out/2026-11-25/20261125T010000-00000000/v",
    ]
    assert found("s3://b/nothing/{run_date}") == []
    assert found("s3://b/{1,2}/") == ["s3://b/{1,2}"]


@pytest.mark.parametrize(
    ("key", "uri", "words"),
    [
        ("output.uri", "/out/{rundate}", "{rundate}: did you mean {run_date}?"),
        ("output.uri", "/out/{run id}", "{run id}: did you mean {run_id}?"),
        ("output.uri", "/out/{}", "did you mean {run_date}?"),
        ("store.uri", "/store/{run_date}", "store.uri: {run_date} is for output.uri only"),
    ],
)
def test_other_names(place: Any, call: Callable[..., Any], key: str, uri: str, words: str) -> None:
    """An unknown name is an error that names the nearest; the store has no names; also with `--set`."""
    place.write_texts(1)
    ended = call(*place.arguments("plan", {key: uri}))
    assert (ended.code, words in ended.err) == (2, True)


def test_a_store_below_the_output(place: Any) -> None:
    """A store in an output that only this run has would be lost to the next run: an error."""
    place.write_texts(1)
    settings = {"output.uri": f"{place.folder}/{{run_id}}", "store.uri": str(place.folder / "x")}
    place.prepare(settings)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    with pytest.raises(ConfigError, match=r"store\.uri is below"):
        place.prepare({"output.uri": f"{place.folder}/{{run_date}}", "store.uri": f"{place.folder}/{today}/store"})


def test_a_run_with_nothing_new_costs_nothing(place: Any, emulator: Any, call: Callable[..., Any]) -> None:
    """Each run writes an output of its own from the one store; what is owned is not sent again; all names are resolved."""
    place.write_texts(5)
    place.settings["output.uri"] = f"{place.folder}/{{run_date}}/{{run_id}}"
    planned = json.loads(call(*place.arguments("plan", {}, "--json")).out)["output"]
    notes = [json.loads(call(*place.arguments("run", {}, "--json")).out) for _ in range(2)]
    assert [note["requests_sent"] for note in notes] == [5, 0]
    assert [note["all_runs"]["requests_paid"] for note in notes] == [5, 0]
    assert emulator.stats["received"] == 5
    outputs = [note["config"]["output"]["uri"] for note in notes]
    assert len({planned, *outputs}) == 3
    for note, output in zip(notes, outputs, strict=True):
        assert json.loads(call("inspect", output, "--json").out)["run"]["published"] == 5
        start, key, digits = note["run"].split("-")
        assert re.fullmatch(rf"{place.folder}/\d{{4}}-\d{{2}}-\d{{2}}/{start}-{digits}", output)
        assert key == key_of_run(note["run"]) == find_output_key(output, str(place.store))
    ended = call(*place.arguments("run"))
    assert "{" not in ended.out.replace(str(place.folder), "")
    assert place.leftovers == []


def test_a_killed_run_is_recovered_by_the_run_of_the_next_output(
    make_emulator: Any, make_place: Any, start: Callable[..., Any]
) -> None:
    """What it had received is bought once, although its output has no next run; its files are removed."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_texts(60)
    place.settings |= {"output.uri": f"{place.folder}/{{run_id}}", "limits.requests_in_flight": 4}
    killed = start(*place.arguments("run"))
    emulator.wait_for("paid", 20)
    killed.send(signal.SIGKILL)
    killed.wait()
    assert place.run()["published"] == 60
    assert emulator.stats["paid"] - emulator.stats["paid_distinct"] <= 4
    assert list((place.store / "journals").iterdir()) == []
    assert place.leftovers == []


@pytest.mark.parametrize(
    ("output", "host", "alive", "removed"),
    [
        ("2026-11-25", None, False, True),
        ("2026-11-25", None, True, False),
        ("2026-11-25", "another", False, False),
        ("other", None, False, False),
    ],
)
def test_which_runs_of_other_outputs_are_removed(
    place: Any, monkeypatch: pytest.MonkeyPatch, output: str, host: str | None, alive: bool, removed: bool
) -> None:
    """Dead ones of the same `output.uri`: not those that are alive, whose path is on another machine, or of another URI."""
    place.write_texts(1)
    place.settings["output.uri"] = f"{place.folder}/{{run_date}}"
    spec = place.prepare({"output.uri": f"{place.folder}/{output}"}).spec
    with monkeypatch.context() as patched:
        if host is not None:
            patched.setattr("arkbeam.app.run_note.socket.gethostname", lambda: host)
        write_run_note(spec)
    folder = place.store / "runs" / spec.run.name
    with show_alive(str(folder), spec.run.name) if alive else nullcontext():
        place.run()
        assert folder.exists() != removed
        assert not (folder / "stop.json").exists()
