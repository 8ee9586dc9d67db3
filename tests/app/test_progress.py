"""The progress display: its counts against those of the run, its three forms, and runs in several processes."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.bars import draw
from arkbeam.app.job import name_plan, plan_job, run_job
from arkbeam.app.messages import LogForm
from arkbeam.app.prepare import Job
from arkbeam.app.progress import show_progress
from arkbeam.app.view import Rate, Rates, View, describe_state, describe_view, estimate_rows, make_view
from arkbeam.base.errors import StoreError
from arkbeam.engine.outcomes import Counts, Status, Stop, StopKind
from arkbeam.quota.use import FoundLimits
from arkbeam.stages import meter
from arkbeam.stages.inputs import write_inputs
from arkbeam.stages.meter import Phase, Progress, Work, note_failures, note_work, read_progress
from rich.console import Console

PHASES = ["reading", "planning", "embedding", "publishing", "compacting the store"]
CODES = {"no_input": 4, "bad_json": 1_000_000}
COUNTS = Counts(expected=9_000_000, sent=4_300_000, bought=4_200_000, failed=12, total_tokens=10**9, text_tokens=10**9)


@contextmanager
def last_progress(monkeypatch: pytest.MonkeyPatch, run: str) -> Iterator[list[Progress]]:
    """Yield a list that gets the progress of a run when the run forgets it."""
    kept: list[Progress] = []

    def forget(name: str) -> None:
        if name == run:
            kept.append(Progress(replace(meter._works[name])))

    monkeypatch.setattr("arkbeam.app.job.forget_work", forget)
    yield kept


def watch(job: Job, act: Callable[[], Any], **options: Any) -> list[str]:
    """Return the lines that are printed while a job runs."""
    printed = io.StringIO()
    with show_progress(job.spec, Console(file=printed), plain_s=0.1, **options):
        act()
    return printed.getvalue().splitlines()


def make_long_view(place: Any, phase: Phase, **status: Any) -> View:
    """Return a view with large numbers in all fields."""
    work = Work(phase, 10_000_000, 12, 10**9, 977, 512, 9_999_988, 9_000_000, 10**9, 0, 612, 40, dict(CODES))
    rates, spec = Rates(), place.prepare().spec
    for second in (1, 2):
        counts = replace(COUNTS, bought=COUNTS.bought + second * 250, sent=COUNTS.sent + second * 250)
        rates.add(second, Progress(replace(work, rows_read=second * 10**6), Status(counts, 1, 0.0, 1, 1, 1.0, None)))
    state = Status(COUNTS, 64, 0.0, 15_000, 1_200_000, 60.0, None)
    return make_view(Progress(work, replace(state, **status)), rates, spec, spec.run.started_s + 7_200)


def test_lines_of_a_run(make_emulator: Any, make_place: Any) -> None:
    """Plain lines show the phases in order; in embedding: rate, use of the quota, failures, cost and time left.

    In JSON each line is a document with the phase, the counts and the cost.
    """
    place = make_place(make_emulator(latency_ms=400).url)
    place.write_rows([*({"text": f"row {n}"} for n in range(150)), {"id": "no input"}])
    job, printed = place.prepare(), list[str]()
    lines = watch(job, lambda: printed.extend(watch(job, lambda: run_job(job), form=LogForm.JSON)))
    phases = [line.partition(" | ")[0] for line in lines]
    assert phases == sorted(phases, key=PHASES.index)
    embedding = [line.split(" | ")[1:] for line in lines if "/150 |" in line]
    assert len(embedding) >= 2
    done = [int(fields[0].partition("/")[0]) for fields in embedding]
    assert done == sorted(done)
    words = ("items/s", "of rpm", "tokens/min", "0 refused, 0 retries, 0 failed", "CNY")
    for fields in embedding:
        assert [word for word, cell in zip(words, fields[1:6], strict=False) if word not in cell] == []
    assert any(not fields[1].startswith("0.0 ") and fields[6].endswith("left") for fields in embedding)
    documents = [orjson.loads(line) for line in printed]
    assert {one["event"] for one in documents} == {"progress"}
    last = [one for one in documents if one["phase"] == "embedding"][-1]
    assert (last["rows_read"], last["rows_planned"], last["requests_expected"]) == (151, 150, 150)
    assert 0 < last["bought"] <= 150
    assert last["cost_all_cny"] >= last["cost_cny"] > 0
    assert last["failed_rows_by_code"] == {"no_input": 1}


def test_counts_are_those_of_the_run(
    make_emulator: Any, make_place: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """At the end of a run the counts are those of `run.json`: rows, requests, parts, and failures by code."""
    place = make_place(make_emulator(poison="poison").url)
    place.write_rows([*({"text": f"row {n % 40}"} for n in range(50)), {"text": "poison"}, {}, "{"])
    pq.write_table(pa.table({"text": [f"more {n}" for n in range(30)]}), tmp_path / "more.parquet")
    uris = [str(place.folder / "rows.jsonl"), str(tmp_path / "more.parquet")]
    job = place.prepare({"manifest.uris": uris})
    with last_progress(monkeypatch, job.spec.run.name) as kept:
        note = run_job(job)
    work = kept[0].work
    assert (work.rows_read, work.rows_unreadable, work.rows_planned) == (note["rows"], 2, 81)
    assert (work.to_buy, work.bytes_read) == (note["to_buy"], job.spec.manifest_bytes)
    assert work.parts_written == work.parts_planned == len(note["files"])
    assert work.codes == {"no_input": 1, "bad_json": 1, "SensitiveContentDetected": 1}
    assert work.phase is Phase.COMPACTING


def test_a_plan_shows_its_progress(place: Any) -> None:
    """`plan` shows reading and planning as a run does, and leaves nothing in the store."""
    place.write_texts(3)
    job = name_plan(place.prepare())
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arkbeam.app.job.forget_work", lambda name: seen.append(meter._works[name].rows_planned))
        assert plan_job(job).rows == 3
    assert seen == [3]
    assert place.leftovers == []


def test_notes_of_processes_are_added_up(
    place: Any, monkeypatch: pytest.MonkeyPatch, wait: Callable[..., None]
) -> None:
    """The progress of a run in many processes is the sum of their notes; a process that is idle writes none."""
    monkeypatch.setattr(meter, "NOTE_S", 0.05)
    place.write_texts(1)
    spec = write_inputs([], replace(place.prepare().spec, many_processes=True))
    stop = Stop(StopKind.BUDGET, "budget", "used up")
    counts = Counts(expected=7, sent=6, bought=5, tries_max=3)
    status = Status(counts, 2, 1.5, 600, 1000, 3.0, stop, FoundLimits(rpm=5), 1)
    written = Progress(Work(Phase.EMBEDDING, rows_read=5, codes={"a": 1, "b": 2}), status)
    with monkeypatch.context() as patch:
        patch.setattr(meter, "_own_progress", lambda _: written)
        note_work(spec, Phase.EMBEDDING, rows_read=5)
        note_failures(spec, pa.chunked_array([["a"]]))
        folder = place.store / "runs" / spec.run.name / "progress"
        wait(lambda: list(folder.glob("*.json")))
        meter.forget_work(spec.run.name)
        wait(lambda: not any(thread.name == "arkbeam-note" for thread in threading.enumerate()))
    (note,) = folder.glob("*.json")
    assert read_progress(spec) == written
    (folder / "other.json").write_bytes(note.read_bytes())
    both = read_progress(spec)
    assert (both.work.rows_read, both.work.codes) == (10, {"a": 2, "b": 4})
    assert both.status is not None
    assert (both.status.counts.bought, both.status.counts.tries_max, both.status.in_flight) == (10, 3, 4)
    assert (both.status.rpm, both.status.stop, both.status.found.rpm) == (600, stop, 5)
    note.unlink()
    note_work(spec, Phase.READING)  # as at the start of a run: nothing to tell yet
    assert not wait_a_little(note.exists)
    (folder.parent / "shards.json").unlink()  # as at the end of a run
    note_work(spec, Phase.READING, rows_read=1)
    assert not wait_a_little(note.exists)
    meter.forget_work(spec.run.name)


def test_a_process_does_not_count_its_own_note(
    place: Any, monkeypatch: pytest.MonkeyPatch, wait: Callable[..., None]
) -> None:
    """A process that shows the progress and also works, as with `--runner=DirectRunner`, counts its work once."""
    monkeypatch.setattr(meter, "NOTE_S", 0.05)
    place.write_texts(1)
    spec = write_inputs([], replace(place.prepare({"quota.lanes": 8}).spec, many_processes=True))
    note_work(spec, Phase.READING, rows_read=5)
    folder = place.store / "runs" / spec.run.name / "progress"
    wait(lambda: list(folder.glob("*.json")))
    assert read_progress(spec).work.rows_read == 5
    (note,) = folder.glob("*.json")
    (folder / "other.json").write_bytes(note.read_bytes())
    assert read_progress(spec).work.rows_read == 10
    meter.forget_work(spec.run.name)


@pytest.mark.parametrize("uri", ["", "s3://bucket/store"])
def test_silent_workers(
    place: Any, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until a worker has written its progress, the display says so; a warning, given once, says what may be wrong."""
    monkeypatch.setattr("arkbeam.app.progress.SILENT_S", 0.0)
    monkeypatch.setattr("arkbeam.stages.meter.list_files", lambda *_: [])
    place.write_texts(1)
    job = place.prepare()
    spec = replace(job.spec, many_processes=True, store=replace(job.spec.store, uri=uri or job.spec.store.uri))
    lines = watch(replace(job, spec=spec), lambda: wait_a_little(lambda: False) or wait_a_little(lambda: False))
    assert lines
    assert all(line.startswith("waiting for workers | ") for line in lines)
    (warning,) = [one.getMessage() for one in caplog.records if one.name == "arkbeam.app.progress"]
    assert "no worker has written its progress" in warning
    assert (str(place.store) in warning) == (uri == "")


