"""The quota meter compared with a count over the whole history."""

from dataclasses import dataclass

import pytest
from arkbeam.emulator.options import QuotaWindow
from arkbeam.emulator.quota import MINUTE_S, Limit, QuotaMeter
from hypothesis import given
from hypothesis import strategies as st

# Times are multiples of 1/8 s, which floats add up exactly.
STEPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 50)), min_size=1, max_size=60)
LIMITS = st.none() | st.integers(1, 12)


@dataclass
class Oracle:
    """Keeps the whole history and counts it on every call."""

    rpm: int | None
    tpm: int | None
    window: QuotaWindow
    history: list[tuple[float, int, int]]

    def find_limit(self, tokens: int, now_s: float) -> Limit | None:
        """Return what the meter should return."""
        if self.window is QuotaWindow.SLIDING:
            inside = [entry for entry in self.history if now_s - MINUTE_S < entry[0] <= now_s]
        else:
            inside = [entry for entry in self.history if entry[0] // MINUTE_S == now_s // MINUTE_S]
        if self.rpm is not None and sum(entry[1] for entry in inside) >= self.rpm:
            return Limit.REQUESTS
        if self.tpm is not None and sum(entry[2] for entry in inside) + tokens > self.tpm:
            return Limit.TOKENS
        return None


@given(STEPS, LIMITS, st.none() | st.integers(1, 300), st.sampled_from(QuotaWindow), st.booleans())
def test_the_meter_agrees_with_a_full_count(
    steps: list[tuple[int, int]], rpm: int | None, tpm: int | None, window: QuotaWindow, refusals_count: bool
) -> None:
    """For any sequence of requests the meter accepts and refuses the same ones as a count of the whole history."""
    meter, oracle = QuotaMeter(rpm=rpm, tpm=tpm, window=window), Oracle(rpm, tpm, window, [])
    now_s = 1_743_575_000.0
    for eighths, tokens in steps:
        now_s += eighths / 8
        limit = meter.find_limit(tokens, now_s)
        assert limit == oracle.find_limit(tokens, now_s)
        added = (1, tokens) if limit is None else (1, 0) if refusals_count else (0, 0)
        meter.add(*added, now_s)
        oracle.history.append((now_s, *added))


@given(STEPS, st.integers(1, 8), st.integers(50, 300), st.sampled_from(QuotaWindow))
def test_there_is_room_when_the_meter_says_so(
    steps: list[tuple[int, int]], rpm: int, tpm: int, window: QuotaWindow
) -> None:
    """A request fits after the wait that the meter returns, and not an eighth of a second earlier."""
    meter = QuotaMeter(rpm=rpm, tpm=tpm, window=window)
    now_s = 1_743_575_000.0
    for eighths, tokens in steps:
        now_s += eighths / 8
        wait_s = meter.room_in_s(tokens, now_s)
        assert 0 <= wait_s <= MINUTE_S
        if wait_s == 0:
            assert meter.find_limit(tokens, now_s) is None
            meter.add(1, tokens, now_s)
        else:
            assert meter.find_limit(tokens, now_s + wait_s - 1 / 8) is not None
            assert meter.find_limit(tokens, now_s + wait_s) is None
            now_s += wait_s


def test_a_request_above_the_whole_limit() -> None:
    """A request with more tokens than the limit never fits, and the wait is a minute."""
    meter = QuotaMeter(rpm=None, tpm=100, window=QuotaWindow.SLIDING)
    assert meter.find_limit(101, 0.0) is Limit.TOKENS
    assert meter.room_in_s(101, 0.0) == MINUTE_S


@pytest.mark.parametrize(
    ("window", "in_next_minute"), [(QuotaWindow.SLIDING, Limit.REQUESTS), (QuotaWindow.CALENDAR, None)]
)
def test_a_minute_begins(window: QuotaWindow, in_next_minute: Limit | None) -> None:
    """At the start of a minute a calendar window is empty; a sliding window is not."""
    meter = QuotaMeter(rpm=1, tpm=None, window=window)
    meter.add(1, 0, 119.0)
    assert meter.find_limit(0, 119.5) is Limit.REQUESTS
    assert meter.find_limit(0, 120.0) is in_next_minute
    assert meter.find_limit(0, 179.0) is None
