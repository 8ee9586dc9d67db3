"""The share of each process in a quota that several processes use, computed from listings of marks alone.

Each process writes a mark, renews it about every second, and lists all marks about as often. Its share is 1 divided by
the number of marks that are alive. The guarantee: **at any moment the shares of all processes that may send add up to
at most 1**. It needs a store in which a finished write is in every later listing, and clocks that run at the same
speed. Four rules give it:

- A process does not send before its mark is a lease old: by then every process that still sends has listed the mark. With
  `wait=False` it may send earlier, if a listing made after its own write shows no other mark: of two processes that join at
  once, the later one sees the earlier.
- A process does not send when its last successful write, or its last listing, *began* a lease ago or earlier.
- A process whose lease ran out joins again like a new process.
- A process ignores a mark that did not change for two leases of the process's own clock. The owner of that mark stopped
  sending at least one lease ago, and must join again before it sends.

Checking the share and sending are two steps: a process that stalls between them still sends the requests it had
admitted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

RENEW_S = 1.0
LEASE_S = 3.0
DROP_S = 2 * LEASE_S


@dataclass(frozen=True, slots=True)
class _Seen:
    """The token of another process's mark, and when this token was first seen."""

    token: str
    since_s: float


@dataclass(slots=True)
class Membership:
    """The membership of one process. All times are of its own monotonic clock; `created_s` is the time of creation.

    `wait`: wait for a lease before sending even if no other mark is seen. Needed for object stores, where another
    process's listing may have begun before this process's write ended.
    """

    name: str
    created_s: float
    wait: bool = field(kw_only=True)
    _joined_s: float = math.inf
    _written_s: float = -math.inf
    _listed_s: float = -math.inf
    _able_s: float = -math.inf
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _others: int = 0

    def note_renewal(self, started_s: float, now_s: float) -> None:
        """Note that the own mark was written; the write began at `started_s`."""
        if now_s - self._written_s >= LEASE_S:
            self._joined_s = now_s
        self._written_s = started_s
        self._note_able(now_s)

    def note_listing(self, marks: Mapping[str, str], now_s: float, started_s: float | None = None) -> None:
        """Note a listing, as tokens by name, the own mark included. It began at `started_s`, by default at `now_s`."""
        listed_s = now_s if started_s is None else started_s
        self._seen = {
            name: before if (before := self._seen.get(name)) and before.token == token else _Seen(token, now_s)
            for name, token in marks.items()
            if name != self.name
        }
        self._others = sum(listed_s - seen.since_s < DROP_S for seen in self._seen.values())
        self._listed_s = listed_s
        # If the own mark was removed, the others do not count this process: it must join again.
        if self.name not in marks and listed_s >= self._joined_s:
            self._joined_s, self._written_s = math.inf, -math.inf
        self._note_able(now_s)

    def share(self, now_s: float) -> float:
        """Return the share of the quota that this process may use; 0 while it must not send."""
        return 1 / self.alive if self._may_send(now_s) else 0.0

    def blocked_s(self, now_s: float) -> float:
        """Return for how long this process could not send, to the accuracy of one renewal."""
        return 0.0 if self._may_send(now_s) else now_s - max(self.created_s, self._able_s)

    @property
    def alive(self) -> int:
        """The number of processes that share the quota, this one included, as of the last listing."""
        return 1 + self._others

    def find_stale(self, age_s: float) -> list[str]:
        """Return the names of the marks that had not changed for `age_s` at the last listing: their processes have ended."""
        return [name for name, seen in self._seen.items() if self._listed_s - seen.since_s >= age_s]

    def _may_send(self, now_s: float) -> bool:
        if now_s - min(self._written_s, self._listed_s) >= LEASE_S or self._listed_s < self._joined_s:
            return False
        return now_s - self._joined_s >= LEASE_S or (not self.wait and self._others == 0)

    def _note_able(self, now_s: float) -> None:
        if self._may_send(now_s):
            self._able_s = now_s
