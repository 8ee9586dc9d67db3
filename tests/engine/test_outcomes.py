"""What sessions and the engine share: the sink, the room, reports, and the engines of a process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pyarrow as pa
import pytest
from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.engine import registry
from arkbeam.engine.items import AHEAD_S, ITEMS_MAX, Room
from arkbeam.engine.outcomes import Counts, RunReport, Sink, Stop, StopKind
from arkbeam.quota.use import FoundLimits, QuotaUse
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.timeout(30)

USE = QuotaUse(1, 1)


def _index(*numbers: int) -> pa.Table:
    names = pa.array([number.to_bytes(16) for number in numbers], schema.FINGERPRINT)
    return pa.table([names, pa.array(numbers, pa.uint64()), pa.array(numbers, pa.uint32())], schema=schema.INDEX)


def test_a_mailbox_is_done_when_every_item_is() -> None:
    """Delivered, failed and dropped items all count as done, and each result is returned once."""
    sink = Sink()
    assert sink.wait_until_done(0)
    sink.add(4)
    sink.deliver(_index(1, 2))
    sink.add_failure(bytes(16), "code", "message")
    assert not sink.wait_until_done(0)
    sink.drop(1)
    assert sink.wait_until_done(0)
    tables, failed = sink.collect()
    assert [table.num_rows for table in tables] == [2]
    assert failed.schema == schema.REJECTED
    assert failed.to_pylist() == [{"fingerprint": bytes(16), "code": "code", "message": "message"}]
    assert sink.collect() == ([], schema.REJECTED.empty_table())


def test_a_mailbox_wakes_who_waits() -> None:
    """The last item or an error wakes the waiting thread; every later `collect` raises the error."""
    for wake in (lambda sink: sink.drop(1), lambda sink: sink.fail(StoreError("full"))):
        sink = Sink()
        sink.add(1)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(sink.wait_until_done)
            wake(sink)
            assert waiting.result(10)
    for _ in range(2):
        with pytest.raises(StoreError, match="full"):
            sink.collect()


def test_failures_are_counted_by_all_threads() -> None:
    """The engine's thread and the session's thread fail items at the same time, and none is lost."""
    sink = Sink()

    def fail_items(_: int) -> None:
        for _ in range(500):
            sink.add(1)
            sink.add_failure(bytes(16), "a", "b")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fail_items, range(4)))
    assert (sink.open_items, sink.collect()[1].num_rows) == (0, 2_000)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20)), max_size=20))
def test_the_room_holds_no_more_than_its_bounds(batches: list[tuple[int, int]]) -> None:
    """Items and bytes stay within their bounds, unless a single batch is larger; items that leave make room again."""
    room = Room(bytes_max=30)
    inside: list[int] = []
    for items, size in batches:
        while inside and (len(inside) + items > ITEMS_MAX or sum(inside) + items * size > 30):
            room.leave(inside.pop())
        assert room.enter(items, items * size)
        inside += [size] * items
        assert (room.items, room.bytes) == (len(inside), sum(inside))


@pytest.mark.parametrize(("held", "entering"), [((1, 30), (1, 1)), ((ITEMS_MAX, 0), (1, 0)), ((1, 1), (1, 31))])
def test_who_does_not_fit_waits(held: tuple[int, int], entering: tuple[int, int]) -> None:
    """A session waits until there is room (for a batch above the bound: until the room is empty), or until the engine stops."""
    for ends_by_stop in (False, True):
        room = Room(bytes_max=30)
        assert room.enter(*held)
        entered = threading.Event()
        answers: list[bool] = []

        def enter(room: Room = room, entered: threading.Event = entered, answers: list[bool] = answers) -> None:
            answers.append(room.enter(*entering))
            entered.set()

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.05)
        if ends_by_stop:
            room.close()
        else:
            for at in range(held[0]):
                room.leave(held[1] if at == 0 else 0)
        assert entered.wait(10)
        thread.join()
        assert answers == [not ends_by_stop]


def test_submitted_items_take_a_bounded_time_of_the_quota() -> None:
    """A batch waits while items that take `AHEAD_S` seconds of the quota are queued, so that a bundle ends soon after its last block."""
    room = Room(bytes_max=30)
    assert room.queue(AHEAD_S - 1)
    assert room.queue(5.0)  # room is left for a part of it, and a single batch may take longer than the bound
    entered = threading.Event()

    def queue() -> None:
        room.queue(1.0)
        entered.set()

    thread = threading.Thread(target=queue)
    thread.start()
    assert not entered.wait(0.05)
    room.unqueue(5.0)
    assert entered.wait(10)
    thread.join()
    room.close()
    assert not room.queue(1.0)


def test_several_waiting_sessions_all_get_in() -> None:
    """Released room lets every waiting session in, in any order."""
    room = Room(bytes_max=10)
    assert room.enter(1, 10)

    def pass_through(_: int) -> None:
        for _ in range(50):
            assert room.enter(1, 10)
            room.leave(10)

    with ThreadPoolExecutor(4) as pool:
        passes = [pool.submit(pass_through, at) for at in range(4)]
        room.leave(10)
        for one in passes:
            one.result(20)
    assert (room.items, room.bytes) == (0, 0)


def test_a_runs_stop_is_the_weightiest_of_its_sessions() -> None:
    """An interrupt comes before a stop by the service, that before the budget; counts add up."""
    kinds = [StopKind.INTERRUPTED, StopKind.SERVICE, StopKind.BUDGET, None]
    for order in permutations(kinds):
        merged = RunReport(Counts(), USE)
        for kind in order:
            merged = merged.merge(RunReport(Counts(bought=1), USE, Stop(kind, "code", "message") if kind else None))
        assert merged.stop == Stop(StopKind.INTERRUPTED, "code", "message")
        assert merged.counts.bought == 4
    service = RunReport(Counts(), USE, Stop(StopKind.SERVICE, "a", "b"))
    assert RunReport(Counts(), USE).merge(service).stop == service.stop
    assert RunReport(Counts(), USE).merge(RunReport(Counts(), USE)).stop is None


def test_the_lowest_limit_that_a_session_found_counts() -> None:
    """Of the limits that sessions of one account found, the lowest counts; some may not find one."""
    reports = [
        RunReport(Counts(), USE, found=found) for found in (FoundLimits(), FoundLimits(500, 9), FoundLimits(412))
    ]
    for order in permutations(reports):
        assert order[0].merge(order[1]).merge(order[2]).found == FoundLimits(412, 9)


class FakeEngine:
    """Records its calls."""

    has_lost_journal = False

    def __init__(self) -> None:
        self.told: list[Any] = []

    def stop(self, stop: Stop) -> None:
        """Record the stop."""
        self.told.append(stop)

    def close(self) -> None:
        """Record the end."""
        self.told.append("closed")


def test_a_process_has_one_engine_a_run() -> None:
    """The engine of a run is made once, stopped with all others, and removed when it is closed."""
    made: list[FakeEngine] = []

    def make() -> Any:
        made.append(FakeEngine())
        return made[-1]

    stop = Stop(StopKind.INTERRUPTED, "a", "b")
    assert not registry.stop_engines(stop)
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda _: registry.get_engine("run", make), range(50)))
    assert engines == set(made)
    assert len(made) == 1
    assert registry.find_engine("run") is made[0]
    assert registry.stop_engines(stop)
    registry.close_engine("run")
    registry.close_engine("run")
    assert made[0].told == [stop, "closed"]
    assert registry.find_engine("run") is None
