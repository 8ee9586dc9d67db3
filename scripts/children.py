"""Child processes of the bench and of the tests: one way to start them, and to read what they print."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("ARK_", "ARKBEAM_")
"""Prefixes of the environment variables that change what arkbeam does."""


def arkbeam_command(*arguments: str) -> list[str]:
    """Return the command line of `arkbeam` with this Python."""
    return [sys.executable, "-m", "arkbeam", *arguments]


def child_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with this checkout's packages, a wide terminal and no settings of the user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'pipeline'}", "COLUMNS": "200"} | changes


def spawn(
    command: Sequence[str], folder: Path, out: int, err: int, changes: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a command in a folder, with `changes` to its environment; `out` and `err` are descriptors to write to."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=child_environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
    )


def read_output(stream: IO[bytes]) -> str:
    """Return all that a child has written to a file so far. The child's position in the file stays where it is."""
    data = os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0)
    return data.decode("utf-8", "replace")
