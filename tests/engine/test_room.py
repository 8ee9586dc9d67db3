"""The bound on what is read ahead, waits and is in flight."""

import threading
from collections.abc import Callable

from arkbeam.engine.items import Room


def test_room_is_taken_and_given_back_by_bytes() -> None:
    """An item that does not fit is not let in; `shrink` and `leave` make room; an empty engine accepts any item."""
    room = Room(100)
    assert room.try_enter(1000)
    assert not room.try_enter(1)
    room.shrink(950)
    assert room.try_enter(50)
    assert not room.try_enter(1)
    room.leave(50)
    assert room.try_enter(40)
    room.leave(50)
    room.leave(40)
    assert (room.items, room.bytes) == (0, 0)


def test_whoever_waits_hears_of_room(wait: Callable[..., None]) -> None:
    """Released bytes let the next item in; after `close` all waiting callers return."""
    room, entered = Room(100), []
    assert room.try_enter(100)

    def enter() -> None:
        entered.append(room.enter(1, 60))

    threads = [threading.Thread(target=enter) for _ in range(2)]
    threads[0].start()
    room.shrink(70)
    wait(lambda: entered == [True])
    threads[1].start()
    room.close()
    for thread in threads:
        thread.join()
    assert entered == [True, False]
    assert not room.try_enter(1)
