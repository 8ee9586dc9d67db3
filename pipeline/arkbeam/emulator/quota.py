"""Count requests and tokens per minute as the service might do it. Pure: the time is an argument."""

import math
from collections import deque
from enum import StrEnum
from typing import assert_never

from arkbeam.emulator.options import QuotaWindow

MINUTE_S = 60.0


class Limit(StrEnum):
    """The limit that a request would exceed."""

    REQUESTS = "rpm"
    TOKENS = "tpm"


class QuotaMeter:
    """Counts the requests and tokens of the current minute and says whether one more request fits.

    A sliding minute at time t contains what was added in (t - 60, t]; a calendar minute contains what was added since
    the last multiple of 60. Times must not decrease. Memory: one entry per call of `add` in the last minute.
    """

    def __init__(self, *, rpm: int | None, tpm: int | None, window: QuotaWindow) -> None:
        """Start empty. None means no limit."""
        self._rpm = math.inf if rpm is None else rpm
        self._tpm = math.inf if tpm is None else tpm
        self._window = window
        self._entries: deque[tuple[float, int, int]] = deque()
        self._requests = 0
        self._tokens = 0

    def find_limit(self, tokens: int, now_s: float) -> Limit | None:
        """Return the limit that a request with this many tokens would exceed now, or None. Nothing is counted."""
        self._forget(now_s)
        return self._limit(self._requests, self._tokens, tokens)

    def add(self, requests: int, tokens: int, now_s: float) -> None:
        """Count requests and tokens at the time `now_s`."""
        if self._rpm == self._tpm == math.inf:
            return  # without limits the entries are not needed
        self._entries.append((now_s, requests, tokens))
        self._requests += requests
        self._tokens += tokens

    def room_in_s(self, tokens: int, now_s: float) -> float:
        """Return the seconds until a request with this many tokens fits, if no other comes; 60 if it never fits."""
        self._forget(now_s)
        requests_left, tokens_left = self._requests, self._tokens
        if self._limit(requests_left, tokens_left, tokens) is None:
            return 0.0
        for at_s, requests, spent in self._entries:
            requests_left, tokens_left = requests_left - requests, tokens_left - spent
            if self._limit(requests_left, tokens_left, tokens) is None:
                return self._leaves_at(at_s) - now_s
        return MINUTE_S

    def _limit(self, requests: int, spent: int, tokens: int) -> Limit | None:
        if requests + 1 > self._rpm:
            return Limit.REQUESTS
        return Limit.TOKENS if spent + tokens > self._tpm else None

    def _leaves_at(self, at_s: float) -> float:
        match self._window:
            case QuotaWindow.SLIDING:
                return at_s + MINUTE_S
            case QuotaWindow.CALENDAR:
                return (at_s // MINUTE_S + 1) * MINUTE_S
            case _:
                assert_never(self._window)

    def _forget(self, now_s: float) -> None:
        while self._entries and self._leaves_at(self._entries[0][0]) <= now_s:
            _, requests, tokens = self._entries.popleft()
            self._requests -= requests
            self._tokens -= tokens
