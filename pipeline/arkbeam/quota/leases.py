"""Who may send how much, among processes that share a quota and meet in a listing of marks alone.

Each process writes a mark, renews it about every second, and lists all marks about as often; its share of the quota is one by
the number of marks that live. What holds, where a write that has ended is in every later listing and all clocks run equally
fast: **at any moment the shares of all processes that may send add up to at most 1**. It rests on four rules:

- nobody sends before its mark has stood for a lease, so that everybody who still sends has listed it (or, with `wait=False`,
  before it has listed the marks after writing its own and found no other: of two that join, the later sees the earlier);
- nobody sends once a lease has passed since its last good write or its last listing *began*;
- who let its lease run out joins anew, as if it had just come;
- a mark is dropped after two leases without a change, by the observer's own clock: its owner has been silent for one by then,
  and must join anew before it sends again.

The check and the sending are two steps: a process that stalls between them sends, when it wakes, what it had let in already.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

RENEW_S = 1.0
LEASE_S = 3.0
DROP_S = 2 * LEASE_S


@dataclass(frozen=True, slots=True)
class _Seen:
    """A token of another's mark, and when it was first seen."""

    token: str
    since_s: float


@dataclass(slots=True)
class Membership:
    """One process's part in the sharing. All times are of its own monotonic clock; `created_s` is now.

    `wait`: stand a lease before sending even when alone, for stores where a listing may have begun before the write ended.
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
        """Note that the own mark is written; the write began at `started_s`."""
        if now_s - self._written_s >= LEASE_S:
            self._joined_s = now_s
        self._written_s = started_s
        self._note_able(now_s)

    def note_listing(self, marks: Mapping[str, str], now_s: float, started_s: float | None = None) -> None:
        """Note a listing: name to token, the own mark included. It began at `started_s`, else just now."""
        listed_s = now_s if started_s is None else started_s
        self._seen = {
            name: before if (before := self._seen.get(name)) and before.token == token else _Seen(token, now_s)
            for name, token in marks.items()
            if name != self.name
        }
        self._others = sum(listed_s - seen.since_s < DROP_S for seen in self._seen.values())
        self._listed_s = listed_s
        if self.name not in marks and listed_s >= self._joined_s:  # it was removed: nobody knows of us
            self._joined_s, self._written_s = math.inf, -math.inf
        self._note_able(now_s)

    def share(self, now_s: float) -> float:
        """Return the share of the quota that may be used now, 0 while nothing may be sent."""
        return 1 / self.alive if self._may_send(now_s) else 0.0

    def blocked_s(self, now_s: float) -> float:
        """Return for how long nothing could be sent, to within a renewal."""
        return 0.0 if self._may_send(now_s) else now_s - max(self.created_s, self._able_s)

    @property
    def alive(self) -> int:
        """How many share the quota, this process included, as of the last listing."""
        return 1 + self._others

    def find_stale(self, age_s: float) -> list[str]:
        """Return the names of marks that had not changed for so long at the last listing: their processes are gone."""
        return [name for name, seen in self._seen.items() if self._listed_s - seen.since_s >= age_s]

    def _may_send(self, now_s: float) -> bool:
        if now_s - min(self._written_s, self._listed_s) >= LEASE_S or self._listed_s < self._joined_s:
            return False
        return now_s - self._joined_s >= LEASE_S or (not self.wait and self._others == 0)

    def _note_able(self, now_s: float) -> None:
        if self._may_send(now_s):
            self._able_s = now_s
