"""Admission by two limits, on a simulated clock."""

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.base.replies import Pressure
from arkbeam.quota.control import Ramp
from arkbeam.quota.options import QuotaOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.rate import SLACK_S
from arkbeam.quota.use import EstimateRatio, FoundLimits, QuotaUse, describe_use
from hypothesis import given
from hypothesis import strategies as st

START_S = 1_000.0


@dataclass
class Simulation:
    """A pacer, a clock that only moves forward, and the requests that were admitted."""

    pacer: Pacer
    now_s: float = START_S
    sent: list[tuple[float, float]] = field(default_factory=list)  # time, tokens

    def send(self, tokens: float, lateness_s: float = 0.0) -> None:
        """Wait as long as the pacer requires, and `lateness_s` longer, as a busy event loop does."""
        wait_s = self.pacer.wait_s(self.now_s, tokens)
        if wait_s > 0:
            self.now_s += wait_s + lateness_s
        while (wait_s := self.pacer.wait_s(self.now_s, tokens)) > 0:
            self.now_s = max(self.now_s + wait_s, math.nextafter(self.now_s, math.inf))
        self.pacer.admit(tokens, self.now_s)
        self.sent.append((self.now_s, tokens))

    def most_above_rate(self, requests_per_s: float, tokens_per_s: float) -> tuple[float, float]:
        """Return by how much, at most, the requests and tokens of any window exceed its length times the rate.

        A window is a closed interval from one request to a later one. The result is a maximum subarray sum.
        """
        worst = [0.0, 0.0]
        running = [0.0, 0.0]
        before_s = self.sent[0][0] if self.sent else 0.0
        for at_s, tokens in self.sent:
            for index, (rate, cost) in enumerate(((requests_per_s, 1.0), (tokens_per_s, tokens))):
                running[index] = max(0.0, running[index] - rate * (at_s - before_s)) + cost
                worst[index] = max(worst[index], running[index])
            before_s = at_s
        return worst[0], worst[1]


def _simulate(rpm: int, tpm: int, headroom: float = 1.0) -> Simulation:
    return Simulation(Pacer(rpm, tpm, headroom, START_S))


_ARRIVALS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.001, 0.05, 0.3, 5.0]), st.floats(0, 5_000), st.floats(0, 0.5)), max_size=60
)


@given(st.integers(1, 5_000), st.integers(1, 100_000), st.floats(0.1, 1), _ARRIVALS)
def test_no_window_holds_more_than_its_share_of_the_quota(
    rpm: int, tpm: int, headroom: float, arrivals: list[tuple[float, float, float]]
) -> None:
    """In any T seconds at most rate x (T + slack) and one more request are admitted, for any arrivals.

    For tokens the bound is two more requests: one that waited for room in the last minute paid before it was sent, and the
    next one pays afterwards.
    """
    run = _simulate(rpm, tpm, headroom)
    for idle_s, tokens, lateness_s in arrivals:
        run.now_s += idle_s
        run.send(tokens, lateness_s)
    requests_per_s, tokens_per_s = rpm * headroom / 60, tpm * headroom / 60
    requests, tokens_above = run.most_above_rate(requests_per_s, tokens_per_s)
    assert requests <= SLACK_S * requests_per_s + 1 + 1e-6
    largest = max((tokens for _, tokens, _ in arrivals), default=0.0)
    assert tokens_above <= SLACK_S * tokens_per_s + 2 * largest + 1e-3


def test_a_run_does_not_open_with_a_burst() -> None:
    """The first requests are one period apart, for any number of waiting requests."""
    run = _simulate(600, 10**9)
    for _ in range(20):
        run.send(1)
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(run.sent)]
    assert gaps == pytest.approx([0.1] * 19)


def test_idleness_earns_no_more_than_the_slack() -> None:
    """After an hour without requests, at most those of 0.2 s are sent at once."""
    run = _simulate(600, 10**9)
    run.now_s += 3_600
    idle_until_s = run.now_s
    for _ in range(10):
        run.send(1)
    assert sum(at_s - idle_until_s < 1e-6 for at_s, _ in run.sent) == 3  # two from the slack, and the one that is due


def test_a_cost_above_a_minute_of_quota_goes_through() -> None:
    """It is sent in its turn, and the next request waits until it is paid off."""
    run = _simulate(10_000, 600)
    run.send(1_800)
    assert run.pacer.wait_s(run.now_s) == pytest.approx(180)
    run.send(1)
    assert run.sent[1][0] == pytest.approx(START_S + 180)


