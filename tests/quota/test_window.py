"""The sliding window, against a list of all amounts."""

from arkbeam.quota.rate import BUCKET_S, WINDOW_S, SlidingWindow
from hypothesis import given
from hypothesis import strategies as st

_STEPS = st.lists(st.tuples(st.floats(0, 25), st.floats(0, 70), st.floats(-50, 100)), max_size=60)


@given(st.floats(0, 1e6), _STEPS)
def test_it_holds_what_is_younger_than_a_minute_and_nothing_older(
    start_s: float, steps: list[tuple[float, float, float]]
) -> None:
    """Holds for any amounts, added or subtracted; amounts between 60.1 and 60.2 s old may be included or not."""
    window, now_s = SlidingWindow(), start_s
    added: list[tuple[float, float]] = []
    for later_s, ago_s, amount in steps:
        now_s += later_s
        at_s = max(0.0, now_s - ago_s)
        window.add(amount, at_s, now_s)
        added.append((at_s, amount))
        certain = sum(one for at, one in added if now_s - at < WINDOW_S - 1e-6)
        doubtful = [one for at, one in added if WINDOW_S - 1e-6 <= now_s - at <= WINDOW_S + BUCKET_S + 1e-6]
        lowest = certain + sum(min(0.0, one) for one in doubtful)
        highest = certain + sum(max(0.0, one) for one in doubtful)
        assert lowest - 1e-6 <= window.total <= highest + 1e-6


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 100)), min_size=1, max_size=60), st.floats(0, 1))
def test_it_tells_when_there_will_be_room(steps: list[tuple[float, float]], share: float) -> None:
    """After the returned time at least this amount has left the window; 0.2 s earlier less had."""
    window, now_s = SlidingWindow(), 1_000.0
    for later_s, amount in steps:
        now_s += later_s
        window.add(amount, now_s, now_s)
    before, wanted = window.total, window.total * share
    wait_s = window.drop_in_s(wanted, now_s)
    assert 0 <= wait_s <= WINDOW_S + 2 * BUCKET_S
    if wait_s > 2 * BUCKET_S and wanted > 1e-6:
        window.forget(now_s + wait_s - 2 * BUCKET_S)
        assert before - window.total < wanted
    window.forget(now_s + wait_s)
    assert before - window.total >= wanted - 1e-6
