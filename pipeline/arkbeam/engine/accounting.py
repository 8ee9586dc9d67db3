"""What every request cost and what it says about the pace: the counts, the token estimates, the open buffer.

Used by the engine's thread alone. Each answer is booked once, whatever becomes of its item afterwards.
"""

from dataclasses import dataclass, field
from random import Random

from arkbeam.base.records import Failure, Modality, Usage
from arkbeam.base.replies import Action, ApiError, Pressure
from arkbeam.engine.items import Tracked
from arkbeam.engine.outcomes import Counts
from arkbeam.engine.recorder import Recorder
from arkbeam.engine.stopping import MODEL_CHANGED, FirstRejections
from arkbeam.quota.budget import NO_COST, BudgetGate, Cost
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.retry import backoff_s
from arkbeam.quota.use import EstimateRatio, Minutes, QuotaUse, Ratios
from arkbeam.store.events import Event, EventKind
from arkbeam.store.segments import Attempt, Bought

_GATEWAY_GAVE_UP = frozenset({408, 502, 504})


def may_be_billed(tracked: Tracked, error: ApiError) -> bool:
    """Whether a try that brought no answer may have been served: its bytes went out, and the service never refused it."""
    return tracked.is_sent and not error.paid and (error.status is None or error.status in _GATEWAY_GAVE_UP)


