"""The program of a worker process: do one task after the other, each within its CPU time."""

import os
import re
import resource
import select
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from arkbeam.decoding.workers import receive_message, send_message

_PARENT_CHECK_S = 5.0
_MEMORY_MAX, _HEADER_MEMORY_MAX = 6 * 2**30, 2**30
"""The most address space of the process in bytes: to decode an image, of which the largest needs about 2 GiB, and to read a
header."""
_HEADER_TASKS = ("film", "open")

_ADDRESS = re.compile(r" <\S+ object at 0x[0-9a-f]+>")  # differs from call to call
_complaints = -1
Answer = tuple[dict[str, Any], bytes]


class Refused(Exception):
    """The task can't be done for this medium: a failure code and a message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(descriptor: int, parent: int) -> None:
    """Serve the process `parent` at the other end of a socket until it ends."""
    _prepare()
    with socket.socket(fileno=descriptor) as link:
        while _wait_for_job(link, parent):
            try:
                facts, data = receive_message(link)
            except (EOFError, ConnectionError):
                return
            _limit_memory(_HEADER_MEMORY_MAX if facts["task"] in _HEADER_TASKS else _MEMORY_MAX)
            signal.setitimer(signal.ITIMER_PROF, facts.pop("cpu_s"))
            try:
                answer = _do(facts, data, link)
            except Refused as refused:
                answer = {"code": refused.code, "message": str(refused)}, b""
            except Exception as error:  # noqa: BLE001 (hostile bytes make decoders raise nearly anything)
                answer = {"error": _ADDRESS.sub("", f"{type(error).__name__}: {error}")[:500]}, b""
            signal.setitimer(signal.ITIMER_PROF, 0)
            del facts, data
            send_message(link, *answer)
            del answer


def _prepare() -> None:
    """Let the timer kill this process, and keep what libraries print for `take_complaints`."""
    global _complaints
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _complaints, end = os.pipe()
    os.set_blocking(_complaints, False)
    os.set_blocking(end, False)  # what does not fit into the pipe is dropped
    os.dup2(end, 2)
    os.close(end)


def take_complaints() -> bytes:
    """Return what libraries have printed as errors since the last call, at most 64 KiB."""
    try:
        return os.read(_complaints, 65_536)
    except BlockingIOError:
        return b""


def _limit_memory(size: int) -> None:
    with suppress(ValueError, OSError):  # macOS has no such limit; an administrator's may be lower
        resource.setrlimit(resource.RLIMIT_AS, (size, _MEMORY_MAX))


def _wait_for_job(link: socket.socket, parent: int) -> bool:
    """Wait for bytes; return False if the parent has ended. Other processes may hold its end of the socket open."""
    while not select.select([link], [], [], _PARENT_CHECK_S)[0]:
        if os.getppid() != parent:
            return False
    return True


def _do(facts: dict[str, Any], data: bytes, link: socket.socket) -> Answer:
    from arkbeam.decoding import films, pictures  # noqa: PLC0415 (not before the limits are set)

    def read(start: int, end: int) -> bytes:
        send_message(link, {"read": [start, end]}, b"")
        return receive_message(link)[1]

    task = facts.pop("task")
    if task == "film":
        return films.examine(data, read, **facts), b""
    tasks: dict[str, Callable[..., Answer]] = {
        "open": pictures.open_header,
        "check": pictures.check_whole,
        "range": pictures.find_range,
        "fit": pictures.fit,
    }
    return tasks[task](data, **facts)
