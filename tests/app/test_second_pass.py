"""The second pass: at the end of a run, rows that failed for a passing reason are tried once more."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.app.job import run_job
from arkbeam.app.view import Rates, describe_progress
from arkbeam.emulator.options import FaultShares
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.engine.registry import find_engine, stop_engines
from arkbeam.quota import retry

from tests.media.pictures import picture

LIMITS = {"limits.attempts_500": 2, "limits.second_pass_s": 0.3}
ALWAYS = 10**6


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a row be tried again in the first pass after 0.01 s."""
    monkeypatch.setattr(retry, "WAIT_S_MAX", 0.01)


@pytest.fixture
def flaky(place: Any, real_service: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place with 20 rows whose texts and pictures the service accepts, unless it is told to fail."""
    monkeypatch.setenv("ARK_API_KEY", "any")
    place.url = real_service.url
    (place.folder / "a.png").write_bytes(picture("PNG"))
    place.write_rows([{"id": f"id-{at}", "text": f"text {at}", "image": "a.png"} for at in range(20)])
    return place


def count_requests(service: Any) -> Counter[str]:
    """Return how often each text was sent."""
    return Counter(body["input"][0]["text"] for body in service.requests)


def failed_rows(place: Any) -> dict[str, str]:
    """Return the code of each failed row, by id."""
    return {row["id"]: row["code"] for row in place.read("failures").to_pylist()}


def test_a_row_is_tried_once_more(flaky: Any, real_service: Any, call: Callable[..., Any]) -> None:
    """A row that keeps failing is sent once more, whole and after the time that is set; the counts say what it brought."""
    real_service.failing = {"text 3": 2, "text 5": 2, "text 7": ALWAYS}
    real_service.rejected = {"text 9": "not this one"}
    ended = call(*flaky.arguments("run", LIMITS))
    assert ended.code == 3
    assert failed_rows(flaky) == {"id-7": "InternalServiceError", "id-9": "InvalidParameter"}
    assert count_requests(real_service) == {
        f"text {at}": {3: 3, 5: 3, 7: 3}.get(at, 1) for at in range(20)
    }  # 2 tries and the second pass
    assert flaky.note["second_pass"] == {"tried": 3, "recovered": 2}
    assert (flaky.note["published"], flaky.note["failed"], flaky.note["tries_max"]) == (18, 2, 3)
    assert "3 tried again at the end, 2 recovered" in ended.out
    for text in real_service.failing:
        tries = [at for at, body in enumerate(real_service.requests) if body["input"][0]["text"] == text]
        bodies = [real_service.requests[at] for at in tries]
        assert bodies[0] == bodies[1] == bodies[2]
        assert bodies[0]["input"][1]["image_url"]
        assert real_service.times[tries[2]] - real_service.times[tries[1]] >= 0.3


def test_no_second_pass(flaky: Any, real_service: Any) -> None:
    """With `limits.second_pass_s: 0` the row fails after the tries of the first pass."""
    real_service.failing = {"text 3": 2}
    note = flaky.run({**LIMITS, "limits.second_pass_s": 0})
    assert (note["second_pass"], failed_rows(flaky)) == ({"tried": 0, "recovered": 0}, {"id-3": "InternalServiceError"})


def test_nothing_to_try_again(make_emulator: Any, make_place: Any) -> None:
    """A run does not wait for rows that are rejected, or whose unusable or lost replies have reached their bounds."""
    for faults in ({"nan": 1.0}, {"reset_paid": 1.0}, {}):
        emulator = make_emulator(faults=FaultShares(**faults), poison="poison")
        place = make_place(emulator.url)
        place.settings |= {"store.uri": str(place.folder / f"store-{faults}")}
        place.write_rows([{"id": "a", "text": "a"}, {"id": "b", "text": "poison"}])
        note = place.run({"limits.second_pass_s": 600})  # longer than the time limit of a test
        assert note["second_pass"]["tried"] == 0
        assert emulator.stats["received"] == (4 if faults else 2)


def test_a_stop_ends_the_wait(flaky: Any, real_service: Any, wait: Callable[..., None]) -> None:
    """A run that is stopped while rows wait for 600 s ends and does not send them; their first failure counts.

    The progress line says that they wait.
    """
    real_service.failing = {"text 3": ALWAYS}
    job = flaky.prepare({**LIMITS, "limits.second_pass_s": 600}, publish_partial=True)
    lines: list[str] = []

    def stop() -> None:
        wait(lambda: len(real_service.requests) == 21)
        time.sleep(0.5)
        engine = find_engine(job.spec.run.name)
        assert engine is not None
        lines.append(describe_progress(engine.status(), Rates(), job.spec))
        stop_engines(Stop(StopKind.INTERRUPTED, "interrupted", "the test"))

    thread = threading.Thread(target=stop)
    thread.start()
    note = run_job(job)
    thread.join()
    assert lines[0].startswith("19/20 ")
    assert "1 to be tried again at the end" in lines[0]
    assert note["stopped"]["code"] == "interrupted"
    assert count_requests(real_service)["text 3"] == 2
    assert failed_rows(flaky) == {"id-3": "InternalServiceError"}


def test_a_reached_budget_ends_the_run(flaky: Any, real_service: Any) -> None:
    """After a budget is reached nothing is tried again: the row that failed keeps its error."""
    real_service.failing = {"text 0": ALWAYS}
    flaky.write_rows([{"id": f"id-{at}", "text": f"text {at}"} for at in range(20)])
    note = flaky.run({**LIMITS, "budget.tokens": 200, "limits.requests_in_flight": 1})
    assert note["stopped"]["kind"] == "budget"
    assert count_requests(real_service)["text 0"] == 2
    codes = failed_rows(flaky)
    assert codes.pop("id-0") == "InternalServiceError"
    assert set(codes.values()) == {"not_bought"}


@pytest.mark.parametrize("repeats", [0, 2])
def test_bundles_that_are_repeated(flaky: Any, real_service: Any, repeats: int) -> None:
    """The second pass happens once, also if the runner repeats the bundle."""
    rows = [[{"id": f"{name}-{at}", "text": f"{name} {at}"} for at in range(10)] for name in "ab"]
    for name, shard in zip("ab", rows, strict=True):
        flaky.write_rows(shard, f"many-{name}.jsonl")
        real_service.failing[f"{name} 4"] = ALWAYS
    settings = {"manifest.uris": [str(flaky.folder / "many-*.jsonl")]}
    flaky.run({**LIMITS, **settings}, beam=[f"--direct_runner_bundle_repeat={repeats}"])
    sent = count_requests(real_service)
    assert set(failed_rows(flaky)) == {"a-4", "b-4"}
    assert (sent.pop("a 4"), sent.pop("b 4")) == (
        2 * (repeats + 1) + 1,
    ) * 2  # each attempt sends it twice, one of them 3 times
    assert set(sent.values()) == {1}


def test_shares_of_faults(make_emulator: Any, make_place: Any) -> None:
    """With 20 % of the answers 500 and two tries, 4 % of the rows fail, and the second pass recovers most of them."""
    emulator = make_emulator(faults=FaultShares(error_500=0.2), seed=7)
    place = make_place(emulator.url)
    place.write_texts(400)
    note = place.run(LIMITS)
    tried, recovered = note["second_pass"]["tried"], note["second_pass"]["recovered"]
    assert 4 <= tried <= 40
    assert tried / 2 <= recovered == tried - note["failed"]


def test_default_tries_suffice(make_emulator: Any, make_place: Any) -> None:
    """With 5 % of the answers 500 and 1 % lost, or with 20 % 500, only the row fails that the service rejects."""
    for faults, rows in (({"error_500": 0.05, "reset": 0.01}, 600), ({"error_500": 0.2}, 400)):
        emulator = make_emulator(faults=FaultShares(**faults), seed=1, poison="poison")
        place = make_place(emulator.url)
        place.settings |= {"store.uri": str(place.folder / f"store-{rows}")}
        place.write_rows([{"text": "poison"}, *({"text": f"row {at}"} for at in range(rows))])
        note = place.run({"limits.second_pass_s": 0.2})
        assert (note["published"], note["failed"]) == (rows, 1)