@dataclass(slots=True)
class Accounting:
    """All that is counted in a process. `counts` are the process's; every lane's sink has its own as well."""

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
    _ratios: dict[Modality, EstimateRatio] = field(default_factory=lambda: {kind: EstimateRatio() for kind in Modality})

    def estimate(self, tracked: Tracked) -> float:
        """Return the tokens that an item will probably use, as its like have done so far."""
        return self._ratios[tracked.item.modality].correct(tracked.item.estimate)

    def record_sent(self, tracked: Tracked, client_request_id: str, now_s: float) -> Attempt:
        """Book a request as sent. The journal is told later, just before the bytes go out."""
        item = tracked.item
        for counts in self._both(tracked):
            counts.sent += 1
            counts.retries += item.tries.total > 0
            counts.tries_max = max(counts.tries_max, item.tries.total + 1)
        self.minutes.add(now_s, requests=1)
        return Attempt(item.fingerprint, client_request_id, item.tries.total + 1, 0.0)

    def record_result(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        """Book a result and put it into the open buffer."""
        self._settle_reply(tracked, bought, estimate, now_s)
        self.failed_in_a_row = 0
        if not self.rejections.is_over:
            self.record_rejections()
        self._count_elapsed(tracked, now_s)
        self.recorder.add_result(bought, tracked.sink)
        for counts in self._both(tracked):
            counts.bought += 1

    def record_rejected_reply(
        self, tracked: Tracked, bought: Bought, failure: Failure, estimate: float, now_s: float
    ) -> None:
        """Book a reply that this run must not use: paid all the same, and another model's vector is kept for later runs."""
        reply = bought.reply
        self._settle_reply(tracked, bought, estimate, now_s)
        if failure.code == MODEL_CHANGED:
            self.recorder.add_result(bought, None)
            return
        event = Event(EventKind.UNUSABLE, bought.attempt, failure, reply.usage, reply.id, reply.model, reply.created)
        self.recorder.add_event(event)

    def record_error(self, tracked: Tracked, attempt: Attempt, error: ApiError, estimate: float, now_s: float) -> None:
        """Book what a failed request cost, in tokens and in pace."""
        refused = error.pressure is not Pressure.NONE
        for counts in self._both(tracked):
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
            self.record_lost(attempt, Failure(error.code, error.message))  # its tokens may be used: the estimate stands
        else:
            self.recorder.note_unpaid(attempt.client_request_id)
            self.pacer.settle(estimate, 0.0, now_s, sent_s)
        if refused or error.status is not None:  # else no answer came, which says nothing of the pace
            self._pace(error.pressure, sent_s, now_s, error.retry_after_s)

    def record_abandoned(self, tracked: Tracked, attempt: Attempt) -> None:
        """Book a request that the end of the run cut off, if it had gone out."""
        if self.recorder.is_open(attempt.client_request_id):
            for counts in self._both(tracked):
                counts.lost += 1
            self.record_lost(attempt, Failure("abandoned", "the run ended before the answer came"))

    def record_lost(self, attempt: Attempt, failure: Failure) -> None:
        """Book a request that went out and was not answered: taken as paid, since nobody can tell."""
        self.recorder.add_event(Event(EventKind.LOST, attempt, failure))

    def record_failure(self, tracked: Tracked, error: ApiError) -> None:
        """Book an item that ends as a failure. A refusal for good is remembered, so that it is not sent again."""
        item = tracked.item
        if error.action is Action.REJECT:
            attempt = Attempt(item.fingerprint, "", item.tries.total, 0.0)
            failure = Failure(error.code, error.message)
            refusal = Event(EventKind.REFUSED, attempt, failure, request_id=error.request_id)
            for event in self.rejections.reject(refusal):
                self.recorder.add_event(event)
        else:
            self.failed_in_a_row += 1
        self.counts.failed += 1

    def record_rejections(self) -> None:
        """Remember what was held back: the rows were at fault."""
        for event in self.rejections.end():
            self.recorder.add_event(event)

    def settle_budget(self, tracked: Tracked, usage: Usage) -> None:
        """Replace a request's reservation by the price of what the service counted."""
        if self.budget_gate is not None:
            self._settle_budget(self.budget_gate, tracked, self.budget_gate.prices.of_usage(usage, tracked.item.bound))

    def settle_budget_of_error(self, tracked: Tracked, error: ApiError) -> None:
        """The same for a failed request: its bound if it may have been billed, nothing if it was not."""
        if error.paid:
            self.settle_budget(tracked, error.usage or Usage())
        elif self.budget_gate is not None:
            self._settle_budget(self.budget_gate, tracked, tracked.item.bound if error.lost else NO_COST)

    def take_record(self) -> tuple[Minutes, dict[Modality, Ratios]]:
        """Take what was counted by minute and of estimates since this was last asked."""
        record = (self.minutes, self.ratios)
        self.minutes, self.ratios = Minutes(self.minutes.start_s), {}
        return record

    def take_use(self, offset_s: float) -> QuotaUse:
        """Take the use of the quota since this was last asked, on a clock that differs from ours by `offset_s`."""
        use, self.pacer.use = self.pacer.use, QuotaUse(self.pacer.rpm, self.pacer.tpm)
        return use.shift(offset_s)

    def _settle_budget(self, budget: BudgetGate, tracked: Tracked, actual: Cost) -> None:
        budget.settle(tracked.item.bound, actual)
        for counts in self._both(tracked):
            counts.budget_tokens += actual.tokens
            counts.budget_pcny += actual.pcny

    def _both(self, tracked: Tracked) -> tuple[Counts, Counts]:
        return self.counts, tracked.sink.counts

    def _settle_reply(self, tracked: Tracked, bought: Bought, estimate: float, now_s: float) -> None:
        latency_s = bought.attempt.latency_ms / 1000
        self._settle_usage(tracked, bought.reply.usage, estimate, now_s - latency_s, now_s)
        self.pacer.note_latency(latency_s)
        self._pace(Pressure.NONE, now_s - latency_s, now_s)
        for counts in self._both(tracked):
            counts.usage_missing += bought.reply.usage_missing

    def _pace(self, pressure: Pressure, sent_s: float, now_s: float, retry_after_s: float | None = None) -> None:
        self.pacer.note_answer(pressure, sent_s, now_s, backoff_s=self._backoff_s, retry_after_s=retry_after_s)

    def _backoff_s(self, number: int) -> float:
        return backoff_s(number, self.random.random())

    def _settle_usage(self, tracked: Tracked, usage: Usage, estimate: float, sent_s: float, now_s: float) -> None:
        """Replace the estimate by the service's count; where it does not say, the estimate stands."""
        actual = usage.total_tokens
        self.pacer.settle(estimate, estimate if actual is None else actual, now_s, sent_s)
        if actual is not None:
            self._ratios[tracked.item.modality].learn(tracked.item.estimate, actual)
            self.ratios.setdefault(tracked.item.modality, Ratios()).add(estimate, actual)
            self.minutes.add(now_s, tokens=actual)
        for counts in self._both(tracked):
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
        for counts in self._both(tracked):
            counts.unusable_tokens += usage.total_tokens or 0

    def _count_elapsed(self, tracked: Tracked, now_s: float) -> None:
        if tracked.item.first_sent_s:
            for counts in self._both(tracked):
                counts.elapsed_s_max = max(counts.elapsed_s_max, now_s - tracked.item.first_sent_s)