def wait_a_little(condition: Callable[[], bool]) -> bool:
    """Return True if a condition holds within 0.3 s."""
    return threading.Event().wait(0.3) or condition()


def test_a_store_that_fails_does_not_end_the_display(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the notes can't be read, the display goes on with what it has."""

    def fail(_: Any) -> Progress:
        raise StoreError("no answer")

    monkeypatch.setattr("arkbeam.app.progress.read_progress", fail)
    place.write_texts(1)
    lines = watch(place.prepare(), lambda: wait_a_little(lambda: False))
    assert lines
    assert all(line.startswith("reading | 0 rows") for line in lines)


@pytest.mark.parametrize("phase", Phase)
def test_bars_fit_80_columns(place: Any, phase: Phase) -> None:
    """The live display of a run of ten million rows fits a terminal of 80 columns, and shows what a person needs."""
    place.write_texts(1)
    stop = Stop(StopKind.BUDGET, "budget", "used up")
    view = make_long_view(place, phase, held=12, stop=stop, found=FoundLimits(rpm=412))
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(draw(view, list(describe_state(view.status, place.prepare().spec))))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines[:-1])
    text = "\n".join(lines)
    wanted = [
        "10,000,000",
        "1,000,004 failed rows: bad_json 1,000,000, no_input 4",
        "12 to be tried again",
        "412 requests",
    ]
    if phase is Phase.EMBEDDING:
        wanted += [
            "15,000 a minute",
            "1,200,000 tokens a minute",
            "64 in flight",
            "CNY",
            "left",
            "4,200,012 of 9,000,000",
        ]
    assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize("phase", Phase)
