"""Read: rows are staged in the run's folder, and the files of the store are read as an index."""

import gc
import logging
import shutil
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import orjson
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from arkbeam.app.config import parse_config
from arkbeam.app.prepare import Job, prepare_job
from arkbeam.base import faults, schema
from arkbeam.base.collector import relax_collector
from arkbeam.base.errors import ManifestError, StoreError
from arkbeam.base.faults import Injector
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Reply
from arkbeam.beam.pipeline import build_plan
from arkbeam.manifest.common_type import common_type
from arkbeam.manifest.staging import request_from_json
from arkbeam.stages import read as reading
from arkbeam.stages.read import (
    STORE_FILES_PER_GROUP,
    ShardSummary,
    cover_files,
    find_uncovered,
    forget_index,
    open_index,
    stage_shard,
)
from arkbeam.store import entries
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.layout import events_folder, list_parquet, segment_name, segments_folder
from arkbeam.store.run_files import read_rows_at, read_tables, rows_folder, unreadable_folder
from arkbeam.store.segments import Attempt, Bought, segment_table, write_segment

OLD_RUN = "20250101T000000-0123abcd-89ef4567"
DIMENSIONS = 1024


def _job(folder: Path, lines: Sequence[bytes], **manifest: Any) -> Job:
    (folder / "rows.jsonl").write_bytes(b"".join(lines))
    raw = {
        "manifest": {"uris": str(folder / "rows.jsonl"), **manifest},
        "model": {"name": "doubao-embedding-vision-251215", "dimensions": DIMENSIONS},
        "api": {"base_url": "emulator"},
        "store": {"uri": str(folder / "store")},
        "output": {"uri": str(folder / "out")},
    }
    return prepare_job(parse_config(raw), base_url="http://127.0.0.1:1/api/v3")


def _line(**fields: Any) -> bytes:
    return orjson.dumps(fields) + b"\n"


def _stage(job: Job) -> tuple[list[ShardSummary], pa.Table]:
    """Stage all shards; return their summaries and all keys."""
    summaries, keys = [], []
    for shard in job.shards:
        *tables, summary = stage_shard(shard, job.spec)
        assert isinstance(summary, ShardSummary)
        summaries.append(summary)
        keys += [table for table in tables if isinstance(table, pa.Table)]
    return summaries, schema.concat(keys, schema.KEYS)


def _staged(job: Job, shard: int, rows: int) -> list[dict[str, Any]]:
    ordinals = np.arange(rows, dtype=np.uint32)
    columns = ["row", "id", "fingerprint", "request", "kept"]
    return [
        row
        for table in read_rows_at(job.spec.store.uri, job.spec.run.name, shard, ordinals, columns)
        for row in table.to_pylist()
    ]


def test_every_line_is_staged_or_unreadable_or_blank(tmp_path: Path) -> None:
    """Ordinals count staged rows, row numbers count physical lines, and a key has shard and ordinal of its row."""
    lines = [_line(text="a", id="1"), b"\n", b"{broken\n", _line(text="b"), _line(text="a", id="3")]
    job = _job(tmp_path, lines)
    (summary,), keys = _stage(job)
    assert (summary.lines, summary.staged, summary.unreadable) == (5, 3, 1)
    staged = _staged(job, 0, 3)
    assert [(row["row"], row["id"]) for row in staged] == [(0, "1"), (3, None), (4, "3")]
    assert [request_from_json(row["request"]).request.parts[0].value for row in staged] == ["a", "b", "a"]
    assert keys.select(["shard", "ordinal"]).to_pylist() == [{"shard": 0, "ordinal": number} for number in range(3)]
    assert keys["fingerprint"].to_pylist() == [row["fingerprint"] for row in staged]
    assert keys["fingerprint"][0] == keys["fingerprint"][2] != keys["fingerprint"][1]
    (unreadable,) = read_tables(unreadable_folder(job.spec.store.uri, job.spec.run.name, 0))
    assert unreadable["row"].to_pylist() == [2]


def test_shards_of_a_manifest_hold_its_lines_once(tmp_path: Path) -> None:
    """Wherever the manifest is cut, the shards together have its lines, in order."""
    lines = [_line(text=f"text {number}", id=str(number)) for number in range(500)]
    job = _job(tmp_path, lines, shard_bytes_max=2_000)
    summaries, keys = _stage(job)
    assert len(summaries) > 5
    assert [summary.number for summary in summaries] == list(range(len(summaries)))
    assert sum(summary.lines for summary in summaries) == 500
    found = [row["id"] for summary in summaries for row in _staged(job, summary.number, summary.staged)]
    assert found == [str(number) for number in range(500)]
    assert keys.num_rows == 500


