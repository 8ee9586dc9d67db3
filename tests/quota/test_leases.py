"""Shares of a quota by leases, on a simulated clock and a simulated store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from arkbeam.quota.leases import DROP_S, LEASE_S, RENEW_S, Membership
from hypothesis import given, settings
from hypothesis import strategies as st

TICK_S = 0.125
NAMES = tuple("abcd")


@dataclass
class Store:
    """A strongly consistent store: a finished write is in every later listing."""

    marks: dict[str, str] = field(default_factory=dict)
    writes: int = 0

    def write(self, name: str) -> None:
        """Give a mark a new token."""
        self.writes += 1
        self.marks[name] = str(self.writes)


@dataclass
class Worker:
    """A process that renews and lists with given delays, and may stall at any step or be killed."""

    name: str
    store: Store
    delays: Iterator[int]
    wait: bool
    start_tick: int
    member: Membership | None = None
    dead: bool = False

    def live(self) -> Iterator[int]:
        """Yield how many ticks pass before the next step; each step is one effect on the store or the membership."""
        yield self.start_tick
        self.member = Membership(self.name, self.clock(), wait=self.wait)
        while True:
            yield from self.renew(self.member)
            yield from self.look(self.member)

    def live_apart(self) -> list[Iterator[int]]:
        """The same, but writing and listing do not wait for each other."""
        self.member = Membership(self.name, self.clock(), wait=True)
        return [self.repeat(self.renew), self.repeat(self.look)]

    def repeat(self, step: Callable[[Membership], Iterator[int]]) -> Iterator[int]:
        """Repeat a step forever."""
        yield self.start_tick
        while self.member is not None:
            yield from step(self.member)
            yield round(RENEW_S / TICK_S)

    def renew(self, member: Membership) -> Iterator[int]:
        """Write the mark. The write begins, takes effect and ends at different times."""
        started_s = self.clock()
        yield next(self.delays)
        self.store.write(self.name)
        yield next(self.delays)
        member.note_renewal(started_s, self.clock())

    def look(self, member: Membership) -> Iterator[int]:
        """List the marks. The listing begins, takes effect and ends at different times."""
        started_s = self.clock()
        yield next(self.delays)
        marks = dict(self.store.marks)
        yield next(self.delays)
        member.note_listing(marks, self.clock(), started_s)
        yield max(0, round((started_s + RENEW_S - self.clock()) / TICK_S))

    tick: int = 0

    def clock(self) -> float:
        """The worker's own clock: all clocks run at the same speed and start at different times."""
        return self.tick * TICK_S + 100.0 * NAMES.index(self.name)

    def share(self) -> float:
        """The share that the worker would use now."""
        return 0.0 if self.dead or self.member is None else self.member.share(self.clock())


def _run(workers: list[Worker], kills: dict[str, int], ticks: int, *, apart: bool = False) -> Iterator[int]:
    """Run all workers on one clock; yield each tick after its events."""
    lives = [(worker, life) for worker in workers for life in (worker.live_apart() if apart else [worker.live()])]
    due = [0] * len(lives)
    for tick in range(ticks):
        for worker in workers:
            worker.tick = tick
            worker.dead = worker.dead or tick >= kills.get(worker.name, ticks)
        for at, (worker, life) in enumerate(lives):
            while not worker.dead and due[at] <= tick:
                due[at] = tick + next(life)
        yield tick


_DELAYS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 9, 20, 30, 60, 100]), min_size=1, max_size=40)
_TEAMS = st.lists(
    st.tuples(_DELAYS, st.booleans(), st.integers(0, 120), st.none() | st.integers(1, 300)), min_size=2, max_size=4
)


def _cycle(delays: list[int]) -> Iterator[int]:
    while True:
        yield from delays
        if not any(delays):
            yield 1


@settings(max_examples=300, deadline=None)
@given(_TEAMS, st.booleans())
def test_shares_never_add_up_to_more_than_the_quota(
    team: list[tuple[list[int], bool, int, int | None]], apart: bool
) -> None:
    """For any interleaving of renewals, listings, stalls and kills, the shares of all that may send add up to at most 1."""
    store = Store()
    workers = [
        Worker(name, store, _cycle(delays), wait, start)
        for name, (delays, wait, start, _) in zip(NAMES, team, strict=False)
    ]
    kills = {name: kill for name, (*_, kill) in zip(NAMES, team, strict=False) if kill is not None}
    for tick in _run(workers, kills, 400, apart=apart):
        shares = {worker.name: worker.share() for worker in workers}
        assert sum(shares.values()) <= 1 + 1e-9, (tick * TICK_S, shares)


