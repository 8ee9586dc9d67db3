"""What every request cost: counts, tokens, the budget, the pacer, and the records that go to the store.

Used only by the engine's thread. Each answer is recorded exactly once, whatever happens to its item afterwards.
"""

from dataclasses import dataclass, field, replace
from random import Random

from arkbeam.base.records import Failure, Modality, Usage
from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.engine.items import Tracked
from arkbeam.engine.outcomes import Counts, RunReport, Stop
from arkbeam.engine.recorder import Recorder
from arkbeam.engine.stopping import MODEL_CHANGED, FirstRejections
from arkbeam.quota.budget import NO_COST, BudgetGate, Cost
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.retry import backoff_s
from arkbeam.quota.use import EstimateRatio, Minutes, Ratios
from arkbeam.store.events import Event, EventKind
from arkbeam.store.segments import Attempt, Bought

NOT_SENT = "not_sent"
"""Code of the error that prevents the sending, because another process may send the item by now."""
_GATEWAY_GAVE_UP = frozenset({408, 502, 504})


def may_be_billed(tracked: Tracked, error: ApiError) -> bool:
    """True if a failed try is lost: it was sent, and no answer of the service itself says that it is not billed."""
    return tracked.is_sent and not error.paid and (error.status is None or error.status in _GATEWAY_GAVE_UP)


