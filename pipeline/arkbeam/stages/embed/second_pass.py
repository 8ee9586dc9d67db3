"""The second pass: at the end of a lane, rows that failed for a passing reason are tried once more.

The engine holds the failures of these rows, without their bodies (`engine.outcomes.Held`): their requests are read
again from the run's staged rows. A row is due `limits.second_pass_s` after its last try. The first wave has the rows
that are due when the first pass ends; then a wave follows at most once in `WAVE_S`.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.files import exists, write_bytes
from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import Held, Sink
from arkbeam.stages.embed.feed import StagedRow, read_rows
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import buyers_uri, note_uri, read_block

WAVE_S = 1.0


def wait_for_held(first_block: tuple[int, int], spec: RunSpec, engine: Engine, sink: Sink) -> bool:
    """Wait until the first wave of a lane's held rows is due. Return False if there is no second pass.

    There is none if the lane holds no rows, if the run stops, or if an earlier attempt of the lane, which
    `first_block` names, has begun its second pass: a runner that repeats a lane does not repeat the pass.
    """
    if not sink.held or not engine.pause(0.0):
        return False
    note = note_uri(spec.run_files_uri, spec.run.name, "second-{:06d}-{:06d}".format(*first_block))
    if exists(note) or not engine.pause(_wave_s(_in_order(sink)) - time.monotonic()):
        return False
    write_bytes(note, b"{}")
    return True


def read_waves(spec: RunSpec, engine: Engine, sink: Sink) -> Iterator[Iterator[StagedRow]]:
    """Yield the held rows in waves, each when its rows are due. End early if the run stops."""
    waiting = _in_order(sink)
    while waiting and engine.pause(_wave_s(waiting) - time.monotonic()):
        now_s = time.monotonic()
        due = [held for held in waiting if held.due_s <= now_s]
        waiting = waiting[len(due) :]
        yield _read(due, spec)


def _in_order(sink: Sink) -> list[Held]:
    return sorted(sink.held.values(), key=attrgetter("due_s"))


def _wave_s(waiting: Sequence[Held]) -> float:
    """Return when the next wave is due: soon after its first row, and no later than the last row of all."""
    return min(waiting[0].due_s + WAVE_S, waiting[-1].due_s)


def _read(due: Sequence[Held], spec: RunSpec) -> Iterator[StagedRow]:
    """Read rows again, in the order of the manifest."""
    for (shard, number), held in groupby(sorted(due, key=attrgetter("block")), attrgetter("block")):
        buyers = read_block(buyers_uri(spec.run_files_uri, spec.run.name, shard), number)
        names = pa.array([one.fingerprint for one in held], schema.FINGERPRINT)
        yield from read_rows(buyers.filter(pc.is_in(buyers["fingerprint"], value_set=names)), (shard, number), spec)
