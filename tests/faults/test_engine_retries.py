"""Promise 3: when Beam repeats a bundle, nothing is paid twice. The server counts the requests."""

import signal
from typing import Any

import psutil
import pytest

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


def _find_sender(pid: int) -> psutil.Process:
    """Return a worker that sends requests: it has the most open connections, because all workers have those to Beam."""
    workers = [one for one in psutil.Process(pid).children(recursive=True) if "sh" not in one.name()]
    return max(workers, key=lambda one: len(one.net_connections()))
