"""Calls run at the same time, their results come in order, and an error ends them."""

import threading
import time
from collections.abc import Iterator

import pytest
from arkbeam.base.parallel import in_parallel, read_ahead


def test_results_are_in_the_order_of_the_items() -> None:
    """Also if the first call takes longest; any number of items is allowed."""

    def wait(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number * number

    for count in (0, 1, 2, 40):
        assert list(in_parallel(wait, range(count), 4)) == [number * number for number in range(count)]


def test_so_many_calls_run_at_once() -> None:
    """As many calls as allowed are in flight, and no more results than that are ahead of the caller."""
    barrier, begun = threading.Barrier(4, timeout=30), []

    def meet(number: int) -> int:
        begun.append(number)
        barrier.wait()
        return number

    results = in_parallel(meet, range(8), 4)
    assert next(results) == 0
    assert len(begun) <= 5
    assert list(results) == list(range(1, 8))

    begun.clear()
    slow = in_parallel(begun.append, range(100), 4)
    next(slow)
    time.sleep(0.05)
    assert len(begun) <= 5
    slow.close()


def test_the_first_error_is_raised_and_no_other_call_starts() -> None:
    """The error is that of the first item that failed."""
    begun = []

    def fail(number: int) -> int:
        begun.append(number)
        if number in (3, 4):
            time.sleep(0.02 if number == 3 else 0)
            raise ValueError(f"number {number}")
        return number

    with pytest.raises(ValueError, match="number 3"):
        list(in_parallel(fail, range(1000), 4))
    assert len(begun) < 20


def test_one_item_is_computed_ahead() -> None:
    """While the caller has an item, the next one is computed, and no other; an error comes after the items before it."""
    begun, ahead = [], threading.Semaphore(0)

    def count() -> Iterator[int]:
        for number in range(3):
            begun.append(number)
            ahead.release()
            yield number
        raise ValueError("the end")

    items = read_ahead(count())
    for number in range(2):
        assert next(items) == number
        for _ in range(2 - number):
            assert ahead.acquire(timeout=30)
        assert begun == list(range(number + 2))
    assert next(items) == 2
    with pytest.raises(ValueError, match="the end"):
        next(items)
    assert list(read_ahead([])) == []
