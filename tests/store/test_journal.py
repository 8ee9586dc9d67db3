"""The journal holds the requests that were sent and are not yet in the store."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arkbeam.base.errors import StoreError
from arkbeam.base.records import Failure, Usage
from arkbeam.store import journal as journal_module
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.journal import Journal, open_journal, read_journal, record_lost_attempts
from arkbeam.store.layout import events_folder, journals_folder, list_parquet, new_run_name, output_key
from arkbeam.store.segments import Attempt, Bought, read_columns, segment_table, write_segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OUTPUT = "/outputs/ours"
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
    journal = Journal(str(path))
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
    data = path.read_bytes()
    path.unlink()
    return data


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
    events = {
        event.attempt.client_request_id: event for event in read_journal(_write(tmp_path / "j", *written).splitlines())
    }
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
    """A file that ends anywhere reads like its complete lines; only a paid reply cut at its very end may count too."""
    data = _write(tmp_path / "j", *written)[:length]
    whole = data[: data.rfind(b"\n") + 1]
    torn = {event.attempt.client_request_id: event for event in read_journal(data.splitlines())}
    kept = {event.attempt.client_request_id: event for event in read_journal(whole.splitlines())}
    assert set(torn) <= set(kept) | {data[len(whole) + 2 :].split(b" ")[0].decode(errors="replace")}
    assert set(kept) - set(torn) <= {data[len(whole) + 2 :].decode(errors="replace")}  # its `u` line lacks the newline
    for name in set(torn) & set(kept):
        assert torn[name].attempt == kept[name].attempt


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_garbage_is_not_fatal(lines: list[bytes]) -> None:
    """Whatever a power cut left in a journal must not stop later runs of the output."""
    good = b"s client-1 " + b"ab" * 16
    prefixed = [
        prefix + line for line, prefix in zip(lines, itertools.cycle([b"", b"s x ", b"p x ", b"u "]), strict=False)
    ]
    zeros = [b"s x " + b"\0" * 32, b"p client-1 [1]]", b"s y " + b"zz" * 16]
    assert "client-1" in {event.attempt.client_request_id for event in read_journal([*prefixed, *zeros, good])}


def test_a_journal_of_an_object_store_keeps_nothing() -> None:
    """Objects can't be appended to, so the same calls write nothing."""
    journal = open_journal("memory://journal-test/store", "run", "1")
    journal.sent("a", bytes(16))
    journal.paid("a", "r", "m", 1, Usage())
    journal.unpaid("a")
    journal.close(keep=True)


def test_a_journal_survives_its_process_only_if_it_is_needed(tmp_path: Path) -> None:
    """Lines are in the file at once; the file is removed unless it is to be kept."""
    for keep in (True, False):
        journal = open_journal(str(tmp_path), "run", "1")
        journal.sent("a", bytes(16))
        path = tmp_path / "journals/run/1.log"
        assert path.read_bytes().startswith(b"s a 00")
        journal.close(keep=keep)
        assert path.exists() is keep


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
        open_journal(str(tmp_path / "file"), "run", "1")


@pytest.fixture
def segments() -> Iterator[int]:
    """Yield ids for new files that differ from those in the tests."""
    return itertools.count(1_000)


def _send(store: Path, run: str, *names: str, unpaid: tuple[str, ...] = ()) -> None:
    journal = open_journal(str(store), run, "1")
    for name in names:
        journal.sent(name, name.encode().rjust(16))
    for name in unpaid:
        journal.unpaid(name)
    journal.close(keep=True)


def _recorded(store: Path, run: str) -> list[str]:
    uris = list_parquet(events_folder(str(store), run))
    return sorted(name for uri in uris for name in read_columns(uri, ["client_request_id"])[0].to_pylist())


RUN = new_run_name(OUTPUT, 0, "00000000")
OTHER = new_run_name("/outputs/theirs", 0, "00000000")


def test_what_a_dead_run_lost_is_booked_once(
    tmp_path: Path, make_bought: Callable[..., Bought], segments: Iterator[int]
) -> None:
    """Attempts that are in neither segments nor events are recorded as paid; repeating it changes nothing."""
    _send(tmp_path, RUN, "stored", "recorded", "lost", "refused", unpaid=("refused",))
    write_segment(str(tmp_path), RUN, 1, segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS))
    known = Event(EventKind.UNUSABLE, Attempt(bytes(16), "recorded", 1, 0.0), Failure("nan", "x"))
    write_events(str(tmp_path), RUN, 2, [known])
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 1
    assert _recorded(tmp_path, RUN) == ["lost", "recorded"]
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 0
    assert not Path(journals_folder(str(tmp_path), RUN)).exists()


def test_booking_that_was_killed_is_repeated_without_double_entries(tmp_path: Path, segments: Iterator[int]) -> None:
    """A journal that still exists after its attempts were recorded adds nothing."""
    _send(tmp_path, RUN, "lost-1", "lost-2")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "journals", copy)
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 2
    shutil.copytree(copy, tmp_path / "journals", dirs_exist_ok=True)
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 0
    assert _recorded(tmp_path, RUN) == ["lost-1", "lost-2"]


def test_runs_of_other_outputs_may_be_alive(tmp_path: Path, segments: Iterator[int]) -> None:
    """Their journals are neither read nor removed."""
    assert output_key(OUTPUT) != output_key("/outputs/theirs")
    _send(tmp_path, OTHER, "in-flight")
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 0
    assert Path(journals_folder(str(tmp_path), OTHER)).exists()
    assert _recorded(tmp_path, OTHER) == []


def test_several_processes_of_a_run_are_booked_together(tmp_path: Path, segments: Iterator[int]) -> None:
    """Each process has a journal; an incomplete line of one does not join the first line of the next."""
    folder = Path(journals_folder(str(tmp_path), RUN))
    folder.mkdir(parents=True)
    (folder / "1.log").write_bytes(b"s a " + b"00" * 16 + b"\ns torn 0000")
    (folder / "2.log").write_bytes(b"s b " + b"11" * 16 + b"\n")
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 2
    assert _recorded(tmp_path, RUN) == ["a", "b"]


def test_a_damaged_segment_does_not_hinder_the_booking(
    tmp_path: Path, make_bought: Callable[..., Bought], segments: Iterator[int]
) -> None:
    """Its attempts are recorded as lost; otherwise no run of this output could ever start again."""
    _send(tmp_path, RUN, "stored")
    table = segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS)
    Path(write_segment(str(tmp_path), RUN, 1, table)).write_bytes(b"PAR1 cut short")
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 1
    assert _recorded(tmp_path, RUN) == ["stored"]


def test_a_segment_that_cannot_be_reached_stops_the_booking(
    tmp_path: Path, make_bought: Callable[..., Bought], segments: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the storage fails, nothing is known about the segment: nothing is recorded, and the journal stays."""
    _send(tmp_path, RUN, "stored")
    table = segment_table([make_bought(1, client_request_id="stored")], DIMENSIONS)
    write_segment(str(tmp_path), RUN, 1, table)

    def fail(*_: object) -> None:
        raise StoreError("cannot read: TimeoutError")

    with monkeypatch.context() as patched:
        patched.setattr(journal_module, "read_columns", fail)
        with pytest.raises(StoreError):
            record_lost_attempts(str(tmp_path), OUTPUT, segments)
    assert record_lost_attempts(str(tmp_path), OUTPUT, segments) == 0
    assert _recorded(tmp_path, RUN) == []
