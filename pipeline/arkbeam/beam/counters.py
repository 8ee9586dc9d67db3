"""Beam's counters and distributions of a run, in the namespace `arkbeam`."""

from apache_beam.metrics import Metrics

from arkbeam.stages.counters import Tally

NAMESPACE = "arkbeam"
_LATENCY = Metrics.distribution(NAMESPACE, "latency_ms")


def count(tally: Tally) -> None:
    """Add a tally to Beam's metrics. Call it in a method of a DoFn: what other threads add is dropped without an error."""
    for name, amount in tally.amounts.items():
        if amount:
            Metrics.counter(NAMESPACE, name).inc(amount)
    for latency_ms in tally.latencies_ms:
        _LATENCY.update(latency_ms)