def test_a_shard_that_is_staged_again_leaves_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an earlier attempt failed half-way or left pieces of other sizes, a new attempt leaves one copy of every row."""
    lines = [_line(text=f"text {number}", price=number if number % 2 else str(number)) for number in range(20)] + [
        b"{\n"
    ]
    job = _job(tmp_path, lines, keep=["price"])
    read = reading.read_shard  # type: ignore[attr-defined]

    def fail_midway(*arguments: Any) -> Any:
        yield from read(*arguments)
        raise ManifestError("the storage went away")

    with monkeypatch.context() as patched:
        patched.setattr(reading, "read_shard", fail_midway)
        with pytest.raises(ManifestError, match="went away"):
            _stage(job)
    first = _stage(job)
    for folder in (rows_folder, unreadable_folder):  # as left by an attempt with pieces of other sizes
        path = Path(folder(job.spec.store.uri, job.spec.run.name, 0))
        (path / "0000000007.parquet").write_bytes((path / "0000000000.parquet").read_bytes())
    again = _stage(job)
    assert first == again
    assert [row["row"] for row in _staged(job, 0, 20)] == list(range(20))
    (unreadable,) = read_tables(unreadable_folder(job.spec.store.uri, job.spec.run.name, 0))
    assert unreadable.num_rows == 1


def test_the_kinds_of_kept_columns_are_summed_up(tmp_path: Path) -> None:
    """The summary says what the values of each kept column are in all chunks, and is empty if no columns are kept."""
    plain = _job(tmp_path, [_line(text="a")])
    assert _stage(plain)[0][0].kept == ()
    job = _job(tmp_path, [_line(text="a", price=1), _line(text="b", price=2)], keep=["price"])
    ((name, kind),) = _stage(job)[0][0].kept
    assert (name, common_type(kind), kind.bounds) == ("price", pa.int64(), (1, 2))
    assert [row["kept"] for row in _staged(job, 0, 2)] == [{"price": 1}, {"price": 2}]


def _bought(*numbers: int) -> list[Bought]:
    made = []
    for number in numbers:
        dense = np.full(DIMENSIONS, number, np.float32)
        reply = Reply(f"r{number}", "m", 0, dense, None, np.float32(1), Usage(1, 1, 1, 0), None, True)
        made.append(Bought(Attempt(number.to_bytes(16), f"c{number}", 1, 1.0), reply))
    return made


def _fill_store(job: Job) -> list[str]:
    """Write three segments of two vectors each, and an event file with a rejection; return the URIs of the segments."""
    uri, ids = job.spec.store.uri, count(1)
    for first in (0, 10, 20):
        write_segment(uri, OLD_RUN, next(ids), segment_table(_bought(first, first + 1), DIMENSIONS))
    rejection = Event(EventKind.REJECTED, Attempt((99).to_bytes(16), "", 1, 0.0), Failure("code", "why"))
    write_events(uri, OLD_RUN, next(ids), [rejection])
    return list_parquet(segments_folder(uri))


def _read_all(job: Job) -> tuple[set[int], set[int]]:
    """Cover what no index file covers; return the numbers with a vector in the store and those with a rejection."""
    for group in find_uncovered(job.spec):
        cover_files(group, job.spec)
    wanted = pa.array([number.to_bytes(16) for number in range(200)], schema.FINGERPRINT)
    found = open_index(job.spec).find(wanted)
    forget_index(job.spec.run.name)
    index, rejected = (
        {int.from_bytes(name) for name in table["fingerprint"].to_pylist()} for table in (found.index, found.rejected)
    )
    return index, rejected


def test_a_store_is_read_as_index_and_refusals(tmp_path: Path) -> None:
    """The segments and rejections of all runs are read; an empty store has none."""
    job = _job(tmp_path, [_line(text="a")])
    assert _read_all(job) == (set(), set())
    _fill_store(job)
    assert _read_all(job) == ({0, 1, 10, 11, 20, 21}, {99})


def test_the_stores_files_come_in_groups(tmp_path: Path) -> None:
    """The uncovered files of a large store are split into groups, each file in one group; covered files are in none."""
    job = _job(tmp_path, [_line(text="a")])
    uri = job.spec.store.uri
    for folder, files in (
        (segments_folder(uri, OLD_RUN), 2 * STORE_FILES_PER_GROUP + 1),
        (events_folder(uri, OLD_RUN), 3),
    ):
        Path(folder).mkdir(parents=True)
        for number in range(files):
            (Path(folder) / segment_name(number)).touch()
    groups = find_uncovered(job.spec)
    assert [len(group) for group in groups] == [256, 256, 4]
    listed = list_parquet(segments_folder(uri)) + list_parquet(events_folder(uri))
    assert sorted(file.uri for group in groups for file in group) == sorted(listed)
    shutil.rmtree(segments_folder(uri))
    shutil.rmtree(events_folder(uri))
    _fill_store(job)
    (group,) = find_uncovered(job.spec)
    assert cover_files(group, job.spec) == 4
    assert find_uncovered(job.spec) == []


def test_the_graph_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """The store is listed by a worker: the pipeline that is sent to a runner has the same size for any store."""
    job, sizes = _job(tmp_path, [_line(text="a")]), []
    for files in (0, 300):
        Path(segments_folder(job.spec.store.uri, OLD_RUN)).mkdir(parents=True, exist_ok=True)
        for number in range(files):
            Path(segments_folder(job.spec.store.uri, OLD_RUN), segment_name(number)).touch()
        pipeline = beam.Pipeline(FnApiRunner())
        build_plan(pipeline, job.spec)
        sizes.append(len(pipeline.to_runner_api().SerializeToString()))
    assert abs(sizes[1] - sizes[0]) < 2_000  # with the names of the files it was 12,000


def test_files_that_appear_after_the_listing_are_read(tmp_path: Path) -> None:
    """What another run writes between the listing and the look-up is found, and so is what could not be covered."""
    job = _job(tmp_path, [_line(text="a")])
    _fill_store(job)
    assert len(find_uncovered(job.spec)) == 1  # and nobody covers them
    write_segment(job.spec.store.uri, OLD_RUN, 77, segment_table(_bought(30), DIMENSIONS))
    wanted = pa.array([number.to_bytes(16) for number in (0, 30)], schema.FINGERPRINT)
    assert set(wanted.to_pylist()) <= set(open_index(job.spec).find(wanted).index["fingerprint"].to_pylist())


def test_a_run_does_not_find_what_it_has_bought(tmp_path: Path) -> None:
    """If a runner plans again, the plan is the same: vectors that the run has bought meanwhile do not count as owned."""
    job = _job(tmp_path, [_line(text="a")])
    spec, ids = job.spec, count(1)
    for run, number in ((OLD_RUN, 30), (spec.run.name, 31)):
        write_segment(spec.store.uri, run, next(ids), segment_table(_bought(number), DIMENSIONS))
    found = open_index(spec).find(pa.array([one.attempt.fingerprint for one in _bought(30, 31)], schema.FINGERPRINT))
    assert found.index["fingerprint"].to_pylist() == [_bought(30)[0].attempt.fingerprint]


def test_an_index_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the folder of the index can't be written, there is a warning, and the same plan follows."""
    job = _job(tmp_path, [_line(text="a")])
    _fill_store(job)
    monkeypatch.setattr(faults, "hit", Injector.parse("file.write@*/index/*:eacces:1+").hit)
    with caplog.at_level(logging.WARNING):
        assert _read_all(job) == ({0, 1, 10, 11, 20, 21}, {99})
    assert "no index file is written" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 3_000, None])
