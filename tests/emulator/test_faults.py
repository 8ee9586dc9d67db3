"""The choice of the requests that get a fault."""

import random
from dataclasses import asdict

import pytest
from arkbeam.emulator.options import Fault, FaultChooser, FaultShares
from hypothesis import given
from hypothesis import strategies as st

SHARES = st.lists(st.floats(0, 1), min_size=len(Fault), max_size=len(Fault)).map(
    lambda parts: FaultShares(
        **{fault.value: part / max(1.0, sum(parts)) for fault, part in zip(Fault, parts, strict=True)}
    )
)


def test_every_share_has_its_fault() -> None:
    """Shares and faults have the same names in the same order."""
    assert list(asdict(FaultShares())) == [fault.value for fault in Fault]


@given(SHARES)
def test_each_fault_has_its_share_of_the_numbers(shares: FaultShares) -> None:
    """Of evenly spaced numbers each fault gets its share, up to one at either end."""
    chooser, count = FaultChooser(shares), 2_000
    chosen = [chooser.choose(number / count) for number in range(count)]
    for fault in Fault:
        assert abs(chosen.count(fault) - asdict(shares)[fault] * count) <= 2


@pytest.mark.parametrize("fault", Fault)
def test_a_share_of_one(fault: Fault) -> None:
    """With a share of 1 every request gets this fault."""
    chooser = FaultChooser(FaultShares(**{fault.value: 1.0}))
    drawn = random.Random(3)
    assert {chooser.choose(drawn.random()) for _ in range(100)} == {fault}


def test_no_shares_no_faults() -> None:
    """Without shares there are no faults, even at the number 0."""
    chooser = FaultChooser(FaultShares())
    assert not chooser.any
    assert chooser.choose(0.0) is None


def test_what_is_billed() -> None:
    """Unusable replies and processed requests without a response are billed; other faults are not."""
    billed = {fault.value for fault in Fault if fault.billed}
    assert billed == {"truncated", "broken_json", "wrong_length", "nan", "reset_paid", "hang_paid"}
