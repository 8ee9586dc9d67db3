"""What the metrics of a runner count: amounts by the name of a counter, and the latencies of answers.

A stage gives out what came since its last tally, and `beam.counters` adds it to Beam's metrics. Work that a runner
repeats is counted again, unless the runner drops the counts of a failed attempt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arkbeam.engine.outcomes import Counts
from arkbeam.quota.budget import Prices
from arkbeam.stages.plan import PlanTotals
from arkbeam.stages.read import ShardSummary

THROTTLED = "cumulativeThrottlingSeconds"
"""The name that Beam's own connectors use, for Dataflow."""
CODE_CHARS = 64
_PCNY = 10**6  # in a micro-CNY


@dataclass(frozen=True, slots=True)
class Tally:
    """What was done since the last tally. `latencies_ms`: of answers with a vector."""

    amounts: Mapping[str, int]
    latencies_ms: Sequence[int] = ()


def tally_shard(summary: ShardSummary) -> Tally:
    """Return the rows of a shard, and those of them that are unreadable, by code."""
    return Tally({"rows": summary.staged + summary.unreadable, **_failed(dict(summary.codes))})


def tally_plan(totals: PlanTotals) -> Tally:
    """Return the rows that are owned or were rejected in an earlier run, and the requests to send."""
    return Tally({"owned": totals.owned, "rejected_before": totals.rejected, "to_buy": totals.to_buy})


def tally_counts(
    before: Counts,
    now: Counts,
    prices: Prices,
    codes: Mapping[str, int],
    throttled_s: int = 0,
    latencies_ms: Sequence[int] = (),
) -> Tally:
    """Return what came between two counts of a process, and the requests that failed meanwhile, by code."""
    same = ("sent", "bought", "refused", "retries", "lost", "unusable")
    amounts = {name: getattr(now, name) - getattr(before, name) for name in same}
    amounts["tokens"] = now.total_tokens - before.total_tokens
    amounts["cost_micro_cny"] = _micro_cny(now, prices) - _micro_cny(before, prices)
    return Tally({**amounts, THROTTLED: throttled_s, **_failed(codes)}, latencies_ms)


def _micro_cny(counts: Counts, prices: Prices) -> int:
    """Return the cost of all answers so far. It is rounded before the difference is taken, so that no part is lost."""
    return (counts.text_tokens * prices.text_pcny + counts.image_tokens * prices.image_pcny) // _PCNY


def _failed(codes: Mapping[str, int]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for code, count in codes.items():
        name = f"failed_{code[:CODE_CHARS]}"
        amounts[name] = amounts.get(name, 0) + count
    return amounts
