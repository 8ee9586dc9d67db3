"""The journal holds the requests that were sent and are not yet in the store."""

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.base.errors import StoreError
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Sparse
from arkbeam.store import recovery
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.journal import Journal, LocalJournal, TakenOver, open_journal
from arkbeam.store.journal_records import read_records
from arkbeam.store.layout import (
    events_folder,
    journals_folder,
    list_parquet,
    new_run_name,
    segment_id,
    segments_folder,
    uri_key,
)
from arkbeam.store.multi import read_multi
from arkbeam.store.recovery import Recovered, recover_journals
from arkbeam.store.segments import Attempt, Bought, read_columns, segment_table, write_segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OUTPUT = uri_key("/outputs/ours")
DIMENSIONS = 8

_COUNTS = st.none() | st.integers(0, 10**9)
_REPLIES = st.tuples(
    st.none() | st.text(max_size=5),
    st.none() | st.sampled_from(["m", "a]] b", 'q"]]', "模型"]),
    _COUNTS,
    st.builds(Usage, _COUNTS, _COUNTS, _COUNTS, _COUNTS),
)
_ANSWERS = st.none() | st.just("unpaid") | _REPLIES


def _write(path: Path, lives: dict[str, Any], order: list[str]) -> bytes:
    """Append each request's lines, interleaved as `order` says; return the file."""
    journal = LocalJournal(str(path), "1")
    begun: set[str] = set()
    for name in order:
        answer = lives[name]
        if name not in begun:
            begun.add(name)
            journal.sent(name, name.encode().rjust(16, b"\0"))
        elif answer == "unpaid":
            journal.unpaid(name)
        elif answer is not None:
            journal.paid(name, *answer)
    journal.close(keep=True)
    log = path / "1.0.log"
    data = log.read_bytes() if order else b""
    shutil.rmtree(path, ignore_errors=True)
    return data


def _lost(data: bytes) -> dict[str, Event]:
    return {event.attempt.client_request_id: event for event in read_records([data]).lost()}


@st.composite
def _journals(draw: Any) -> tuple[dict[str, Any], list[str]]:
    lives = {f"c{number}": draw(_ANSWERS) for number in range(draw(st.integers(0, 8)))}
    order = draw(st.permutations([name for name in lives for _ in range(2)]))
    return lives, order


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_journals())
def test_a_journal_tells_what_may_have_been_paid(tmp_path: Path, written: tuple[dict[str, Any], list[str]]) -> None:
    """However the lines interleave: all requests except those answered with an error, with what is known of them."""
    lives, order = written
    events = _lost(_write(tmp_path / "j", *written))
    assert set(events) == {name for name in order if lives[name] != "unpaid"}
    for name, event in events.items():
        answer = lives[name] or (None, None, None, Usage())
        assert event.kind is EventKind.LOST
        assert event.paid
        assert event.attempt.fingerprint == name.encode().rjust(16, b"\0")
        assert (event.request_id, event.model, event.created, event.usage) == answer


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_journals(), st.integers(0, 2_000))
def test_a_torn_last_line_is_no_line(tmp_path: Path, written: tuple[dict[str, Any], list[str]], length: int) -> None:
    """A file that ends anywhere reads like its complete lines."""
    data = _write(tmp_path / "j", *written)[:length]
    whole = data[: data.rfind(b"\n") + 1]
    assert read_records([data]).damaged == 0
    assert _lost(data) == _lost(whole)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_garbage_is_not_fatal(lines: list[bytes]) -> None:
    """Whatever a power cut left in a journal must not stop later runs of the output."""
    good = b"s client-1 " + b"ab" * 16
    prefixed = [
        prefix + line for line, prefix in zip(lines, itertools.cycle([b"", b"s x ", b"p x ", b"u "]), strict=False)
    ]
    zeros = [b"s x " + b"\0" * 32, b"p client-1 [1]]", b"s y " + b"zz" * 16]
    assert "client-1" in _lost(b"\n".join([*prefixed, *zeros, good, b""]))


def test_a_journal_survives_its_process_only_if_it_is_needed(tmp_path: Path) -> None:
    """Lines are in the file at once; the file is removed unless it is to be kept."""
    for keep in (False, True):
        journal = open_journal(str(tmp_path), "run", "1")
        journal.sent("a", bytes(16))
        folder = tmp_path / "journals/run"
        assert b"\ns a 00" in (folder / "1.0.log").read_bytes()
        journal.close(keep=keep)
        assert sorted(path.name for path in folder.iterdir()) == (["1.0.log", "1.open"] if keep else [])


