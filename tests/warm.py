"""Processes for the tests, forked from one that has imported arkbeam: this saves three seconds of imports for each.

`WarmProcess` starts a Python that imports this module, and with it everything that a run imports. It waits for requests on a Unix
socket and forks for each task. The child sets the environment and the streams of the task, and calls a function of a module,
such as `run_arkbeam`. It is a real process: it has its own process id, its own signals and limits, and an exit code. It does
not show that `python -m arkbeam` finds and imports arkbeam: the tests of that use `start_cold` of `tests.places`.
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
import arkbeam.app.report  # noqa: F401 - these three are imported for the children
import fsspec.config
from arkbeam.app import cli, terminal
from arkbeam.base import faults
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import serve
from rich.console import Console

from scripts.children import ROOT, child_environment
from tests.quick_beam import cache_lookups

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
    """The task of a child: call `function(*arguments)` at the root of the checkout, with its own environment.

    `before` is called first, to set limits. Both must be picklable: a module-level function, or a partial of one.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]
    before: Callable[[], None] | None = None


class Child:
    """A forked process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, parent: "WarmProcess", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent

    def poll(self) -> int | None:
        """Return the exit code, or minus the number of the signal that ended the process; None while it runs."""
        if self.returncode is None:
            self.returncode = self._parent.poll(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raise subprocess.TimeoutExpired if it takes longer than `timeout` seconds."""
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
    """The tests' end of the process that forks. That process ends with the one that started it."""

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
        """Start a child with stdout and stderr in two files. `kept` is a descriptor that the child inherits as number 3."""
        descriptors = [out.fileno(), err.fileno(), *([] if kept is None else [kept])]
        return Child(self, self._ask(task, descriptors))

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a child; None while it runs."""
        return self._ask(pid, [])

    def close(self) -> None:
        """End the process. Children that still run are not killed."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: Any, descriptors: list[int]) -> Any:
        with self._lock:
            _send(self._socket, request, descriptors)
            answer, _ = _receive(self._socket)
        if not answer:
            raise ChildProcessError(f"the warm process has ended: {self._process.wait()}")
        return pickle.loads(answer)


def run_arkbeam(*arguments: str) -> None:
    """Run `arkbeam` with these arguments, after reading again what the imports had read from the environment."""
    sys.argv = ["arkbeam", *arguments]
    faults.hit = faults._load()
    fsspec.config.set_conf_env(fsspec.config.conf)
    terminal.out, terminal.err = Console(), Console(stderr=True)
    cli.main()


def run_arkbeam_with_debug_logs(*arguments: str) -> None:
    """Run `arkbeam` with every logger at DEBUG, even if another level is set later."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    set_level = logging.Logger.setLevel
    logging.Logger.setLevel = lambda self, level: set_level(self, logging.DEBUG)  # type: ignore[method-assign]
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.DEBUG)
    run_arkbeam(*arguments)


def serve_emulator(options: EmulatorOptions) -> None:
    """Serve an emulator on the listening socket with descriptor 3, until the parent process ends."""
    with socket.socket(fileno=_STREAMS) as listener:
        serve(options, 0, listener=listener, parent_pid=os.getppid())


def _send(to: socket.socket, message: Any, descriptors: list[int]) -> None:
    data = pickle.dumps(message)
    socket.send_fds(to, [len(data).to_bytes(_LENGTH_BYTES, "big")], descriptors)
    to.sendall(data)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a message, still pickled, and its descriptors; the message is empty if the connection was closed."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH_BYTES, _STREAMS)
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        data += connection.recv(1 << 20)
    return data, descriptors


def _serve(connection: socket.socket) -> None:
    """Answer requests until the connection is closed: for a task, fork; for a process id, return its exit code or None."""
    while (received := _receive(connection))[0]:
        message, descriptors = received
        if not descriptors:
            pid, status = os.waitpid(pickle.loads(message), os.WNOHANG)
            _send(connection, os.waitstatus_to_exitcode(status) if pid else None, [])
            continue
        pid = os.fork()
        if pid == 0:
            connection.close()
            _run_child(message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        _send(connection, pid, [])


def _run_child(message: bytes, descriptors: list[int]) -> None:
    """Set streams and environment, call the function, and exit without returning to the loop."""
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
    """Limit the size of the files that this process writes, in bytes: a longer write fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main(descriptor: int) -> None:
    """Run the process that forks: serve requests on the socket with this descriptor."""
    cache_lookups()
    warnings.filterwarnings(
        "ignore", message=".*multi-threaded.*fork", category=DeprecationWarning
    )  # Arrow's allocator
    gc.collect()
    gc.freeze()  # children then leave these pages as they are
    with socket.socket(fileno=descriptor) as connection:
        _serve(connection)
