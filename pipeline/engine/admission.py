"""The gate that every request passes: it waits here until the budgets have room, first come, first served."""

import asyncio
import time
from dataclasses import dataclass, field

from pipeline.pacing.budget import Pacer

STOP_CHECK_S = 0.2  # the longest sleep that a stop can't cut short


@dataclass(slots=True)
class Admission:
    """Used by the engine's thread alone."""

    pacer: Pacer
    _closed: bool = False
    _gate: asyncio.Lock = field(default_factory=asyncio.Lock)

    def close(self) -> None:
        """Let nothing more through."""
        self._closed = True

    async def enter(self, tokens: float) -> bool:
        """Wait for both budgets and book the request; False when the gate was closed meanwhile."""
        async with self._gate:
            while not self._closed:
                now_s = time.monotonic()
                wait_s = self.pacer.wait_s(now_s)
                if wait_s <= 0:
                    self.pacer.admit(tokens, now_s)
                    return True
                await asyncio.sleep(min(wait_s, STOP_CHECK_S))
            return False
