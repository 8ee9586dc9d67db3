"""Sharing the quota exactly, through Redis: this process takes permits from it in blocks.

Redis holds one hash for each account, with two times: when the granted requests, and the granted tokens, will be paid
off at the allowed rate. One script changes both atomically by the clock of Redis. It is the leaky bucket of
`quota.rate` for all processes together: no burst at the start, a slack, and debts and refunds as plain additions.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from arkbeam.base.errors import ConfigError
from arkbeam.base.redaction import redact
from arkbeam.quota.pacer import Pacer
from arkbeam.quota.permits import PermitBlock, Permits

SLACK_S = 0.1  # less than `quota.rate` allows a single process, since each process holds permits in addition
TICK_S = 0.5  # how often new pauses are written to Redis while no permits are needed
RETRY_S = 0.5
TIMEOUT_S = 2.0
KEEP_S = 600  # Redis deletes the hash of an account so long after its debt is paid off

# Arguments: requests and tokens a second, slack, pause, requests and tokens to grant, KEEP_S. Result: seconds until the
# grant is valid. Negative amounts (returned permits) only move the times. Times are formatted as text: Lua would write
# 14 digits, and Redis would return integers.
SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'requests_s', 'tokens_s')
local rates = {tonumber(ARGV[1]), tonumber(ARGV[2])}
local slack, pause = tonumber(ARGV[3]), tonumber(ARGV[4])
local costs = {tonumber(ARGV[5]), tonumber(ARGV[6])}
local paid, start = {}, now
for i = 1, 2 do
  paid[i] = math.max(tonumber(held[i] or now) or now, now - slack)
  if pause > 0 then paid[i] = math.max(paid[i], now + pause) end
  if costs[1] > 0 or costs[2] > 0 then start = math.max(start, paid[i]) end
end
local last = now
for i = 1, 2 do
  if costs[i] > 0 then paid[i] = math.max(paid[i], start - slack) end
  paid[i] = paid[i] + costs[i] / rates[i]
  last = math.max(last, paid[i])
end
redis.call('HSET', KEYS[1], 'requests_s', string.format('%.6f', paid[1]), 'tokens_s', string.format('%.6f', paid[2]))
redis.call('EXPIRE', KEYS[1], math.ceil(last - now) + tonumber(ARGV[7]))
return string.format('%.6f', start - now)
"""

_log = logging.getLogger(__name__)


def open_redis(url: str, password: str | None) -> Any:
    """Make a client that connects on first use, in the event loop that uses it.

    Raise ConfigError if the URL is malformed.
    """
    bounds = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "retry": Retry(NoBackoff(), 0)}
    try:
        return Redis.from_url(url, password=password, decode_responses=True, **bounds)
    except ValueError as error:
        raise ConfigError(f"quota.redis_url: {redact(str(error))}") from None


def redis_key(account: str) -> str:
    """Return the Redis key of an account's quota."""
    return f"arkbeam:quota:{account}"


@dataclass(slots=True)
class RedisSharing:
    """Holds permits, and asks Redis for more while requests wait. `client` comes from `open_redis`."""

    client: Any
    account: str
    pacer: Pacer
    unshared_s_max: float
    _permits: Permits = field(init=False)
    _script: Any = field(init=False)
    _wanted: float | None = None
    _paused_until_s: float = -math.inf
    _failing_since_s: float | None = None
    _reported: bool = False
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        headroom_s = self.pacer.headroom / 60
        self._permits = Permits(self.pacer.rpm * headroom_s, self.pacer.tpm * headroom_s)
        self._script = self.client.register_script(SCRIPT)

    def refresh(self, now_s: float) -> None:
        """Do nothing: the share stays 1, and the permits bound this process."""

    def wait_s(self, tokens: float, now_s: float) -> float:
        """Return the seconds until the held permits allow the request. If they never will, ask for more and return infinity."""
        self._permits.settle(self.pacer.take_excess())
        wait_s = self._permits.wait_s(tokens, now_s)
        self._wanted = tokens if wait_s == math.inf else None
        if self._wanted is not None:
            self._asked.set()
        return wait_s

    def take(self, tokens: float, now_s: float) -> None:
        """Use the permit for one request."""
        self._permits.take(tokens)

    def join(self) -> None:
        """Do nothing: permits are asked for when a request needs them."""

    def leave(self) -> None:
        """Do nothing: held permits expire soon, or are returned at the end."""

    async def run(self, on_changed: Callable[[], None], on_unreachable: Callable[[str], None]) -> None:
        """Ask for permits when requests need them, write pauses to Redis for the other processes, and return permits at the end."""
        try:
            while True:
                try:
                    await asyncio.wait_for(self._asked.wait(), TICK_S)
                except TimeoutError:
                    if self._unreported_pause_s(time.monotonic()) > 0:
                        await self._call(PermitBlock(0.0, 0.0), on_unreachable)
                    continue
                await self._get_block(on_unreachable)
                on_changed()
        finally:
            await self._close()

    async def _get_block(self, on_unreachable: Callable[[str], None]) -> None:
        self._asked.clear()
        if self._wanted is None:
            return
        block = self._permits.choose_block(self._wanted)
        wait_s = await self._call(block, on_unreachable)
        if wait_s is None:
            self._asked.set()
            await asyncio.sleep(RETRY_S)
            return
        self._wanted = None
        self._permits.grant(block, time.monotonic() + wait_s)

    async def _call(self, block: PermitBlock, on_unreachable: Callable[[str], None]) -> float | None:
        """Ask Redis for a block; return the seconds until it is valid, or None if Redis cannot be reached."""
        now_s = time.monotonic()
        pause_s, paused_until_s = self._unreported_pause_s(now_s), self.pacer.paused_until_s
        rates = (self._permits.requests_per_s, self._permits.tokens_per_s)
        arguments = [*rates, SLACK_S, pause_s, block.requests, block.tokens, KEEP_S]
        try:
            answer = await self._script(keys=[redis_key(self.account)], args=arguments)
        except (RedisError, OSError, TimeoutError) as error:
            self._note_failure(error, now_s, on_unreachable)
            return None
        self._failing_since_s = None
        self._paused_until_s = max(self._paused_until_s, paused_until_s)
        return max(0.0, float(answer))

    def _unreported_pause_s(self, now_s: float) -> float:
        until_s = self.pacer.paused_until_s
        return max(0.0, until_s - now_s) if until_s > self._paused_until_s else 0.0

    def _note_failure(self, error: Exception, now_s: float, on_unreachable: Callable[[str], None]) -> None:
        """Warn once. Stop the run if Redis fails for `unshared_s_max`, or at once if it refuses the login."""
        what = redact(f"{type(error).__name__}: {error}")
        if self._failing_since_s is None:
            self._failing_since_s = now_s
            _log.warning(
                "cannot reach the Redis that shares the quota; nothing more is sent until it answers: %s", what
            )
        refused = isinstance(error, (AuthenticationError, NoPermissionError))
        if not self._reported and (refused or time.monotonic() - self._failing_since_s >= self.unshared_s_max):
            self._reported = True
            how_long = "" if refused else f" for {self.unshared_s_max:.0f} s"
            on_unreachable(
                f"the Redis that shares the quota could not be used{how_long} ({what}): check that quota.redis_url is "
                "correct and that Redis is running, then run the same command again"
            )

    async def _close(self) -> None:
        """Return the held permits, or settle the debt, and close the connection."""
        self._permits.settle(self.pacer.take_excess())
        block = self._permits.take_back()
        if block is not None and self._failing_since_s is None:
            await self._call(block, lambda _: None)
        await self.client.aclose()
