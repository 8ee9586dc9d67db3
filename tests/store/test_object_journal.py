"""The journal on object stores: small objects, written every two seconds, and no locks."""

import contextlib
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from arkbeam.base.errors import StoreError
from arkbeam.base.files import list_files, remove_file, write_bytes
from arkbeam.store import journal as journal_module
from arkbeam.store import recovery
from arkbeam.store.journal import ObjectJournal, TakenOver, open_journal
from arkbeam.store.layout import events_folder, journals_folder, list_parquet, new_run_name, segments_folder, uri_key
from arkbeam.store.recovery import Recovered, recover_journals
from arkbeam.store.segments import Bought, read_columns, segment_table, write_segment

OUTPUT = uri_key("memory://out")
RUN = new_run_name(OUTPUT, 0, "00000000")
DIMENSIONS = 8
NEWEST = 5_000 << 22
"""An id above those that a recovery gives to its files if no segment is named."""


@pytest.fixture
def store() -> str:
    """An empty store in memory, which is to fsspec what an object store is."""
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def fill(make_bought: Callable[..., Bought]) -> Callable[..., list[Bought]]:
    """Sends requests in a journal and answers them; returns the results."""

    def run(journal: ObjectJournal, *numbers: int) -> list[Bought]:
        results = [make_bought(number) for number in numbers]
        for one in results:
            journal.sent(one.attempt.client_request_id, one.attempt.fingerprint)
            journal.bought(one)
        return results

    return run


def _open(store: str, process: str = "1") -> ObjectJournal:
    journal = open_journal(store, RUN, process)
    assert isinstance(journal, ObjectJournal)
    return journal


def _names(store: str) -> list[str]:
    return [uri.rpartition("/")[2] for uri in list_files(journals_folder(store, RUN))]


def _ids(store: str) -> tuple[list[str], list[str]]:
    """Return the client request ids in the segments and in the event files."""
    both = []
    for folder in (segments_folder(store, RUN), events_folder(store, RUN)):
        tables = [read_columns(uri, ["client_request_id"]) for uri in list_parquet(folder)]
        both.append(sorted(name for table in tables for name in table[0].to_pylist()))
    return both[0], both[1]


def test_what_was_uploaded_is_recovered(store: str, fill: Callable[..., list[Bought]]) -> None:
    """After a kill, the replies of all uploads are stored, and requests without a reply are recorded as lost."""
    journal = _open(store)
    fill(journal, 1, 2)
    journal.upload()
    fill(journal, 3)
    journal.sent("open", bytes(16))
    journal.upload()
    fill(journal, 4)  # after the last upload: this one is lost with the process
    assert recover_journals(store, OUTPUT) == Recovered(3, 1)
    assert _ids(store) == (["client-1", "client-2", "client-3"], ["open"])
    assert _names(store) == []
    assert recover_journals(store, OUTPUT) == Recovered()


def test_the_objects_of_stored_results_are_removed(store: str, fill: Callable[..., list[Bought]]) -> None:
    """A long run has few objects at a time, and a run that ended has none; results that are stored are not uploaded."""
    journal = _open(store)
    for number in range(5):
        fill(journal, number)
        journal.upload()
        fill(journal, number + 100)
        journal.note_stored(number)
        journal.settle(journal.turn({"open": bytes(16)}))
        journal.upload()
        assert [name.partition("-")[0] for name in _names(store)] == [f"1.{number + 1}", "1.open"]
    journal.close(keep=False)
    assert _names(store) == []


