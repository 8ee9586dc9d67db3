"""What is counted for the metrics of a runner."""

from arkbeam.engine.outcomes import Counts
from arkbeam.quota.budget import Prices
from arkbeam.stages.counters import CODE_CHARS, THROTTLED, tally_counts
from hypothesis import given
from hypothesis import strategies as st

PRICES = Prices.per_million(0.7, 1.8)
STEPS = st.lists(st.tuples(*[st.integers(0, 10_000)] * 4), min_size=1)


@given(STEPS)
def test_tallies_add_up(steps: list[tuple[int, int, int, int]]) -> None:
    """The tallies between any counts sum to the tally of the last count, with no part of a micro-CNY lost."""
    total: dict[str, int] = {}
    before = now = Counts()
    for bought, refused, text, image in steps:
        more = Counts(bought=bought, refused=refused, text_tokens=text, image_tokens=image, total_tokens=text + image)
        before, now = now, now.plus(more)
        for name, amount in tally_counts(before, now, PRICES, {"x": bought}, 2).amounts.items():
            assert amount >= 0
            total[name] = total.get(name, 0) + amount
    whole = tally_counts(Counts(), now, PRICES, {"x": now.bought}, 2 * len(steps)).amounts
    assert total == dict(whole)
    assert whole["cost_micro_cny"] == int((now.text_tokens * 7 + now.image_tokens * 18) / 10)
    assert whole[THROTTLED] == 2 * len(steps)


def test_long_codes_are_cut() -> None:
    """A code is any text of the service: its counter has a bounded name, and none of the failures is lost."""
    codes = {"a" * 500: 1, "a" * 600: 2}
    amounts = tally_counts(Counts(), Counts(), PRICES, codes).amounts
    assert amounts[f"failed_{'a' * CODE_CHARS}"] == 3
