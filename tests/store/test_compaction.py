"""Compaction loses nothing and doubles nothing, wherever it is interrupted and whatever happens at the same time."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace as with_changes
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from arkbeam.base import faults, schema
from arkbeam.base.faults import Injector, flip_bit
from arkbeam.base.uris import join
from arkbeam.store import compaction, gathering, integrity
from arkbeam.store.claim import claim_output
from arkbeam.store.compaction import Compacted, CompactionOptions, compact_store
from arkbeam.store.integrity import set_aside
from arkbeam.store.layout import (
    journals_folder,
    list_parquet,
    new_run_name,
    replaced_folder,
    run_folder,
    run_of,
    segment_id,
    segment_name,
    segments_folder,
    uri_key,
)
from arkbeam.store.listing import list_sources, source_name
from arkbeam.store.lookup import open_store_index
from arkbeam.store.multi import multi_table, write_multi
from arkbeam.store.replaced import list_current, read_replacements, remove_replacement, write_replacement
from arkbeam.store.row_groups import read_group, split_groups
from arkbeam.store.segments import read_columns, segment_table, write_segment

from tests.store.conftest import DIMENSIONS, FilledStore, fingerprint, rejected_rows

OUTPUTS = ("/out/a", "/out/b")
RUNS = [
    new_run_name(uri_key(OUTPUTS[number % 2]), 1_735_689_600 + 86_400 * number, f"{number:08x}") for number in range(4)
]
AT_ONCE = CompactionOptions(grace_s=0.0, lease_s=0.2)
WITH_GRACE = CompactionOptions(grace_s=3600.0, lease_s=0.2)
POINTS = [
    ("compact.index", 1),
    *((f"compact.{point}", 2) for point in ("record", "events", "segment", "written")),
    *(
        (f"file.{step}@{glob}", 1)
        for step in ("write", "commit", "written")
        for glob in ("*/replaced/*.json", "*/events/gathered-*", "*/segments/gathered-*")
    ),
]
REMOVAL_POINTS = ["compact.final", "compact.remove", "file.commit@*/replaced/*.json", "file.written@*/replaced/*.json"]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered segments of at most 40 rows, in row groups of 8."""
    monkeypatch.setattr(gathering, "ROWS_MAX", 40)
    monkeypatch.setattr(gathering, "GROUP_ROWS", 8)


@pytest.fixture
def filled(make_store: Callable[[], FilledStore]) -> FilledStore:
    """A store with 12 segments of 10 rows, and event files, of four runs of two outputs; the first half is covered by an index."""
    store = make_store()
    for number in range(12):
        run = RUNS[number % 4]
        uris = [store.write(range(number * 8, number * 8 + 10), run=run)]
        if number % 2:
            uris.append(store.reject([500 + number], run=run))
        if number < 6:
            store.cover(uris)
    return store


def read_vectors(store: FilledStore) -> dict[bytes, tuple[Any, ...]]:
    """Return what a reader finds for each fingerprint: the values and the cost of its vector."""
    everything = pa.array([fingerprint(number) for number in range(600)], schema.FINGERPRINT)
    found = open_store_index(store.uri).complete(store.uri).find(everything).index
    uris = {segment_id(uri): uri for uri in list_parquet(segments_folder(store.uri))}
    columns = ["fingerprint", "model", "total_tokens", "latency_ms"]
    tables = {number: pq.read_table(uri, columns=columns).to_pylist() for number, uri in uris.items()}
    rows = {}
    for row in found.to_pylist():
        stored = tables[row["segment"]][row["row"]]
        assert stored["fingerprint"] == row["fingerprint"]
        rows[row["fingerprint"]] = tuple(stored.values())
    return rows


