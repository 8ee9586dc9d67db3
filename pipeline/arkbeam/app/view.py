"""What the progress display shows, derived from the counts of a run; and its text and JSON forms. No clock, no terminal."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from arkbeam.base.capabilities import cost_cny
from arkbeam.base.redaction import redact
from arkbeam.base.uris import is_local
from arkbeam.base.words import format_seconds
from arkbeam.engine.outcomes import Counts, Status
from arkbeam.quota.budget import Cost, share_used
from arkbeam.stages.meter import Phase, Progress, Work
from arkbeam.stages.spec import RunSpec

RATE_S = 60.0
SHORTEST_S = 10.0
"""A rate that is compared with a limit is over this time at least: over a second or two, it says nothing about a minute."""
CODES_SHOWN = 4


@dataclass(slots=True)
class Rate:
    """How fast a counter grew over the last minute, or since it began to grow."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now_s: float, value: int) -> None:
        """Add a sample of the counter."""
        if value == 0:
            self._samples.clear()
        self._samples.append((now_s, value))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > RATE_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """The growth a second."""
        return self._over(1e-9)

    @property
    def per_min(self) -> float:
        """The growth a minute, to compare with a limit."""
        return self._over(SHORTEST_S) * 60

    def _over(self, shortest_s: float) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start_s, first), (end_s, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / max(end_s - start_s, shortest_s))


@dataclass(slots=True)
class Rates:
    """The rates of what is shown."""

    items: Rate = field(default_factory=Rate)
    sent: Rate = field(default_factory=Rate)
    tokens: Rate = field(default_factory=Rate)
    read: Rate = field(default_factory=Rate)
    files: Rate = field(default_factory=Rate)
    planned: Rate = field(default_factory=Rate)
    parts: Rate = field(default_factory=Rate)

    def add(self, now_s: float, progress: Progress) -> None:
        """Add a sample of all counters."""
        work, counts = progress.work, progress.status.counts if progress.status is not None else Counts()
        self.items.add(now_s, counts.bought + counts.failed)
        self.sent.add(now_s, counts.sent)
        self.tokens.add(now_s, counts.total_tokens)
        self.read.add(now_s, work.rows_read)
        self.files.add(now_s, work.files_read)
        self.planned.add(now_s, work.rows_planned)
        self.parts.add(now_s, work.parts_written)


@dataclass(frozen=True, slots=True)
class View:
    """What is shown of a run at one moment."""

    phase: Phase
    seconds: float
    work: Work
    status: Status
    rates: Rates
    rows_about: int
    """About how many rows the manifests have; 0 if this is not known yet."""
    expected: int
    """Requests to settle."""
    settled: int
    cost_cny: float
    cost_all_cny: float
    """About what the whole run costs."""
    is_known: bool = True
    """False if no worker has told yet what it does."""

    @property
    def doing(self) -> str:
        """What the run does, in words."""
        return "compacting the store" if self.phase is Phase.COMPACTING else self.phase.name.lower()

    @property
    def codes(self) -> str:
        """The failed rows, by the most frequent codes; empty if none failed."""
        codes = sorted(self.work.codes.items(), key=lambda code: -code[1])
        shown = [f"{code} {rows:,}" for code, rows in codes[:CODES_SHOWN]]
        more = [f"{len(codes) - CODES_SHOWN:,} more codes"] if len(codes) > CODES_SHOWN else []
        return f"{sum(self.work.codes.values()):,} failed rows: {', '.join([*shown, *more])}" if codes else ""

    @property
    def eta_s(self) -> float:
        """Seconds until the last request is settled, at the present rate; infinite if this is unknown."""
        per_s = self.rates.items.per_s
        return max(0, self.expected - self.settled) / per_s if per_s > 0 else math.inf


def make_view(progress: Progress, rates: Rates, spec: RunSpec, now_s: float) -> View:
    """Derive what is shown. `now_s` is Unix time."""
    work = progress.work
    status = progress.status or Status(Counts(), 0, 0.0, *spec.rate_limits, 0.0, None)
    counts, prices = status.counts, spec.model.capabilities
    expected, settled = max(work.to_buy, counts.expected), counts.bought + counts.failed
    cost = cost_cny(counts.text_tokens, counts.image_tokens, prices)
    planned = cost_cny(work.text_tokens, work.image_tokens, prices)
    all_cny = cost + cost / counts.bought * max(0, expected - settled) if counts.bought and cost else planned
    phase = work.phase
    if phase is Phase.EMBEDDING and expected and settled >= expected:
        phase = Phase.PUBLISHING
    return View(
        phase,
        max(0.0, now_s - spec.run.started_s),
        work,
        status,
        rates,
        estimate_rows(work, spec),
        expected,
        settled,
        cost,
        all_cny,
        progress.is_known,
    )


def estimate_rows(work: Work, spec: RunSpec) -> int:
    """Return about how many rows the manifests have: by the bytes that are read, or as many as in the last run; else 0."""
    if work.phase > Phase.READING:
        return work.rows_read
    if work.bytes_read and work.rows_read:
        return max(work.rows_read, round(work.rows_read * spec.manifest_bytes / work.bytes_read))
    return max(work.rows_read, spec.rows_before or 0)


