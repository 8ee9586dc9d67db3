"""Promise 3: when Beam repeats a bundle, nothing is paid twice. The server counts the requests."""

import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from arkbeam.app import job
from arkbeam.base.files import list_files
from arkbeam.base.uris import join
from arkbeam.beam import publish
from arkbeam.engine import attempts
from arkbeam.stages.embed.process import open_engine
from arkbeam.stages.embed.session import Session
from arkbeam.stages.plan import Block
from arkbeam.stages.spec import RunSpec

ROWS = 2_000
IN_FLIGHT, FLUSH_ROWS = 8, 64


@pytest.mark.parametrize("repeats", [1, 3])
def test_bundles_that_are_run_again(
    make_emulator: Any, make_place: Any, assert_vectors: Any, assert_bill: Any, repeats: int
) -> None:
    """When Beam repeats every bundle, each distinct request is sent once and each row is published once."""
    emulator = make_emulator(latency_ms=5)
    place = make_place(emulator.url)
    place.write_rows([{"id": f"id-{row}", "text": f"row number {row % (ROWS - 100)}"} for row in range(ROWS)])
    note = place.run(beam=[f"--direct_runner_bundle_repeat={repeats}"])
    stats = emulator.stats
    assert (stats["received"], stats["paid"], stats["paid_distinct"]) == (ROWS - 100,) * 3
    assert (note["published"], note["failed"], note["requests_paid"]) == (ROWS, 0, ROWS - 100)
    table = place.read("embeddings")
    assert sorted(table["row"].to_pylist()) == list(range(ROWS))
    texts = {f"id-{row}": f"row number {row % (ROWS - 100)}" for row in range(ROWS)}
    assert_vectors(table, lambda row: [("text", texts[row["id"]])])
    assert_bill(place, stats)
    assert place.leftovers == []


def test_a_worker_that_is_killed(
    make_emulator: Any, make_place: Any, start: Any, assert_vectors: Any, assert_bill: Any, figures: Any
) -> None:
    """If one of two worker processes is killed, the run exits with 1 and says how to continue; little is paid twice."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_texts(1_000)
    settings = {"limits.requests_in_flight": IN_FLIGHT, "store.flush_rows": FLUSH_ROWS}
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    run = start(*place.arguments("run", settings, "--", *workers))
    emulator.wait_for("paid", 300)
    _find_sender(run.process.pid).send_signal(signal.SIGKILL)
    ended = run.wait()
    assert (ended.code, "run the same command again to continue" in ended.err) == (1, True)
    assert not (place.output / "_SUCCESS").exists()
    note = place.run()
    stats = emulator.stats
    assert (note["published"], stats["paid_distinct"]) == (1_000, 1_000)
    twice = stats["paid"] - stats["paid_distinct"]
    assert twice <= 2 * (IN_FLIGHT + FLUSH_ROWS)  # twice: the other worker is stopped too
    table = place.read("embeddings")
    assert sorted(table["row"].to_pylist()) == list(range(1_000))
    assert_vectors(table, lambda row: [("text", f"row number {row['id'].removeprefix('id-')}")])
    assert_bill(place, stats, above=2)
    assert place.leftovers == []
    figures(f"promise 3: worker killed, paid twice {twice} of at most {2 * (IN_FLIGHT + FLUSH_ROWS)}")


def test_counts_after_a_process_was_killed(
    make_emulator: Any,
    make_place: Any,
    start_function: Any,
    assert_bill: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If an engine gives the bundle of a killed process to another one, `run.json` and `usage/` have what the server counted."""
    emulator = make_emulator(latency_ms=40)
    place = make_place(emulator.url)
    place.write_texts(300)
    place.settings = {"limits.requests_in_flight": IN_FLIGHT, "store.flush_rows": FLUSH_ROWS}
    add, killed = Session.add, []

    def add_after_a_kill(session: Session, block: Block) -> Iterator[Any]:
        if not killed:
            other = start_function(embed_block, session.spec, block)
            emulator.wait_for("paid", 120)
            other.send(signal.SIGKILL)
            killed.append(other.wait().code)
        yield from add(session, block)

    monkeypatch.setattr(job, "has_many_processes", lambda _: True)
    monkeypatch.setattr(attempts, "DEAD_S", 1.5)  # the process is dead
    monkeypatch.setattr(Session, "add", add_after_a_kill)
    note = place.run()
    stats = emulator.stats
    assert killed == [-signal.SIGKILL]
    assert (note["published"], stats["paid_distinct"]) == (300, 300)
    assert 0 < note["lost"] <= IN_FLIGHT
    assert stats["paid"] - 300 <= note["lost"]  # what was in flight; the replies in its journal are not bought again
    assert_bill(place, stats, above=2)
    above = place.read("usage").num_rows - stats["paid"]
    assert (note["requests_sent"], note["requests_paid"]) == (stats["received"] + above, stats["paid"] + above)
    assert (note["refused"], note["retries"], note["all_runs"]["paid_twice"]) == (0, 0, stats["paid"] + above - 300)
    assert place.leftovers == []


def embed_block(spec: RunSpec, block: Block) -> None:
    """Send a block in another process."""
    session = Session(spec, open_engine(spec))
    for _ in (*session.add(block), *session.finish()):
        pass


@pytest.mark.parametrize(("store", "fails"), [("", False), ("memory:///store", True)])
def test_a_job_ends_without_its_submitter(
    place: Any, emulator: Any, monkeypatch: pytest.MonkeyPatch, store: str, fails: bool
) -> None:
    """The last stage leaves the output and what `arkbeam wait` reads, and nothing else; doing it again changes nothing.

    If the runner reports an error after that, the run has its result all the same.
    """
    place.write_texts(50)
    monkeypatch.setattr(job, "has_many_processes", lambda _: True)
    monkeypatch.setattr(publish, "_commit", commit_twice_and_fail if fails else commit_twice)
    LEFT.clear()
    store = store or str(place.store)
    note = place.run({"store.uri": store})
    assert [[f"{store}/runs/{note['run']}/{name}.json" for name in ("result", "running")]] * 2 == LEFT
    assert (note, note["published"], note["requests_sent"]) == (place.note, 50, emulator.stats["received"])
    assert list_files(f"{store}/runs") == []
    assert (place.output / "_SUCCESS").exists()
    assert place.leftovers == []


LEFT: list[list[str]] = []
COMMIT = publish._commit


def commit_twice(once: bytes, begun: Any, files: Any, spec: RunSpec) -> None:
    """Run the last step twice; note the files of runs, journals and the quota after each time."""
    for _ in range(2):
        COMMIT(once, begun, files, spec)
        LEFT.append([uri for name in ("runs", "journals", "quota") for uri in list_files(join(spec.store.uri, name))])


def commit_twice_and_fail(*arguments: Any) -> None:
    """Run the last step twice, in a worker that dies then."""
    commit_twice(*arguments)
    raise RuntimeError("the worker died")


def _find_sender(pid: int) -> psutil.Process:
    """Return a worker that sends requests: it has the most open connections, because all workers have those to Beam."""
    workers = [one for one in psutil.Process(pid).children(recursive=True) if "sh" not in one.name()]
    return max(workers, key=lambda one: len(one.net_connections()))
