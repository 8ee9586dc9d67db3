"""Attempts at blocks: which attempt of this process at a block is the newest.

A runner may repeat a bundle while its first attempt still runs, for example after the loss of another worker. Both may
then be threads of one process. The newer attempt takes over the items of the older one that the engine holds; items of
an older attempt that were not sent are not sent any more.
"""

import threading
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt at a block, which is named by its shard and its number in the shard."""

    block: tuple[int, int] = (0, 0)
    is_repeated: bool = False
    """True if the block may have been worked on before: results of earlier attempts must be looked for."""
    superseded: bool = False
    """True if a newer attempt has begun: nothing more is sent for this one."""


@dataclass(slots=True)
class Attempts:
    """The attempts of this process, one for each block: the newest. Safe to use from several threads."""

    _newest: dict[tuple[int, int], Attempt | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, block: tuple[int, int]) -> Attempt:
        """Begin an attempt; one of this process that has not ended is superseded."""
        with self._lock:
            is_repeated, before = block in self._newest, self._newest.get(block)
            if before is not None:
                before.superseded = True
            attempt = self._newest[block] = Attempt(block, is_repeated)
            return attempt

    def end(self, attempt: Attempt) -> None:
        """Note that everything of an attempt is stored or failed."""
        with self._lock:
            if self._newest.get(attempt.block) is attempt:
                self._newest[attempt.block] = None
