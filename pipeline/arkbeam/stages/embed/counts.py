"""What the processes of a run have counted, for `run.json`.

    <store>/runs/<run>/counts/<process>.json    a number that grows, and all that the process has done so far

A process of a run that has several renews its note every second while its counts change, and when a session ends. The
last stage merges the notes. What bundles report would be wrong: a bundle of a process that dies reports nothing, and one
that the runner repeats reports twice. In a run with one process, the counts are those of its engine, and there is no note.
"""

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from arkbeam.base.files import list_files, read_if_exists, write_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.records import Modality
from arkbeam.base.uris import join, reads_in_flight
from arkbeam.engine.core import Engine
from arkbeam.engine.outcomes import Counts, RunReport
from arkbeam.engine.registry import find_engine
from arkbeam.quota.use import FoundLimits, Minutes, QuotaUse, Ratios
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import run_folder

_SUFFIX = ".json"
_notes: "WeakKeyDictionary[Engine, _Note]" = WeakKeyDictionary()
_notes_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Noted:
    """What a process had done when it wrote its note. The number grows with each note of the process."""

    process: str
    number: int
    report: RunReport


@dataclass(slots=True)
class _Note:
    """The note of an engine: one that takes the place of another one is a new process of the run.

    `lock` keeps an older note from replacing a newer one.
    """

    number: int = 0
    written: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)


def note_counts(spec: RunSpec, engine: Engine) -> None:
    """Write the note of an engine's process, if its counts have changed. Raise StoreError."""
    if not spec.many_processes:
        return
    with _notes_lock:
        note = _notes.setdefault(engine, _Note())
    with note.lock:
        report = engine.report()
        data = orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS)
        if data == note.written or report.counts == Counts(expected=report.counts.expected):
            return
        note.number += 1
        document = {"number": note.number, "report": orjson.Fragment(data)}
        write_bytes(join(_folder(spec), f"{engine.attempts.process}{_SUFFIX}"), orjson.dumps(document), durable=False)
        note.written = data


def read_counts(spec: RunSpec) -> RunReport:
    """Return what all processes of a run have done, without their stops. Raise StoreError."""
    if not spec.many_processes:
        engine = find_engine(spec.run.name)
        return merge_noted([] if engine is None else [Noted("", 0, engine.report())], spec)
    uris = list_files(_folder(spec), _SUFFIX)
    found = zip(uris, in_parallel(read_if_exists, uris, reads_in_flight(spec.store.uri)), strict=True)
    return merge_noted([_parse(uri, data) for uri, data in found if data is not None], spec)


def merge_noted(notes: Iterable[Noted], spec: RunSpec) -> RunReport:
    """Add up what processes have done. Of the notes of a process, the newest one counts; their order does not matter."""
    newest: dict[str, Noted] = {}
    for note in notes:
        if note.process not in newest or newest[note.process].number < note.number:
            newest[note.process] = note
    reports = (newest[process].report for process in sorted(newest))
    return reduce(RunReport.merge, reports, RunReport(Counts(), QuotaUse(*spec.rate_limits)))


def _folder(spec: RunSpec) -> str:
    return join(run_folder(spec.store.uri, spec.run.name), "counts")


def _parse(uri: str, data: bytes) -> Noted:
    note = orjson.loads(data)
    report = note["report"]
    ratios = {
        Modality(kind): Ratios(Counter({int(at): count for at, count in one["counts"].items()}))
        for kind, one in report["ratios"].items()
    }
    return Noted(
        uri.rpartition("/")[2].removesuffix(_SUFFIX),
        note["number"],
        RunReport(
            Counts(**report["counts"]),
            QuotaUse(**_with_times(report["use"])),
            minutes=Minutes(**_with_times(report["minutes"])),
            ratios=ratios,
            found=FoundLimits(**report["found"]),
        ),
    )


def _with_times(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with the times of nothing, which JSON does not have."""
    first_s, last_s = fields["first_s"], fields["last_s"]
    nothing = {"first_s": math.inf, "last_s": -math.inf} if first_s is None or last_s is None else {}
    return {**fields, **nothing}
