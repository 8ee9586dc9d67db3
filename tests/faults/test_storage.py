"""Promise 7: a storage failure is a clear error, or is repaired with a warning; nothing incomplete is read as complete."""

import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.faults import flip_bit
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Reply
from arkbeam.beam import publish
from arkbeam.stages.publish import commit, parts, usage
from arkbeam.stages.publish.cuts import cut_rows, find_marks
from arkbeam.store import entries, integrity, layout, listing, replaced
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.integrity import is_whole, read_or_set_aside, set_aside
from arkbeam.store.layout import list_parquet
from arkbeam.store.lookup import open_store_index
from arkbeam.store.segments import Attempt, Bought, read_columns, read_index, segment_table, write_segment
from hypothesis import given
from hypothesis import strategies as st

from tests.places import Place
from tests.warm import limit_files

ROWS = 120
SETTINGS = {"limits.requests_in_flight": 8, "store.flush_rows": 32}
RUN = "20250101T000000-0123abcd-89ef4567"
DIMENSIONS = 8


@pytest.fixture
def filled(place: Place) -> Place:
    """A place with a manifest."""
    place.settings |= SETTINGS
    place.write_texts(ROWS)
    return place


@dataclass(frozen=True)
class Checks:
    """Checks after a run with a storage failure, and after the next run."""

    place: Place
    emulator: Any
    assert_not_complete: Callable[..., None]
    assert_vectors: Callable[..., None]
    assert_bill: Callable[..., None]
    parts_of: Callable[..., Any]

    def failed(self, ended: Any, says: str, about: str) -> None:
        """Check that one line says what failed and names the file, and that the output is not marked complete."""
        assert ended.code == 1, ended.err
        assert sum("error StoreError" in line for line in ended.err.splitlines()) == 1
        assert says in ended.err
        assert about in ended.err
        assert "Traceback" not in ended.err
        self.assert_not_complete(self.place)

    def completed(self) -> None:
        """Run the same command; check that output and `usage/` are complete and that little was paid twice."""
        note = self.place.run()
        stats = self.emulator.stats
        assert (note["published"], stats["paid_distinct"]) == (ROWS, ROWS)
        assert stats["paid"] - ROWS <= 8 + 32
        table = self.place.read("embeddings")
        assert sorted(table["row"].to_pylist()) == list(range(ROWS))
        self.assert_vectors(table, self.parts_of)
        self.assert_bill(self.place, stats, above=8)
        assert self.place.leftovers == []


@pytest.fixture
def checks(
    filled: Place, emulator: Any, assert_not_complete: Any, assert_vectors: Any, assert_bill: Any, parts_of: Any
) -> Checks:
    """The checks for the place."""
    return Checks(filled, emulator, assert_not_complete, assert_vectors, assert_bill, parts_of)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("file.write@*/rows/*:enospc:1", "No space left on device"),
        ("file.write@*/segments/*:enospc:2+", "No space left on device"),
        ("file.commit@*/segments/*:eio:2", "Input/output error"),  # the file is written, and its rename fails
        ("file.write@*/out/embeddings/*:enospc:1", "No space left on device"),
        ("file.commit@*/out/embeddings/*:eacces:1", "Permission denied"),
        ("file.commit@*/out/usage/*:eio:1", "Input/output error"),
        ("file.write@*/run.json:enospc:1", "No space left on device"),
        ("file.commit@*/_SUCCESS:eio:1", "Input/output error"),
        ("file.write@*/.running.json:erofs:1", "Read-only file system"),
    ],
)
def test_storage_that_fails_once(checks: Checks, inject: Any, call: Any, fault: str, says: str) -> None:
    """One line says what failed and where, the output is not marked complete, and the same command completes it."""
    with inject(fault):
        ended = call(*checks.place.arguments("run"))
    about = fault.partition("@*")[2].split(":")[0].rstrip("*")
    checks.failed(ended, says, about.removeprefix("/out") if "out" in about else about)
    if "running" in fault:
        assert checks.emulator.stats["received"] == 0
    checks.completed()