def test_an_upload_that_failed_is_repeated(
    store: str, fill: Callable[..., list[Bought]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record is missing after it, and when the run ends because of it, what is left is uploaded."""
    journal = _open(store)

    def fail(*_: object) -> None:
        raise StoreError("cannot write")

    for number in range(2):
        fill(journal, number)
        with monkeypatch.context() as patched:
            patched.setattr(journal_module, "write_bytes", fail)
            with pytest.raises(StoreError):
                journal.upload()
    journal.close(keep=True)
    assert recover_journals(store, OUTPUT) == Recovered(2, 0)


def test_a_process_that_lives_on_doubles_nothing(store: str, fill: Callable[..., list[Bought]]) -> None:
    """Once its journal is recovered, its next upload, and so its next request, is an error, and a segment is taken back."""
    journal = _open(store)
    results = fill(journal, 1, 2)
    journal.sent("in-flight", bytes(16))
    journal.upload()
    generation = journal.turn({"in-flight": bytes(16)})
    assert recover_journals(store, OUTPUT) == Recovered(2, 1)
    written: list[str] = []
    with pytest.raises(TakenOver), journal.guard(written):
        written.append(write_segment(store, RUN, 1, segment_table(results, DIMENSIONS)))
    fill(journal, 3)
    with pytest.raises(TakenOver):
        journal.upload()
    journal.settle(generation)
    journal.close(keep=True)
    assert _ids(store) == (["client-1", "client-2"], ["in-flight"])
    assert recover_journals(store, OUTPUT) == Recovered(1, 0)
    assert _ids(store) == (["client-1", "client-2", "client-3"], ["in-flight"])


@pytest.mark.parametrize("is_named", [True, False])
def test_a_reply_after_the_recovery_is_not_stored_again(
    store: str, fill: Callable[..., list[Bought]], make_bought: Callable[..., Bought], is_named: bool
) -> None:
    """A process lives on that stored a segment after its generation began: what it records then is recovered already.

    It stood still before or after it had uploaded the segment's id.
    """
    journal = _open(store)
    stored = fill(journal, 1)
    journal.sent("in-flight", bytes(16))
    generation = journal.turn({"in-flight": bytes(16)})
    journal.upload()
    written: list[str] = []
    with journal.guard(written):
        written.append(write_segment(store, RUN, NEWEST, segment_table(stored, DIMENSIONS)))
        journal.note_stored(NEWEST)
    journal.settle(generation)
    if is_named:
        journal.sent("later", bytes(16))
        journal.upload()
    assert recover_journals(store, OUTPUT) == Recovered(0, 1 + is_named)
    journal.turn({"in-flight": bytes(16)})
    journal.bought(make_bought(2, client_request_id="in-flight"))
    with pytest.raises(TakenOver):
        journal.upload()
    assert recover_journals(store, OUTPUT) == Recovered()
    assert _ids(store)[0] == ["client-1"]


def test_a_damaged_object_is_left_out(
    store: str, fill: Callable[..., list[Bought]], caplog: pytest.LogCaptureFixture
) -> None:
    """The other objects are recovered, with a warning."""
    journal = _open(store)
    for number in (1, 2):
        fill(journal, number)
        journal.upload()
    (first, *_) = list_files(journals_folder(store, RUN), ".zst")
    write_bytes(first, b"no zstd")
    assert recover_journals(store, OUTPUT) == Recovered(1, 0)
    assert "is damaged and skipped" in caplog.text


@pytest.mark.parametrize("removed", range(4))
def test_a_kill_while_stored_objects_are_removed(
    store: str,
    fill: Callable[..., list[Bought]],
    monkeypatch: pytest.MonkeyPatch,
    removed: int,
) -> None:
    """Results that are in a segment are not stored or counted again, however many objects of their generation are left."""
    journal = _open(store)
    journal.sent("unpaid", bytes(16))
    first = fill(journal, 1)
    journal.upload()
    journal.unpaid("unpaid")
    second = fill(journal, 2)
    journal.upload()
    generation = journal.turn({})
    write_segment(store, RUN, 7, segment_table([*first, *second], DIMENSIONS))
    journal.note_stored(7)
    journal.settle(generation)
    fill(journal, 3)
    left = removed

    def remove(uri: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        remove_file(uri)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(journal_module, "remove_file", remove)
        journal.upload()
    assert len(_names(store)) == 2 + max(0, 2 - removed)
    assert recover_journals(store, OUTPUT) == Recovered(1, 0)
    assert _ids(store) == (["client-1", "client-2", "client-3"], [])


STEPS = ["list_files", "read_if_exists", "list_parquet", "write_results", "write_events", "remove_in_order"]
"""What a recovery does with the storage."""


@pytest.mark.parametrize("dies", [True, False])
def test_two_recoveries_of_one_journal(
    store: str, fill: Callable[..., list[Bought]], monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """Whatever a recovery has done when another one begins beside it, or after its death: nothing is stored twice."""
    for run_second_at in range(1, 100):
        place, calls = f"{store}/{run_second_at}", 0
        first, second = _open(place), _open(place, "2")
        write_segment(place, RUN, 5, segment_table(fill(second, 7), DIMENSIONS))
        fill(first, 1, 2)
        first.sent("lost-1", bytes(16))
        first.upload()
        first.turn({"lost-1": bytes(16)})
        fill(first, 3)
        second.sent("lost-2", bytes(16))
        for journal in (first, second):
            journal.upload()

        def step(
            act: Callable[..., Any], *arguments: Any, place: str = place, at: int = run_second_at, **more: Any
        ) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                recover_journals(place, OUTPUT)
                if dies:
                    raise StoreError("the first one dies here")
            return act(*arguments, **more)

        with monkeypatch.context() as patched:
            for name in STEPS:
                patched.setattr(recovery, name, partial(step, getattr(recovery, name)))
            with contextlib.suppress(StoreError):
                recover_journals(place, OUTPUT)
        recover_journals(place, OUTPUT)
        stored = [f"client-{number}" for number in (1, 2, 3, 7)]
        assert _ids(place) == (stored, ["lost-1", "lost-2"]), run_second_at
        assert list_files(journals_folder(place, RUN)) == []
        if calls < run_second_at:
            break
    assert run_second_at > 10