def describe_view(view: View, spec: RunSpec) -> str:
    """Return one line: the phase, and how far it has come."""
    work, rates = view.work, view.rates
    if not view.is_known:
        return f"waiting for workers | {format_seconds(view.seconds)}"
    codes = f" | {view.codes}" if view.codes else ""
    match view.phase:
        case Phase.READING:
            about = f" of about {view.rows_about:,}" if view.rows_about else ""
            text = f"reading | {work.rows_read:,}{about} rows | {rates.read.per_s:,.0f} rows/s"
            if work.files_found:
                text += f" | index: {work.files_read:,} of {work.files_found:,} files of the store"
        case Phase.PLANNING:
            text = f"planning | {work.rows_planned:,} of {work.rows_to_plan:,} rows | {rates.planned.per_s:,.0f} rows/s"
        case Phase.EMBEDDING:
            return f"embedding | {describe_progress(view.status, rates, spec)}{codes}"
        case Phase.PUBLISHING:
            text = f"publishing{codes}"
            if work.parts_planned:
                parts = f"{work.parts_written:,} of {max(work.parts_planned, work.parts_written):,}"
                text = f"publishing | {parts} parts | {rates.parts.per_s:,.1f} parts/s{codes}"
        case Phase.COMPACTING:
            text = view.doing
    return f"{text} | {format_seconds(view.seconds)}"


def describe_silence(spec: RunSpec) -> str:
    """Return what may be wrong if no worker has told what it does."""
    text = "no worker has written its progress to the store yet: the runner may have no room for the job"
    if is_local(spec.store.uri):
        text += f", or the workers do not share the folder {redact(spec.store.uri)} with this process"
    return text


def describe_progress(status: Status, rates: Rates, spec: RunSpec) -> str:
    """Return one line: items done, speed, share of the quota, failures, cost, time left."""
    counts = status.counts
    done = counts.bought + counts.failed
    items_per_s, tokens_per_min = rates.items.per_s, rates.tokens.per_min
    left = max(0, counts.expected - done)
    eta_s = left / items_per_s if items_per_s > 0 else math.inf
    fields = [
        f"{done:,}/{counts.expected:,}",
        f"{items_per_s:,.1f} items/s",
        f"{rates.sent.per_min / status.rpm:.0%} of rpm",
        f"{tokens_per_min / status.tpm:.0%} of tpm ({tokens_per_min:,.0f} tokens/min)",
        f"{counts.refused:,} refused, {counts.retries:,} retries, {counts.failed:,} failed",
        f"{cost_cny(counts.text_tokens, counts.image_tokens, spec.model.capabilities):,.4f} CNY",
        f"{format_seconds(eta_s)} left" if math.isfinite(eta_s) else "…",
    ]
    return " | ".join([*fields, *describe_state(status, spec)])


def describe_state(status: Status, spec: RunSpec) -> Iterator[str]:
    """Yield what is out of the ordinary: rows that wait, the budget, a stop, a pause, limits that were found."""
    counts = status.counts
    if status.held:
        yield f"{status.held:,} to be tried again at the end"
    if spec.budget.is_set:
        yield f"{share_used(Cost(counts.budget_tokens, counts.budget_pcny), spec.budget):.0%} of the budget"
    if status.stop is not None:
        yield f"stopping, {status.in_flight} in flight"
    elif status.paused_s > 0:
        yield f"paused for {status.paused_s:.0f} s after a refusal"
    yield from status.found.describe(status.rpm, status.tpm)


def view_to_json(view: View) -> dict[str, Any]:
    """Return a view as a document for `--log json`."""
    counts, status, work = view.status.counts, view.status, view.work
    return {
        "phase": view.phase.name.lower(),
        "waiting_for_workers": not view.is_known,
        "seconds": round(view.seconds, 1),
        "rows_read": work.rows_read,
        "rows_about": view.rows_about,
        "rows_per_s": round(view.rates.read.per_s, 1),
        "store_files_read": work.files_read,
        "store_files_found": work.files_found,
        "rows_planned": work.rows_planned,
        "requests_expected": view.expected,
        "requests_settled": view.settled,
        "requests_per_min": round(view.rates.sent.per_min, 1),
        "rpm": status.rpm,
        "tokens_per_min": round(view.rates.tokens.per_min),
        "tpm": status.tpm,
        "bought": counts.bought,
        "failed": counts.failed,
        "failed_rows_by_code": dict(work.codes),
        "refused": counts.refused,
        "retries": counts.retries,
        "held": status.held,
        "in_flight": status.in_flight,
        "paused_s": round(status.paused_s, 1),
        "tokens": counts.total_tokens,
        "cost_cny": round(view.cost_cny, 6),
        "cost_all_cny": round(view.cost_all_cny, 6),
        "eta_s": round(view.eta_s, 1) if math.isfinite(view.eta_s) else None,
        "parts_written": work.parts_written,
        "parts_planned": max(work.parts_planned, work.parts_written),
        "stop": None if status.stop is None else asdict(status.stop),
    }