def test_a_debt_delays_and_a_refund_hastens() -> None:
    """Tokens above the estimate delay the next request; tokens below it are available to the next request at once."""
    waits = []
    for actual in (100.0, 40.0, 160.0, 0.0):
        run = _simulate(10**9, 6_000)  # 100 tokens a second
        run.send(100)
        run.pacer.settle(100, actual, run.now_s)
        waits.append(run.pacer.wait_s(run.now_s))
    assert waits == pytest.approx([1.0, 0.4, 1.6, 0.0], abs=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.integers(2, 30))
def test_refunds_make_no_burst(differences: list[float], requests: int) -> None:
    """For any refunds, a burst is at most the slack."""
    run = _simulate(10**9, 6_000)
    for difference in differences:
        run.pacer.settle(0, difference, run.now_s)
    for _ in range(requests):
        run.send(10)
    _, above = run.most_above_rate(1.0, 100)
    assert above <= SLACK_S * 100 + 10 + 1e-3


def test_a_pause_admits_nothing_and_ends_without_a_burst() -> None:
    """Nothing is admitted before its end; then requests follow at the usual rate, for any length of the pause."""
    run = _simulate(600, 10**9)
    run.send(1)
    run.pacer.pause(30, run.now_s)
    assert run.pacer.wait_s(run.now_s + 29.5) == pytest.approx(0.5)
    run.pacer.pause(5, run.now_s)  # a shorter pause does not end the longer one
    for _ in range(20):
        run.send(1)
    after = [at_s for at_s, _ in run.sent[1:]]
    assert after[0] == pytest.approx(START_S + 30)
    assert [later - earlier for earlier, later in pairwise(after)] == pytest.approx([0.1] * 19)


@pytest.mark.parametrize(("rpm", "tpm", "tokens"), [(600, 10**9, 1.0), (15_000, 10**9, 1.0), (10**9, 60_000, 100.0)])
def test_a_busy_loop_loses_nothing(rpm: int, tpm: int, tokens: float) -> None:
    """With unlimited demand and an event loop up to 200 ms late, 99 to 101 % of the quota is used."""
    chance = random.Random(7)
    run = _simulate(rpm, tpm)
    while run.now_s < START_S + 120:
        run.send(tokens, chance.uniform(0, SLACK_S))
    elapsed_s = run.now_s - START_S
    used = max(len(run.sent) / (rpm / 60), sum(cost for _, cost in run.sent) / (tpm / 60)) / elapsed_s
    assert 0.99 <= used <= 1.01


def test_the_tighter_budget_decides() -> None:
    """Both limits must have room; a limit that was idle has at most the slack as credit."""
    run = _simulate(60, 600)  # 1 request, 10 tokens a second
    run.send(5)
    assert run.pacer.wait_s(run.now_s) == pytest.approx(1.0)
    run.send(50)
    assert run.pacer.wait_s(run.now_s) == pytest.approx(5.0 - SLACK_S)


def test_headroom_is_a_share_of_both_quotas() -> None:
    """With half of the quota the wait is twice as long."""
    run = _simulate(60, 600, 0.5)
    run.send(10)
    assert run.pacer.wait_s(run.now_s) == pytest.approx(2.0)