def test_plain_lines_of_all_phases(place: Any, phase: Phase) -> None:
    """Each phase has a line that begins with its name and says how much of how much is done, as far as it is counted."""
    place.write_texts(1)
    view, spec = make_long_view(place, phase), place.prepare().spec
    line = describe_view(view, spec)
    done = {
        Phase.READING: "10,000,000 of about 10,000,000 rows",
        Phase.PLANNING: "9,999,988 of 9,999,988 rows",
        Phase.EMBEDDING: "4,200,012/9,000,000",
        Phase.PUBLISHING: "40 of 612 parts",
        Phase.COMPACTING: " s",
    }
    assert line.startswith(f"{PHASES[phase]} | ")
    assert done[phase] in line


def test_rows_are_estimated(place: Any) -> None:
    """The number of rows is estimated by the bytes that were read, before that by the last run; the real count comes last."""
    place.write_texts(1)
    spec = replace(place.prepare().spec, manifest_bytes=1_000, rows_before=70)
    assert estimate_rows(Work(), spec) == 70
    assert estimate_rows(Work(rows_read=20, bytes_read=250), spec) == 80
    assert estimate_rows(Work(rows_read=90, bytes_read=1_000), spec) == 90
    assert estimate_rows(Work(Phase.PLANNING, rows_read=90, bytes_read=900), spec) == 90


def test_projected_cost(place: Any) -> None:
    """The projected cost is that of the plan at first, and later what the answers cost so far, for all requests."""
    place.write_texts(1)
    spec = place.prepare().spec
    work = Work(Phase.EMBEDDING, to_buy=10, text_tokens=1_000_000)
    status = Status(Counts(expected=10), 0, 0.0, 600, 1000, 0.0, None)
    assert make_view(Progress(work, status), Rates(), spec, 0.0).cost_all_cny == pytest.approx(0.7)
    counts = Counts(expected=10, bought=4, failed=1, text_tokens=200_000)
    view = make_view(Progress(work, replace(status, counts=counts)), Rates(), spec, 0.0)
    assert (view.cost_cny, view.cost_all_cny) == (pytest.approx(0.14), pytest.approx(0.14 * 9 / 4))


def test_a_rate_begins_with_its_counter() -> None:
    """The time before a counter moves does not lower its rate; a rate covers a minute."""
    rate = Rate()
    for second in range(100):
        rate.add(second, 0)
    for second in range(100, 111):
        rate.add(second, (second - 99) * 5)
    assert rate.per_s == pytest.approx(5)
    for second in range(111, 300):
        rate.add(second, 60)
    assert rate.per_s == 0


def test_a_rate_over_seconds_is_not_above_a_limit() -> None:
    """A rate that is compared with a limit counts ten seconds at least, so that the first replies are no use above it."""
    rate = Rate()
    rate.add(0, 0)
    rate.add(0.5, 30)
    assert (rate.per_s, rate.per_min) == (60, 180)
    rate.add(20, 400)
    assert rate.per_min == pytest.approx(1_200)


def test_codes_are_bounded(place: Any) -> None:
    """Above a number of different codes, further ones are counted together."""
    place.write_texts(1)
    spec = place.prepare().spec
    note_failures(spec, pa.chunked_array([[f"code {n}" for n in range(meter.CODES_MAX + 20)]]))
    codes = read_progress(spec).work.codes
    assert len(codes) == meter.CODES_MAX + 1
    assert codes[meter.OTHER] == 20
    meter.forget_work(spec.run.name)
