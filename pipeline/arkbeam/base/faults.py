"""Named fault points: places in the code where a test can make storage fail or kill the process.

Production code calls `faults.hit("store.flush")`, a function that does nothing. If the environment variable
`ARKBEAM_FAULTS` is set when this module is first imported, `hit` runs the faults that the variable lists:

    ARKBEAM_FAULTS="POINT[@GLOB]:ACTION[=ARGUMENT]:WHEN[;...]"

    store.flush:kill:3                        SIGKILL this process at its third flush
    file.commit@*/segments/*:enospc:1+        every write of a segment fails with "disk full", from the first on
    file.written@*/segments/*:flip=1000:2     flip one bit in byte 1000 of the second segment

GLOB is matched against the path that is passed to the point. WHEN is the number of the hit, counted from 1 in each
process; a `+` after it means that hit and all later ones. Actions: `kill`; `sleep=SECONDS`; `truncate=BYTES` and
`flip=BYTE` change the file at the path (`flip` flips the lowest bit of the byte; a negative BYTE counts from the end);
any errno name in lower case raises that OSError.

Points:
    read.chunk, read.summary, plan.bucket, plan.deal, plan.dealt, plan.settle; embed.sending, embed.answered,
    store.flush, store.flushed; publish.begin, publish.part, commit.check, commit.clean, commit.note, commit.page,
    commit.success, commit.done; compact.record, compact.events, compact.segment, compact.written, compact.index,
    compact.final, compact.remove; for every file that `base.files` writes: file.write (nothing is written yet), file.commit
    (all bytes are written, the file is not visible yet) and file.written (the file is visible).
"""

import errno
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from arkbeam.base.errors import ConfigError

VARIABLE = "ARKBEAM_FAULTS"


class Hit(Protocol):
    """The type of `hit`: report that a named point was reached. `path`: the file that is read or written there."""

    def __call__(self, point: str, path: str = "") -> None:
        """Do nothing, or run the fault that is due at this point."""


def do_nothing(point: str, path: str = "") -> None:
    """What `hit` is in production."""


@dataclass(slots=True)
class FaultEntry:
    """One entry of the variable. `hits` counts how often its point was reached with a matching path."""

    point: str
    glob: str
    action: str
    argument: float
    first: int
    onwards: bool
    hits: int = 0

    def is_due(self, point: str, path: str) -> bool:
        """Count the hit if point and path match; return True if the fault must happen at this hit."""
        if point != self.point or not fnmatchcase(path, self.glob):
            return False
        self.hits += 1
        return self.hits == self.first or (self.onwards and self.hits > self.first)

    def act(self, point: str, path: str) -> None:
        """Run the action. Raise OSError if the action is an errno name."""
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

    entries: list[FaultEntry]
    lock: threading.Lock

    @classmethod
    def parse(cls, text: str) -> "Injector":
        """Parse the value of `ARKBEAM_FAULTS`. Raise ConfigError for a malformed entry."""
        return cls([_parse_entry(entry) for entry in text.split(";") if entry], threading.Lock())

    def hit(self, point: str, path: str = "") -> None:
        """Run the faults that are due at a point."""
        with self.lock:
            due = [entry for entry in self.entries if entry.is_due(point, path)]
        for entry in due:
            entry.act(point, path)


def flip_bit(path: str, bit: int) -> None:
    """Flip one bit of a file; a negative bit number counts from the end."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[bit // 8] ^= 1 << (bit % 8)
        file.seek(0)
        file.write(data)


def _parse_entry(text: str) -> FaultEntry:
    try:
        place, action, when = text.rsplit(":", 2)
        point, _, glob = place.partition("@")
        action, _, argument = action.partition("=")
        entry = FaultEntry(point, glob or "*", action, float(argument or 0), int(when.rstrip("+")), when.endswith("+"))
    except ValueError:
        raise ConfigError(f"{VARIABLE}: {text!r} is not POINT[@GLOB]:ACTION[=ARGUMENT]:WHEN") from None
    if action not in ("kill", "sleep", "truncate", "flip") and not hasattr(errno, action.upper()):
        raise ConfigError(f"{VARIABLE}: unknown action {action!r}")
    return entry


def _load() -> Hit:
    wanted = os.environ.get(VARIABLE)
    return Injector.parse(wanted).hit if wanted else do_nothing


hit: Hit = _load()
"""Report that a point was reached: `do_nothing`, or the injector's `hit` if `ARKBEAM_FAULTS` is set."""
