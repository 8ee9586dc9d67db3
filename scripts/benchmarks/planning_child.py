"""Time Plan alone, in a process that uses one core.

    python -m scripts.benchmarks.planning_child CONFIG ROWS KNOWN

It prints {"join": {"wall_s": …, "cpu_s": …}, "beam": {…}, "buckets": …}. `join` is for the pure functions, `beam` for the
same tables through Beam's in-process runner. The number of buckets comes from CONFIG.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from arkbeam.app.config import load_config
from arkbeam.app.prepare import prepare_job
from arkbeam.base import schema
from arkbeam.beam.plan import PlanBuckets
from arkbeam.stages.plan import PlanTotals, plan_bucket, split_buckets, sum_totals
from arkbeam.stages.publish.parts import Divisions
from arkbeam.stages.read import remember_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.entries import vector_entries
from arkbeam.store.index import Entries, Source, open_entries
from arkbeam.store.layout import segment_name
from arkbeam.store.lookup import Covering, StoreIndex

from scripts.benchmarks.runs import BenchError

KEYS_ROWS = 131_072  # rows of one table of keys, as Read emits them
SEGMENT_ROWS = 256


@dataclass(slots=True)
class _Tables:
    """The tables that are planned. Beam's functions use this object directly: in one process it is not copied."""

    keys: list[pa.Table] = field(default_factory=list)
    index: StoreIndex = field(default_factory=StoreIndex)


_tables = _Tables()
_totals: list[PlanTotals] = []


def make_tables(rows: int, known: int) -> _Tables:
    """Make KEYS of `rows` different rows, and an index of `known` of them in another order."""
    random = np.random.default_rng(0)
    fingerprints = random.bytes(rows * schema.FINGERPRINT_BYTES)
    array = pa.Array.from_buffers(schema.FINGERPRINT, rows, [None, pa.py_buffer(fingerprints)])
    ones = np.ones(rows, np.uint32)
    columns = [array, 0 * ones, np.arange(rows, dtype=np.uint32), 40 * ones, 0 * ones]
    keys = pa.table(columns, schema=schema.KEYS)
    owned = pa.table({"fingerprint": array.take(pa.array(random.permutation(rows)[:known])), "model": ["m"] * known})
    parts = [_entries(owned.slice(start, SEGMENT_ROWS), start) for start in range(0, known, SEGMENT_ROWS)]
    return _Tables(_cut(keys, KEYS_ROWS), StoreIndex((Covering(open_entries(parts), np.ones(len(parts), np.bool_)),)))


def _entries(segment: pa.Table, number: int) -> Entries:
    return Entries(Source(f"segments/run/{segment_name(number)}", "", segment.num_rows), vector_entries(segment))


def plan_alone(tables: _Tables, spec: RunSpec) -> PlanTotals:
    """Split the tables into buckets, look each up in the index and plan it, without Beam."""
    buckets = {
        bucket: schema.concat(keys, schema.KEYS) for bucket, keys in _by_bucket(tables.keys, spec.buckets).items()
    }
    found = ((keys, tables.index.find(keys["fingerprint"]).index) for keys in buckets.values())
    return sum_totals(plan_bucket([keys], [index], []).totals for keys, index in found)


def plan_through_beam(spec: RunSpec) -> PlanTotals:
    """Run the transform PlanBuckets over the same tables on the in-process runner."""
    remember_index(spec.run.name, _tables.index)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        keys = pipeline | "Keys" >> beam.Create(range(len(_tables.keys))) | beam.FlatMap(_split, spec.buckets)
        planned = keys | "Plan" >> PlanBuckets(spec)
        _ = planned.counts | "Note" >> beam.Map(_note)
    return sum_totals(_totals)


def _split(number: int, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    yield from split_buckets(_tables.keys[number], buckets)


def _note(counts: PlanTotals | Divisions) -> None:
    if isinstance(counts, PlanTotals):
        _totals.append(counts)


def _cut(table: pa.Table, rows: int) -> list[pa.Table]:
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def _by_bucket(tables: list[pa.Table], buckets: int) -> dict[int, list[pa.Table]]:
    found: dict[int, list[pa.Table]] = {}
    for table in tables:
        for bucket, piece in split_buckets(table, buckets):
            found.setdefault(bucket, []).append(piece)
    return found


def _time(work: Callable[[], PlanTotals], rows: int, known: int) -> dict[str, float]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    totals = work()
    took = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
    if (totals.rows, totals.owned, totals.to_buy) != (rows, known, rows - known):
        raise BenchError(f"the plan is wrong: {totals}")
    return took


def main(config: str, rows: int, known: int) -> dict[str, Any]:
    """Plan in both ways; return the time of each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    spec = prepare_job(load_config(config)).spec
    tables = make_tables(rows, known)
    _tables.keys, _tables.index = tables.keys, tables.index
    return {
        "join": _time(lambda: plan_alone(_tables, spec), rows, known),
        "beam": _time(lambda: plan_through_beam(spec), rows, known),
        "buckets": spec.buckets,
    }


if __name__ == "__main__":
    # Import this module by its name, since Beam pickles its functions by the name of their module.
    from scripts.benchmarks import planning_child

    print(json.dumps(planning_child.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