@pytest.mark.parametrize(
    "fault",
    [
        "file.commit@*/out/embeddings/*:enospc:1",
        "file.written@*/out/embeddings/*:eio:1",
        "file.commit@*/out/usage/*:eio:1",
        "file.write@*/run.json:enospc:1",
        "file.commit@*/_SUCCESS:eio:1",
    ],
)
def test_storage_that_fails_once_beside_parts_that_are_kept(
    checks: Checks, inject: Any, call: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the output has parts that are kept, a failure has the same effect, and those parts stay as they are."""
    place = checks.place
    place.settings |= {
        "limits.requests_in_flight": 1
    }  # so that the order of the vectors, and the parts, are always the same
    monkeypatch.setattr(parts, "find_marks", partial(find_marks, every=4))
    monkeypatch.setattr(publish, "cut_rows", partial(cut_rows, part_rows=30))
    place.write_texts(ROWS - 20)
    place.run()
    place.write_texts(ROWS)
    with inject(fault):
        assert call(*place.arguments("run")).code == 1
    checks.assert_not_complete(place)
    checks.completed()
    assert any(file["kept"] for file in place.note["files"] if file["path"].startswith("embeddings/"))


@pytest.mark.parametrize(
    ("size", "says", "about"),
    [(30_000, "the disk is full", "/store/journals/"), (120_000, "File too large", "/out/embeddings/")],
)
def test_a_disk_that_is_really_full(checks: Checks, start: Any, size: int, says: str, about: str) -> None:
    """A real limit of the operating system on the size of files has the same effect as a named fault."""
    ended = start(*checks.place.arguments("run"), before=partial(limit_files, size)).wait()
    checks.failed(ended, says, about)
    checks.completed()


def test_a_full_disk_in_publish_leaves_no_success_and_whole_parts(
    filled: Place, inject: Any, call: Any, assert_not_complete: Any
) -> None:
    """If publishing over a complete output fails, `_SUCCESS` is gone and every part can be read."""
    filled.run()
    filled.write_texts(ROWS - 20)
    with inject("file.commit@*/out/embeddings/*:enospc:1"):
        assert call(*filled.arguments("run")).code == 1
    assert_not_complete(filled)
    note = filled.run()
    assert (note["published"], note["requests_sent"]) == (ROWS - 20, 0)


def test_an_output_that_was_taken_over_in_mid_commit(filled: Place, start: Any, mark_path: Any, wait: Any) -> None:
    """A run that loses its claim exits with 6 before the next step of its commit, and changes nothing more."""
    run = start(*filled.arguments("run"), ARKBEAM_FAULTS="commit.note:sleep=1.5:1")
    wait(lambda: list((filled.output / "usage").glob("*.parquet")))
    mark_path(filled).write_bytes(b'{"run": "thief"}')
    ended = run.wait()
    assert ended.code == 6
    assert "run thief has taken it over" in ended.err
    assert not (filled.output / "run.json").exists()
    assert not (filled.output / "_SUCCESS").exists()


def _segments(place: Place) -> list[Path]:
    return sorted((place.store / "segments").glob("*/*.parquet"))


def _place_in(path: Path, where: str) -> int:
    """Return the offset of a byte in the named part of a segment."""
    metadata = pq.read_metadata(path)
    columns = metadata.row_group(0)
    dense = next(
        columns.column(at) for at in range(columns.num_columns) if columns.column(at).path_in_schema.startswith("dense")
    )
    size = path.stat().st_size
    return {
        "magic": 1,
        "page header": dense.data_page_offset + 6,
        "dense page": dense.data_page_offset + dense.total_compressed_size - 9,
        "fingerprints": columns.column(0).data_page_offset + columns.column(0).total_compressed_size - 3,
        "footer": size - 8 - metadata.serialized_size // 2,
        "footer length": size - 6,
        "last byte": size - 1,
    }[where]


PLACES = ["magic", "page header", "dense page", "fingerprints", "footer", "footer length", "last byte"]


def _damage(path: Path, where: str) -> None:
    """Flip a bit in the named part of a segment, or cut the file."""
    if where in PLACES:
        flip_bit(str(path), _place_in(path, where) * 8 + 2)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if where == "cut in half" else 0])


def test_a_damaged_segment_is_found_and_bought_again(
    filled: Place, emulator: Any, caplog: Any, assert_vectors: Any, parts_of: Any
) -> None:
    """The next run warns about each damaged segment, pays for its rows again, and publishes the right vectors.

    Each segment of the store but one is damaged in a different way. `usage/` keeps the cost of those that can be read in part.
    """
    wheres = [*PLACES, "cut in half", "empty"]
    filled.run({"store.flush_rows": ROWS // (len(wheres) + 1)})
    damaged = dict(zip(wheres, _segments(filled), strict=False))
    held = {where: pq.read_metadata(path).num_rows for where, path in damaged.items()}
    for where, path in damaged.items():
        _damage(path, where)
    with caplog.at_level(logging.WARNING):
        note = filled.run()
    bought = sum(held.values())
    assert caplog.text.count("damaged and set aside") == len(held) == len(wheres)
    assert (note["published"], note["requests_sent"], note["owned"]) == (ROWS, bought, ROWS - bought)
    assert_vectors(filled.read("embeddings"), parts_of)
    aside = {path.name for path in (filled.store / "damaged").rglob("*.*")}
    unreadable = {where for where, path in damaged.items() if path.name + integrity.UNREADABLE_SUFFIX in aside}
    assert unreadable.isdisjoint(["magic", "page header", "dense page"])
    assert note["all_runs"]["files_unreadable"] == len(unreadable)
    usage_rows, lost = filled.read("usage"), bought - sum(held[where] for where in unreadable)
    assert emulator.stats["paid"] == ROWS + bought
    assert usage_rows.num_rows == ROWS + lost
    assert usage_rows["outcome"].to_pylist().count("lost") == lost
    assert filled.run()["requests_sent"] == 0


@pytest.mark.parametrize("where", ["dense page", "empty"])
def test_the_costs_of_a_damaged_segment(filled: Place, emulator: Any, where: str) -> None:
    """If a segment can be read in part, `usage/` has its requests and tokens; if not, `run.json` counts it as unreadable."""
    filled.run()
    path = _segments(filled)[0]
    held = pq.read_metadata(path).num_rows
    _damage(path, where)
    note, usage_rows = filled.run(), filled.read("usage")
    if where == "empty":
        assert (usage_rows.num_rows, note["all_runs"]["files_unreadable"]) == (ROWS, 1)
        return
    assert (usage_rows.num_rows, note["all_runs"]["files_unreadable"]) == (ROWS + held, 0)
    assert usage_rows["outcome"].to_pylist().count("lost") == held
    assert note["all_runs"]["tokens"] == emulator.stats["tokens"]


def test_a_segment_that_rots_is_found_when_it_is_published(
    filled: Place, assert_not_complete: Any, assert_vectors: Any, parts_of: Any
) -> None:
    """If a segment changes and its size and time do not, the run that next reads it ends with an error, and the one after it repairs it."""
    filled.run()
    path = _segments(filled)[0]
    status = path.stat()
    flip_bit(str(path), _place_in(path, "dense page") * 8)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert filled.run()["published"] == ROWS  # the part is kept, and the segment is not read
    filled.write_texts(ROWS - 1)
    with pytest.raises(StoreError, match=r"damaged.*set aside as .*run again"):
        filled.run()
    assert_not_complete(filled)
    note = filled.run()
    assert note["published"] == ROWS - 1
    assert note["requests_sent"] > 0
    assert_vectors(filled.read("embeddings"), parts_of)


def test_segments_are_read_once_to_plan(filled: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan reads no segment that a run has covered; without an index it reads each once, and verifies it."""
    filled.run()
    seen: list[str] = []
    read_whole = entries.read_whole  # type: ignore[attr-defined]

    def counted(uri: str) -> bytes:
        seen.append(uri)
        return read_whole(uri)

    monkeypatch.setattr(entries, "read_whole", counted)
    segments = [str(path) for path in _segments(filled)]
    filled.run()
    assert seen == []
    shutil.rmtree(filled.store / "index")
    for expected in (segments, []):
        seen.clear()
        assert filled.plan().owned == ROWS
        assert sorted(seen) == expected


@pytest.mark.parametrize("point", ["write", "commit", "written"])
def test_a_run_that_is_killed_while_it_writes_its_index(filled: Place, start: Any, wait: Any, point: str) -> None:
    """The next run buys nothing again, and covers what the killed one did not; later runs remove the temporary file."""
    ended = start(*filled.arguments("run"), ARKBEAM_FAULTS=f"file.{point}@*/index/*:kill:1").wait()
    assert ended.code == -signal.SIGKILL
    note = filled.run()
    assert (note["published"], note["owned"], note["requests_sent"]) == (ROWS, ROWS, 0)
    assert open_store_index(str(filled.store)).uncovered == ()
    for path in filled.store.glob("index/.*.tmp"):
        os.utime(path, (1e9, 1e9))
    filled.run()
    assert filled.leftovers == []


def test_vectors_of_tokens_that_are_damaged_are_bought_again(filled: Place) -> None:
    """If the file of per-token vectors is damaged, its rows are paid for again and published."""
    filled.settings |= {"model.multi_embedding": "zstd"}
    filled.write_texts(12)
    assert filled.run()["published"] == 12
    (path,) = (filled.store / "multi").glob("*/*.parquet")
    flip_bit(str(path), path.stat().st_size * 4)
    note = filled.run()
    assert (note["published"], note["requests_sent"], note["all_runs"]["requests_paid"]) == (12, 12, 24)


def test_a_listing_that_lags(filled: Place, emulator: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a listing omits a segment, its rows are paid again or the run ends with advice; `usage/` is complete after the next run."""
    filled.run()
    listed, versions = layout.list_files, listing.list_versions  # type: ignore[attr-defined]

    def lag(folder: str, suffix: str = "") -> list[str]:
        return without_newest(folder, listed(folder, suffix))

    def without_newest(folder: str, found: list[Any]) -> list[Any]:
        if "/segments" not in folder:
            return found
        # By id: the names of runs of the same second have no order.
        newest = max(found, key=lambda one: layout.segment_id(str(getattr(one, "uri", one))), default=None)
        return [one for one in found if one != newest]

    def lag_current(uri: str) -> dict[str, Any]:
        current = replaced.list_current(uri)
        newest = max((name for name in current if name.startswith("segments")), key=layout.segment_id)
        return {name: one for name, one in current.items() if name != newest}

    with monkeypatch.context() as patched:  # when planning
        patched.setattr(listing, "list_versions", lambda uri, suffix: without_newest(uri, versions(uri, suffix)))
        note = filled.run()
        assert note["published"] == ROWS
        assert 0 < note["requests_sent"] < ROWS
    filled.write_texts(ROWS + 10)
    with monkeypatch.context() as patched:  # when publishing
        patched.setattr(publish, "list_parquet", lambda folder: lag(folder, ".parquet"))
        with pytest.raises(StoreError, match=r"was removed from the store after planning: run again"):
            filled.run()
        assert not (filled.output / "_SUCCESS").exists()
    filled.write_texts(ROWS + 20)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):  # when adding up what was paid
        patched.setattr(usage, "list_current", lag_current)
        filled.run()
    assert "usage/ has 0 of the 10 paid requests of this run" in caplog.text
    filled.run()
    assert filled.read("usage").num_rows == emulator.stats["paid"]
    assert commit.SUCCESS in {path.name for path in filled.output.iterdir()}


def _bought(number: int) -> Bought:
    values = np.random.default_rng(number).standard_normal(DIMENSIONS).astype(np.float32)
    reply = Reply(f"r{number}", "m", 1_743_575_029, values, None, np.float32(1), Usage(9, 9, 5, 4), None, True)
    return Bought(Attempt(number.to_bytes(16), f"client-{number}", 1, 1.0), reply)


SEGMENT = [_bought(number) for number in range(6)]
COLUMNS = schema.segment_schema(DIMENSIONS).names


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, bytes]:
    """The URI of a store with one segment, the URI of the segment, and its bytes."""
    folder = tmp_path_factory.mktemp("store")
    uri = write_segment(str(folder), RUN, 5, segment_table(SEGMENT, DIMENSIONS))
    return str(folder), uri, Path(uri).read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(store: tuple[str, str, bytes], place: float, bit: int) -> None:
    """Any flipped bit is found by each read and by the check before Plan; costs that can still be read are correct."""
    store_uri, uri, whole = store
    at = int(place * len(whole))
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    assert not is_whole(store_uri, uri)
    with pytest.raises(StoreError):
        read_columns(uri, COLUMNS)
    aside = set_aside(store_uri, uri)
    recorded = [
        row
        for name in list_parquet(f"{store_uri}/events")
        for row in read_columns(name, ["client_request_id", "total_tokens", "kind"]).to_pylist()
    ]
    assert len(recorded) in ((0,) if aside.endswith(integrity.UNREADABLE_SUFFIX) else (6,))
    assert {row["total_tokens"] for row in recorded} <= {9, None}
    for name in list_parquet(f"{store_uri}/events"):
        Path(name).unlink()
    Path(uri).write_bytes(whole)
    assert is_whole(store_uri, uri)
    assert read_index(uri).num_rows == 6


@given(length=st.floats(0, 1, exclude_max=True))
def test_any_cut_is_found(store: tuple[str, str, bytes], length: float) -> None:
    """A segment that is cut at any byte is found to be damaged."""
    store_uri, uri, whole = store
    Path(uri).write_bytes(whole[: int(length * len(whole))])
    try:
        assert not is_whole(store_uri, uri)
        with pytest.raises(StoreError):
            read_columns(uri, COLUMNS)
    finally:
        Path(uri).write_bytes(whole)


def test_what_a_journal_has_booked_is_not_salvaged_twice(tmp_path: Path) -> None:
    """Each attempt is in `usage/` once, even if both a journal and a damaged segment have it."""
    store_uri = str(tmp_path)
    uri = write_segment(store_uri, RUN, 5, segment_table(SEGMENT, DIMENSIONS))
    write_events(store_uri, RUN, 6, [Event(EventKind.LOST, SEGMENT[0].attempt, Failure("lost", "it was"))])
    flip_bit(uri, _place_in(Path(uri), "dense page") * 8)
    set_aside(store_uri, uri)
    recorded = [
        name
        for one in list_parquet(f"{store_uri}/events")
        for name in read_columns(one, ["client_request_id"])[0].to_pylist()
    ]
    assert sorted(recorded) == sorted(item.attempt.client_request_id for item in SEGMENT)


def test_a_storage_that_does_not_answer_is_not_damage(tmp_path: Path) -> None:
    """If the storage does not answer, the segment stays where it is and the error says what happened."""
    uri = write_segment(str(tmp_path), RUN, 5, segment_table(SEGMENT, DIMENSIONS))

    def fail() -> Any:
        raise StoreError("cannot read: TimeoutError")

    with pytest.raises(StoreError, match=r"TimeoutError$"):
        read_or_set_aside(str(tmp_path), uri, fail)
    assert Path(uri).exists()