_SHARES = st.lists(st.tuples(st.floats(0, 20), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=12)
_SIZES = st.lists(st.one_of(st.integers(1, 50), st.integers(1, 3_000)), min_size=1, max_size=150)


@given(st.integers(10, 300), st.integers(3_000, 30_000), _SIZES, st.floats(0.5, 1))
def test_no_minute_holds_more_than_the_quota(rpm: int, tpm: int, sizes: list[int], headroom: float) -> None:
    """In any 60 s (a half-open interval) no more than the limits is sent. A request above half a minute needs only half of it free."""
    run = _simulate(rpm, tpm, headroom)
    for size in sizes:
        run.send(size)
    for at_s, _ in run.sent:
        minute = [tokens for sent_s, tokens in run.sent if at_s - 60 < sent_s <= at_s]
        assert len(minute) <= rpm
        assert sum(minute) <= tpm + max(0.0, max(minute) - tpm / 2) + 1e-6


@given(st.integers(3_000, 30_000), _SIZES)
def test_a_large_request_neither_starves_nor_blocks(tpm: int, sizes: list[int]) -> None:
    """Each is sent in its turn: it waits until those before it are paid off and the last minute has room, at most a minute.

    With sizes up to a quarter of a minute it waits no longer than two requests of the largest size need. With sizes up to a
    tenth of a minute, all requests take at most a seventh longer than their tokens need.
    """
    run = _simulate(10**9, tpm)
    for size in sizes:
        paid_s = run.now_s + run.pacer.tokens.bucket.wait_s(run.now_s)
        run.send(size)
        assert run.now_s <= max(paid_s, START_S) + 60.3
        if max(sizes) <= tpm / 4:
            assert run.now_s <= paid_s + 2 * max(sizes) * 60 / tpm + 1
    if max(sizes) <= tpm / 10:
        assert run.now_s - START_S <= sum(sizes) * 60 / tpm * 8 / 7 + 1


@given(st.integers(30, 6_000), _SHARES)
def test_a_change_of_the_share_makes_no_burst(rpm: int, shares: list[tuple[float, float]]) -> None:
    """Between two changes at most the share's rate x (time + slack), and one more, is sent; with share 0 nothing is."""
    run = _simulate(rpm, 10**9)
    for lasts_s, share in shares:
        run.pacer.set_share(share, run.now_s)
        began_s, sent = run.now_s, 0
        while (wait_s := run.pacer.wait_s(run.now_s, 1)) <= began_s + lasts_s - run.now_s:
            run.now_s += wait_s + 1e-6
            if run.pacer.wait_s(run.now_s, 1) <= 0:
                run.pacer.admit(1, run.now_s)
                sent += 1
        run.now_s = began_s + lasts_s
        assert sent <= share * rpm / 60 * (lasts_s + SLACK_S + 0.01) + (share > 0)
        assert share > 0 or (sent == 0 and math.isinf(run.pacer.wait_s(run.now_s)))


def test_less_of_a_quota_is_not_paid_for_twice() -> None:
    """A process that had the whole quota for a minute and now has half of it continues at half the rate at once."""
    run = _simulate(600, 10**9)
    while run.now_s < START_S + 61:
        run.send(1)
    run.pacer.set_share(0.5, run.now_s)
    at_s = run.now_s
    for _ in range(100):
        run.send(1)
    assert run.now_s - at_s == pytest.approx(20, abs=0.5)


def _answer(run: Simulation, pressure: Pressure, sent_s: float, **fields: float) -> None:
    run.pacer.note_answer(pressure, sent_s, run.now_s, backoff_s=lambda number: 2.0 ** (number - 1), **fields)


def test_after_a_pause_one_request_asks_whether_it_is_over() -> None:
    """The next request waits for its answer, or a second if there is none; after a good answer the others follow."""
    run = _simulate(60_000, 10**9)
    for answer in (Pressure.RPM, None, Pressure.NONE):
        run.send(1)
        _answer(run, Pressure.RPM, run.now_s)
        run.send(1)
        probe_s = run.now_s
        assert run.pacer.wait_s(probe_s + 0.5) == pytest.approx(0.5)
        run.now_s += 0.5
        if answer is None:
            run.send(1)
            assert run.now_s == pytest.approx(probe_s + 1)
            continue
        _answer(run, answer, probe_s)
        paused_s = run.pacer.wait_s(run.now_s)
        assert paused_s > 1 if answer is Pressure.RPM else paused_s == 0


@pytest.mark.parametrize("retry_after_s", [None, 0.0, 0.4])
def test_a_short_retry_after_is_no_hot_loop(retry_after_s: float | None) -> None:
    """Without a Retry-After, or with one below 0.5 s, pauses double up to 5 s."""
    run = _simulate(6_000, 10**9)
    pauses = []
    for _ in range(5):
        run.send(1)
        _answer(run, Pressure.TPM, run.now_s, **({} if retry_after_s is None else {"retry_after_s": retry_after_s}))
        pauses.append(run.pacer.paused_until_s - run.now_s)
    assert pauses == pytest.approx([1, 2, 4, 5, 5])


def test_a_retry_after_is_kept() -> None:
    """The pause is as long as the Retry-After."""
    run = _simulate(6_000, 10**9)
    run.send(1)
    _answer(run, Pressure.RPM, run.now_s, retry_after_s=17.0)
    assert run.pacer.wait_s(run.now_s) == pytest.approx(17)


@pytest.mark.parametrize("pressure", [Pressure.OVERLOAD, Pressure.IN_FLIGHT])
def test_a_busy_service_pauses_nobody(pressure: Pressure) -> None:
    """Only the refused item waits."""
    run = _simulate(6_000, 10**9)
    run.send(1)
    _answer(run, pressure, run.now_s, retry_after_s=9.0)
    assert run.pacer.wait_s(run.now_s) < 1


def test_found_limits_are_told_in_words() -> None:
    """A message compares each limit that was found with the configured one; of two processes the lower limit counts."""
    found = FoundLimits(rpm=412).merge(FoundLimits(rpm=430, tpm=1_000)).merge(FoundLimits())
    assert list(found.describe(600, 2_000)) == [
        "the service allows about 412 requests/min; the config says 600",
        "the service allows about 1,000 tokens/min; the config says 2,000",
    ]
    assert list(FoundLimits().describe(600, 2_000)) == []


def test_a_ramp_holds_tokens_back() -> None:
    """A run with a limit above 3 million tokens a minute starts at 3 million."""
    run = Simulation(Pacer(10**9, 12_000_000, 1.0, START_S, None, Ramp()))
    run.send(600_000)
    run.send(1)
    assert run.now_s == pytest.approx(START_S + 12, rel=0.001)


@given(st.lists(st.tuples(st.floats(1, 1_000), st.floats(0, 1e6)), max_size=200), st.floats(0.01, 100))
def test_estimates_approach_what_is_counted(noise: list[tuple[float, float]], ratio: float) -> None:
    """After any replies, steady replies move the ratio to their own, within 1/8 and 8."""
    learnt = EstimateRatio()
    for estimated, actual in noise:
        learnt.learn(estimated, actual)
        assert 0.125 <= learnt.ratio <= 8
    for _ in range(300):
        learnt.learn(40, 40 * ratio)
    assert learnt.correct(1_000) == pytest.approx(1_000 * min(8, max(0.125, ratio)), rel=1e-3)


def test_one_odd_reply_moves_the_estimate_little() -> None:
    """A single outlier moves the ratio by at most a twentieth of the way to its bound."""
    learnt = EstimateRatio()
    learnt.learn(1, 10**9)
    assert learnt.ratio == pytest.approx(1.35)
    for useless in ((0, 5), (5, 0), (-1, 5)):
        learnt.learn(*useless)
    assert learnt.ratio == pytest.approx(1.35)


def test_use_of_the_quota_is_measured_against_both_limits() -> None:
    """Utilisation is that of the binding limit, from the first request to the last reply."""
    run = _simulate(60, 600)
    for _ in range(60):
        run.send(2)
        run.pacer.settle(2, 2, run.now_s + 1)
    use = run.pacer.use
    assert (use.requests, use.tokens, use.last_s - use.first_s) == (60, 120, pytest.approx(60))
    assert use.shares == pytest.approx((1.0, 0.2))
    assert (use.binding, use.utilisation) == ("rpm", pytest.approx(1.0))
    assert QuotaUse(60, 600).utilisation == 0


def test_a_few_requests_at_once_are_no_use_above_the_limit() -> None:
    """In words, the use of less than a minute is a share of what a minute allows; a longer use is an average."""
    quota = {"rpm": 600, "tpm": 1_000, "utilisation": 1.228, "binding": "tpm"}
    minute = {"minute": 3, "minutes": 1, "seconds": 0.1, "requests": 2, "tokens": 500}
    assert describe_use(quota | {"minutes": [minute]}) == ("50.0%", "of the tokens that a minute allows")
    assert describe_use(quota | {"minutes": [minute | {"requests": 400}]}) == (
        "66.7%",
        "of the requests that a minute allows",
    )
    assert describe_use(quota | {"minutes": [minute | {"seconds": 30.0}] * 2}) == ("122.8%", "of tpm")
    assert describe_use(quota) == ("122.8%", "of tpm")  # run.json of an earlier version
    assert describe_use(quota | {"binding": None}) is None


def test_the_use_of_several_processes_adds_up_on_one_clock() -> None:
    """The use of two processes is the sum of both, over the time from the first request to the last reply of any."""
    first = QuotaUse(60, 600, 30, 300, 0.0, 30.0)
    second = QuotaUse(60, 600, 30, 300, 130.0, 160.0).shift(-100)
    merged = first.merge(second)
    assert (merged.requests, merged.tokens, merged.first_s, merged.last_s) == (60, 600, 0.0, 60.0)
    assert merged.merge(QuotaUse(60, 600)) == merged
    assert merged.utilisation == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"rpm": 0}, {"tpm": -1}, {"headroom": 0.0}, {"headroom": 1.01}, {"headroom": math.nan}, {"lanes": 0}],
)
def test_quotas_that_admit_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """The error names the key of the config."""
    with pytest.raises(ConfigError, match=f"quota.{next(iter(wrong))}"):
        QuotaOptions(**wrong)
