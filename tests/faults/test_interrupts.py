"""Promise 2: after Ctrl-C, SIGTERM or kill -9 what was paid is kept, no output is half published, and the same command continues."""

import os
import signal
import time
from typing import Any

ROWS = 2_000
TWO_WORKERS = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


def test_in_the_middle(make_emulator: Any, make_place: Any, start: Any) -> None:
    """The first Ctrl-C waits for open requests and exits with 130; the next run sends only the rest."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_texts(300)
    run = start(*place.arguments("run"))
    emulator.wait_for("paid", 40)
    run.send(signal.SIGINT)
    ended = run.wait()
    assert ended.code == 130
    assert "waiting for open requests; press Ctrl-C again to exit at once" in ended.err
    assert "SIGINT" in ended.err
    assert "run the same command again to continue" in ended.err
    stats = emulator.stats
    bought = stats["paid"]
    assert 40 <= bought < 300
    assert f"{bought} sent, {bought} paid" in ended.out
    assert not (place.output / "_SUCCESS").exists()
    assert place.leftovers == []
    place.url = make_emulator().url
    note = place.run()
    assert (note["owned"], note["requests_sent"], note["published"]) == (bought, 300 - bought, 300)
    assert note["all_runs"]["paid_twice"] == 0


def test_the_second_signal_leaves_at_once(
    make_emulator: Any, make_place: Any, start: Any, wait: Any, assert_bill: Any
) -> None:
    """A second Ctrl-C exits at once; the next run counts the requests that were in flight as paid."""
    emulator = make_emulator(latency_ms=1_000)
    place = make_place(emulator.url)
    place.write_texts(40)
    run = start(*place.arguments("run"))
    emulator.wait_for("in_flight", 16)
    run.send(signal.SIGINT)
    wait(lambda: "exit at once" in run.err)
    run.send(signal.SIGINT)
    assert run.wait().code == 130
    assert emulator.stats["in_flight_max"] == 16
    place.run({"limits.requests_in_flight": 40})
    stats = emulator.stats
    assert (stats["paid"], stats["paid_distinct"]) == (56, 40)
    assert_bill(place, stats)


def test_an_answer_that_never_comes(make_emulator: Any, make_place: Any, start: Any) -> None:
    """After SIGTERM a run waits at most `limits.drain_s` for open requests; those that are then cancelled are counted as paid."""
    emulator = make_emulator(latency_ms=3_000)
    place = make_place(emulator.url)
    place.write_texts(10)
    run = start(*place.arguments("run", {"limits.drain_s": 0.2}))
    emulator.wait_for("in_flight", 10)
    run.send(signal.SIGTERM)
    ended = run.wait()
    assert (ended.code, "SIGTERM" in ended.err) == (130, True)
    assert emulator.stats["paid"] == 10
    place.url = make_emulator().url
    place.run()
    assert place.note["all_runs"]["requests_paid"] == place.read("usage").num_rows == 20


def test_workers_in_other_processes(make_emulator: Any, make_place: Any, start: Any, assert_bill: Any) -> None:
    """Ctrl-C on a terminal reaches every process of the run; only the main process acts on it, and workers store what they paid for."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.write_texts(1_000)
    settings = {"limits.requests_in_flight": 8}
    run = start(*place.arguments("run", settings, "--", *TWO_WORKERS), before=os.setsid)
    emulator.wait_for("paid", 200)
    os.killpg(run.process.pid, signal.SIGINT)
    ended = run.wait()
    assert (ended.code, "press Ctrl-C again to exit at once" in ended.err) == (130, True)
    bought = emulator.stats["paid"]
    assert 200 <= bought < 1_000
    assert not (place.output / "_SUCCESS").exists()
    assert place.leftovers == []
    note = place.run()
    assert (note["owned"], note["requests_sent"], note["published"]) == (bought, 1_000 - bought, 1_000)
    assert_bill(place, emulator.stats)


def test_before_anything_is_sent(place: Any, emulator: Any, start: Any, wait: Any) -> None:
    """Ctrl-C while manifests are read exits with 130 and one line; there is no output and no staged row left."""
    place.write_texts(60_000)
    run = start(*place.arguments("run"))
    wait(lambda: any((place.store / "runs").glob("*/rows")))
    run.send(signal.SIGINT)
    ended = run.wait()
    assert ended.code == 130
    assert "interrupted (SIGINT); run the same command again to continue" in ended.err
    assert "Traceback" not in ended.err
    assert emulator.stats["received"] == 0
    assert place.leftovers == []
    assert not (place.output / "_SUCCESS").exists()


def test_kill_9_at_half(
    make_emulator: Any, make_place: Any, start: Any, assert_vectors: Any, assert_bill: Any, parts_of: Any
) -> None:
    """After kill -9 at half of the rows the same command completes the output and pays little twice; `usage/` equals the bill."""
    emulator = make_emulator(latency_ms=10)
    place = make_place(emulator.url)
    place.write_texts(ROWS)
    settings = {"store.flush_rows": 128}
    run = start(*place.arguments("run", settings))
    emulator.wait_for("paid", ROWS // 2)
    run.send(signal.SIGKILL)
    assert run.wait().code == -signal.SIGKILL
    assert not (place.output / "_SUCCESS").exists()
    time.sleep(0.2)  # until all requests that will reach the emulator have reached it
    paid_before = emulator.stats["paid"]
    note = place.run(settings)
    stats = emulator.stats
    assert note["published"] == ROWS == stats["paid_distinct"]
    twice = stats["paid"] - ROWS
    assert 0 < twice <= 16 + 128
    assert 0 <= note["all_runs"]["paid_twice"] - twice <= 1
    assert stats["paid"] == paid_before + note["requests_sent"]
    table = place.read("embeddings")
    assert sorted(table["row"].to_pylist()) == list(range(ROWS))
    assert_vectors(table, parts_of)
    assert_bill(place, stats, above=1)
    assert place.leftovers == []


def test_kill_9_while_publishing(
    place: Any, emulator: Any, start: Any, wait: Any, assert_vectors: Any, parts_of: Any
) -> None:
    """A run that is killed after it removed `_SUCCESS` leaves none; the same command repairs the output without a request."""
    place.write_texts(ROWS)
    place.run()
    place.write_texts(ROWS - 100)
    success = place.output / "_SUCCESS"
    run = start(*place.arguments("run"))
    wait(lambda: not success.exists(), every_s=0.0005)
    run.send(signal.SIGKILL)
    run.wait()
    assert not success.exists()
    note = place.run()
    assert success.exists()
    assert (note["published"], note["requests_sent"], emulator.stats["received"]) == (ROWS - 100, 0, ROWS)
    table = place.read("embeddings")
    assert sorted(table["row"].to_pylist()) == list(range(ROWS - 100))
    assert_vectors(table, parts_of)
    assert place.leftovers == []
