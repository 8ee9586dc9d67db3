"""How several processes of one run divide its budget: each draws shares of it, by files in the store.

    <store>/runs/<run>/budget/<process>   "<tokens> <CNY / 10^12>": all that the process has drawn so far

A process writes its file and then lists the folder. The draw is valid if all listed draws, its own included, add up to
no more than the budget. If two processes draw at once, at least the later one sees the other's file, so the budget is
never exceeded; both may be refused and try again after a random pause. What a dead process has drawn stays drawn, since
the process may have used it.
"""

import random
import threading
import time
from dataclasses import dataclass, field

from arkbeam.base.errors import StoreError
from arkbeam.base.files import list_files, read_bytes, write_bytes
from arkbeam.base.uris import join
from arkbeam.quota.budget import NO_COST, Cost, choose_draw, is_within_budget
from arkbeam.store.layout import run_folder

TRIES_MAX = 6
PAUSE_S = 0.25
UNSHARED_PARTS = 2**20  # used as the number of lanes after a failed try: draw no more than is needed


@dataclass(slots=True)
class Draws:
    """The draws of one process. Safe to use from several threads."""

    store_uri: str
    run: str
    process: str
    budget: Cost
    lanes: int
    own: Cost = NO_COST
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, need: Cost) -> Cost | None:
        """Draw at least `need`; return what was drawn, or None if less than that is left.

        Raise StoreError if the files can't be read or written.
        """
        with self._lock:
            for number in range(TRIES_MAX):
                if number:
                    time.sleep(random.uniform(0.0, PAUSE_S * number))
                lanes = self.lanes if number == 0 else UNSHARED_PARTS
                more = choose_draw(self.budget, self.own, self._read_others(), need, lanes)
                if more is None:
                    continue  # another process may be about to undo its draw
                self._write(self.own.plus(more))
                if is_within_budget(self.budget, self.own.plus(more), self._read_others()):
                    self.own = self.own.plus(more)
                    return more
                self._write(self.own)
            return None

    def give_back(self, amount: Cost) -> None:
        """Give a part of what was drawn back to the budget."""
        with self._lock:
            self.own = self.own.minus(amount)
            self._write(self.own)

    @property
    def _folder(self) -> str:
        return join(run_folder(self.store_uri, self.run), "budget")

    def _write(self, amount: Cost) -> None:
        write_bytes(join(self._folder, self.process), f"{amount.tokens} {amount.pcny}".encode())

    def _read_others(self) -> list[Cost]:
        uris = [uri for uri in list_files(self._folder) if not uri.endswith((f"/{self.process}", ".tmp"))]
        return [_parse(uri, read_bytes(uri)) for uri in uris]


def _parse(uri: str, data: bytes) -> Cost:
    try:
        tokens, pcny = data.split()
        return Cost(int(tokens), int(pcny))
    except ValueError:
        raise StoreError(f"{uri} is damaged; run the same command again") from None
