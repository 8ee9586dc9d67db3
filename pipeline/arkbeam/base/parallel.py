"""Call a function for many items at once: calls to an object store are slow, but many can be in flight."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

IN_FLIGHT = 16
LOCAL_IN_FLIGHT = 2
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], in_flight: int = IN_FLIGHT
) -> Generator[_Result, None, None]:
    """Yield the result of each item, in the order of the items.

    At most `in_flight` results are computed ahead of the caller, each in a thread. The first exception, in the order of
    the items, is raised after the running calls have ended; no other call is started then.
    """
    iterator = iter(items)
    first = list(islice(iterator, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    with ThreadPoolExecutor(in_flight, thread_name_prefix="arkbeam-io") as pool:
        running = deque(pool.submit(function, item) for item in (*first, *islice(iterator, in_flight - 2)))
        try:
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(function, item) for item in islice(iterator, 1))
                yield result
        finally:
            for future in running:
                future.cancel()


def read_ahead(items: Iterable[_Item]) -> Generator[_Item, None, None]:
    """Compute each item in a thread while the caller works on the one before. An item must not be None."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="arkbeam-ahead") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item
