"""Processes that outlive the command that started them: pid files with start times, so that only our own are ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

_END_S = 10.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process of ours. A number is given again to another process, but not together with the same start."""

    name: str
    pid: int
    started: int
    """In clock ticks since the machine started."""

    @property
    def is_running(self) -> bool:
        """True if the process runs."""
        return _start_of(self.pid) == self.started


def start(name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> Recorded:
    """Start a process in its own session; write `<name>.pid` and `<name>.log` in a folder."""
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    recorded = Recorded(name, process.pid, _start_of(process.pid) or 0)
    (folder / f"{name}.pid").write_bytes(orjson.dumps(asdict(recorded)))
    return recorded


def list_recorded(folder: Path) -> list[Recorded]:
    """Return the processes of a folder's pid files, running or not, by name."""
    return [Recorded(**orjson.loads(path.read_bytes())) for path in sorted(folder.glob("*.pid"))]


def end(processes: Sequence[Recorded], folder: Path) -> None:
    """End processes with their children (SIGTERM, after 10 s SIGKILL), and remove their pid files."""
    ours = [process for process in processes if process.is_running]
    _signal(ours, signal.SIGTERM)
    _wait_for(ours)
    _signal(ours, signal.SIGKILL)  # children too, which may be stopped
    _wait_for(ours)
    for process in processes:
        (folder / f"{process.name}.pid").unlink(missing_ok=True)


def forget_ended(folder: Path) -> None:
    """Remove the pid files of processes that have ended."""
    for process in list_recorded(folder):
        if not process.is_running:
            (folder / f"{process.name}.pid").unlink(missing_ok=True)


def list_children(pid: int) -> list[int]:
    """Return the processes that a process, in any of its threads, has started and that still run."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += map(int, children.read_text("ascii").split())
    return sorted(found)


def _wait_for(processes: Sequence[Recorded]) -> None:
    deadline_s = time.monotonic() + _END_S
    while any(process.is_running for process in processes) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _signal(processes: Sequence[Recorded], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _start_of(pid: int) -> int | None:
    """Return when a process was started; None if it does not run. A process that ended and was not waited for does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