@dataclass(slots=True)
class Accounting:
    """Everything that a process counts."""

    pacer: Pacer
    recorder: Recorder
    random: Random
    budget_gate: BudgetGate | None = None
    counts: Counts = field(default_factory=Counts)
    failed_in_a_row: int = 0
    rejections: FirstRejections = field(
        default_factory=lambda: FirstRejections(LimitsOptions().rows_rejected_first_max)
    )
    minutes: Minutes = field(default_factory=lambda: Minutes(0.0))
    ratios: dict[Modality, Ratios] = field(default_factory=dict)
    _corrections: dict[Modality, EstimateRatio] = field(
        default_factory=lambda: {kind: EstimateRatio() for kind in Modality}
    )

    def estimate(self, tracked: Tracked) -> float:
        """Return the tokens that an item will probably use, corrected by the replies to items of the same modality."""
        return self._corrections[tracked.item.modality].correct(tracked.item.estimate)

    def record_sent(self, tracked: Tracked, client_request_id: str, now_s: float) -> Attempt:
        """Count a request as sent. The journal is written later, just before the bytes are sent."""
        item = tracked.item
        counts = self.counts
        counts.sent += 1
        counts.retries += item.tries.total > 0
        counts.second_tries += item.again is not None and item.tries == item.again.tries
        counts.tries_max = max(counts.tries_max, item.tries.total + 1)
        self.minutes.add(now_s, requests=1)
        return Attempt(item.fingerprint, client_request_id, item.tries.total + 1, 0.0)

    def record_result(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        """Count a result and add it to the open buffer."""
        self._settle_reply(tracked, bought, estimate, now_s)
        self.failed_in_a_row = 0
        if not self.rejections.is_over:
            self.record_rejections()
        self._count_elapsed(tracked, now_s)
        self.recorder.add_result(bought, tracked)
        counts = self.counts
        counts.bought += 1
        counts.recovered += tracked.item.again is not None

    def record_mismatch(
        self, tracked: Tracked, bought: Bought, failure: Failure, estimate: float, now_s: float
    ) -> None:
        """Record a reply that this run must not use, since it comes from an unexpected model or service. It was billed.

        The vector of another model is stored for later runs.
        """
        reply = bought.reply
        self._settle_reply(tracked, bought, estimate, now_s)
        if failure.code == MODEL_CHANGED:
            self.recorder.add_result(bought, None)
            return
        event = Event(EventKind.UNUSABLE, bought.attempt, failure, reply.usage, reply.id, reply.model, reply.created)
        self.recorder.add_event(event)

    def record_error(self, tracked: Tracked, attempt: Attempt, error: ApiError, estimate: float, now_s: float) -> None:
        """Record what a failed request cost, and let the pacer adapt to it."""
        refused = error.pressure is not Pressure.NONE
        counts = self.counts
        counts.refused += refused
        counts.unusable += error.paid
        counts.lost += error.lost
        self._count_elapsed(tracked, now_s)
        if refused:
            self.minutes.add(now_s, refused=1)
        sent_s = now_s - attempt.latency_ms / 1000
        if error.paid:
            self._record_unusable(tracked, attempt, error, estimate, now_s)
        elif error.lost:
            # The service may have counted its tokens, so the pacer keeps the estimate.
            self.record_lost(attempt, Failure(error.code, error.message))
        else:
            self.recorder.note_unpaid(attempt.client_request_id)
            self.pacer.settle(estimate, 0.0, now_s, sent_s)
            if error.code == NOT_SENT:
                counts.sent -= 1
            else:
                counts.unpaid += 1
        if refused or error.status is not None:  # without an answer there is nothing to adapt to
            self._pace(error.pressure, sent_s, now_s, error.retry_after_s)

    def record_abandoned(self, tracked: Tracked, attempt: Attempt) -> None:
        """Record a request that was cancelled at the end of the run, if it had been sent."""
        if tracked.is_sent:
            self.counts.lost += 1
            self.record_lost(attempt, Failure("abandoned", "the run ended before the answer came"))
        else:
            self.counts.unpaid += 1

    def record_lost(self, attempt: Attempt, failure: Failure) -> None:
        """Record a lost request: it was sent and not answered. It counts as paid, since it may be billed."""
        self.recorder.add_event(Event(EventKind.LOST, attempt, failure))

    def record_failure(self, tracked: Tracked, error: ApiError) -> None:
        """Record an item that failed. A permanent rejection is stored, so that later runs do not send the item again.

        An item of the second pass does not count as failed in a row: that says nothing about the service.
        """
        item = tracked.item
        if error.action is Action.REJECT:
            attempt = Attempt(item.fingerprint, "", item.tries.total, 0.0)
            failure = Failure(error.code, error.message)
            rejection = Event(EventKind.REJECTED, attempt, failure, request_id=error.request_id)
            for event in self.rejections.reject(rejection):
                self.recorder.add_event(event)
        elif item.again is None:
            self.failed_in_a_row += 1
        self.counts.failed += 1

    def record_rejections(self) -> None:
        """Store the rejections that were held back: the rows are at fault, not the config."""
        for event in self.rejections.end():
            self.recorder.add_event(event)

    def settle_budget(self, tracked: Tracked, usage: Usage) -> None:
        """Replace the reservation of a request by the price of what the service counted."""
        if self.budget_gate is not None:
            self._settle_budget(self.budget_gate, tracked, self.budget_gate.prices.of_usage(usage, tracked.item.bound))

    def settle_budget_of_error(self, tracked: Tracked, error: ApiError) -> None:
        """Replace the reservation of a failed request by its cost.

        The cost is the price of its usage if it is billed, its bound if it is lost, and otherwise 0.
        """
        if error.paid:
            self.settle_budget(tracked, error.usage or Usage())
        elif self.budget_gate is not None:
            self._settle_budget(self.budget_gate, tracked, tracked.item.bound if error.lost else NO_COST)

    def report(self, stop: Stop | None, offset_s: float) -> RunReport:
        """Return what the process has done so far, with `offset_s` added to the times of its use of the quota."""
        ratios = {kind: Ratios(counted.counts.copy()) for kind, counted in self.ratios.items()}
        use = self.pacer.use.shift(offset_s)
        return RunReport(replace(self.counts), use, stop, self.minutes.copy(), ratios, self.pacer.found)

    def _settle_budget(self, budget: BudgetGate, tracked: Tracked, actual: Cost) -> None:
        budget.settle(tracked.item.bound, actual)
        counts = self.counts
        counts.budget_tokens += actual.tokens
        counts.budget_pcny += actual.pcny

    def _settle_reply(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        latency_s = bought.attempt.latency_ms / 1000
        self._settle_usage(tracked, bought.reply.usage, estimate, now_s - latency_s, now_s)
        self.pacer.note_latency(latency_s)
        tracked.sink.latencies_ms.append(round(bought.attempt.latency_ms))
        self._pace(Pressure.NONE, now_s - latency_s, now_s)
        self.counts.usage_missing += bought.reply.usage_missing

    def _pace(self, pressure: Pressure, sent_s: float, now_s: float, retry_after_s: float | None = None) -> None:
        self.pacer.note_answer(pressure, sent_s, now_s, backoff_s=self._backoff_s, retry_after_s=retry_after_s)

    def _backoff_s(self, number: int) -> float:
        return backoff_s(number, self.random.random())

    def _settle_usage(self, tracked: Tracked, usage: Usage, estimate: float, sent_s: float, now_s: float) -> None:
        """Replace the estimate by the count of the service; without a count the estimate stays."""
        actual = usage.total_tokens
        self.pacer.settle(estimate, estimate if actual is None else actual, now_s, sent_s)
        if actual is not None:
            self._corrections[tracked.item.modality].learn(tracked.item.estimate, actual)
            self.ratios.setdefault(tracked.item.modality, Ratios()).add(estimate, actual)
            self.minutes.add(now_s, tokens=actual)
        counts = self.counts
        counts.text_tokens += usage.text_tokens or 0
        counts.image_tokens += usage.image_tokens or 0
        counts.total_tokens += actual or 0

    def _record_unusable(
        self, tracked: Tracked, attempt: Attempt, error: ApiError, estimate: float, now_s: float
    ) -> None:
        usage = error.usage or Usage()
        failure = Failure(error.code, error.message)
        self.recorder.add_event(Event(EventKind.UNUSABLE, attempt, failure, usage, error.request_id, error.model))
        self._settle_usage(tracked, usage, estimate, now_s - attempt.latency_ms / 1000, now_s)
        self.counts.unusable_tokens += usage.total_tokens or 0

    def _count_elapsed(self, tracked: Tracked, now_s: float) -> None:
        if tracked.item.first_sent_s:
            self.counts.elapsed_s_max = max(self.counts.elapsed_s_max, now_s - tracked.item.first_sent_s)
