"""The permits that a process holds of a quota in Redis."""

import math

import pytest
from arkbeam.quota.permits import BLOCK_S, LATE_S, PermitBlock, Permits
from hypothesis import given
from hypothesis import strategies as st


@given(
    st.floats(0.1, 1e5),
    st.floats(1, 1e7),
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e4, 1e4)), max_size=40),
)
def test_nothing_is_sent_without_permits(
    requests_per_s: float, tokens_per_s: float, sent: list[tuple[float, float]]
) -> None:
    """For any requests, the permits used never exceed those granted, and one block is enough for the waiting request."""
    permits = Permits(requests_per_s, tokens_per_s)
    granted = [0.0, 0.0]
    used = [0.0, 0.0]
    for tokens, difference in sent:
        if permits.wait_s(tokens, 0.0) > 0:
            block = permits.choose_block(tokens)
            assert block.requests >= 0
            assert block.tokens >= 0
            permits.grant(block, 0.0)
            granted = [granted[0] + block.requests, granted[1] + block.tokens]
        assert permits.wait_s(tokens * (1 - 1e-9), 0.0) == 0
        permits.take(tokens)
        used = [used[0] + 1, used[1] + tokens]
        assert used[0] <= granted[0] + 1e-6
        assert used[1] <= granted[1] + 1e-3
        permits.settle(difference)
        used[1] += difference
    block = permits.take_back() or PermitBlock(0, 0)
    assert [block.requests, block.tokens] == pytest.approx([used[0] - granted[0], used[1] - granted[1]], abs=1e-3)


def test_a_block_is_a_tenth_of_a_second_of_the_nearer_limit() -> None:
    """If RPM is the binding limit it has 0.1 s of requests; if TPM is, the requests that fit in 0.1 s of tokens, at least one."""
    assert Permits(250, 1e9).choose_block(40) == PermitBlock(25, 1_000)
    assert Permits(10, 1e9).choose_block(40) == PermitBlock(1, 40)
    tight = Permits(100, 2_500)
    assert tight.choose_block(25) == PermitBlock(10, 250)
    assert tight.choose_block(5_000) == PermitBlock(1, 5_000)
    tight.grant(PermitBlock(3, 100), 0.0)
    assert tight.choose_block(25) == PermitBlock(7, 150)


def test_a_block_counts_from_its_time_on() -> None:
    """Until then the process waits. The next block includes the debt."""
    permits = Permits(4, 1e6)
    assert permits.wait_s(10, 5.0) == math.inf
    permits.grant(PermitBlock(2, 20), 7.0)
    assert (permits.wait_s(10, 5.0), permits.wait_s(10, 7.0), permits.wait_s(21, 7.0)) == (2.0, 0.0, math.inf)
    permits.take(10)
    permits.settle(30)
    assert permits.choose_block(10) == PermitBlock(0, 30)


def test_what_is_not_used_in_time_is_lost() -> None:
    """Used later, permits would add to what others were granted since; a debt stays."""
    permits = Permits(40, 1e6)
    permits.grant(PermitBlock(4, 40), 3.0)
    permits.take(10)
    assert permits.wait_s(10, 3.0 + BLOCK_S + LATE_S - 0.01) == 0
    assert permits.wait_s(10, 3.0 + BLOCK_S + LATE_S + 0.01) == math.inf
    assert permits.take_back() is None
    permits.settle(25)
    assert permits.wait_s(10, 9.0) == math.inf
    assert permits.take_back() == PermitBlock(0, 25)
