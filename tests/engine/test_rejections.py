"""Whether the config or the rows are at fault for rejections, and which errors may be billed."""

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
    """The event of a rejected row."""
    return Event(EventKind.REJECTED, Attempt(number.to_bytes(16), "", 1, 0.0), Failure(code, "message"))


def test_the_first_rows_all_rejected_alike() -> None:
    """If the first rows are all rejected with one code, up to the bound, the config is at fault and no rejection is stored."""
    first = FirstRejections(3)
    assert [first.reject(rejection(number)) for number in range(5)] == [[]] * 5
    assert first.is_tripped
    assert first.end() == []


def test_another_reason_clears_the_config() -> None:
    """After rejections with two codes, the config is not at fault: all rejections are stored."""
    first = FirstRejections(3)
    events = [rejection(0), rejection(1), rejection(2, "SensitiveContentDetected"), rejection(3)]
    assert [first.reject(event) for event in events] == [[], [], events[:3], events[3:]]
    assert not first.is_tripped


def test_a_vector_clears_the_config() -> None:
    """After a vector was bought, the config is not at fault: all rejections are stored."""
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
        (True, 504, False, True),  # a gateway gave up; the service behind it may have gone on
        (True, 429, False, False),
        (True, 500, False, False),
        (True, 400, False, False),
        (True, 200, True, False),  # certainly billed: recorded with its usage
    ],
)
def test_which_answers_may_be_billed(sent: bool, status: int | None, paid: bool, expected: bool) -> None:
    """Requests that were sent and whose answer was not seen may be billed."""
    tracked = Tracked(Item(bytes(16), b"", Modality.TEXT, False, 1.0), Sink(), sent)
    error = ApiError("message", Action.RETRY, "code", status=status, paid=paid)
    assert may_be_billed(tracked, error) is expected
