"""Requests and tokens per minute, as the service might count them. Pure: the time is an argument."""

import math
from collections import deque
from enum import StrEnum
from typing import assert_never

from arkbeam.emulator.options import QuotaWindow

MINUTE_S = 60.0


class Limit(StrEnum):
    """Which budget has no room."""

    REQUESTS = "rpm"
    TOKENS = "tpm"


class QuotaMeter:
    """Counts what was let in over a minute and says whether one more request fits. Times must not go back.

    A sliding minute at time t holds what was added in (t - 60, t]; a calendar minute what was added since t's last
    multiple of 60. Memory: one entry for each moment of the last minute.
    """

    def __init__(self, *, rpm: int | None, tpm: int | None, window: QuotaWindow) -> None:
        """Start empty. None is no limit."""
        self._rpm = math.inf if rpm is None else rpm
        self._tpm = math.inf if tpm is None else tpm
        self._window = window
        self._entries: deque[tuple[float, int, int]] = deque()
        self._requests = 0
        self._tokens = 0

    def find_limit(self, tokens: int, now_s: float) -> Limit | None:
        """Say which limit a request of so many tokens would break now, if any. Adds nothing."""
        self._forget(now_s)
        return self._limit(self._requests, self._tokens, tokens)

    def add(self, requests: int, tokens: int, now_s: float) -> None:
        """Count requests and tokens at this moment."""
        if self._rpm == self._tpm == math.inf:
            return  # nothing to remember them for
        self._entries.append((now_s, requests, tokens))
        self._requests += requests
        self._tokens += tokens

    def room_in_s(self, tokens: int, now_s: float) -> float:
        """Seconds until a request of so many tokens fits if nothing else comes; a minute if it never will."""
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