def test_a_journal_that_cannot_be_written_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a folder that can't be created, is an error of the store that names the path."""
    journal = open_journal(str(tmp_path), "run", "1")

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        with pytest.raises(StoreError, match=r"1\.log.*No space"):
            journal.sent("a", bytes(16))
    journal.close(keep=False)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/journals"):
        open_journal(str(tmp_path / "file"), "run", "1").sent("a", bytes(16))


def _send(store: Path, run: str, *names: str, unpaid: tuple[str, ...] = ()) -> None:
    journal = open_journal(str(store), run, "1")
    for name in names:
        journal.sent(name, name.encode().rjust(16))
    for name in unpaid:
        journal.unpaid(name)
    journal.close(keep=True)


def _recover(store: Path) -> Recovered:
    return recover_journals(str(store), OUTPUT)


def _recorded(store: Path, run: str) -> list[str]:
    uris = list_parquet(events_folder(str(store), run))
    return sorted(name for uri in uris for name in read_columns(uri, ["client_request_id"])[0].to_pylist())


RUN = new_run_name(OUTPUT, 0, "00000000")
NEWEST = 5_000 << 22
"""An id above those that a recovery gives to its files if no segment is named."""
OTHER = new_run_name(uri_key("/outputs/theirs"), 0, "00000000")


def test_what_a_dead_run_lost_is_booked_once(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """Attempts that are in neither segments nor events are recorded as paid; repeating it changes nothing."""
    _send(tmp_path, RUN, "stored", "recorded", "lost", "refused", unpaid=("refused",))
    write_segment(str(tmp_path), RUN, 1, segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS))
    known = Event(EventKind.UNUSABLE, Attempt(bytes(16), "recorded", 1, 0.0), Failure("nan", "x"))
    write_events(str(tmp_path), RUN, 2, [known])
    assert _recover(tmp_path) == Recovered(0, 1)
    assert _recorded(tmp_path, RUN) == ["lost", "recorded"]
    assert _recover(tmp_path) == Recovered()
    assert not Path(journals_folder(str(tmp_path), RUN)).exists()


def test_booking_that_was_killed_is_repeated_without_double_entries(tmp_path: Path) -> None:
    """A journal that still exists after its attempts were recorded adds nothing."""
    _send(tmp_path, RUN, "lost-1", "lost-2")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "journals", copy)
    assert _recover(tmp_path) == Recovered(0, 2)
    shutil.copytree(copy, tmp_path / "journals", dirs_exist_ok=True)
    assert _recover(tmp_path) == Recovered()
    assert _recorded(tmp_path, RUN) == ["lost-1", "lost-2"]


def test_runs_of_other_outputs_may_be_alive(tmp_path: Path) -> None:
    """Their journals are neither read nor removed."""
    assert uri_key("/outputs/theirs") != OUTPUT
    _send(tmp_path, OTHER, "in-flight")
    assert _recover(tmp_path) == Recovered()
    assert Path(journals_folder(str(tmp_path), OTHER)).exists()
    assert _recorded(tmp_path, OTHER) == []


def test_several_processes_of_a_run_are_booked_together(tmp_path: Path) -> None:
    """Each process has a journal; an incomplete line of one does not join the first line of the next."""
    folder = Path(journals_folder(str(tmp_path), RUN))
    folder.mkdir(parents=True)
    (folder / "1.log").write_bytes(b"s a " + b"00" * 16 + b"\ns torn 0000")
    (folder / "2.log").write_bytes(b"s b " + b"11" * 16 + b"\n")
    assert _recover(tmp_path) == Recovered(0, 2)
    assert _recorded(tmp_path, RUN) == ["a", "b"]


def test_a_damaged_segment_does_not_hinder_the_booking(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """Its attempts are recorded as lost; otherwise no run of this output could ever start again."""
    _send(tmp_path, RUN, "stored")
    table = segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS)
    Path(write_segment(str(tmp_path), RUN, 1, table)).write_bytes(b"PAR1 cut short")
    assert _recover(tmp_path) == Recovered(0, 1)
    assert _recorded(tmp_path, RUN) == ["stored"]


