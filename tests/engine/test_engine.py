"""The engine against a real server: every submitted item is settled, and every paid request is recorded."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.emulator.options import FaultShares
from arkbeam.engine import outcomes
from arkbeam.engine.attempts import Attempt
from arkbeam.engine.items import ITEMS_MAX
from arkbeam.engine.outcomes import Sink, Stop, StopKind
from arkbeam.engine.recorder import Batch
from arkbeam.engine.sender import Sender
from arkbeam.quota.rate import SLACK_S
from arkbeam.store.layout import list_parquet, segments_folder

from tests.engine.conftest import name_of

pytestmark = pytest.mark.timeout(60)

MakeRig = Callable[..., Any]
Start = Callable[..., Any]
INTERRUPT = Stop(StopKind.INTERRUPTED, "interrupted", "Ctrl-C")


@pytest.fixture
def plain(start_server: Start) -> Any:
    """A server that answers without delay and never fails."""
    return start_server()


def _texts(number: int, start: int = 0) -> list[str]:
    return [f"text number {at}" for at in range(start, start + number)]


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not hold within 20 s"
        time.sleep(0.01)


@dataclass
class Asked:
    """What a shared server has counted since this object was made."""

    server: Any

    def __post_init__(self) -> None:
        self.before = self.server.stats()

    def __getitem__(self, name: str) -> int:
        return int(self.server.stats()[name] - self.before[name])

    @property
    def tokens(self) -> int:
        """Tokens that were billed."""
        return int(self.server.stats()["tokens"]["total"] - self.before["tokens"]["total"])


def test_what_is_bought_lands_under_its_own_fingerprint(plain: Any, make_rig: MakeRig) -> None:
    """Of hundreds of items, out of order and in many segments, each gets the vector of its own text with one request."""
    rig, asked = make_rig(plain), Asked(plain)
    rig.engine.expect(300)
    report = rig.buy(*_texts(300))
    index, failed = rig.collect()
    assert (len(index), failed, report.stop) == (300, {}, None)
    rig.check_vectors(index)
    assert len({segment for segment, _ in index.values()}) >= 300 // 64
    counts = rig.engine.status().counts
    assert (counts.expected, counts.sent, counts.bought, counts.failed, counts.retries) == (300, 300, 300, 0, 0)
    assert (asked["received"], asked["paid"], asked.tokens) == (300, 300, counts.total_tokens)
    assert (report.counts.bought, report.use.requests, report.use.tokens) == (300, 300, counts.total_tokens)
    stored = rig.stored().values()
    assert sum(row["total_tokens"] for row in stored) == asked.tokens
    assert len({row["client_request_id"] for row in stored}) == 300
    rig.engine.close()
    assert rig.journals() == []


def test_sparse_vectors_are_kept_where_they_were_asked_for(plain: Any, make_rig: MakeRig) -> None:
    """One session may submit items with and without sparse vectors."""
    rig = make_rig(plain)
    rig.engine.submit(rig.items("with sparse", sparse=True) + rig.items("without"), rig.sink)
    rig.engine.finish(rig.sink)
    found = {rig.texts[row["fingerprint"]]: row["sparse"] for row in rig.stored().values()}
    assert found["without"] is None
    assert found["with sparse"]["indices"] == sorted(found["with sparse"]["indices"])
    assert found["with sparse"]["indices"]


def test_sessions_get_their_own_results(plain: Any, make_rig: MakeRig) -> None:
    """Sessions share the open buffer; each session gets only its own rows of a segment."""
    rig = make_rig(plain, flush_rows=1_000)
    sessions = {sink: _texts(20, 100 * number) for number, sink in enumerate((Sink(), Sink(), Sink()))}

    def run(sink: Sink) -> None:
        rig.engine.submit(rig.items(*sessions[sink]), sink)
        rig.engine.finish(sink)

    threads = [threading.Thread(target=run, args=(sink,), daemon=True) for sink in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert rig.engine.report().counts.bought == 60
    for sink, texts in sessions.items():
        rig.sink = sink
        index, _ = rig.collect()
        assert {rig.texts[name] for name in index} == set(texts)
        rig.check_vectors(index)


def test_a_repeated_attempt_takes_over_what_is_in_flight(start_server: Start, make_rig: MakeRig) -> None:
    """A block that is sent again beside its first attempt, and once more when it is stored, sends nothing twice."""
    server = start_server(latency_ms=200, seed=41)
    rig, sinks, texts = make_rig(server, requests_in_flight=64), (Sink(), Sink(), Sink()), _texts(30)
    before = server.stats()["received"]
    first, second = (rig.engine.attempts.begin((1, 0)) for _ in range(2))
    rig.engine.submit(rig.items(*texts, attempt=Attempt((1, 0))), sinks[0])
    while server.stats()["received"] < before + 10:
        pass
    rig.engine.submit(rig.items(*texts, attempt=second), sinks[1])
    rig.engine.finish(sinks[1])
    assert (first.superseded, second.superseded, sinks[0].open_items) == (True, False, 0)
    rig.engine.submit(rig.items(*texts, attempt=rig.engine.attempts.begin((1, 0))), sinks[2])
    rig.engine.finish(sinks[2])
    for sink, expected in zip(sinks, (0, 30, 30), strict=True):
        rig.sink = sink
        index, failed = rig.collect()
        assert (len(index), failed) == (expected, {})
        rig.check_vectors(index)
    assert server.stats()["received"] - before == 30


def test_a_superseded_attempt_sends_nothing_more(plain: Any, make_rig: MakeRig) -> None:
    """Items that wait for the quota are dropped when a newer attempt at their block has begun."""
    rig, before = make_rig(plain, rpm=600), plain.stats()["received"]
    older = rig.engine.attempts.begin((1, 0))
    rig.engine.submit(rig.items(*_texts(300), attempt=older), rig.sink)
    rig.engine.attempts.begin((1, 0))
    rig.engine.finish(rig.sink)
    assert plain.stats()["received"] - before < 30
    assert rig.engine.submit(rig.items("late", attempt=older), rig.sink)
    rig.engine.finish(rig.sink)
    assert (rig.sink.open_items, older.items) == (0, 0)


FAULTS = FaultShares(
    rate_429=0.04, rate_429_retry_after=0.03, overload_429=0.04, error_500=0.05, reset_paid=0.04, truncated=0.04,
    broken_json=0.04, wrong_length=0.04, nan=0.04,
)  # fmt: skip


def test_faults_are_retried_until_everything_is_settled(start_server: Start, make_rig: MakeRig) -> None:
    """With a third of bad answers, each item ends with its own vector or a reason, and the records equal the bill."""
    server = start_server(faults=FAULTS, seed=5, retry_after_s=0)
    rig, asked = make_rig(server), Asked(server)
    report = rig.buy(*_texts(250))
    index, failed = rig.collect()
    assert set(index) | set(failed) == set(rig.texts)
    assert not set(index) & set(failed)
    assert len(index) > 230
    rig.check_vectors(index)
    counts = report.counts
    assert counts.sent == asked["received"]
    assert counts.retries == counts.sent - 250
    assert counts.refused > 10
    assert counts.unusable > 10
    paid = [event for event in rig.events() if event["paid"]]
    assert Counter(event["kind"] for event in rig.events()) == {"unusable": counts.unusable, "lost": counts.lost}
    assert len(paid) == counts.unusable + counts.lost
    assert len(paid) + len(index) == asked["paid"]
    assert len({row["client_request_id"] for row in [*rig.stored().values(), *paid]}) == asked["paid"]


def test_a_poisonous_text_is_sent_once_and_remembered(start_server: Start, make_rig: MakeRig) -> None:
    """A permanently rejected text costs one request and gives one failure with its code and one unpaid event."""
    server = start_server(poison="毒")
    rig, asked = make_rig(server), Asked(server)
    report = rig.buy(*_texts(20), "有毒", *_texts(20, 20))
    index, failed = rig.collect()
    assert (len(index), {rig.texts[name] for name in failed}) == (40, {"有毒"})
    assert report.counts.failed == 1
    assert next(iter(failed.values()))[0] == "SensitiveContentDetected"
    assert (asked["rejected"], asked["received"]) == (1, 41)
    (event,) = rig.events()
    assert (event["kind"], event["paid"], event["code"]) == ("refused", False, "SensitiveContentDetected")
    assert rig.texts[event["fingerprint"]] == "有毒"


def test_refusals_are_in_the_store_when_a_session_has_ended(start_server: Start, make_rig: MakeRig) -> None:
    """A session with rejections only writes them before it reports, since the publish stage reads them."""
    rig = make_rig(start_server(poison="毒"))
    rig.buy("毒")
    assert len(rig.events()) == 1


def test_a_services_stop_ends_the_run(start_server: Start, make_rig: MakeRig) -> None:
    """After a stop code of the service, requests in flight end, paid results are stored, and nothing more is sent."""
    server = start_server(stop_after=40, stop_code="AccountOverdueError", latency_ms=5)
    rig, asked = make_rig(server), Asked(server)
    report = rig.buy(*_texts(500), batch=16)
    assert report.stop is not None
    assert (report.stop.kind, report.stop.code) == (StopKind.SERVICE, "AccountOverdueError")
    index, failed = rig.collect()
    assert (len(index), failed) == (40, {})
    rig.check_vectors(index)
    assert 41 <= asked["received"] <= 40 + 8
    assert not rig.engine.submit(rig.items("one more"), rig.sink)
    assert rig.engine.finish(rig.sink).stop == report.stop
    assert asked["received"] <= 40 + 8


def test_stopping_drains_and_flushes(start_server: Start, make_rig: MakeRig) -> None:
    """After a stop from another thread nothing more is sent, and no request in flight is lost."""
    server = start_server(latency_ms=300)
    rig, asked = make_rig(server), Asked(server)
    rig.engine.submit(rig.items(*_texts(200)), rig.sink)
    _wait_for(lambda: rig.engine.status().in_flight == 8)
    rig.engine.stop(INTERRUPT)
    rig.engine.stop(Stop(StopKind.SERVICE, "later", "the first reason stays"))
    report = rig.engine.finish(rig.sink)
    assert report.stop == INTERRUPT
    index, failed = rig.collect()
    assert failed == {}
    assert len(index) == len(rig.stored()) == asked["paid"] == asked["received"]
    assert 8 <= len(index) <= 16
    rig.check_vectors(index)
    rig.engine.close()
    assert rig.journals() == []


def test_what_does_not_drain_is_booked_as_lost(start_server: Start, make_rig: MakeRig) -> None:
    """Requests that never end are cancelled after `drain_s`. They may be billed, and are recorded before the session ends."""
    rig = make_rig(start_server(faults=FaultShares(hang_paid=1.0)), drain_s=0.2)
    rig.engine.submit(rig.items(*_texts(20)), rig.sink)
    _wait_for(lambda: len(rig.journaled().sent) == 8)
    rig.engine.stop(INTERRUPT)
    report = rig.engine.finish(rig.sink)
    assert (report.stop, report.counts.lost) == (INTERRUPT, 8)
    assert rig.collect() == ({}, {})
    events = rig.events()
    assert [(event["kind"], event["code"], event["paid"]) for event in events] == [("lost", "abandoned", True)] * 8
    assert {rig.texts[event["fingerprint"]] for event in events} <= set(_texts(20))
    rig.engine.close()
    assert rig.journals() == []


@pytest.mark.parametrize("fault", ["reset_paid", "hang_paid"])
def test_an_answer_that_never_came_is_booked_and_paid_three_times_at_most(
    start_server: Start, make_rig: MakeRig, fault: str
) -> None:
    """A request that was sent may be billed: each try is an event of kind `lost`, and `retries_lost` bounds them."""
    server = start_server(faults=FaultShares(**{fault: 1.0}))
    before = server.stats()["paid"]
    rig = make_rig(server, timeout_s=0.3)
    report = rig.buy("a", "b")
    assert server.stats()["paid"] - before == 6
    assert (report.counts.lost, report.counts.bought) == (6, 0)
    index, failed = rig.collect()
    assert index == {}
    assert {code for code, _ in failed.values()} == {"connection_lost" if fault == "reset_paid" else "timeout"}
    assert [event["kind"] for event in rig.events()] == ["lost"] * 6


def test_what_never_went_out_is_not_lost(make_rig: MakeRig) -> None:
    """A refused connection costs nothing and is not recorded."""
    rig = make_rig(SimpleNamespace(url="http://127.0.0.1:9/api/v3"), attempts_max=2)
    report = rig.buy("a")
    assert (report.counts.sent, report.counts.lost) == (2, 0)
    assert rig.events() == []


def test_a_store_that_hangs_ends_the_run(
    start_server: Start, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that takes longer than `store.timeout_s` is an error with a clear message, and nothing waits for the write."""
    release = threading.Event()
    monkeypatch.setattr(Batch, "write", lambda _: release.wait(30))
    rig = make_rig(start_server(), flush_timeout_s=0.2)
    rig.buy("a")
    with pytest.raises(StoreError, match=r"longer than 0\.2 s \(store\.timeout_s\)"):
        rig.collect()
    rig.engine.close()
    assert rig.journaled().replies  # the next run of the output stores what was paid
    release.set()


