"""The counts of a run with several processes come from the notes of its processes and from the store."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
from arkbeam.base.files import list_files, write_bytes
from arkbeam.base.records import Modality
from arkbeam.engine.outcomes import Counts, RunReport, Stop, StopKind
from arkbeam.quota.use import FoundLimits, Minutes, QuotaUse, Ratios
from arkbeam.stages.embed import counts
from arkbeam.stages.embed.counts import Noted, merge_noted, note_counts, read_counts
from arkbeam.stages.publish.usage import settle_counts
from arkbeam.stages.spec import RunSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROCESSES = ["1-aa", "2-bb", "3-cc"]


@pytest.fixture
def spec(make_place: Any) -> RunSpec:
    """A run that may have several processes."""
    place = make_place("http://127.0.0.1:1/api/v3")
    place.write_texts(1)
    return replace(place.prepare().spec, many_processes=True)


def _report(sent: int) -> RunReport:
    minutes = Minutes(100.0)
    minutes.add(100.0 + sent, requests=sent, tokens=7 * sent)
    return RunReport(
        Counts(expected=50, sent=sent, bought=sent // 2, unpaid=sent // 3, tries_max=sent),
        QuotaUse(60, 600, sent, 7.0 * sent, 10.0, 10.0 + sent),
        None,
        minutes,
        {Modality.TEXT: Ratios(Counter({sent: 2, -3: 1}))},
        FoundLimits(rpm=1_000 - sent),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3), st.data())
def test_order_duplicates_and_loss_of_notes_change_nothing(
    spec: RunSpec, work: list[list[int]], data: st.DataObject
) -> None:
    """Each note has all that its process has done, so the newest ones alone decide, however often others are seen."""
    notes, last = [], []
    for process, steps in zip(PROCESSES, work, strict=False):
        sums = [sum(steps[: number + 1]) for number in range(len(steps))]
        own = [Noted(process, number, _report(sent)) for number, sent in enumerate(sums)]
        notes += own
        last.append(own[-1])
    seen = data.draw(st.lists(st.sampled_from(notes), max_size=10))
    merged = merge_noted(data.draw(st.permutations([*seen, *last])), spec)
    wanted = reduce(RunReport.merge, (note.report for note in last), RunReport(Counts(), QuotaUse(*spec.rate_limits)))
    assert merged == wanted
    assert merged.counts.sent == sum(map(sum, work[: len(PROCESSES)]))


class FakeEngine:
    """An engine whose report is set by the test."""

    def __init__(self, process: str) -> None:
        self.attempts = self
        self.process, self.now = process, RunReport(Counts(), QuotaUse(60, 600))

    def report(self) -> RunReport:
        """Return what was set."""
        return self.now


def test_notes_are_read_as_they_were_written(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note has all counts of its process, without its stop; it is written only when they change, and never empty."""
    written: list[str] = []

    def write(uri: str, data: bytes, *, durable: bool) -> None:
        written.append(uri)
        write_bytes(uri, data, durable=durable)

    monkeypatch.setattr(counts, "write_bytes", write)
    engines: list[Any] = [FakeEngine(f"{spec.run.name}-{number}") for number in range(2)]
    for engine in engines:
        note_counts(spec, engine)
        assert written == []
    quiet = replace(_report(0), counts=Counts(failed=1), use=QuotaUse(60, 600), minutes=Minutes(100.0), ratios={})
    for reports in ([_report(3), _report(5)], [_report(4), quiet]):
        for engine, report in zip(engines, reports, strict=True):
            engine.now = replace(report, stop=Stop(StopKind.FAULT, "fault", "x"))
            for _ in range(2):
                note_counts(spec, engine)
    assert len(written) == 4
    merged = read_counts(spec)
    assert merged == merge_noted([Noted("1", 1, _report(4)), Noted("2", 1, quiet)], spec)


def test_one_process_needs_no_note(spec: RunSpec) -> None:
    """In a run with one process no file is written or read: the counts are those of the engine, if there is one."""
    alone = replace(spec, many_processes=False)
    engine: Any = FakeEngine("")
    engine.now = _report(3)
    note_counts(alone, engine)
    assert list_files(spec.store.uri) == []
    assert read_counts(alone) == RunReport(Counts(), QuotaUse(*spec.rate_limits))


def test_counts_add_up_to_what_the_store_has() -> None:
    """Requests that a killed process had in flight, or recorded after its last note, are in the store, and count once."""
    noted = Counts(sent=20, bought=10, unusable=1, lost=1, unpaid=4, refused=3)  # 4 were in flight
    settled = settle_counts(noted, {"ok": 15, "unusable": 1, "lost": 3})
    assert (settled.sent, settled.bought, settled.unusable, settled.lost, settled.refused) == (23, 15, 1, 3, 3)
    assert settle_counts(noted, {}) == replace(noted, sent=16)  # the listing of the store is out of date


def test_a_reply_that_counts_as_lost_is_not_bought() -> None:
    """A process that was taken for dead noted replies that are recorded as lost: each request counts once, as in the store."""
    noted = Counts(sent=20, bought=16, unpaid=4)
    settled = settle_counts(noted, {"ok": 10, "lost": 8})
    assert (settled.sent, settled.bought, settled.lost) == (22, 10, 8)