def test_a_segment_that_cannot_be_reached_stops_the_booking(
    tmp_path: Path, make_bought: Callable[..., Bought], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the storage fails, nothing is known about the segment: nothing is recorded, and the journal stays."""
    _send(tmp_path, RUN, "stored")
    table = segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS)
    write_segment(str(tmp_path), RUN, 1, table)

    def fail(*_: object) -> None:
        raise StoreError("cannot read: TimeoutError")

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "read_columns", fail)
        with pytest.raises(StoreError):
            _recover(tmp_path)
    assert _recover(tmp_path) == Recovered()
    assert _recorded(tmp_path, RUN) == []


def _same(found: Bought, wanted: Bought) -> bool:
    """True if two results have the same attempt and, bit for bit, the same reply."""
    tables = [segment_table([one], len(one.reply.dense)) for one in (found, wanted)]
    multi = [None if one.reply.multi is None else one.reply.multi.tolist() for one in (found, wanted)]
    return bool(tables[0].equals(tables[1]) and multi[0] == multi[1])


@pytest.fixture
def replies(make_bought: Callable[..., Bought]) -> list[Bought]:
    """Replies of each shape: dense; with a sparse vector, also an empty one; without usage; with per-token vectors."""
    sparse = Sparse(np.array([1, 7], np.uint32), np.array([0.5, -2], np.float32))
    empty = Sparse(np.empty(0, np.uint32), np.empty(0, np.float32))
    plain = [
        make_bought(1),
        make_bought(2, sparse=sparse),
        make_bought(3, sparse=empty),
        make_bought(4, id=None, model=None, created=None, usage=Usage()),
        make_bought(10, dense=np.frombuffer(b"\n" * 4 * DIMENSIONS, np.float32)),
    ]
    multi = np.arange(2 * DIMENSIONS, dtype=np.float16).reshape(2, DIMENSIONS)
    return [*plain, Bought(make_bought(5).attempt, replace(make_bought(5).reply, multi=multi))]


def _fill(journal: Journal, replies: Sequence[Bought]) -> None:
    for one in replies:
        journal.sent(one.attempt.client_request_id, one.attempt.fingerprint)
    for one in replies:
        journal.bought(one)


def test_a_reply_is_read_as_it_was_written(tmp_path: Path, replies: list[Bought]) -> None:
    """Attempt, vectors, cost and names come back from the file bit for bit, and none of them is lost."""
    _fill(LocalJournal(str(tmp_path), "1"), replies)
    found = read_records([(tmp_path / "1.0.log").read_bytes()])
    assert found.sent == {}
    assert found.damaged == 0
    assert list(found.replies) == [one.attempt.client_request_id for one in replies]
    assert all(map(_same, found.replies.values(), replies))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_damage_loses_one_record(tmp_path_factory: Any, replies: list[Bought], data: Any) -> None:
    """Whichever bit is flipped, at most one reply is missing, none is wrong, and it is counted unless it is the last."""
    folder = tmp_path_factory.mktemp("damaged")
    _fill(LocalJournal(str(folder), "1"), replies)
    written = bytearray((folder / "1.0.log").read_bytes())
    begin = written.index(b"\nr ") + 1
    at = data.draw(st.integers(begin, len(written) - 1))
    written[at] ^= 1 << data.draw(st.integers(0, 7))
    found = read_records([bytes(written)])
    wanted = {one.attempt.client_request_id: one for one in replies}
    assert len(found.replies) >= len(replies) - 1
    assert all(_same(one, wanted[name]) for name, one in found.replies.items())
    assert set(found.sent) | set(found.replies) == set(wanted)
    last = written.rindex(b"\nr ")
    assert found.damaged == (len(found.replies) < len(replies) and at <= last)


def _journal(store: Path, process: str = "1") -> Journal:
    return open_journal(str(store), RUN, process)


def _stored(store: Path) -> list[str]:
    uris = list_parquet(segments_folder(str(store), RUN))
    return sorted(name for uri in uris for name in read_columns(uri, ["client_request_id"])[0].to_pylist())


def test_replies_of_a_dead_run_are_stored(
    tmp_path: Path, replies: list[Bought], caplog: pytest.LogCaptureFixture
) -> None:
    """They become a segment of their run with the same bytes, also the per-token vectors; a damaged record is told."""
    _fill(_journal(tmp_path), replies)
    log = tmp_path / f"journals/{RUN}/1.0.log"
    log.write_bytes(log.read_bytes().replace(b"\nr client-2", b"\nr client-?"))
    assert _recover(tmp_path) == Recovered(5, 1)
    assert "1 damaged records" in caplog.text
    assert _recorded(tmp_path, RUN) == ["client-2"]
    (uri,) = list_parquet(segments_folder(str(tmp_path), RUN))
    kept = [one for one in replies if one.attempt.client_request_id != "client-2"]
    wanted = segment_table(kept, DIMENSIONS)
    assert read_columns(uri, wanted.column_names).to_pylist() == wanted.to_pylist()
    assert read_multi(str(tmp_path), uri)["multi"].null_count == 4
    assert not log.parent.exists()


def test_a_generation_goes_when_its_results_are_stored(tmp_path: Path, replies: list[Bought]) -> None:
    """A journal does not grow: it keeps what is not stored, and requests without a reply stay in the next generation."""
    journal = _journal(tmp_path)
    _fill(journal, replies)
    journal.sent("open", bytes(16))
    first = journal.turn({"open": bytes(16)})
    second = journal.turn({"open": bytes(16)})
    folder = tmp_path / f"journals/{RUN}"
    assert {path.name for path in folder.iterdir()} == {"1.open", "1.0.log", "1.1.log", "1.2.log"}
    journal.note_stored(77)
    journal.settle(first)
    journal.note_stored(78)
    journal.settle(second)
    journal.turn({"open": bytes(16)})
    assert {path.name for path in folder.iterdir()} == {"1.open", "1.2.log", "1.3.log"}
    found = read_records([(folder / "1.3.log").read_bytes()])
    assert (list(found.sent), found.replies, found.segment) == (["open"], {}, 78)


def test_a_later_generation_stays_while_an_earlier_one_is_not_stored(tmp_path: Path) -> None:
    """If a write fails, the record that a request was not billed is kept as long as the one that it was sent."""
    journal = _journal(tmp_path)
    journal.sent("refused", bytes(16))
    journal.turn({"refused": bytes(16)})
    journal.unpaid("refused")
    journal.settle(journal.turn({}))
    assert _recover(tmp_path) == Recovered()


def test_generations_are_removed_whatever_ends_first(tmp_path: Path) -> None:
    """A generation that is stored before an earlier one is removed with it, and those after both are removed as well."""
    journal = _journal(tmp_path)
    for _ in range(2):
        journal.sent("open", bytes(16))
        first, second = journal.turn({}), journal.turn({})
        journal.settle(second)
        journal.settle(first)
    folder = tmp_path / f"journals/{RUN}"
    assert {path.name for path in folder.iterdir()} == {"1.open", "1.4.log"}


def test_only_files_of_the_last_generations_are_searched(
    tmp_path: Path, make_bought: Callable[..., Bought], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a long run stored before is not read again, and a segment that was just written is not stored twice."""
    journal = _journal(tmp_path)
    for number in (10, 20):
        one = make_bought(number, client_request_id=f"c{number}")
        _fill(journal, [one])
        generation = journal.turn({})
        write_segment(str(tmp_path), RUN, number, segment_table([one], DIMENSIONS))
        if number == 10:
            journal.note_stored(number)
            journal.settle(generation)
            journal.note_stored(number)
            journal.settle(journal.turn({}))
    read: list[str] = []

    def spy(uri: str, names: Sequence[str]) -> pa.Table:
        read.append(uri)
        return read_columns(uri, names)

    monkeypatch.setattr(recovery, "read_columns", spy)
    assert _recover(tmp_path) == Recovered()
    assert [segment_id(uri) for uri in read] == [20]
    assert _stored(tmp_path) == ["c10", "c20"]


def test_recovered_results_are_searched_again(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """The recovery of a journal may be killed and repeated: nothing is stored twice."""
    journal = _journal(tmp_path)
    journal.note_stored(5_000)
    journal.settle(journal.turn({}))
    _fill(journal, [make_bought(1)])
    journal.note_stored(6_000)
    journal.settle(journal.turn({}))
    _fill(journal, [make_bought(2)])
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "journals", copy)
    assert _recover(tmp_path) == Recovered(1, 0)
    shutil.copytree(copy, tmp_path / "journals", dirs_exist_ok=True)
    assert _recover(tmp_path) == Recovered()
    assert _stored(tmp_path) == ["client-2"]


def test_a_recovery_that_is_killed_while_it_removes(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """If only the last file of a journal is left, nothing of it is stored twice."""
    journal = _journal(tmp_path)
    journal.sent("first", bytes(16))
    journal.unpaid("first")
    journal.note_stored(5_000)
    journal.settle(journal.turn({}))
    write_segment(str(tmp_path), RUN, 5_000, segment_table([make_bought(0)], DIMENSIONS))
    _fill(journal, [make_bought(1)])
    journal.turn({})
    _fill(journal, [make_bought(2)])
    log = tmp_path / f"journals/{RUN}/1.2.log"
    data = log.read_bytes()
    assert _recover(tmp_path) == Recovered(2, 0)
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(data)
    assert _recover(tmp_path) == Recovered()
    assert _stored(tmp_path) == ["client-0", "client-1", "client-2"]


def test_a_process_that_lives_on_sends_and_stores_nothing(tmp_path: Path, replies: list[Bought]) -> None:
    """Once its journal is recovered, its next request and its next segment are errors: the books are not doubled."""
    journal = _journal(tmp_path)
    _fill(journal, replies)
    journal.sent("in-flight", bytes(16))
    assert _recover(tmp_path) == Recovered(6, 1)
    with pytest.raises(TakenOver, match=r"1\.open is missing"):
        journal.sent("later", bytes(16))
    with pytest.raises(TakenOver), journal.guard([]):
        raise AssertionError("the segment would be written")
    journal.close(keep=True)
    assert _recover(tmp_path) == Recovered()
    assert len(_stored(tmp_path)) == 6


def test_a_reply_after_the_recovery_is_not_stored_again(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """A process lives on that stored a segment after its generation began: what it records then is recovered already."""
    journal, stored = _journal(tmp_path), make_bought(1)
    _fill(journal, [stored])
    journal.sent("in-flight", bytes(16))
    generation = journal.turn({"in-flight": bytes(16)})
    with journal.guard([]):
        write_segment(str(tmp_path), RUN, NEWEST, segment_table([stored], DIMENSIONS))
        journal.note_stored(NEWEST)
    journal.settle(generation)
    assert _recover(tmp_path) == Recovered(0, 1)
    journal.turn({"in-flight": bytes(16)})
    journal.bought(make_bought(2, client_request_id="in-flight"))
    journal.close(keep=True)
    assert _recover(tmp_path) == Recovered()
    assert _stored(tmp_path) == ["client-1"]


def test_a_segment_that_is_being_written_is_waited_for(tmp_path: Path, make_bought: Callable[..., Bought]) -> None:
    """The recovery begins when the segment is there, and finds its attempts in it."""
    journal, one = _journal(tmp_path), make_bought(1)
    _fill(journal, [one])
    with ThreadPoolExecutor(1) as pool:
        with journal.guard([]):
            recovering = pool.submit(_recover, tmp_path)
            with pytest.raises(TimeoutError):
                recovering.result(0.2)
            write_segment(str(tmp_path), RUN, 1, segment_table([one], DIMENSIONS))
        assert recovering.result(10) == Recovered()
    assert _stored(tmp_path) == ["client-1"]


def test_a_write_that_hangs_is_left_to_a_later_run(
    tmp_path: Path,
    make_bought: Callable[..., Bought],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its results may still appear, so nothing of this process is recorded; others of the run are recovered."""
    monkeypatch.setattr(recovery, "LOCK_WAIT_S", 0.1)
    stuck, other = _journal(tmp_path), _journal(tmp_path, "2")
    _fill(stuck, [make_bought(1)])
    _fill(other, [make_bought(2)])
    guard = stuck.guard([])
    guard.__enter__()
    stuck.close(keep=True)
    assert _recover(tmp_path) == Recovered(1, 0)
    assert "1 processes of an earlier run are alive" in caplog.text
    guard.__exit__(None, None, None)
    del guard, stuck
    assert _stored(tmp_path) == ["client-2"]
    assert (tmp_path / f"journals/{RUN}/1.open").exists()


def test_one_process_at_a_time_recovers_a_run(tmp_path: Path, replies: list[Bought]) -> None:
    """On a local store, a second one waits for the first, and finds nothing left."""
    _fill(_journal(tmp_path), replies)
    _journal(tmp_path, "2").sent("in-flight", bytes(16))
    with ThreadPoolExecutor(2) as pool:
        with recovery._alone(journals_folder(str(tmp_path), RUN)):
            both = [pool.submit(_recover, tmp_path) for _ in range(2)]
            with pytest.raises(TimeoutError):
                both[0].result(0.2)
        found = [one.result(10) for one in both]
    assert sorted(found, key=lambda one: one.stored) == [Recovered(), Recovered(6, 1)]
    assert (len(_stored(tmp_path)), _recorded(tmp_path, RUN)) == (6, ["in-flight"])


def test_journals_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """They have no mark, no generations, and only the cost of a reply, whose vector is lost."""
    folder = tmp_path / f"journals/{RUN}"
    folder.mkdir(parents=True)
    cost = b'["r","m",1743575029,[7,7,7,0]]'
    lines = [b"s a " + b"00" * 16, b"s b " + b"11" * 16, b"s c " + b"22" * 16, b"u b", b"p a " + cost, b"p c [1"]
    (folder / "4711-0123abcd.log").write_bytes(b"\n".join(lines))
    assert _recover(tmp_path) == Recovered(0, 2)
    (uri,) = list_parquet(events_folder(str(tmp_path), RUN))
    assert read_columns(uri, ["client_request_id", "total_tokens"]).to_pylist() == [
        {"client_request_id": "a", "total_tokens": 7},
        {"client_request_id": "c", "total_tokens": None},
    ]
    assert not folder.exists()
