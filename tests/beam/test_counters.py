"""The counters and distributions of a run in Beam's metrics."""

from typing import Any

import apache_beam as beam
import pytest
from arkbeam.beam.counters import NAMESPACE
from arkbeam.emulator.options import FaultShares


def read_metrics(result: Any) -> dict[str, Any]:
    """Return the values of this project's metrics by name: of counters, and of distributions."""
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(NAMESPACE))
    values: dict[str, Any] = {}
    for one in found["counters"]:
        values[one.key.metric.name] = values.get(one.key.metric.name, 0) + one.committed
    return values | {one.key.metric.name: one.committed for one in found["distributions"]}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The results of the pipelines that the test runs."""
    kept: list[Any] = []
    run = beam.Pipeline.run

    def keep(self: beam.Pipeline, *arguments: Any) -> Any:
        kept.append(run(self, *arguments))
        return kept[-1]

    monkeypatch.setattr(beam.Pipeline, "run", keep)
    return kept


def test_the_counters_are_those_of_the_run(make_emulator: Any, make_place: Any, results: list[Any]) -> None:
    """Beam's metrics say what `run.json` says: rows, requests, failures by code, tokens, cost; and the latencies."""
    place = make_place(make_emulator(poison="poison", faults=FaultShares(overload_429=0.2), seed=1).url)
    place.write_rows([*({"text": f"row {n % 30}"} for n in range(40)), {"text": "poison"}, {}, "{"])
    note = place.run({"quota.rpm": 600})
    counted = read_metrics(results[0])
    assert (counted["rows"], counted["to_buy"]) == (note["rows"], note["to_buy"]) == (43, 31)
    assert (counted["sent"], counted["refused"]) == (note["requests_sent"], note["refused"])
    assert counted["refused"] > 0
    assert counted["bought"] == note["requests_paid"] == 30
    assert counted["tokens"] == note["tokens"]["total"]
    assert counted["cost_micro_cny"] == int(note["cost_cny"] * 10**6 + 0.5)
    failed = {name: value for name, value in counted.items() if name.startswith("failed_")}
    assert failed == {"failed_no_input": 1, "failed_bad_json": 1, "failed_SensitiveContentDetected": 1}
    latency = counted["latency_ms"]
    assert latency.count == 30
    assert 0 <= latency.min <= latency.mean <= latency.max < 60_000
    assert counted["cumulativeThrottlingSeconds"] >= 1  # 31 requests at 600 a minute take three seconds

    again = place.run()
    counted = read_metrics(results[1])
    assert (counted["rows"], counted["owned"], counted["rejected_before"]) == (43, again["owned"], 1) == (43, 40, 1)
    assert "sent" not in counted
