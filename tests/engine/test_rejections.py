"""When rejections are the config's fault, and when the rows'."""

import pytest
from arkbeam.base.records import Failure, Modality
from arkbeam.base.replies import Action, ApiError
from arkbeam.engine.accounting import may_be_billed
from arkbeam.engine.items import Item, Tracked
from arkbeam.engine.outcomes import Sink
from arkbeam.engine.stopping import FirstRejections
from arkbeam.store.events import Event, EventKind
from arkbeam.store.segments import Attempt


def rejection(number: int, code: str = "InvalidParameter") -> Event:
    """A row that was rejected."""
    return Event(EventKind.REFUSED, Attempt(number.to_bytes(16), "", 1, 0.0), Failure(code, "message"))


def test_the_first_rows_all_rejected_alike() -> None:
    """At the bound it trips, and nothing of it is remembered, nor what is rejected after it."""
    first = FirstRejections(3)
    assert [first.reject(rejection(number)) for number in range(5)] == [[]] * 5
    assert first.is_tripped
    assert first.end() == []


def test_another_reason_clears_the_config() -> None:
    """What was held back is remembered then, and all that follows at once."""
    first = FirstRejections(3)
    events = [rejection(0), rejection(1), rejection(2, "SensitiveContentDetected"), rejection(3)]
    assert [first.reject(event) for event in events] == [[], [], events[:3], events[3:]]
    assert not first.is_tripped


def test_a_vector_clears_the_config() -> None:
    """Once one was bought, any number of rejections are the rows' own."""
    first = FirstRejections(2)
    held = rejection(0)
    assert first.reject(held) == []
    assert first.end() == [held]
    later = [rejection(number) for number in range(1, 9)]
    assert [first.reject(event) for event in later] == [[event] for event in later]
    assert not first.is_tripped


@pytest.mark.parametrize(
    ("sent", "status", "paid", "expected"),
    [
        (True, None, False, True),  # a timeout or a reset after the bytes went out
        (False, None, False, False),  # no connection
        (True, 504, False, True),  # a gateway gave up; what is behind it may have gone on
        (True, 429, False, False),
        (True, 500, False, False),
        (True, 400, False, False),
        (True, 200, True, False),  # billed for certain: it is booked with its usage
    ],
)
def test_which_answers_may_be_billed(sent: bool, status: int | None, paid: bool, expected: bool) -> None:
    """Those that were not seen, of requests that went out."""
    tracked = Tracked(Item(bytes(16), b"", Modality.TEXT, False, 1.0), Sink(), sent)
    error = ApiError("message", Action.RETRY, "code", status=status, paid=paid)
    assert may_be_billed(tracked, error) is expected
