"""Events: attempts that were paid without a vector, and requests that are never sent again."""

from pathlib import Path

from arkbeam.base import schema
from arkbeam.base.records import Failure, Usage
from arkbeam.store.events import Event, EventKind, read_rejected, write_events
from arkbeam.store.layout import events_folder, list_parquet
from arkbeam.store.segments import Attempt, read_columns

RUN = "20250101T000000-0123abcd-89ef4567"


def _event(kind: EventKind, number: int, usage: Usage = Usage()) -> Event:
    failure = Failure(f"code-{number}", f"第 {number} message")
    return Event(kind, Attempt(number.to_bytes(16), f"client-{number}", number, 1.5), failure, usage, f"r-{number}")


def _write(folder: Path, events: list[Event]) -> str:
    write_events(str(folder), RUN, 7, events)
    (uri,) = list_parquet(events_folder(str(folder), RUN))
    return uri


def test_only_refusals_for_good_are_refused(tmp_path: Path) -> None:
    """Requests with unusable or lost replies may be sent again; a rejection keeps its code and message."""
    uri = _write(tmp_path, [_event(kind, number) for number, kind in enumerate(EventKind)])
    rejected = read_rejected(uri)
    number = list(EventKind).index(EventKind.REJECTED)
    assert rejected.schema == schema.REJECTED
    assert rejected.to_pylist() == [
        {"fingerprint": number.to_bytes(16), "code": f"code-{number}", "message": f"第 {number} message"}
    ]


def test_events_say_what_was_paid(tmp_path: Path) -> None:
    """A rejection costs nothing; the others are paid, with the tokens if known, otherwise null."""
    uri = _write(tmp_path, [_event(EventKind.UNUSABLE, 1, Usage(5, 5, 2, 3)), *map(_event, EventKind, (1, 2, 3))])
    names = ["kind", "paid", "client_request_id", "request_id", "attempts", "prompt_tokens", "image_tokens", "created"]
    table = read_columns(uri, names)
    assert table.select(["kind", "paid"]).to_pylist()[1:] == [
        {"kind": "unusable", "paid": True},
        {"kind": "refused", "paid": False},
        {"kind": "lost", "paid": True},
    ]
    first = table.to_pylist()[0]
    assert (first["client_request_id"], first["request_id"], first["attempts"]) == ("client-1", "r-1", 1)
    assert table["prompt_tokens"].to_pylist() == [5, None, None, None]
    assert table["image_tokens"].to_pylist() == [3, None, None, None]
    assert table["created"].to_pylist() == [None] * 4


def test_a_file_without_refusals_has_none(tmp_path: Path) -> None:
    """The table is empty and has the right schema."""
    assert read_rejected(_write(tmp_path, [_event(EventKind.LOST, 1)])) == schema.REJECTED.empty_table()
