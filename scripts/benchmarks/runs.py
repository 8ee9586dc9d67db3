"""Measured runs: a folder with a manifest and a config, a child process, and the resources that it used."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from arkbeam.emulator.app import API_PATH, STATS_PATH

from scripts.children import arkbeam_command, read_output, spawn

MODEL = "doubao-embedding-vision-251215"
DIMENSIONS = 2048
UNLIMITED_RPM = 10**9
UNLIMITED_TPM = 10**12
_SAMPLE_S = 0.05
_OUTPUT_CHARS_MAX = 2_000
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class BenchError(Exception):
    """A measure failed: a child exited with an error, or its results can't be compared."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A child process that exited with 0.

    `peak_bytes` is its largest resident set, without its children; `tree_bytes` is the largest sum with them, sampled.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: str
    tree_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Site:
    """A folder with a config, its manifest, its store and its output."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """The manifest, JSONL."""
        return self.folder / "manifest.jsonl"

    @property
    def config(self) -> Path:
        """The config file."""
        return self.folder / "config.yaml"

    @property
    def store(self) -> Path:
        """The store's folder."""
        return self.folder / "store"

    @property
    def output(self) -> Path:
        """The output's folder."""
        return self.folder / "out"

    def write_config(self, base_url: str, **sections: Mapping[str, object]) -> None:
        """Write the config. `sections` override the defaults: a practically unlimited quota, 64 requests in flight."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, dict[str, object]] = {
            "manifest": {"uris": [str(self.manifest)]},
            "model": {"name": MODEL, "dimensions": DIMENSIONS},
            "api": {"base_url": base_url},
            "quota": {"rpm": UNLIMITED_RPM, "tpm": UNLIMITED_TPM},
            "limits": {"requests_in_flight": 64},
            "store": {"uri": str(self.store)},
            "output": {"uri": str(self.output)},
        }
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section}
        self.config.write_bytes(orjson.dumps(config))  # JSON is YAML

    def command(self, name: str = "run") -> list[str]:
        """Return the command line of `arkbeam run`, or of another command, for this config."""
        return arkbeam_command(name, str(self.config))

    def run(self) -> Ended:
        """Run the pipeline in a child process to its end. Raises BenchError unless it exits with 0."""
        return run_child(self.command(), self.folder)

    def note(self) -> dict[str, Any]:
        """Read the output's `run.json`."""
        return dict(orjson.loads((self.output / "run.json").read_bytes()))


def run_module(module: str, arguments: Sequence[str], folder: Path, **environment: str) -> tuple[Ended, Any]:
    """Run a module of this package in a child process; return its resources and the JSON that it printed."""
    command = [sys.executable, "-m", f"scripts.benchmarks.{module}", *arguments]
    ended = run_child(command, folder, **environment)
    return ended, orjson.loads(ended.stdout)


def run_child(command: Sequence[str], folder: Path, **environment: str) -> Ended:
    """Run a command in a folder and measure it from start to exit. Raises BenchError unless it exits with 0."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start_s = time.perf_counter()
        process = start_child(command, folder, out.fileno(), err.fileno(), **environment)
        with _PeakMemory(process.pid) as peak:
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                raise
            wall_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = [read_output(stream) for stream in (out, err)]
    if process.returncode != 0:
        raise BenchError(f"{' '.join(command[1:4])} ended with {process.returncode}: {tail(texts[1] or texts[0])}")
    return Ended(
        wall_s, usage.ru_utime + usage.ru_stime, peak.bytes or usage.ru_maxrss * 1024, texts[0], peak.tree_bytes
    )


def start_child(command: Sequence[str], folder: Path, out: int, err: int, **changes: str) -> "subprocess.Popen[bytes]":
    """Start a command in a folder, which also takes its temporary files, because a killed run does not remove them."""
    return spawn(command, folder, out, err, {"TMPDIR": str(folder), **changes})


def read_stats(base_url: str) -> dict[str, Any]:
    """Return the counts of an emulator."""
    with _no_proxy.open(base_url.removesuffix(API_PATH) + STATS_PATH, timeout=10.0) as answer:
        return dict(orjson.loads(answer.read()))


def read_emulator_cpu_s() -> float:
    """Return the CPU seconds that emulators started by this process have used so far; NaN without /proc."""
    ticks, found = 0, False
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            process = Path("/proc", pid)
            if b"arkbeam.emulator" in (process / "cmdline").read_bytes().split(b"\0"):
                user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
                ticks, found = ticks + int(user) + int(system), True
    return ticks / os.sysconf("SC_CLK_TCK") if found else float("nan")


def tail(said: str) -> str:
    """Return the end of a child's output."""
    return said.strip()[-_OUTPUT_CHARS_MAX:]


class _PeakMemory:
    """Watch a process's peak resident set, in bytes; 0 without /proc.

    `ru_maxrss` of `wait4` includes the size of the process that started the child: it is too large for a small child.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = self.tree_bytes = 0
        self._pid = pid
        self._status = Path(f"/proc/{pid}/status")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            self.tree_bytes = max(self.tree_bytes, sum(_shared_bytes(pid) for pid in _list_tree(self._pid)))


def _list_tree(pid: int) -> Iterator[int]:
    """Yield a process and those that it has started, as far as they run."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _list_tree(int(child))


def _shared_bytes(pid: int) -> int:
    """Return the resident bytes of a process; those that it shares with others count in part. 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