@given(st.integers(1, 4), st.lists(st.integers(0, 40), min_size=4, max_size=4), st.booleans())
def test_a_healthy_team_uses_all_of_the_quota(count: int, starts: list[int], wait: bool) -> None:
    """A lease and two renewals after the last process has joined, all have equal shares of the whole quota."""
    store = Store()
    workers = [Worker(name, store, _cycle([0, 1]), wait, starts[at]) for at, name in enumerate(NAMES[:count])]
    settled_tick = max(starts[:count]) + round((LEASE_S + 2 * RENEW_S) / TICK_S)
    for tick in _run(workers, {}, settled_tick + 200):
        if tick >= settled_tick:
            assert [worker.share() for worker in workers] == [1 / count] * count


@given(st.integers(60, 100))
def test_the_share_of_a_killed_process_is_taken_over(kill_tick: int) -> None:
    """Two leases and two renewals after a kill, the other process has the whole quota."""
    store = Store()
    workers = [Worker(name, store, _cycle([0]), wait=True, start_tick=0) for name in "ab"]
    for tick in _run(workers, {"a": kill_tick}, 200):
        if tick >= kill_tick + (DROP_S + 2 * RENEW_S) / TICK_S:
            assert workers[1].share() == 1


def test_who_is_alone_on_a_local_store_sends_at_once() -> None:
    """A process that is alone sends as soon as its mark is written and listed; on an object store it waits for a lease."""
    for wait, share in ((False, 1.0), (True, 0.0)):
        member = Membership("a", 10.0, wait=wait)
        assert member.share(10.0) == 0
        member.note_renewal(10.0, 10.1)
        assert member.share(10.1) == 0
        member.note_listing({"a": "1"}, 10.2)
        assert member.share(10.2) == share
    member.note_renewal(12.0, 12.0)
    member.note_listing({"a": "2"}, 12.9)
    assert (member.share(13.0), member.share(13.1), member.blocked_s(13.0)) == (0, 1, 3.0)


def test_who_finds_another_waits_a_lease_and_shares() -> None:
    """By then the other process has listed the new mark. A listing from before the own write ended does not count."""
    member = Membership("b", 0.0, wait=False)
    member.note_listing({}, 0.0)
    member.note_renewal(0.0, 0.5)
    assert member.share(0.5) == 0
    for second in range(1, 4):
        member.note_renewal(second, second)
        member.note_listing({"a": str(second), "b": str(second)}, second)
        assert member.share(second) == 0
    assert member.share(3.5) == 0.5
    member.note_listing({"b": "3"}, 3.6)
    assert member.share(3.6) == 1


def test_a_lease_ends_a_lease_after_the_last_good_renewal_began() -> None:
    """A late write or listing does not extend it; a process whose lease ran out waits for a lease before it sends again."""
    member = Membership("a", 0.0, wait=True)
    for second in range(5):
        member.note_renewal(second, second + 0.9)
        member.note_listing({"a": str(second)}, second + 0.95, second + 0.9)
    assert member.share(4 + LEASE_S - 0.01) == 1
    assert member.share(4 + LEASE_S) == 0
    for second in range(5, 9):
        member.note_renewal(second, second)
        assert member.share(second + 0.5) == (second + 0.5 < 4.9 + LEASE_S)
    assert member.blocked_s(20.0) == pytest.approx(13.0)
    for second in range(20, 24):
        member.note_renewal(second, second)
        member.note_listing({"a": str(second)}, second)
        assert member.share(second + 0.5) == (second == 23)


def test_who_does_not_find_its_own_mark_joins_anew() -> None:
    """If another process removed the mark as stale, its owner is not counted and must join again."""
    member = Membership("a", 0.0, wait=False)
    member.note_renewal(0.0, 0.0)
    member.note_listing({"a": "1", "b": "1"}, 0.1)
    member.note_renewal(2.0, 2.0)
    member.note_listing({"a": "2", "b": "2"}, 3.0)
    assert member.share(3.0) == 0.5
    member.note_listing({"b": "3"}, 3.1)
    assert member.share(3.1) == 0
    member.note_renewal(3.5, 3.5)
    member.note_listing({"a": "3", "b": "4"}, 3.6)
    assert (member.share(3.6), member.share(6.45)) == (0, 0)
    member.note_renewal(5.0, 5.0)
    member.note_listing({"a": "4", "b": "5"}, 5.1)
    assert (member.share(6.4), member.share(6.5)) == (0, 0.5)


def test_marks_that_never_change_are_found_dead() -> None:
    """Such marks count until two leases have passed; a process that saw them unchanged for long may remove them."""
    member = Membership("a", 0.0, wait=True)
    for second in range(12):
        member.note_renewal(second, second)
        member.note_listing({"a": str(second), "b": str(second), "c": "1"}, second)
        assert member.alive == (3 if second < 6 else 2)
    assert (member.find_stale(11), member.find_stale(11.5), member.find_stale(0)) == (["c"], [], ["b", "c"])