def test_a_damaged_segment_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    """The vectors of a damaged segment are not owned, all others are, and the file is moved to `damaged/`."""
    job = _job(tmp_path, [_line(text="a")])
    path = Path(_fill_store(job)[1])
    if damage is None:
        data = path.read_bytes()
        damage = data[:20] + bytes([data[20] ^ 1]) + data[21:]
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert _read_all(job) == ({0, 1, 20, 21}, {99})
    assert path.name in caplog.text
    assert not path.exists()
    (moved,) = (tmp_path / "store/damaged" / OLD_RUN).iterdir()
    assert moved.name.startswith(path.name)
    assert moved.read_bytes() == damage
    assert _read_all(job) == ({0, 1, 20, 21}, {99})


def test_damaged_events_are_set_aside_too(tmp_path: Path) -> None:
    """A damaged event file is moved too: its rejections are forgotten, and the run continues."""
    job = _job(tmp_path, [_line(text="a")])
    _fill_store(job)
    (uri,) = list_parquet(events_folder(job.spec.store.uri))
    Path(uri).write_bytes(Path(uri).read_bytes()[:-9])
    assert _read_all(job) == ({0, 1, 10, 11, 20, 21}, set())
    assert list_parquet(events_folder(job.spec.store.uri)) == []


def test_a_storage_that_fails_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time-out a segment stays in the store; if it were moved to `damaged/`, its vectors would be paid twice."""
    job = _job(tmp_path, [_line(text="a")])
    segments = _fill_store(job)
    read, fails = entries.read_whole, [1]  # type: ignore[attr-defined]

    def read_or_fail(uri: str) -> bytes:
        if uri == segments[1] and fails.pop(0):
            raise StoreError(f"cannot read {uri}: TimeoutError")
        return read(uri)

    monkeypatch.setattr(entries, "read_whole", read_or_fail)
    fails[:] = [1, 1]
    (group,) = find_uncovered(job.spec)
    with pytest.raises(StoreError, match="TimeoutError"):
        cover_files(group, job.spec)
    fails[:] = [1, 0]
    assert _read_all(job)[0] == {0, 1, 10, 11, 20, 21}  # one failure is followed by a second attempt
    assert list_parquet(segments_folder(job.spec.store.uri)) == segments


def test_reading_leaves_the_garbage_collector_alone(tmp_path: Path) -> None:
    """Rows make no garbage cycles: the collector looks for them at most once in 5,000 rows, with defaults 100 times."""
    thresholds, seen = gc.get_threshold(), list[str]()
    job = _job(tmp_path, [_line(id=f"{number}", text=f"text {number}") for number in range(5_000)])
    gc.set_threshold(700, 10, 10)
    relax_collector.cache_clear()

    def note(phase: str, _: object) -> None:
        if gc.get_threshold()[0] > 700:
            seen.append(phase)

    gc.callbacks.append(note)
    try:
        for shard in job.shards:
            list(stage_shard(shard, job.spec))
        assert gc.get_threshold()[0] > 700
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*thresholds)
    assert seen.count("start") <= 1
