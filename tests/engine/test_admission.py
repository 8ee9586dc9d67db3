"""The gate: who goes first, and what opens it. Real time passes, but none is asserted."""

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


def _gate(**fields: Any) -> Admission:
    pacer = Pacer(10**9, 10**12, 1.0, time.monotonic(), **fields)
    return Admission(pacer, lambda tracked: tracked.item.estimate)


async def _take(gate: Admission, number: int) -> list[int]:
    return [int.from_bytes((await gate.take()).tracked.item.fingerprint) for _ in range(number)]


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_the_oldest_go_first() -> None:
    """What was sent before goes before what never was, each in its order, a large one like any other."""

    async def scenario() -> list[int]:
        gate = _gate()
        gate.add([_tracked(1), _tracked(2, 10**6), _tracked(3)])
        gate.add_again(_tracked(7))
        gate.add_again(_tracked(8))
        return await _take(gate, 5)

    assert _run(scenario()) == [7, 8, 1, 2, 3]


def test_an_item_that_comes_again_while_others_wait_goes_before_them() -> None:
    """Who waits at the gate takes the oldest when it opens, not when it began to wait."""

    async def scenario() -> list[int]:
        gate = _gate()
        gate.pacer.set_share(0.0, time.monotonic())
        gate.add([_tracked(1)])
        waiting = asyncio.create_task(_take(gate, 2))
        await asyncio.sleep(0)
        gate.add_again(_tracked(9))
        gate.pacer.set_share(1.0, time.monotonic())
        gate.wake()
        return await waiting

    assert _run(scenario()) == [9, 1]


def test_who_waits_for_an_item_is_woken_by_one() -> None:
    """Several wait at once; each item goes to one of them."""

    async def scenario() -> list[int]:
        gate = _gate()
        waiting = [asyncio.create_task(_take(gate, 1)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.add([_tracked(1)])
        gate.add([_tracked(2), _tracked(3)])
        return [number for taken in await asyncio.gather(*waiting) for number in taken]

    assert sorted(_run(scenario())) == [1, 2, 3]


def test_no_more_are_open_than_may_be() -> None:
    """The gate is closed while all may-be-open requests are, and one that leaves opens it for one."""

    async def scenario() -> tuple[int, list[int]]:
        gate = _gate(in_flight=InFlight(2))
        gate.add([_tracked(1), _tracked(2), _tracked(3)])
        await _take(gate, 2)
        waiting = asyncio.create_task(_take(gate, 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.pacer.leave()
        gate.wake()
        flight = gate.pacer.in_flight
        return flight.open if flight else 0, await waiting

    assert _run(scenario()) == (1, [3])


def test_a_closed_gate_lets_nothing_through_and_gives_back_what_waited() -> None:
    """Neither what waited nor what comes later is sent."""

    async def scenario() -> list[Tracked]:
        gate = _gate()
        gate.pacer.pause(60, time.monotonic())
        gate.add([_tracked(1)])
        gate.add_again(_tracked(2))
        waiting = asyncio.create_task(_take(gate, 1))
        await asyncio.sleep(0)
        left = gate.close()
        gate.add([_tracked(3)])
        await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return left

    assert [int.from_bytes(one.item.fingerprint) for one in _run(scenario())] == [2, 1]
