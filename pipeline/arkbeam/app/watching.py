"""What the store shows of a run: counts, processes with the age of their marks, a stop, the result; and waiting for its end.

A process of a run shows that it is alive by its note of the progress (`stages.meter`) and, while it sends, by a mark
(`engine.attempts`). `status` shows how old they are by the storage's clock. Whether a run is dead is decided by `wait`
alone, which watches them by its own monotonic clock.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from arkbeam.app.find_run import FoundRun, read_result
from arkbeam.app.view import Rates, View, describe_view, make_view, view_to_json
from arkbeam.base.errors import ArkbeamError, ConfigError
from arkbeam.base.files import list_times
from arkbeam.base.redaction import redact_uri
from arkbeam.base.words import format_seconds
from arkbeam.engine.attempts import blocks_folder, processes_folder
from arkbeam.engine.outcomes import Stop
from arkbeam.stages.embed.process import read_stop
from arkbeam.stages.meter import Progress, Work, progress_folder, read_progress
from arkbeam.stages.spec import RunSpec
from arkbeam.store.living import is_running

POLL_S = 2.0
SILENT_S = 120.0
"""How long a run may show no sign of life: an engine may need a minute to start a lost worker again."""


class Dead(ArkbeamError):
    """No process of a run shows a sign of life."""


class TimedOut(ArkbeamError):
    """The run has not ended in the time that the caller gave."""

    exit_code = 124


@dataclass(frozen=True, slots=True)
class Sign:
    """A note or a mark of a process. `age_s`: since it was written, by the clocks of the storage and of this machine."""

    process: str
    kind: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the store shows of a run that has not ended."""

    view: View
    stop: Stop | None
    signs: tuple[Sign, ...]


def look(spec: RunSpec, now_s: float) -> Seen:
    """Read what the store shows of a run. `now_s` is Unix time. Rates are means since the run, or its engines, began.

    Raise StoreError.
    """
    progress, rates = read_progress(spec), Rates()
    rates.add(min(now_s - 1.0, spec.run.started_s), Progress(Work()))
    rates.add(now_s, replace(progress, status=None))
    if progress.status is not None and progress.status.seconds > 0:
        embedding = Rates()
        embedding.add(now_s - progress.status.seconds, Progress(Work()))
        embedding.add(now_s, progress)
        rates.items, rates.sent, rates.tokens = embedding.items, embedding.sent, embedding.tokens
    return Seen(make_view(progress, rates, spec, now_s), read_stop(spec), _find_signs(spec, now_s))


def describe_run(run: FoundRun, seen: Seen | None) -> dict[str, Any]:
    """Return what is known of a run as a document. `seen` is None for a run that has ended."""
    return {
        "run": run.name,
        "output": redact_uri(run.output_uri),
        "store": redact_uri(run.store_uri),
        "state": find_state(run, seen),
        "progress": None if seen is None else view_to_json(seen.view),
        "processes": [] if seen is None else [asdict(sign) for sign in seen.signs],
        "stop": None if seen is None or seen.stop is None else asdict(seen.stop),
        "result": run.result,
    }


def list_rows(run: FoundRun, seen: Seen, spec: RunSpec) -> list[tuple[str, str]]:
    """Return what is known of a run that has not ended as names and values, for a table."""
    state = find_state(run, seen)
    rows = [
        ("state", state),
        ("output", redact_uri(run.output_uri)),
        ("store", redact_uri(run.store_uri)),
        ("progress", describe_view(seen.view, spec) if state != "submitted" else "no process has shown itself yet"),
        ("since the start", format_seconds(seen.view.seconds)),
    ]
    if run.note is not None:
        rows.append(("started by", f"process {run.note.pid} on {run.note.host}"))
    if seen.stop is not None:
        rows.append(("stop", f"{seen.stop.code}: {seen.stop.message}"))
    rows += [(f"process {sign.process}", f"{sign.kind}, {format_seconds(sign.age_s)} ago") for sign in seen.signs]
    return rows


def find_state(run: FoundRun, seen: Seen | None) -> str:
    """Return the state in a word.

    `finished` or `stopped`: it has ended. `stopping`: it was told to stop. `submitted`: no process has shown itself yet.
    `silent`: no sign of life for `SILENT_S`. `running`: the others.
    """
    if run.result is not None:
        return "finished" if run.result["stopped"] is None else "stopped"
    assert seen is not None
    if not seen.signs:
        return "submitted" if run.note is not None and run.note.many_processes else "running"
    if min(sign.age_s for sign in seen.signs) >= SILENT_S:
        return "silent"
    return "running" if seen.stop is None else "stopping"


def wait_for_end(
    run: FoundRun,
    spec: RunSpec,
    *,
    silent_s: float = SILENT_S,
    timeout_s: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Wait until a run has ended; return its result.

    A run on which no process has begun to work is waited for as well: the engine may have no place for it yet. Raise Dead
    if processes have shown themselves and show no sign of life any more, or if the run has ended without a result;
    TimedOut; StoreError.
    """
    begun_s = changed_s = clock()
    signs: dict[str, float] = {}
    while True:
        is_there = is_running(run.store_uri, run.name)  # before the result, which is written before the note goes
        result = read_result(run)
        if result is not None:
            return result
        if not is_there:
            raise Dead(
                f"run {run.name} has ended without a result: a later run of its output has removed its files, or it has"
                " failed"
            )
        found, now_s = _list_signs(spec), clock()
        if found != signs or not found:
            signs, changed_s = found, now_s
        if now_s - changed_s >= silent_s:
            raise Dead(
                f"nothing has renewed run {run.name} for {silent_s:.0f} s: its processes are dead, or can't reach the store."
                " Look at the job on the engine; to continue, give the command of the run again"
            )
        if timeout_s is not None and now_s - begun_s >= timeout_s:
            raise TimedOut(f"run {run.name} has not ended in {timeout_s:g} s; it goes on")
        sleep(POLL_S if timeout_s is None else max(0.0, min(POLL_S, begun_s + timeout_s - now_s)))


def spec_of(run: FoundRun) -> RunSpec:
    """Return the spec of a run that has not ended. Raise ConfigError if another version started it."""
    if run.note is None:
        raise ConfigError(f"run {run.name} has ended")
    return run.note.spec(run.store_uri)


def _find_signs(spec: RunSpec, now_s: float) -> tuple[Sign, ...]:
    newest: dict[tuple[str, str], float] = {}
    for uri, time_s in _list_signs(spec).items():
        kind = "note of the progress" if uri.endswith(".json") else "mark"
        process = uri.rpartition("/")[2].rpartition(".")[0]
        newest[process, kind] = max(newest.get((process, kind), 0.0), time_s)
    signs = (Sign(process, kind, max(0.0, now_s - time_s)) for (process, kind), time_s in newest.items())
    return tuple(sorted(signs, key=lambda sign: sign.age_s))


def _list_signs(spec: RunSpec) -> dict[str, float]:
    marks = list_times(processes_folder(blocks_folder(spec.store.uri, spec.run.name)))
    return {**list_times(progress_folder(spec), ".json"), **marks}