def test_closing_lets_waiting_sessions_go(start_server: Start, make_rig: MakeRig) -> None:
    """When an engine is closed because another stage failed, waiting sessions return."""
    rig = make_rig(start_server(faults=FaultShares(hang=1.0)), bytes_in_flight=1)
    ended = []

    def session() -> None:
        sink = Sink()
        while rig.engine.submit(rig.items("x"), sink):
            pass
        ended.append(rig.engine.finish(sink))

    threads = [threading.Thread(target=session, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    _wait_for(lambda: rig.engine.status().in_flight == 1)
    rig.engine.close()
    for thread in threads:
        thread.join(10)
    assert [report.stop.code for report in ended] == ["closed", "closed"]


def test_an_engine_that_has_ended_takes_nothing(plain: Any, make_rig: MakeRig) -> None:
    """Late calls do not hang and do not fail."""
    rig = make_rig(plain)
    rig.engine.close()
    rig.engine.expect(1)
    rig.engine.stop(INTERRUPT)
    assert not rig.engine.submit(rig.items("late"), rig.sink)
    assert rig.engine.finish(rig.sink).counts.sent == 0
    rig.engine.close()


def test_stopping_at_once_is_heard(plain: Any, make_rig: MakeRig) -> None:
    """An engine may be stopped or closed before its thread has run any code."""
    for _ in range(8):
        rig = make_rig(plain)
        rig.engine.stop(INTERRUPT)
        assert rig.buy("x").stop == INTERRUPT
        make_rig(plain).engine.close()


def test_a_client_that_cannot_be_made_is_an_error_at_once(make_rig: MakeRig, plain: Any) -> None:
    """If an engine can't start, the caller gets the error and does not wait."""
    sender = make_rig(plain).engine._sender

    def fail() -> Any:
        raise ConfigError("the proxy can't be used")

    before = threading.active_count()
    with pytest.raises(ConfigError, match="proxy"):
        Sender(sender._options, fail, lambda _: sender.pacer, sender._recorder, sender._reply_check)
    assert threading.active_count() == before


def test_a_store_that_cannot_be_written_ends_the_run(plain: Any, make_rig: MakeRig, tmp_path: Path) -> None:
    """The session gets a StoreError and nothing hangs; the paid replies stay in the journal."""
    rig = make_rig(plain, flush_rows=4)
    (tmp_path / "segments").touch()
    report = rig.buy(*_texts(300), batch=16)
    assert report.stop is not None
    assert report.stop.kind is StopKind.FAULT
    with pytest.raises(StoreError, match="segments"):
        rig.sink.collect()
    assert rig.sink.wait_until_done(0)
    assert not rig.engine.submit(rig.items("more"), rig.sink)
    rig.engine.close()
    assert len(rig.journaled().replies) >= 4


def test_a_journal_that_cannot_be_written_ends_the_run(
    plain: Any, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a journal a kill would lose the bill, so a full disk is a StoreError before the request is sent."""
    rig, asked = make_rig(plain), Asked(plain)
    write = os.write

    def fail(file: int, data: bytes) -> int:
        if data.startswith(b"\ns "):
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", fail)
    report = rig.buy(*_texts(50))
    assert report.stop is not None
    assert report.stop.kind is StopKind.FAULT
    with pytest.raises(StoreError, match="No space left"):
        rig.sink.collect()
    assert asked["paid"] == 0


@pytest.mark.parametrize("fault", ["nan", "wrong_length", "broken_json", "truncated"])
def test_unusable_answers_are_booked_as_paid(start_server: Start, make_rig: MakeRig, fault: str) -> None:
    """Each of the three tries without a vector is its own event, with the tokens that could be read."""
    server = start_server(faults=FaultShares(**{fault: 1.0}))
    rig, asked = make_rig(server), Asked(server)
    report = rig.buy("one", "two")
    index, failed = rig.collect()
    assert (index, len(failed)) == ({}, 2)
    assert (report.counts.sent, report.counts.unusable, report.counts.failed, asked["paid"]) == (6, 6, 2, 6)
    events = rig.events()
    assert Counter(event["fingerprint"] for event in events) == dict.fromkeys(rig.texts, 3)
    assert sorted(event["attempts"] for event in events) == [1, 1, 2, 2, 3, 3]
    assert len({event["client_request_id"] for event in events}) == 6
    assert all(event["paid"] and event["kind"] == "unusable" for event in events)
    if fault in ("nan", "wrong_length"):
        assert sum(event["total_tokens"] for event in events) == report.counts.total_tokens == asked.tokens


def test_a_service_that_is_down_ends_the_run(start_server: Start, make_rig: MakeRig) -> None:
    """If many rows in a row fail after all tries, the rows are not at fault: the run stops instead of failing them all."""
    server = start_server(faults=FaultShares(error_500=1.0))
    rig, asked = make_rig(server, rows_failed_in_a_row_max=10), Asked(server)
    report = rig.buy(*_texts(300))
    assert report.stop is not None
    assert (report.stop.kind, report.stop.code) == (StopKind.SERVICE, "service_unavailable")
    assert report.counts.bought == 0
    assert 10 <= report.counts.failed <= 10 + 8
    assert asked["received"] <= 6 * 300 / 2
    assert rig.events() == []


def test_a_held_item_gets_one_more_try(start_server: Start, make_rig: MakeRig) -> None:
    """An item that failed for a passing reason is held. Submitted once more, it is sent once and then fails for good."""
    server = start_server(faults=FaultShares(error_500=1.0))
    rig, asked = make_rig(server, attempts_500=2, rows_failed_in_a_row_max=2), Asked(server)
    rig.engine.submit(rig.items("a"), rig.sink)
    rig.engine.settle(rig.sink)
    assert (list(rig.sink.held), rig.engine.status().held, asked["received"]) == ([name_of("a")], 1, 2)
    assert rig.sink.held[name_of("a")].due_s > time.monotonic() + 20
    assert rig.collect() == ({}, {})
    report = rig.buy("a")
    assert (rig.sink.held, asked["received"]) == ({}, 3)
    counts = report.counts
    assert (counts.failed, counts.second_tries, counts.recovered, counts.tries_max) == (1, 1, 0, 3)
    assert rig.collect()[1][name_of("a")][0] == "InternalServiceError"
    assert report.stop is None  # a failed second try does not count as a row that failed


def test_a_held_item_that_is_not_sent_fails(start_server: Start, make_rig: MakeRig) -> None:
    """An item keeps its first failure if it is not submitted again, or if the run stops before its second try."""
    server = start_server(faults=FaultShares(error_500=1.0))
    for again in (False, True):
        rig, asked = make_rig(server, attempts_500=1, rpm=60), Asked(server)
        rig.engine.submit(rig.items("a"), rig.sink)
        rig.engine.settle(rig.sink)
        if again:
            assert rig.engine.submit(rig.items("a"), rig.sink)
            rig.engine.stop(INTERRUPT)
        assert rig.engine.finish(rig.sink).counts.failed == rig.engine.status().counts.failed == 1
        assert {code for code, _ in rig.collect()[1].values()} == {"InternalServiceError"}
        assert (asked["received"], rig.engine.status().held) == (1, 0)


def test_a_session_holds_a_bounded_number_of_items(
    start_server: Start, make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items above the bound fail after the first pass."""
    monkeypatch.setattr(outcomes, "HELD_MAX", 3)
    rig = make_rig(start_server(faults=FaultShares(error_500=1.0)), attempts_500=1)
    rig.engine.submit(rig.items(*_texts(5)), rig.sink)
    rig.engine.settle(rig.sink)
    assert (len(rig.sink.held), len(rig.collect()[1])) == (3, 2)
    assert rig.engine.finish(rig.sink).counts.failed == 5
    assert len(rig.collect()[1]) == 3


def test_a_stop_ends_a_pause(plain: Any, make_rig: MakeRig) -> None:
    """A session that waits goes on at once when the run stops; before that it waits as long as it is told."""
    rig = make_rig(plain)
    began_s = time.monotonic()
    assert rig.engine.pause(0.1)
    assert time.monotonic() - began_s >= 0.1
    timer = threading.Timer(0.1, rig.engine.stop, [INTERRUPT])
    timer.start()
    assert not rig.engine.pause(20)
    assert time.monotonic() - began_s < 10
    timer.join()


def test_a_stand_in_where_a_real_service_is_meant_stops_the_run(plain: Any, make_rig: MakeRig) -> None:
    """The vectors of a stand-in are not stored and not delivered; their possible cost is recorded."""
    rig = make_rig(plain, stand_in=False)
    report = rig.buy(*_texts(100))
    assert report.stop is not None
    assert (report.stop.kind, report.stop.code) == (StopKind.SERVICE, "wrong_service")
    assert rig.collect() == ({}, {})
    assert list_parquet(segments_folder(str(rig.store))) == []
    events = rig.events()
    assert 1 <= len(events) == report.counts.sent <= 8
    assert {(event["kind"], event["paid"]) for event in events} == {("unusable", True)}


def test_an_answer_of_another_model_stops_the_run(plain: Any, make_rig: MakeRig) -> None:
    """The vectors of another model are paid for and stored, but not delivered."""
    rig = make_rig(plain, model="doubao-embedding-vision-250615")
    report = rig.buy(*_texts(50))
    assert report.stop is not None
    assert (report.stop.kind, report.stop.code) == (StopKind.SERVICE, "model_changed")
    assert rig.collect() == ({}, {})
    assert {row["model"] for row in rig.stored().values()} == {"doubao-embedding-vision-251215-stand-in"}
    assert 1 <= len(rig.stored()) == report.counts.sent <= 8


def test_one_batch_above_all_bounds_goes_through(plain: Any, make_rig: MakeRig) -> None:
    """A batch above the bounds is let in when the engine is empty, and the next one after it."""
    rig = make_rig(plain, bytes_in_flight=1_000)
    for start in range(0, 12, 4):
        assert rig.engine.submit(rig.items(*_texts(4, start), size=2_000), rig.sink)
    rig.engine.finish(rig.sink)
    assert len(rig.collect()[0]) == 12
    assert rig.engine.submit(rig.items(*_texts(ITEMS_MAX + 1, 100)), rig.sink)
    rig.engine.finish(rig.sink)
    assert len(rig.collect()[0]) == ITEMS_MAX + 1


def test_results_are_written_in_time(plain: Any, make_rig: MakeRig) -> None:
    """A buffer that does not fill is flushed after `flush_s`: a kill loses at most so much time of work."""
    rig = make_rig(plain, flush_rows=1_000, flush_s=0.2)
    rig.engine.submit(rig.items("one"), rig.sink)
    _wait_for(lambda: list_parquet(segments_folder(str(rig.store))) != [])
    assert rig.sink.wait_until_done(10)


def test_the_quota_bounds_what_is_sent(plain: Any, make_rig: MakeRig) -> None:
    """Requests are sent at the rate of the quota, however many are submitted."""
    rig = make_rig(plain, rpm=1_200)
    use = rig.buy(*_texts(20)).use
    assert use.last_s - use.first_s >= 19 / 20 - SLACK_S
    assert use.binding == "rpm"


def test_a_rate_refusal_holds_everybody_back(start_server: Start, make_rig: MakeRig) -> None:
    """After a refusal all requests pause, and no item fails."""
    server = start_server(rpm=60, retry_after=True)
    rig = make_rig(server, requests_in_flight=4)
    rig.engine.submit(rig.items(*_texts(70)), rig.sink)
    _wait_for(lambda: rig.engine.status().counts.refused > 0)
    _wait_for(lambda: rig.engine.status().paused_s > 0)
    assert rig.engine.status().counts.refused <= 4
    rig.engine.stop(INTERRUPT)
    rig.engine.finish(rig.sink)
    assert len(rig.collect()[0]) == rig.engine.status().counts.bought >= 50


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    """Check that no test leaves a waiting session behind."""
    before = set(threading.enumerate())
    yield
    sessions = [
        thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("Thread-")
    ]
    assert not sessions
