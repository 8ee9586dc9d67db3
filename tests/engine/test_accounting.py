"""Accounting: how the pacer adapts to an answer, and what is counted."""

import random
from typing import Any

import numpy as np
import pytest
from arkbeam.base.records import Modality, Usage
from arkbeam.base.replies import Action, ApiError, Pressure, Reply, UsageFlaw
from arkbeam.engine.accounting import NOT_SENT, Accounting
from arkbeam.engine.items import Item, Tracked
from arkbeam.engine.outcomes import Sink
from arkbeam.engine.recorder import Recorder, StoreTarget
from arkbeam.quota.pacer import Pacer
from arkbeam.store.journal import ObjectJournal
from arkbeam.store.segments import Attempt, Bought

START_S = 1_000.0


@pytest.fixture
def accounting() -> Accounting:
    """Accounting for a quota of 60 requests and 6,000 tokens a minute, with a journal that is never uploaded."""
    recorder = Recorder(StoreTarget("memory://none", "run", 1), iter(()), ObjectJournal("memory://none", "1"))
    return Accounting(Pacer(60, 6_000, 1.0, START_S), recorder, random.Random(1))


@pytest.fixture
def tracked() -> Tracked:
    """A text with an estimate of 100 tokens."""
    return Tracked(Item(bytes(16), b"{}", Modality.TEXT, False, 100.0), Sink())


def _error(**fields: Any) -> ApiError:
    return ApiError(**({"message": "x", "action": Action.RETRY, "code": "code"} | fields))


def _fail(
    accounting: Accounting, tracked: Tracked, error: ApiError, sent_s: float, now_s: float, estimate: float = 0.0
) -> None:
    accounting.record_error(tracked, Attempt(bytes(16), "c", 1, (now_s - sent_s) * 1000), error, estimate, now_s)


def _keep(accounting: Accounting, tracked: Tracked, sent_s: float, now_s: float, tokens: int | None = 100) -> None:
    usage = Usage(tokens, tokens, tokens, 0 if tokens is not None else None)
    flaw = UsageFlaw.MISSING if tokens is None else None
    reply = Reply("r", "m", 0, np.ones(1, np.float32), None, np.float32(1), usage, flaw, True)
    accounting.record_result(tracked, Bought(Attempt(bytes(16), "c", 1, (now_s - sent_s) * 1000), reply), 100.0, now_s)


@pytest.mark.parametrize("pressure", [Pressure.RPM, Pressure.TPM])
def test_a_rate_refusal_pauses_everybody(accounting: Accounting, tracked: Tracked, pressure: Pressure) -> None:
    """The pause is as long as the Retry-After, or as our own wait without one."""
    _fail(accounting, tracked, _error(pressure=pressure, retry_after_s=7.0), START_S, START_S + 1)
    assert accounting.pacer.paused_until_s == START_S + 8
    _fail(accounting, tracked, _error(pressure=pressure), START_S + 8, START_S + 9)
    assert START_S + 10 <= accounting.pacer.paused_until_s <= START_S + 11  # the second refusal in a row: 1 to 2 s
    assert accounting.counts.refused == 2


@pytest.mark.parametrize("error", [_error(pressure=Pressure.OVERLOAD, retry_after_s=9.0), _error(retry_after_s=9.0)])
def test_other_errors_delay_their_own_item_alone(accounting: Accounting, tracked: Tracked, error: ApiError) -> None:
    """An overloaded service or a fault is not a sign of the quota."""
    _fail(accounting, tracked, error, START_S, START_S + 1)
    assert accounting.pacer.wait_s(START_S + 1) == 0


def test_refusals_of_one_moment_are_one_refusal(accounting: Accounting, tracked: Tracked) -> None:
    """A refusal of a request that was sent before the pause began does not lengthen the pause."""
    _fail(accounting, tracked, _error(pressure=Pressure.RPM, retry_after_s=5.0), START_S, START_S + 1)
    for late_s in (1.1, 3.0, 6.5):
        _fail(accounting, tracked, _error(pressure=Pressure.RPM), START_S + 0.5, START_S + late_s)
    assert (accounting.pacer.refusals_in_a_row, accounting.pacer.paused_until_s) == (1, START_S + 6)


def test_pauses_grow_only_while_refusals_follow_each_other(accounting: Accounting, tracked: Tracked) -> None:
    """They double with each refusal, up to 5 s; a good answer to a request sent after the pause resets them."""
    now_s = START_S
    pauses = []
    for _ in range(5):
        _fail(accounting, tracked, _error(pressure=Pressure.RPM), now_s, now_s)
        pauses.append(accounting.pacer.paused_until_s - now_s)
        now_s = accounting.pacer.paused_until_s
    assert all(min(5, 2**at / 2) <= pause <= min(5, 2**at) for at, pause in enumerate(pauses))
    _keep(accounting, tracked, START_S, now_s)  # sent before the pause: not a sign that the refusals are over
    assert accounting.pacer.refusals_in_a_row == 5
    _keep(accounting, tracked, now_s, now_s + 1)
    assert accounting.pacer.refusals_in_a_row == 0