def read_bill(store: FilledStore) -> list[tuple[str, str, str]]:
    """Return output, run and client request id of each paid attempt that counts, as `usage/` reads them."""
    bill = []
    for name, one in list_current(store.uri).items():
        run, is_event = run_of(one.uri), name.startswith("events/")
        key = next((uri_key(output) for output in OUTPUTS if f"-{uri_key(output)}-" in run), "")
        if not key:
            continue
        table = pq.read_table(one.uri)
        if is_event:
            table = table.filter(table["paid"])
        runs = table["run"].to_pylist() if "run" in table.column_names else [run] * table.num_rows
        bill += [(key, *pair) for pair in zip(runs, table["client_request_id"].to_pylist(), strict=True)]
    return sorted(bill)


def read_rejected(store: FilledStore) -> set[tuple[bytes, str]]:
    """Return the rejections that a reader finds."""
    everything = pa.array([fingerprint(number) for number in range(600)], schema.FINGERPRINT)
    return rejected_rows(open_store_index(store.uri).complete(store.uri).find(everything).rejected)


def everything(store: FilledStore) -> tuple[Any, ...]:
    """Return all that must never change."""
    return read_vectors(store), read_bill(store), read_rejected(store)


def fail_at(point: str, patched: pytest.MonkeyPatch, when: int = 1) -> None:
    """Stop at a point, as a kill does: an error that nothing handles."""
    injector = Injector.parse(f"{point}:eio:{when}+")

    def hit(name: str, path: str = "") -> None:
        try:
            injector.hit(name, path)
        except OSError as error:
            raise KeyboardInterrupt from error

    patched.setattr(faults, "hit", hit)


def age_records(store: FilledStore, seconds: float) -> None:
    """Let all records be older."""
    for record in read_replacements(store.uri):
        remove_replacement(store.uri, record)
        write_replacement(store.uri, with_changes(record, written_s=record.written_s - seconds))


def finish_compactions(filled: FilledStore, before: object) -> None:
    """Compact until no record of a compaction is left; check that nothing is lost or doubled."""
    for _ in range(4):
        age_records(filled, 2 * compaction.FINAL_S)
        compact_store(filled.uri, AT_ONCE)
    assert everything(filled) == before
    assert read_replacements(filled.uri) == []


def test_few_large_files_replace_many(filled: FilledStore) -> None:
    """All vectors, rejections and costs, by run and output, are the same before, in the grace period and after it."""
    before = everything(filled)
    done = compact_store(filled.uri, WITH_GRACE)
    assert (done.rows, done.replaced, done.waiting) == (120, 18, 18)
    current = list_current(filled.uri)
    assert {run_of(name) for name in current if name.startswith("segments/")} <= {"gathered-full", "gathered-part"}
    assert len(current) == done.written == 3 + 3 * 2 + 1
    assert open_store_index(filled.uri).uncovered == ()
    assert everything(filled) == before
    assert compact_store(filled.uri, WITH_GRACE).removed == 0
    assert compact_store(filled.uri, AT_ONCE).removed == 18
    assert everything(filled) == before
    finish_compactions(filled, before)
    assert len(list_sources(filled.uri)) == 3 + 2


@pytest.mark.parametrize(("point", "when"), POINTS)
def test_a_compaction_that_is_killed(filled: FilledStore, point: str, when: int) -> None:
    """Whatever step it ends at, everything is there once; the next compaction goes on, and leaves no file of the killed one."""
    before = everything(filled)
    with pytest.MonkeyPatch.context() as patched:
        fail_at(point, patched, when)
        with pytest.raises(KeyboardInterrupt):
            compact_store(filled.uri, WITH_GRACE)
    assert everything(filled) == before
    compact_store(filled.uri, WITH_GRACE)
    assert everything(filled) == before
    for _ in range(4):
        age_records(filled, 2 * compaction.FINAL_S)
        compact_store(filled.uri, AT_ONCE)
    assert everything(filled) == before
    assert len(list_sources(filled.uri)) == 5
    assert read_replacements(filled.uri) == []


