"""Sharing by leases, with real files and an event loop."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from arkbeam.quota.lease_sharing import LeaseSharing
from arkbeam.quota.pacer import Pacer

WAIT_S = 30.0


def make(store: Path | str, run: str, account: str = "ark-default") -> LeaseSharing:
    """The sharing of one process."""
    return LeaseSharing(str(store), account, run, Pacer(600, 10**9, 1.0, time.monotonic()), unshared_s_max=60.0)


def share_of(sharing: LeaseSharing) -> float:
    """The share of its pacer just before a request."""
    sharing.refresh(time.monotonic())
    return sharing.pacer.share


def marks_of(store: Path, account: str = "ark-default") -> set[str]:
    """Return the names of the marks."""
    return {path.name.rpartition(".")[0] for path in (store / "quota" / account).glob("[!.]*")}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail after `WAIT_S`."""
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s, "the condition did not hold in time"
        await asyncio.sleep(0.02)


@pytest.mark.slow
def test_a_process_takes_part_while_it_has_sessions(tmp_path: Path) -> None:
    """A single process sends at once; two have half each; another account does not count; a process that leaves frees its share."""

    async def live() -> None:
        first, second = make(tmp_path, "first"), make(tmp_path, "second")
        apart = make(tmp_path, "apart", "ark-other")
        gone: list[str] = []
        keepers = [asyncio.create_task(one.run(lambda: None, gone.append)) for one in (first, second, apart)]
        assert share_of(first) == 0
        first.join()
        await until(lambda: share_of(first) == 1)
        second.join()
        await until(lambda: share_of(first) == 0.5)
        assert share_of(second) == 0
        apart.join()
        await until(lambda: share_of(apart) == 1)
        await until(lambda: share_of(second) == 0.5)
        second.leave()
        (before,) = (name for name in marks_of(tmp_path) if name.startswith("second"))
        second.join()  # the next session follows at once: the mark is kept
        assert share_of(second) == 0.5
        assert before in marks_of(tmp_path)
        second.leave()
        await until(lambda: share_of(first) == 1)
        assert before not in marks_of(tmp_path)
        assert share_of(second) == 0
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        assert marks_of(tmp_path) == marks_of(tmp_path, "ark-other") == set()
        assert gone == []

    asyncio.run(live())


@pytest.mark.slow
def test_on_an_object_store_even_who_is_alone_waits_a_lease(tmp_path: Path) -> None:
    """There a listing may have begun before a write ended. `memory://` takes the place of an object store."""
    sharing = make(f"memory://{tmp_path.name}", "first")

    async def live() -> float:
        keeper = asyncio.create_task(sharing.run(lambda: None, lambda _: None))
        began_s = time.monotonic()
        sharing.join()
        await until(lambda: share_of(sharing) == 1)
        waited_s = time.monotonic() - began_s
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        return waited_s

    assert asyncio.run(live()) >= 3.0