def test_rare_refusals_stay_short(accounting: Accounting, tracked: Tracked) -> None:
    """A hundred refusals with good answers in between cause pauses of at most one second each."""
    now_s = START_S
    for _ in range(100):
        _keep(accounting, tracked, now_s, now_s)
        _fail(accounting, tracked, _error(pressure=Pressure.RPM), now_s, now_s)
        assert accounting.pacer.paused_until_s - now_s <= 1
        now_s = accounting.pacer.paused_until_s + 0.1


def test_tokens_are_settled_with_what_was_counted(accounting: Accounting, tracked: Tracked) -> None:
    """A reply replaces the estimate, an error refunds it, and a reply without usage leaves it."""
    waits = []
    for settle in (
        lambda: _keep(accounting, tracked, START_S, START_S, tokens=300),
        lambda: _keep(accounting, tracked, START_S, START_S, tokens=None),
        lambda: _fail(accounting, tracked, _error(), START_S, START_S, estimate=100.0),
        lambda: _fail(
            accounting, tracked, _error(paid=True, usage=Usage(50, 50, 50, 0)), START_S, START_S, estimate=100.0
        ),
    ):
        accounting.pacer = Pacer(10**9, 6_000, 1.0, START_S)
        accounting.pacer.admit(100, START_S)
        settle()
        waits.append(accounting.pacer.wait_s(START_S))
    assert waits == pytest.approx([3.0, 1.0, 0.0, 0.5], abs=0.01)
    assert accounting.counts.usage_missing == 1
    assert accounting.counts.total_tokens == 350


def test_estimates_learn_from_replies(accounting: Accounting, tracked: Tracked) -> None:
    """If texts cost three times their estimate, later texts are estimated three times as high; images are not."""
    for _ in range(300):
        _keep(accounting, tracked, START_S, START_S, tokens=300)
    assert accounting.estimate(tracked) == pytest.approx(300, rel=0.01)
    tracked.item.modality = Modality.IMAGE
    assert accounting.estimate(tracked) == 100


def test_failures_in_a_row_are_those_of_the_service(accounting: Accounting, tracked: Tracked) -> None:
    """A vector resets the count; a rejected row does not count."""
    accounting.record_failure(tracked, _error())
    accounting.record_failure(tracked, _error(action=Action.REJECT))
    assert accounting.failed_in_a_row == 1
    _keep(accounting, tracked, START_S, START_S)
    assert accounting.failed_in_a_row == 0
    assert accounting.counts.failed == 2


def test_a_report_covers_everything_so_far(accounting: Accounting, tracked: Tracked) -> None:
    """Each report covers all that the process has done, and does not change afterwards."""
    reports = []
    for number in (1, 2):
        accounting.pacer.admit(100, START_S)
        accounting.record_sent(tracked, "c", START_S)
        _keep(accounting, tracked, START_S, START_S + number)
        reports.append(accounting.report(None, -START_S))
    uses = [report.use for report in reports]
    assert [(use.requests, use.tokens, use.first_s, use.last_s) for use in uses] == [(1, 100, 0, 1), (2, 200, 0, 2)]
    assert [(report.counts.sent, report.counts.bought) for report in reports] == [(1, 1), (2, 2)]
    assert [sum(report.minutes.requests) for report in reports] == [1, 2]
    assert [report.ratios[Modality.TEXT].replies for report in reports] == [1, 2]


def test_each_request_ends_in_one_count(accounting: Accounting, tracked: Tracked) -> None:
    """A request ends bought, unusable, lost or without a cost. One that was held back at the last moment was not sent."""
    errors = [_error(pressure=Pressure.RPM), _error(paid=True), _error(), _error(code=NOT_SENT)]
    errors[2].lost = True
    for _ in range(7):
        accounting.record_sent(tracked, "c", START_S)
    _keep(accounting, tracked, START_S, START_S)
    for error in errors:
        _fail(accounting, tracked, error, START_S, START_S)
    for tracked.is_sent in (False, True):
        accounting.record_abandoned(tracked, Attempt(bytes(16), "c", 1, 0.0))
    counts = accounting.counts
    assert (counts.sent, counts.bought, counts.unusable, counts.lost, counts.unpaid) == (6, 1, 1, 2, 2)
    assert counts.sent == counts.bought + counts.unusable + counts.lost + counts.unpaid
