"""A quota in a real Redis, shared by several senders that act as processes."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.permits import BLOCK_S, LATE_S

pytest.importorskip("redis")

from arkbeam.quota.redis_sharing import SLACK_S, RedisSharing, open_redis, redis_key

ACCOUNT = "ark-default"


class Sender:
    """Sends as fast as it may, and counts."""

    def __init__(self, url: str, rpm: int, tpm: int, tokens: float = 10.0, password: str | None = None) -> None:
        self.pacer = Pacer(rpm, tpm, 1.0, time.monotonic())
        self.sharing = RedisSharing(open_redis(url, password), ACCOUNT, self.pacer, unshared_s_max=0.5)
        self.tokens = tokens
        self.sent: list[float] = []
        self.gone: list[str] = []

    async def send(self, until_s: float, requests_max: int = 10**9) -> None:
        """Send until `until_s`, as `engine.admission` does."""
        while (now_s := time.monotonic()) < until_s and len(self.sent) < requests_max:
            wait_s = self.pacer.wait_s(now_s, self.tokens) or self.sharing.wait_s(self.tokens, now_s)
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, 0.005))
            else:
                self.pacer.admit(self.tokens, now_s)
                self.sharing.take(self.tokens, now_s)
                self.sent.append(now_s)

    async def live(self, seconds: float, requests_max: int = 10**9) -> None:
        """Send for some seconds, then end normally."""
        keeper = asyncio.create_task(self.sharing.run(lambda: None, self.gone.append))
        await self.send(time.monotonic() + seconds, requests_max)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


def run_all(senders: list[Sender], seconds: float) -> None:
    """Run several senders at once."""

    async def live() -> None:
        await asyncio.gather(*(sender.live(seconds) for sender in senders))

    asyncio.run(live())


def most_above(sent: list[float], per_s: float) -> float:
    """Return by how much, at most, the requests of any window exceed its length times the rate."""
    worst = running = 0.0
    for before_s, at_s in zip([sent[0], *sent], sent, strict=False):
        running = max(0.0, running - per_s * (at_s - before_s)) + 1
        worst = max(worst, running)
    return worst


@pytest.mark.parametrize(("rpm", "tpm", "tokens"), [(6_000, 10**9, 10.0), (10**9, 600_000, 100.0)])
def test_four_share_one_quota_exactly(make_redis: Callable[..., Any], rpm: int, tpm: int, tokens: float) -> None:
    """In any window they send no more than the quota allows plus the blocks that they hold; each sends about a quarter."""
    url = make_redis().url
    senders = [Sender(url, rpm, tpm, tokens) for _ in range(4)]
    run_all(senders, 3.0)
    per_s = 100.0
    sent = sorted(at_s for sender in senders for at_s in sender.sent)
    assert most_above(sent, per_s) <= per_s * (SLACK_S + BLOCK_S + LATE_S) + len(senders)
    counts = [len(sender.sent) for sender in senders]
    assert min(counts) >= max(counts) / 2
    assert not any(sender.gone for sender in senders)


def test_what_is_not_used_is_given_back(make_redis: Callable[..., Any]) -> None:
    """A process that ends after one request returns the rest of its block, or its debt."""
    redis = make_redis()
    first = Sender(redis.url, 60, 10**9)
    asyncio.run(first.live(5.0, requests_max=1))
    paid_until_s = float(asyncio.run(_hash(redis.url))["requests_s"])
    assert paid_until_s - time.time() <= 1.01
    in_debt = Sender(redis.url, 10**6, 60_000, tokens=100.0)

    async def overspend() -> None:
        keeper = asyncio.create_task(in_debt.sharing.run(lambda: None, in_debt.gone.append))
        await in_debt.send(time.monotonic() + 5, requests_max=1)
        in_debt.pacer.settle(100.0, 30_100.0, time.monotonic())
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    asyncio.run(overspend())
    held = asyncio.run(_hash(redis.url))
    assert float(held["tokens_s"]) - time.time() == pytest.approx(30, abs=3)
    assert 30 < int(redis.ask("TTL", redis_key(ACCOUNT)).removeprefix(":")) < 3_600


async def _hash(url: str) -> dict[str, str]:
    client = open_redis(url, None)
    held: dict[str, str] = await client.hgetall(redis_key(ACCOUNT))
    await client.aclose()
    return held


def test_a_pause_holds_for_all(make_redis: Callable[..., Any]) -> None:
    """After a refusal of one process, the others get no new permits until its pause is over."""
    url = make_redis().url
    refused, other = Sender(url, 600, 10**9), Sender(url, 600, 10**9)

    async def live() -> float:
        keepers = [asyncio.create_task(one.sharing.run(lambda: None, one.gone.append)) for one in (refused, other)]
        await refused.send(time.monotonic() + 5, requests_max=1)
        refused.pacer.pause(3.0, time.monotonic())
        until_s = refused.pacer.paused_until_s
        await asyncio.sleep(1.0)  # Redis knows of the pause within half a second
        await other.send(time.monotonic() + 10, requests_max=1)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        return until_s

    assert asyncio.run(live()) - 0.1 <= other.sent[0]


def test_without_redis_nothing_is_sent_and_the_run_is_told(make_redis: Callable[..., Any]) -> None:
    """Held permits may be used. After a while one message says what to do, without secrets of the URL."""
    redis = make_redis()
    sender = Sender(redis.url, 600, 10**9)

    async def live() -> None:
        keeper = asyncio.create_task(sender.sharing.run(lambda: None, sender.gone.append))
        await sender.send(time.monotonic() + 5, requests_max=3)
        redis.kill()
        await sender.send(time.monotonic() + 2.5)
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    asyncio.run(live())
    assert len(sender.sent) <= 3 + 1 + 600 / 60 * BLOCK_S
    (message,) = sender.gone
    assert "quota.redis_url" in message


def test_a_wrong_password_is_told_at_once(make_redis: Callable[..., Any]) -> None:
    """A wrong password is reported at once, since waiting would not help; no message shows it, and the right one works."""
    redis = make_redis("opens-it-7731")
    wrong = Sender(redis.url, 600, 10**9, password="opens-not-7731")
    run_all([wrong], 0.4)
    assert wrong.sent == []
    assert len(wrong.gone) == 1
    assert "7731" not in wrong.gone[0]
    right = Sender(redis.url, 600, 10**9, password="opens-it-7731")
    run_all([right], 1.0)
    assert right.sent
