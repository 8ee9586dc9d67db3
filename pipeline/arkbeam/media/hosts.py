"""How often each web host is asked: a limit at the same time, pauses that the host asks for, and less if it keeps failing.

`HostPace` decides, without clock and network; `HostGate` lets coroutines wait for their turn. The limit falls to half
when a host refuses (429 and the like) and rises by one for as many replies as the limit. A host that has failed for
`DOWN_S`, without a reply in between, is down: one request at a time finds out whether it is back, and all others fail
at once, so that a host that is gone does not hold up a run.
"""

import asyncio
import email.utils
import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC

from arkbeam.base.bad_rows import BadRow
from arkbeam.base.records import Failure

BACKOFF_S = 0.5
BACKOFF_S_MAX = 30.0
DOWN_S = 30.0
DOWN_FAILURES = 8
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_DIGITS_MAX = 12


def read_retry_after(value: str | None, date: str | None, now_s: float) -> float | None:
    """Return the seconds, above 0, that a `Retry-After` header asks to wait; None if it asks for none.

    It is a number of seconds, or an HTTP date. A date is compared with the reply's own `Date`, else with `now_s`
    (seconds since 1970), so that a wrong clock does no harm.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return _above_zero(float(text)) if len(text) <= _DIGITS_MAX else math.inf
    until = _read_date(text)
    if until is None:
        return None
    sent = _read_date(date)
    return _above_zero(until - (now_s if sent is None else sent))


def _above_zero(wait_s: float) -> float | None:
    return wait_s if wait_s > 0 else None


def _read_date(text: str | None) -> float | None:
    try:
        parsed = email.utils.parsedate_to_datetime(text or "")
        return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def backoff_s(tries: int, random: Callable[[], float]) -> float:
    """Return the seconds to wait after so many failed tries: twice as long each time, from half to all of it."""
    return min(BACKOFF_S_MAX, BACKOFF_S * 2.0 ** min(tries - 1, 10)) * (0.5 + random() / 2)


@dataclass(slots=True)
class HostPace:
    """How one host is asked. All times are seconds of one monotonic clock."""

    most: int
    """The limit of requests at the same time, for a host that does not fail."""
    limit: float = field(init=False)
    active: int = 0
    resumes_at: float = 0.0
    failures: int = 0
    """Failures since the last proper reply."""
    pauses: int = 0
    """Pauses since the last proper reply."""
    failing_since: float = 0.0
    last: Failure = field(default_factory=lambda: Failure("media_unreachable", "no reply"))

    def __post_init__(self) -> None:
        self.limit = float(self.most)

    def is_down(self, now: float) -> bool:
        """Return True if the host has not answered properly for a while."""
        return self.failures >= DOWN_FAILURES and now - self.failing_since >= DOWN_S

    def has_room(self, now: float) -> bool:
        """Return True if one more request may run beside the active ones."""
        return self.active < (1 if self.is_down(now) else int(self.limit))

    def succeed(self) -> None:
        """Record a proper reply, of any status that does not blame the host."""
        self.failures = self.pauses = 0
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def fail(
        self, now: float, failure: Failure, *, refused: bool, asked_s: float | None, random: Callable[[], float]
    ) -> None:
        """Record a failure that blames the host, and that may pass.

        The host pauses if it `refused`, if it asked for it (`asked_s`), or if all that was sent at one time failed.
        Requests that were sent before a pause began are refused for the same reason: they do not halve the limit again.
        """
        self.count_failure(now, failure)
        if refused or asked_s is not None or self.failures >= self.limit:
            if now >= self.resumes_at:
                self.limit = max(1.0, self.limit / 2)
                self.pauses += 1
            pause_s = backoff_s(self.pauses, random) if asked_s is None else asked_s
            self.resumes_at = max(self.resumes_at, now + pause_s)

    def count_failure(self, now: float, failure: Failure) -> None:
        """Record a failure that is not tried again, such as a closed port: the host does not pause for it."""
        if not self.failures:
            self.failing_since = now
        self.failures += 1
        self.last = failure

    def describe_outage(self, now: float) -> Failure:
        """Return the failure of a medium for which a host that is down was not asked."""
        reason = f"the host has failed for {now - self.failing_since:.0f} s and is asked less: {self.last.message}"
        return Failure(self.last.code, reason)


class HostGate:
    """The queue in front of one host. It belongs to one event loop."""

    def __init__(self, pace: HostPace) -> None:
        self.pace = pace
        self._again: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """True if no request is active or waits."""
        return not (self.pace.active or self._again or self._new)

    async def enter(self, *, again: bool) -> None:
        """Wait for a turn; requests that have failed before go first. Raise BadRow if the host is down."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._again if again else self._new).append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()
            raise

    def leave(self) -> None:
        """End a turn."""
        self.pace.active -= 1
        self._admit()

    def _admit(self) -> None:
        """Give turns to those that wait, as far as the pace allows; come back when a pause ends."""
        loop = asyncio.get_running_loop()
        while waiting := self._again or self._new:
            now = loop.time()
            paused_s = self.pace.resumes_at - now
            if waiting[0].done():  # its coroutine was cancelled
                waiting.popleft()
            elif self.pace.is_down(now) and (paused_s > 0 or self.pace.active):
                waiting.popleft().set_exception(BadRow(self.pace.describe_outage(now)))
            elif not self.pace.has_room(now):
                return
            elif paused_s > 0:
                if self._timer is None:
                    self._timer = loop.call_later(paused_s, self._resume)
                return
            else:
                self.pace.active += 1
                waiting.popleft().set_result(None)

    def _resume(self) -> None:
        self._timer = None
        self._admit()
