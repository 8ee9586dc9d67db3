"""A run finds other living runs of its output, on any machine: it leaves them alone, or ends them first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from arkbeam.app.holding import recover_killed
from arkbeam.app.job import run_job
from arkbeam.app.take_over import TakeOver
from arkbeam.base.errors import ConfigError, OutputInUse
from arkbeam.base.files import write_bytes
from arkbeam.quota.marks import write_mark
from arkbeam.stages.spec import RunSpec
from arkbeam.store.claim import MARK_NAME, check_claim
from arkbeam.store.journal import TakenOver, open_journal
from arkbeam.store.layout import new_run_name, run_folder
from arkbeam.store.living import Watches
from arkbeam.store.outputs import OUTPUT_NOTE
from arkbeam.store.run_files import note_uri

from tests.places import Place

LEASE_S = 0.5
ROWS = 20


@pytest.fixture
def filled(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place with a complete output, a manifest with new rows, and short leases."""
    place.write_texts(1)
    place.run()
    place.write_texts(ROWS)
    monkeypatch.setattr("arkbeam.app.holding.Watches", partial(Watches, lease_s=LEASE_S))
    monkeypatch.setattr("arkbeam.app.job.TakeOver", partial(TakeOver, lease_s=LEASE_S))
    return place


@contextmanager
def _worker(place: Place, *, heeds_stop: bool = True) -> Iterator[Path]:
    """A worker of a run whose first process was killed: it renews its mark until it is told to stop. Yield the run's folder."""
    key = orjson.loads((place.output / OUTPUT_NOTE).read_bytes())["key"]
    run = new_run_name(key, 1e9, "00000000")
    write_bytes(str(place.output / MARK_NAME), orjson.dumps({"run": run}))
    folder, ended = Path(run_folder(str(place.store), run)), threading.Event()
    write_bytes(note_uri(str(place.store), run, "running"), b'{"many_processes": true}')

    def work() -> None:
        number = 0
        while not ended.wait(LEASE_S / 10) and not (heeds_stop and (folder / "stop.json").exists()):
            write_mark(str(folder / "blocks/processes"), "7-ab", number := number + 1, {})

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield folder
    finally:
        ended.set()
        thread.join()


def test_a_run_whose_first_process_was_killed_is_left_alone(filled: Place) -> None:
    """The message names the run, its age and the ways out; nothing is sent, and the run can still publish."""
    before = filled.note
    with _worker(filled) as folder, pytest.raises(OutputInUse) as raised:
        filled.run()
    for word in (folder.name, " h ago", "wait until it ends", "--take-over"):
        assert word in str(raised.value)
    assert [path.name for path in (filled.store / "runs").iterdir()] == [folder.name]
    assert not (folder / "stop.json").exists()
    check_claim(str(filled.output), folder.name)
    assert filled.note == before


def test_it_can_be_taken_over(filled: Place) -> None:
    """It is told to stop through the store; when its signs have ended, its files are removed, and the run completes."""
    lines: list[str] = []
    with _worker(filled):
        note = run_job(filled.prepare(), take_over=True, say=lines.append)
    assert (note["published"], note["requests_paid"]) == (ROWS, ROWS - 1)
    assert lines[0].startswith("ending run 20010909T014640-")
    assert filled.leftovers == []


def test_one_that_does_not_end_is_an_error(filled: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has a bound; the error says what to do."""
    monkeypatch.setattr("arkbeam.app.job.TakeOver", partial(TakeOver, lease_s=LEASE_S, margin_s=1.0))
    with (
        _worker(filled, heeds_stop=False) as folder,
        pytest.raises(
            OutputInUse, match=f"run {folder.name} was told to stop and has not ended in 1 s: cancel its job"
        ),
    ):
        run_job(filled.prepare({"limits.drain_s": 0}), take_over=True, say=lambda _: None)


def test_a_living_run_on_this_machine_is_ended(
    make_emulator: Any, make_place: Any, start: Callable[..., Any], call: Callable[..., Any]
) -> None:
    """It stops as after Ctrl-C: what it has bought is not bought again, and the other run publishes all rows."""
    emulator = make_emulator(latency_ms=500)
    place = make_place(emulator.url)
    place.write_texts(400)
    first = start(*place.arguments("run"))
    emulator.wait_for("received", 1)
    ended = call(*place.arguments("run", {"limits.requests_in_flight": 200}, "--take-over"))
    assert (first.wait().code, ended.code) == (128 + signal.SIGINT, 0)
    assert "ending run " in ended.err
    assert (emulator.stats["paid"], place.note["published"]) == (400, 400)
    assert place.leftovers == []


def test_a_worker_without_the_key_ends_the_run_with_one_line(filled: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's note is raised in place of what the runner makes of the error."""

    def lack(_: RunSpec) -> None:
        raise ConfigError("the environment variable ARK_API_KEY is not set")

    monkeypatch.setattr("arkbeam.app.job.has_many_processes", lambda _: True)
    monkeypatch.setattr("arkbeam.beam.read.check_secrets", lack)
    with pytest.raises(ConfigError, match=r"^on the worker \S+: the environment variable ARK_API_KEY is not set$"):
        filled.run()


def test_a_process_shows_itself_while_it_publishes(filled: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the claim is checked, a mark of the process is there, so that another run finds it."""
    marks: list[int] = []

    def spy(output_uri: str, run: str) -> None:
        marks.append(len(list((filled.store / "runs" / run / "blocks/processes").iterdir())))
        check_claim(output_uri, run)

    monkeypatch.setattr("arkbeam.app.job.has_many_processes", lambda _: True)
    for module in ("commit", "parts"):
        monkeypatch.setattr(f"arkbeam.stages.publish.{module}.check_claim", spy)
    filled.run()
    assert marks
    assert min(marks) >= 1


def test_a_run_that_ends_late(place: Place) -> None:
    """It recovers its own journals, not those of a run that has taken over its output and is alive."""
    place.write_texts(1)
    spec = place.prepare().spec
    later = replace(spec.run, name=new_run_name(spec.run.output_key, spec.run.started_s + 1, "89abcdef"))
    own, other = (open_journal(spec.store.uri, name, "1-ab") for name in (spec.run.name, later.name))
    for journal in (own, other):
        journal.sent("a", bytes(16))
    recover_killed(spec)
    other.sent("b", bytes(16))
    with pytest.raises(TakenOver):
        own.sent("b", bytes(16))
