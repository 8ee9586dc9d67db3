"""Admission: the order of items, and when they are admitted. Real time passes, but no duration is asserted."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from arkbeam.base.records import Modality
from arkbeam.engine.admission import Admission
from arkbeam.engine.items import Item, Tracked
from arkbeam.engine.outcomes import Sink
from arkbeam.quota.control import InFlight
from arkbeam.quota.pacer import Pacer

pytestmark = pytest.mark.timeout(20)


def _tracked(number: int, estimate: float = 1.0) -> Tracked:
    return Tracked(Item(number.to_bytes(16), b"{}", Modality.TEXT, False, estimate), Sink())


def _admission(**fields: Any) -> Admission:
    pacer = Pacer(10**9, 10**12, 1.0, time.monotonic(), **fields)
    return Admission(pacer, lambda tracked: tracked.item.estimate)


async def _take(admission: Admission, number: int) -> list[int]:
    return [int.from_bytes((await admission.take()).tracked.item.fingerprint) for _ in range(number)]


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_the_oldest_go_first() -> None:
    """Items to be sent again go before new ones, each group in its order, large items included."""

    async def scenario() -> list[int]:
        admission = _admission()
        admission.add([_tracked(1), _tracked(2, 10**6), _tracked(3)])
        admission.add_again(_tracked(7))
        admission.add_again(_tracked(8))
        return await _take(admission, 5)

    assert _run(scenario()) == [7, 8, 1, 2, 3]


def test_an_item_that_comes_again_while_others_wait_goes_before_them() -> None:
    """A waiting caller gets the item that is the oldest when it is admitted, not when the wait began."""

    async def scenario() -> list[int]:
        admission = _admission()
        admission.pacer.set_share(0.0, time.monotonic())
        admission.add([_tracked(1)])
        waiting = asyncio.create_task(_take(admission, 2))
        await asyncio.sleep(0)
        admission.add_again(_tracked(9))
        admission.pacer.set_share(1.0, time.monotonic())
        admission.wake()
        return await waiting

    assert _run(scenario()) == [9, 1]


def test_who_waits_for_an_item_is_woken_by_one() -> None:
    """Several callers wait at once; each item goes to one of them."""

    async def scenario() -> list[int]:
        admission = _admission()
        waiting = [asyncio.create_task(_take(admission, 1)) for _ in range(3)]
        await asyncio.sleep(0)
        admission.add([_tracked(1)])
        admission.add([_tracked(2), _tracked(3)])
        return [number for taken in await asyncio.gather(*waiting) for number in taken]

    assert sorted(_run(scenario())) == [1, 2, 3]


def test_no_more_are_open_than_may_be() -> None:
    """Nothing is admitted while the maximum is in flight; a request that ends admits one more."""

    async def scenario() -> tuple[int, list[int]]:
        admission = _admission(in_flight=InFlight(2))
        admission.add([_tracked(1), _tracked(2), _tracked(3)])
        await _take(admission, 2)
        waiting = asyncio.create_task(_take(admission, 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        admission.pacer.leave()
        admission.wake()
        flight = admission.pacer.in_flight
        return flight.open if flight else 0, await waiting

    assert _run(scenario()) == (1, [3])


def test_a_closed_gate_lets_nothing_through_and_gives_back_what_waited() -> None:
    """Items that waited and items added later are not sent."""

    async def scenario() -> list[Tracked]:
        admission = _admission()
        admission.pacer.pause(60, time.monotonic())
        admission.add([_tracked(1)])
        admission.add_again(_tracked(2))
        waiting = asyncio.create_task(_take(admission, 1))
        await asyncio.sleep(0)
        left = admission.close()
        admission.add([_tracked(3)])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return left

    assert [int.from_bytes(one.item.fingerprint) for one in _run(scenario())] == [2, 1]
