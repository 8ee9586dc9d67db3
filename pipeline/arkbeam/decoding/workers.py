"""The worker processes that decode media: started when they are needed, used again, killed when a job takes too long.

A process limits the CPU time of its own job: it dies of a signal, also inside C code. This holds while the machine is busy
and after the parent has died. A process ends when its parent does.
"""

import atexit
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from arkbeam.decoding.ranges import Reader

PROCESSES_MAX = 4
_HEADER = struct.Struct(">II")
_WALL_FACTOR, _WALL_S = 10, 20.0
_END_S = 10.0  # the longest wait for the end of a process that has closed its connection
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from arkbeam.decoding.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "LANG", "COVERAGE_PROCESS_CONFIG")
# Large blocks of memory are returned to the system at once, and no library starts threads.
_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}


class TooSlow(Exception):
    """The job took more time than it may, and its process ended."""


class Crashed(Exception):
    """The process of the job ended for another reason; the message says for which."""


class _Killed(Crashed):
    """The process was killed."""


class Interrupted(BaseException):
    """`stop` was called. Like KeyboardInterrupt, it is not an error of a medium."""


@dataclass(slots=True, eq=False)
class _Child:
    process: subprocess.Popen[bytes]
    link: socket.socket

    def kill(self) -> None:
        self.process.kill()
        with suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for the reply

    def close(self) -> None:
        self.process.kill()
        self.link.close()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@dataclass(slots=True)
class _Pool:
    """The worker processes of this process. `taken` counts those that have a job or are being started."""

    idle: list[_Child] = field(default_factory=list)
    busy: set[_Child] = field(default_factory=set)
    taken: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> _Child:
        """Wait for a free place; return an idle process, or a new one."""
        with self.changed:
            self.changed.wait_for(lambda: self.stopped.is_set() or self.taken < _processes_max())
            if self.stopped.is_set():
                raise Interrupted
            self.taken += 1
            child = self.idle.pop() if self.idle else None
        try:
            if child is not None and child.process.poll() is not None:  # it was killed from outside
                child.close()
                child = None
            child = child or _start()
        except BaseException:
            self._release(None)
            raise
        with self.changed:
            self.busy.add(child)
            if self.stopped.is_set():  # since the place was taken
                child.kill()
        return child

    def give_back(self, child: _Child, *, usable: bool) -> None:
        """Release the place of a process; end it if it can't be used again."""
        with self.changed:
            self.busy.discard(child)
            usable = usable and not self.stopped.is_set()
        if not usable:
            child.close()
        self._release(child if usable else None)

    def _release(self, child: _Child | None) -> None:
        with self.changed:
            self.taken -= 1
            if child is not None:
                self.idle.append(child)
            self.changed.notify()

    def stop(self) -> None:
        """Kill all processes; waiting callers and those with a job raise Interrupted."""
        with self.changed:
            self.stopped.set()
            for child in self.busy:
                child.kill()
            idle, self.idle = self.idle, []
            self.changed.notify_all()
        for child in idle:
            child.close()


_pool = _Pool()


def ask(
    task: str, facts: dict[str, Any], data: bytes = b"", *, cpu_s: float, read: Reader | None = None
) -> tuple[dict[str, Any], bytes]:
    """Do a task of `child` in a worker process; return its answer and bytes. Blocks: call it in a thread.

    The task may take `cpu_s` seconds of CPU time. It gets further bytes of the medium by `read`, whose exceptions are
    raised again. Raise TooSlow, Crashed, Interrupted.
    """
    try:
        return _ask_once(task, facts, data, cpu_s, read)
    except _Killed:  # from outside, perhaps while it was idle; a decoder that needs too much memory is killed again
        return _ask_once(task, facts, data, cpu_s, read)


def _ask_once(
    task: str, facts: dict[str, Any], data: bytes, cpu_s: float, read: Reader | None
) -> tuple[dict[str, Any], bytes]:
    pool = _pool
    child = pool.take()
    usable = False
    try:
        child.link.settimeout(_WALL_FACTOR * cpu_s + _WALL_S)
        send_message(child.link, {"task": task, "cpu_s": cpu_s, **facts}, data)
        while True:
            answer, packed = receive_message(child.link)
            if "read" not in answer:
                usable = True
                return answer, packed
            assert read is not None
            send_message(child.link, {}, read(*answer["read"]))
    except TimeoutError:
        raise TooSlow from None
    except (ConnectionError, EOFError):
        if pool.stopped.is_set():
            raise Interrupted from None
        _explain_end(child.process)
    finally:
        pool.give_back(child, usable=usable)


def stop() -> None:
    """End all jobs, and refuse new ones until `resume`. Can be called by a signal handler."""
    _pool.stop()


def resume() -> None:
    """Allow jobs again after `stop`."""
    _pool.stopped.clear()


def is_stopped() -> bool:
    """True from `stop` to `resume`."""
    return _pool.stopped.is_set()


def close() -> None:
    """End the idle processes."""
    with _pool.changed:
        children, _pool.idle[:] = list(_pool.idle), []
    for child in children:
        child.close()


def send_message(link: socket.socket, facts: dict[str, Any], data: bytes) -> None:
    """Send JSON and bytes, with their lengths before them."""
    text = json.dumps(facts).encode()
    link.sendall(_HEADER.pack(len(text), len(data)) + text)
    if data:
        link.sendall(data)


def receive_message(link: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Receive what `send_message` sent. Raise EOFError if the connection was closed."""
    lengths = _HEADER.unpack(_receive_bytes(link, _HEADER.size))
    return json.loads(_receive_bytes(link, lengths[0])), _receive_bytes(link, lengths[1])


def _receive_bytes(link: socket.socket, size: int) -> bytes:
    data, got = io.BytesIO(bytes(size)), 0
    with data.getbuffer() as view:
        while got < size:
            count = link.recv_into(view[got:])
            if not count:
                raise EOFError
            got += count
    return data.getvalue()  # without a copy


def _processes_max() -> int:
    return min(PROCESSES_MAX, os.cpu_count() or 1)


def _start() -> _Child:
    """Start a process. It has no signals of a terminal, no open files of this process, and no secrets of its environment."""
    link, other = socket.socketpair()
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _SETTINGS
    arguments = [json.dumps(sys.path), str(other.fileno()), str(os.getpid())]
    with other:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(other.fileno(),),
            env=environment,
            start_new_session=True,
        )
    return _Child(process, link)


def _explain_end(process: "subprocess.Popen[bytes]") -> NoReturn:
    """Raise the exception for a process that has closed its connection."""
    try:
        code = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        raise Crashed("the decoder closed its connection") from None
    if code in (-signal.SIGPROF, -signal.SIGXCPU):
        raise TooSlow
    if code == -signal.SIGKILL:
        raise _Killed("it was killed")
    said = b"" if process.stderr is None else process.stderr.read(10_000)
    reason = said.decode("utf-8", "replace").strip().rpartition("\n")[2]
    raise Crashed(reason or (signal.Signals(-code).name if code < 0 else f"exit code {code}"))


def _forget() -> None:
    """After a fork, leave the processes to the parent."""
    global _pool  # noqa: PLW0603 - the processes of a process
    for child in (*_pool.idle, *_pool.busy):
        child.link.close()
        child.process.returncode = 0  # so that Popen does not report that the process still runs
    _pool = _Pool()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
