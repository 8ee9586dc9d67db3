"""The record of a run: counts by minute and ratios of estimates, merged from any number of processes."""

import statistics

import pytest
from arkbeam.quota.use import ENTRIES_MAX, Minutes, Ratios
from hypothesis import given
from hypothesis import strategies as st

START_S = 5_000.0
EVENTS = st.lists(
    st.tuples(st.integers(0, 400_000), st.integers(0, 5), st.integers(0, 5), st.integers(0, 900)), max_size=40
)


def count(events: list[tuple[float, int, int, int]], start_s: float = START_S) -> Minutes:
    """Make a record of events, given by their time since the start."""
    minutes = Minutes(start_s)
    for age_s, requests, refused, tokens in events:
        minutes.add(start_s + age_s, requests=requests, refused=refused, tokens=tokens)
    return minutes


def test_counts_by_minute() -> None:
    """Minutes without a request are included; the first and the last are as long as they were in use."""
    minutes = count([(30, 1, 0, 10), (59, 1, 0, 0), (130, 2, 1, 40), (150, 0, 0, 20)])
    entries = [(e.minute, e.seconds, e.requests, e.refused, e.tokens) for e in minutes.entries()]
    assert entries == [(0, 30.0, 2, 0, 10), (1, 60.0, 0, 0, 0), (2, 30.0, 2, 1, 60)]
    first, _, last = minutes.entries()
    assert first.shares(rpm=8, tpm=40) == (0.5, 0.5)
    assert last.refused_share == 0.5


@given(EVENTS, EVENTS)
def test_records_of_many_add_up(
    mine: list[tuple[float, int, int, int]], theirs: list[tuple[float, int, int, int]]
) -> None:
    """Merged records equal one record of all events, for any clocks and any length of the run."""
    merged = count(mine).merge(count(theirs, 99.0))
    together = count([*mine, *theirs])
    assert merged.merge(Minutes(0.0)) == merged
    assert len(merged.requests) <= ENTRIES_MAX
    assert (merged.requests, merged.refused, merged.tokens) == (together.requests, together.refused, together.tokens)
    assert merged.width == together.width
    assert [e.tokens for e in merged.entries()] == [e.tokens for e in together.entries()]


def test_a_long_run_takes_no_more_room() -> None:
    """After a day an entry stands for two minutes, and no count is lost."""
    minutes = count([(60.0 * minute, 1, 0, 3) for minute in range(ENTRIES_MAX + 1)])
    assert minutes.width == 2
    assert len(minutes.requests) == ENTRIES_MAX // 2 + 1
    assert (sum(minutes.requests), sum(minutes.tokens)) == (ENTRIES_MAX + 1, 3 * (ENTRIES_MAX + 1))
    assert next(minutes.entries()).minutes == 2


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60), st.integers(0, 60))
def test_quantiles_of_ratios(ratios: list[float], cut: int) -> None:
    """Quantiles are accurate to the width of a bin, also after a merge."""
    mine, theirs = Ratios(), Ratios()
    for at, ratio in enumerate(ratios):
        (mine if at < cut else theirs).add(50.0, 50.0 * ratio)
    merged = mine.merge(theirs)
    assert merged.replies == len(ratios)
    assert merged.quantile(0.5) == pytest.approx(statistics.median_low(ratios), rel=0.012)
    assert merged.quantile(1.0) == pytest.approx(max(ratios), rel=0.012)


def test_absurd_ratios_take_no_room() -> None:
    """Ratios outside the range count as its ends; a missing estimate or count is ignored."""
    ratios = Ratios()
    for estimated, actual in ((1, 10**9), (10**9, 1), (0, 5), (5, 0)):
        ratios.add(estimated, actual)
    assert (ratios.replies, ratios.quantile(0.5), ratios.quantile(1.0)) == (2, 1 / 256, 256)
    assert Ratios().quantile(0.5) == 1.0
