"""A process that has imported arkbeam and forks: whole processes for the tests, without three seconds of imports each.

`WarmProcess` starts a Python that imports this module, and with it all that a run imports, and waits for requests on a Unix
socket. For each request it forks. The child takes the environment and streams that the request names and calls a function of a
module, such as `be_arkbeam`. From there on it is a process like any other: it has its own process id, obeys signals
and limits of the operating system, and ends with an exit code. What it does not show is that `python -m arkbeam` finds and imports
arkbeam: tests of that start one cold.
"""

import gc
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import arkbeam.app.job
import arkbeam.app.progress
import arkbeam.app.report  # noqa: F401 - imported for the children, as the one above
import fsspec.config
from arkbeam.app import cli
from arkbeam.base import faults
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import serve
from rich.console import Console

from scripts.children import ROOT, child_environment
from tests.quick_beam import remember

_LENGTH_BYTES = 4
_STREAMS = 3
_POLL_S = 0.02
_LIBRARIES = (
    "httpx",
    "httpcore",
    "aiohttp",
    "fsspec",
    "apache_beam",
    "botocore",
    "urllib3",
    "asyncio",
    "arkbeam",
    "s3fs",
)


@dataclass(frozen=True, slots=True)
class Task:
    """What a child is to do: call `function(*arguments)` at the root of the checkout, with an environment of its own.

    `before` is called first, to set limits. Both must be functions of modules, since they are sent by pickle.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]
    before: Callable[[], None] | None = None


class Child:
    """A forked process, as far as `subprocess.Popen` is used in the tests."""

    def __init__(self, parent: "WarmProcess", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal's number; None while the process runs."""
        if self.returncode is None:
            self.returncode = self._parent.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(_POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmProcess:
    """The process that forks, seen from the tests. It ends with the process that started it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from tests.warm import main; main({theirs.fileno()})"],
                cwd=ROOT,
                env=child_environment(OPENBLAS_NUM_THREADS="1"),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def fork(self, task: Task, out: IO[bytes], err: IO[bytes], kept: int | None = None) -> Child:
        """Start a child that writes to two files. `kept` is a descriptor that it gets as number 3."""
        descriptors = [out.fileno(), err.fileno(), *([] if kept is None else [kept])]
        return Child(self, self._ask(task, descriptors))

    def poll(self, pid: int) -> int | None:
        """Return how a child has ended, or None."""
        return self._ask(pid, [])

    def close(self) -> None:
        """End the process, and with it its claim on children that still run."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: Any, descriptors: list[int]) -> Any:
        with self._lock:
            _send(self._socket, request, descriptors)
            answer, _ = _receive(self._socket)
        if not answer:
            raise ChildProcessError(f"the warm process has ended: {self._process.wait()}")
        return pickle.loads(answer)


def be_arkbeam(*arguments: str) -> None:
    """Be `arkbeam` with these arguments. What was read from the environment at the time of the imports is read again."""
    sys.argv = ["arkbeam", *arguments]
    faults.hit = faults._load()
    fsspec.config.set_conf_env(fsspec.config.conf)
    cli.out, cli.err = Console(), Console(stderr=True)
    cli.main()


def be_loud_arkbeam(*arguments: str) -> None:
    """Be `arkbeam` with every logger at its loudest, whatever level is set later."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    set_level = logging.Logger.setLevel
    logging.Logger.setLevel = lambda self, level: set_level(self, logging.DEBUG)  # type: ignore[method-assign]
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.DEBUG)
    be_arkbeam(*arguments)


def be_emulator(options: EmulatorOptions) -> None:
    """Be an emulator on the listening socket with the descriptor 3, until the parent has gone."""
    with socket.socket(fileno=_STREAMS) as listener:
        serve(options, 0, listener=listener, parent_pid=os.getppid())


def _send(to: socket.socket, message: Any, descriptors: list[int]) -> None:
    data = pickle.dumps(message)
    socket.send_fds(to, [len(data).to_bytes(_LENGTH_BYTES, "big")], descriptors)
    to.sendall(data)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message, still pickled, and its descriptors; no bytes at the end."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, _STREAMS)
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        data += connection.recv(1 << 20)
    return data, descriptors


def _serve(connection: socket.socket) -> None:
    """Answer requests until nobody asks any more: fork for a task, and say of a process id how it has ended, if it has."""
    while (received := _receive(connection))[0]:
        message, descriptors = received
        if not descriptors:
            pid, status = os.waitpid(pickle.loads(message), os.WNOHANG)
            _send(connection, os.waitstatus_to_exitcode(status) if pid else None, [])
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            _be_child(message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _send(connection, pid, [])


def _be_child(message: bytes, descriptors: list[int]) -> None:
    """Take on streams and environment, call the function, and leave without going back to the loop."""
    code = 1
    try:
        for number, descriptor in enumerate(descriptors, 1):
            os.dup2(descriptor, number)
        task: Task = pickle.loads(message)
        os.environ.clear()
        os.environ.update(task.environment)
        tempfile.tempdir = None
        logging.getLogger().handlers.clear()
        if task.before is not None:
            task.before()
        task.function(*task.arguments)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - as an interpreter does at its end
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond a size: writing on fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main(descriptor: int) -> None:
    """Serve on the socket with this descriptor, with all imports of this module done."""
    remember()
    warnings.filterwarnings(
        "ignore", message=".*multi-threaded.*fork", category=DeprecationWarning
    )  # Arrow's allocator
    gc.collect()
    gc.freeze()  # children then leave these pages as they are
    with socket.socket(fileno=descriptor) as connection:
        _serve(connection)