@pytest.mark.parametrize("point", REMOVAL_POINTS)
@pytest.mark.parametrize("removed", [0, 3])
def test_a_removal_that_is_killed(filled: FilledStore, monkeypatch: Any, point: str, removed: int) -> None:
    """If it ends while old files are removed, everything is there once, and the next compaction removes the rest."""
    before = everything(filled)
    compact_store(filled.uri, WITH_GRACE)
    with pytest.MonkeyPatch.context() as patched:
        if removed:
            remove_files = compaction.remove_files  # type: ignore[attr-defined]

            def stop(uris: list[str]) -> None:
                remove_files(uris[:removed])
                raise KeyboardInterrupt

            patched.setattr(compaction, "remove_files", stop)
        else:
            fail_at(point, patched)
        with pytest.raises(KeyboardInterrupt):
            compact_store(filled.uri, AT_ONCE)
    assert everything(filled) == before
    compact_store(filled.uri, AT_ONCE)
    assert everything(filled) == before
    assert not [uri for run in RUNS for uri in list_parquet(segments_folder(filled.uri, run))]


def test_the_bill_shows_what_is_counted_twice(filled: FilledStore) -> None:
    """Without its record, a compaction would count twice: the tests above would notice."""
    before = read_bill(filled)
    compact_store(filled.uri, WITH_GRACE)
    for path in Path(replaced_folder(filled.uri)).glob("*.json"):
        path.unlink()
    assert len(read_bill(filled)) > len(before)


