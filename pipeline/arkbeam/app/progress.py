"""Show the progress of a run: a live line on a terminal, plain lines elsewhere.

The numbers are read from the run's engine in this process. Worker processes have their own engines, which are not
shown.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.text import Text

from arkbeam.app.report import format_seconds
from arkbeam.base.capabilities import cost_cny
from arkbeam.engine.outcomes import Status
from arkbeam.engine.registry import find_engine
from arkbeam.quota.budget import Cost, share_used
from arkbeam.stages.spec import RunSpec

LIVE_S = 0.25
PLAIN_S = 10.0
RATE_S = 60.0


@dataclass(slots=True)
class Rates:
    """Items and tokens a second over the last minute, from a few samples a second."""

    _samples: deque[tuple[float, int, int]] = field(default_factory=deque)

    def add(self, now_s: float, items: int, tokens: int) -> None:
        """Add a sample of the two counters."""
        self._samples.append((now_s, items, tokens))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > RATE_S:
            self._samples.popleft()

    def per_s(self) -> tuple[float, float]:
        """Return items and tokens a second."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (start_s, items, tokens), (end_s, items_end, tokens_end) = self._samples[0], self._samples[-1]
        seconds = max(end_s - start_s, 1e-9)
        return (items_end - items) / seconds, (tokens_end - tokens) / seconds


def describe_progress(status: Status, rates: Rates, spec: RunSpec) -> str:
    """Return one line: items done, speed, share of the quota, failures, cost, time left."""
    counts = status.counts
    done = counts.bought + counts.failed
    items_per_s, tokens_per_s = rates.per_s()
    left = max(0, counts.expected - done)
    eta_s = left / items_per_s if items_per_s > 0 else math.inf
    fields = [
        f"{done:,}/{counts.expected:,}",
        f"{items_per_s:,.1f} items/s",
        f"{items_per_s * 60 / status.rpm:.0%} of rpm",
        f"{tokens_per_s * 60 / status.tpm:.0%} of tpm ({tokens_per_s * 60:,.0f} tokens/min)",
        f"{counts.refused:,} refused, {counts.retries:,} retries, {counts.failed:,} failed",
        f"{cost_cny(counts.text_tokens, counts.image_tokens, spec.model.capabilities):,.4f} CNY",
        f"{format_seconds(eta_s)} left" if math.isfinite(eta_s) else "…",
    ]
    if status.held:
        fields.append(f"{status.held:,} to be tried again at the end")
    if spec.budget.is_set:
        fields.append(f"{share_used(Cost(counts.budget_tokens, counts.budget_pcny), spec.budget):.0%} of the budget")
    if status.stop is not None:
        fields.append(f"stopping, {status.in_flight} in flight")
    elif status.paused_s > 0:
        fields.append(f"paused for {status.paused_s:.0f} s after a refusal")
    fields += status.found.describe(status.rpm, status.tpm)
    return " | ".join(fields)


@contextmanager
def show_progress(spec: RunSpec, console: Console, *, plain_s: float = PLAIN_S) -> Iterator[None]:
    """Show the progress in a thread for the length of the block."""
    done = threading.Event()
    watch = _watch_live if console.is_terminal else _watch_plain
    thread = threading.Thread(target=watch, args=(spec, console, done, plain_s), name="arkbeam-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def _line(spec: RunSpec, rates: Rates) -> str:
    engine = find_engine(spec.run.name)
    if engine is None:
        return f"reading and planning, {format_seconds(time.time() - spec.run.started_s)}"
    status = engine.status()
    counts = status.counts
    rates.add(time.monotonic(), counts.bought + counts.failed, counts.total_tokens)
    line = describe_progress(status, rates, spec)
    return f"{line} | publishing" if counts.expected and counts.bought + counts.failed >= counts.expected else line


def _watch_live(spec: RunSpec, console: Console, done: threading.Event, _: float) -> None:
    rates = Rates()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while not done.wait(LIVE_S):
            live.update(Text(_line(spec, rates), no_wrap=True, overflow="ellipsis"), refresh=True)


def _watch_plain(spec: RunSpec, console: Console, done: threading.Event, plain_s: float) -> None:
    rates = Rates()
    next_s = time.monotonic() + min(1.0, plain_s)
    while not done.wait(LIVE_S):
        line = _line(spec, rates)  # also if it is not printed: it adds the samples for the rates
        if time.monotonic() >= next_s:
            print(line, file=console.file, flush=True)
            next_s = time.monotonic() + plain_s
