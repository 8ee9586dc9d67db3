"""The process that forks: its children behave like processes that a shell starts."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.warm import limit_files


def print_state() -> None:
    """Write to both streams, and exit with 3."""
    sys.stdout.write(f"{os.environ.get('ONE')} {os.environ.get('TWO')} {os.getpid()}\n")
    sys.stderr.write("an error\n")
    raise SystemExit(3)


def fail() -> None:
    """Raise an exception."""
    raise ValueError("of the child")


def sleep() -> None:
    """Wait to be killed."""
    time.sleep(60)


def write(path: str, size: int) -> None:
    """Write a file."""
    Path(path).write_bytes(bytes(size))


def test_a_child_has_its_own_environment_streams_and_exit_code(start_function: Any) -> None:
    """Each child has its own environment, streams and exit code."""
    first, second = start_function(print_state, ONE="1"), start_function(print_state, TWO="2")
    ended = first.wait()
    assert (ended.code, ended.out, ended.err) == (3, f"1 None {first.process.pid}\n", "an error\n")
    assert second.wait().out == f"None 2 {second.process.pid}\n"


def test_an_exception_is_a_traceback_and_one(start_function: Any) -> None:
    """A child that raises an exception prints a traceback and exits with 1."""
    ended = start_function(fail).wait()
    assert (ended.code, ended.err.splitlines()[-1]) == (1, "ValueError: of the child")


def test_a_child_can_be_killed(start_function: Any) -> None:
    """The exit code of a killed child is minus the number of the signal; waiting for a running child ends at the time-out."""
    started = start_function(sleep)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.1)
    started.send(signal.SIGKILL)
    assert started.wait().code == -signal.SIGKILL


def test_limits_are_the_childs(start_function: Any, tmp_path: Path) -> None:
    """A limit on the size of files makes the write of one child fail, but not that of the next child."""
    limited = start_function(write, str(tmp_path / "a"), 2_000, before=partial(limit_files, 1_000))
    assert "File too large" in limited.wait().err
    assert start_function(write, str(tmp_path / "b"), 2_000).wait().code == 0
