"""What happens at named faults, for tests: `ARKBEAM_FAULTS="POINT[@GLOB]:ACTION[=ARGUMENT]:WHEN[;…]"`.

    store.flush:kill:3                        die by SIGKILL at the third flush of this process
    file.commit@*/segments/*:enospc:1+        no segment gets past the disk that is full, from the first on
    file.written@*/segments/*:flip=1000:2     turn one bit over in byte 1000 of the second segment

GLOB is matched with the path that the point is about. WHEN is the number of the hit, counted from 1 in each process, with a
`+` for that one and all after it. Actions: `kill`; `sleep=SECONDS`; `truncate=BYTES` and `flip=BYTE` on the file at the path
(the bit is the lowest; a negative BYTE counts from the end); and any errno by its name in lower case, raised as OSError.

Points: `read.chunk`, `read.summary`, `plan.bucket`, `plan.deal`, `plan.dealt`, `plan.settle`; `embed.sending`, `embed.answered`;
`store.flush`, `store.flushed`, `store.list`; `publish.begin`, `publish.part`, `publish.usage`; `commit.check`, `commit.clean`,
`commit.note`, `commit.success`, `commit.done`; and for every file of ours `file.write` (nothing is written), `file.commit` (its
bytes are complete and not yet visible) and `file.written` (it is visible).
"""

import errno
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase

from arkbeam.base.errors import ConfigError


@dataclass(slots=True)
class Fault:
    """One entry. `hits` counts how often its point was reached."""

    point: str
    glob: str
    action: str
    argument: float
    first: int
    onwards: bool
    hits: int = 0

    def is_due(self, point: str, path: str) -> bool:
        """Count a hit that is this fault's; tell whether it is the one that is wanted."""
        if point != self.point or not fnmatchcase(path, self.glob):
            return False
        self.hits += 1
        return self.hits == self.first or (self.onwards and self.hits > self.first)

    def act(self, point: str, path: str) -> None:
        """Do it."""
        match self.action:
            case "kill":
                sys.stderr.write(f"fault: killed at {point} {path}\n")
                sys.stderr.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep":
                time.sleep(self.argument)
            case "truncate":
                os.truncate(path, int(self.argument))
            case "flip":
                flip_bit(path, int(self.argument) * 8)
            case name:
                number = getattr(errno, name.upper())
                raise OSError(number, os.strerror(number), path)


@dataclass(slots=True)
class Injector:
    """All entries of a process."""

    faults: list[Fault]
    lock: threading.Lock

    @classmethod
    def parse(cls, text: str) -> "Injector":
        """Read entries. Raises ConfigError for one that can't be understood."""
        return cls([_parse(entry) for entry in text.split(";") if entry], threading.Lock())

    def hit(self, point: str, path: str = "") -> None:
        """Do what is due at a point."""
        with self.lock:
            due = [fault for fault in self.faults if fault.is_due(point, path)]
        for fault in due:
            fault.act(point, path)


def flip_bit(path: str, bit: int) -> None:
    """Turn one bit of a file over; a negative number counts from the end."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[bit // 8] ^= 1 << (bit % 8)
        file.seek(0)
        file.write(data)


def _parse(entry: str) -> Fault:
    try:
        place, action, when = entry.rsplit(":", 2)
        point, _, glob = place.partition("@")
        action, _, argument = action.partition("=")
        fault = Fault(point, glob or "*", action, float(argument or 0), int(when.rstrip("+")), when.endswith("+"))
    except ValueError:
        raise ConfigError(f"ARKBEAM_FAULTS: {entry!r} is not POINT[@GLOB]:ACTION[=ARGUMENT]:WHEN") from None
    if action not in ("kill", "sleep", "truncate", "flip") and not hasattr(errno, action.upper()):
        raise ConfigError(f"ARKBEAM_FAULTS: no action {action!r}")
    return fault