@pytest.mark.parametrize("seed", range(4))
def test_two_compactions_that_overlap(filled: FilledStore, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """If two work at once although one was taken for dead, each attempt counts once, and nothing is lost when files are removed."""
    before = everything(filled)
    monkeypatch.setattr(compaction, "claim_output", _no_claim)
    monkeypatch.setattr(compaction, "check_claim", lambda *_: None)
    hit_before = ["compact.record", "compact.events", "compact.segment", "compact.written"][seed]
    nested = list[Compacted]()

    def hit(point: str, path: str = "") -> None:
        if point == hit_before and not nested:
            nested.append(Compacted())
            nested.append(compact_store(filled.uri, WITH_GRACE))

    monkeypatch.setattr(faults, "hit", hit)
    compact_store(filled.uri, WITH_GRACE)
    assert len(nested) == 2
    assert everything(filled) == before
    finish_compactions(filled, before)


def _no_claim(*_: Any, **__: Any) -> Any:
    return nullcontext()


def test_only_one_at_a_time(filled: FilledStore) -> None:
    """A second compaction of the same store does nothing and says so."""
    before = list_sources(filled.uri)
    with claim_output(replaced_folder(filled.uri), "other", lambda _: None):
        assert compact_store(filled.uri, AT_ONCE).in_use
    assert list_sources(filled.uri) == before


def test_readers_and_compactions_at_once(filled: FilledStore) -> None:
    """While compactions run and remove, every reader finds all that there was."""
    before = everything(filled)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(5):
                if seed == 0:
                    compact_store(filled.uri, AT_ONCE if number % 2 else WITH_GRACE)
                else:
                    everything = pa.array(list(before[0]), schema.FINGERPRINT)
                    found = open_store_index(filled.uri).complete(filled.uri).find(everything)
                    assert set(before[0]) <= set(found.index["fingerprint"].to_pylist())
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert everything(filled) == before


def test_what_may_still_be_needed_is_left(filled: FilledStore, make_bought: Any) -> None:
    """Segments of a run that lives or has a journal, with per-token vectors, or of a name without an output, are not gathered."""
    for run, folder in ((RUNS[0], run_folder), (RUNS[1], journals_folder)):
        Path(folder(filled.uri, run)).mkdir(parents=True)
    filled.write([300], run="strange")
    bought = [make_bought(301)]
    metadata = write_multi(filled.uri, RUNS[2], 77, multi_table(bought, DIMENSIONS))
    table = segment_table(bought, DIMENSIONS).replace_schema_metadata(metadata)
    with_multi = source_name(write_segment(filled.uri, RUNS[2], 77, table))
    compact_store(filled.uri, WITH_GRACE)
    kept = {name for name in list_current(filled.uri) if "gathered" not in name}
    assert {run_of(name) for name in kept if name != with_multi} == {RUNS[0], RUNS[1], "strange"}
    assert with_multi in kept


def test_old_files_wait_for_runs_that_began_before(filled: FilledStore) -> None:
    """After the grace period, old files stay while a run may have planned on them; a folder of a week ago is that of a dead run."""
    compact_store(filled.uri, WITH_GRACE)
    now_s = compaction.time.time()  # type: ignore[attr-defined]
    alive, dead = (new_run_name(uri_key("/out/c"), now_s - days * 86_400, "0" * 8) for days in (1, 8))
    for run in (alive, dead):
        Path(run_folder(filled.uri, run)).mkdir(parents=True)
    assert compact_store(filled.uri, AT_ONCE).removed == 0
    Path(run_folder(filled.uri, alive)).rmdir()
    assert compact_store(filled.uri, AT_ONCE).removed == 18


@pytest.mark.parametrize("damaged", ["segments/gathered-*", "events/gathered-*"])
def test_a_new_file_that_is_damaged(filled: FilledStore, caplog: Any, damaged: str) -> None:
    """In the grace period, a damaged new file is found before the old ones are removed: they count again, and nothing is lost."""
    before = everything(filled)
    compact_store(filled.uri, WITH_GRACE)
    path = sorted(Path(filled.uri).glob(f"{damaged}/*.parquet"))[0]
    flip_bit(str(path), 8 * (path.stat().st_size // 2))
    with caplog.at_level(logging.WARNING):
        compact_store(filled.uri, AT_ONCE)
    assert "count again" in caplog.text
    assert everything(filled) == before


@pytest.mark.parametrize("old", [False, True])
def test_setting_aside_in_the_grace_period(filled: FilledStore, old: bool) -> None:
    """If a reader sets an old or a new file aside, its attempts are not recorded a second time."""
    before = read_bill(filled)
    compact_store(filled.uri, WITH_GRACE)
    record = read_replacements(filled.uri)[0]
    set_aside(filled.uri, join(filled.uri, record.old[0] if old else record.new[0]))
    assert read_bill(filled) == before
    set_aside(filled.uri, join(filled.uri, record.new[-1]))
    assert len(set(read_bill(filled))) == len(read_bill(filled))


def test_costs_survive_a_damaged_segment(filled: FilledStore) -> None:
    """After the grace period, a damaged gathered segment takes its vectors with it, but not what they cost."""
    before = read_bill(filled)
    compact_store(filled.uri, WITH_GRACE)
    compact_store(filled.uri, AT_ONCE)
    for uri in list_parquet(segments_folder(filled.uri)):
        set_aside(filled.uri, uri)
    assert read_bill(filled) == before
    assert read_vectors(filled) == {}


def test_damaged_gathered_events_are_salvaged(filled: FilledStore) -> None:
    """After the grace period, the attempts in damaged gathered events are recorded as lost, for the same output."""
    before = read_bill(filled)
    compact_store(filled.uri, WITH_GRACE)
    compact_store(filled.uri, AT_ONCE)
    for uri in list_parquet(join(filled.uri, "events")):
        if integrity.is_gathered(run_of(uri)):  # type: ignore[attr-defined]
            set_aside(filled.uri, uri)
    assert sorted((key, name) for key, _, name in read_bill(filled)) == sorted((key, name) for key, _, name in before)


def test_automatic_compaction_does_nothing_for_little(filled: FilledStore) -> None:
    """With a least number of files, or a least share of bytes in small segments, nothing is written below it."""
    before = list_sources(filled.uri)
    assert compact_store(filled.uri, with_changes(WITH_GRACE, files_min=16)) == Compacted()
    assert compact_store(filled.uri, with_changes(WITH_GRACE, share_min=1.0, files_min=7)) == Compacted()
    assert list_sources(filled.uri) == before
    assert not Path(replaced_folder(filled.uri)).exists()


def test_a_compaction_without_time(filled: FilledStore) -> None:
    """When its time is over, it stops, with everything in its place, and says that it is not complete."""
    before = everything(filled)
    done = compact_store(filled.uri, with_changes(WITH_GRACE, duration_s=0.0))
    assert (done.complete, done.replaced) == (False, 0)
    assert everything(filled) == before


def test_vectors_keep_their_order(make_store: Callable[[], FilledStore]) -> None:
    """Also if only some segments are gathered, and when the rest follows: publishing cuts parts along this order."""
    store = make_store()
    store.file_ids = itertools.count(1 << 22, 1 << 22)  # a millisecond each
    for number in range(14):
        store.write(range(number * 8, number * 8 + 10), run=RUNS[number % 4])

    def order() -> list[bytes]:
        segments = [one.uri for name, one in list_current(store.uri).items() if name.startswith("segments/")]
        tables = [read_columns(uri, ["fingerprint"]) for uri in sorted(segments, key=segment_id)]
        return [value for table in tables for value in table["fingerprint"].to_pylist()]

    before = order()
    with pytest.MonkeyPatch.context() as patched:
        fail_at("compact.record", patched, 2)
        with pytest.raises(KeyboardInterrupt):
            compact_store(store.uri, WITH_GRACE)
    assert len(list_current(store.uri)) < 14
    assert order() == before
    compact_store(store.uri, AT_ONCE)
    assert order() == before


def test_a_damaged_segment_of_an_earlier_version(filled: FilledStore, caplog: pytest.LogCaptureFixture) -> None:
    """A segment without a hash in its name may be damaged in a column that planning does not read: it is left as it is."""
    path = Path(list_parquet(segments_folder(filled.uri, RUNS[0]))[0])
    path = path.rename(path.with_name(segment_name(segment_id(str(path)))))
    group = pq.read_metadata(path).row_group(0)
    dense = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema.startswith("dense"))
    flip_bit(str(path), 8 * (dense.data_page_offset + dense.total_compressed_size - 1))
    done = compact_store(filled.uri, WITH_GRACE)
    assert (done.rows, done.replaced) == (110, 17)
    assert "left out of the compaction" in caplog.text
    assert source_name(str(path)) in list_current(filled.uri)


def test_row_groups_of_a_gathered_segment(filled: FilledStore) -> None:
    """A gathered segment has row groups of the set size; reading single ones gives the same rows as reading all."""
    compact_store(filled.uri, WITH_GRACE)
    uri = list_parquet(segments_folder(filled.uri, "gathered-full"))[0]
    whole = read_columns(uri, ["fingerprint", "dense", "norm"])
    wanted = pa.array([0, 1, 9, 20, 39])
    pieces = list(split_groups(uri, wanted.to_numpy()))
    assert [group for group, _ in pieces] == [0, 1, 2, 4]
    tables = [read_group(uri, group, whole.column_names).take(pa.array(rows)) for group, rows in pieces]
    assert pa.concat_tables(tables).equals(whole.take(wanted))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the calls to an object store."""
    counted: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def count(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        counted[method] += 1
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", count)
    return counted


def test_on_an_object_store(s3: Any, make_bought: Any, calls: Any) -> None:
    """On an object store, a row group of a gathered segment is one call, and its footer one more for all of them."""
    store = FilledStore(s3.uri("store"), make_bought)
    for number in range(8):
        store.write(range(number * 8, number * 8 + 8), run=RUNS[number % 2])
    compact_store(store.uri, WITH_GRACE)
    uri = list_parquet(segments_folder(store.uri, "gathered-full"))[0]
    calls.clear()
    for group, _ in list(split_groups(uri, pa.array([0, 30]).to_numpy())):
        read_group(uri, group, ["fingerprint", "dense"])
    assert calls == {"get_object": 3}
    compact_store(store.uri, AT_ONCE)
    assert {run_of(one) for one in list_current(store.uri) if one.startswith("seg")} == {
        "gathered-full",
        "gathered-part",
    }
