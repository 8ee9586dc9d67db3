"""One quota shared by four processes, as counted by the server: by marks in an S3 store, and through Redis.

Each process is a run with its own output; all send for one account. With marks, one process is killed after half of the
time and started again after three quarters. The first minute, in which all start, does not count.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.runs import UNLIMITED_TPM, BenchError, Site, read_stats, start_child
from scripts.benchmarks.table import Bench, Figure, Size, at_least, at_most
from scripts.benchmarks.texts import make_texts, write_texts

PROCESSES = 4
RPM = 600
HEADROOM = 0.995
LATENCY_MS = 200.0
IN_FLIGHT = 8
REFUSED_SHARE = 0.005
_WAIT_S = 120.0  # for a process to start or to end
_BUCKET = "bench"


@dataclass(frozen=True, slots=True)
class _Times:
    """Length of the measure, and the second from which requests count."""

    total_s: int
    counted_from_s: int


MARKS = {Size.FULL: _Times(240, 60), Size.QUICK: _Times(60, 15), Size.TINY: _Times(12, 6)}
REDIS = {Size.FULL: _Times(180, 60), Size.QUICK: _Times(40, 10), Size.TINY: _Times(8, 4)}


@dataclass(slots=True)
class _Team:
    """Several runs at the same time, each a child process."""

    bench: Bench
    environment: Mapping[str, str]
    sites: list[Site] = field(default_factory=list)
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, number: int) -> None:
        """Start a run for the first time, or again after a kill."""
        with (self.bench.folder / f"{number}.log").open("ab") as log:
            self.running[number] = start_child(
                self.sites[number].command(), self.sites[number].folder, log.fileno(), log.fileno(), **self.environment
            )

    def kill(self, number: int) -> None:
        """Kill a run with SIGKILL."""
        process = self.running.pop(number)
        process.kill()
        process.wait()

    def check(self) -> None:
        """Raise BenchError if a run has ended by itself."""
        for number, process in self.running.items():
            if process.poll() is not None:
                said = (self.bench.folder / f"{number}.log").read_text("utf-8", "replace")
                raise BenchError(f"run {number} ended with {process.returncode}: {said[-1000:]}")

    def end(self) -> None:
        """Stop all runs with SIGTERM."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True, slots=True)
class Seen:
    """The server's counts, one for each second from the first request on."""

    received: Sequence[int]
    paid: Sequence[int]
    refused: Sequence[int]

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> "Seen":
        """Read the counts from an emulator's statistics."""
        seconds = {one["second"]: one for one in stats["requests_by_second"]}
        if not seconds:
            raise BenchError("no request reached the server")
        every = [seconds.get(second, {}) for second in range(min(seconds), max(seconds) + 1)]
        return cls(*([one.get(name, 0) for one in every] for name in ("received", "paid", "refused")))

    def utilisation(self, rpm: int, from_s: int, to_s: int) -> float:
        """Return the paid share of a quota from one second to another; NaN if no second lies between."""
        return sum(self.paid[from_s:to_s]) / (rpm / 60 * (to_s - from_s)) if to_s > from_s else float("nan")

    @property
    def refused_share(self) -> float:
        """Refused requests over all requests."""
        return sum(self.refused) / max(1, sum(self.received))

    @property
    def most_a_minute(self) -> int:
        """The most requests in any 60 seconds."""
        return max((sum(self.received[at : at + 60]) for at in range(len(self.received))), default=0)


def measure_marks(bench: Bench) -> list[Figure]:
    """Used share of 600 RPM by four processes with marks in an S3 store; one is down for a quarter of the time."""
    times = MARKS[bench.size]
    with _s3_server(bench.folder) as environment:
        seen = _measure(bench, times, environment, kill=True, store={"uri": f"s3://{_BUCKET}/store"})
    return _figures("quota_marks", seen, times, 0.93)


def measure_redis(bench: Bench) -> list[Figure]:
    """Used share of 600 RPM by four processes that share it through Redis."""
    times = REDIS[bench.size]
    with start_redis(bench.folder) as url:
        store = {"uri": str(bench.folder / "store")}
        seen = _measure(bench, times, {}, kill=False, store=store, quota={"redis_url": url})
    return _figures("quota_redis", seen, times, 0.95)


def _measure(
    bench: Bench,
    times: _Times,
    environment: Mapping[str, str],
    *,
    kill: bool,
    store: Mapping[str, object],
    quota: Mapping[str, object] = {},
) -> Seen:
    emulator = EmulatorOptions(rpm=RPM, refusals_count=True, latency_ms=LATENCY_MS)
    with start_emulator(emulator) as url:
        team = _Team(bench, environment)
        for number in range(PROCESSES):
            site = Site(bench.folder / f"run-{number}")
            site.write_config(
                url,
                quota={"rpm": RPM, "tpm": UNLIMITED_TPM, "headroom": HEADROOM, **quota},
                limits={"requests_in_flight": IN_FLIGHT},
                store=store,
            )
            write_texts(site.manifest, make_texts(RPM * times.total_s // 60, seed=number))
            team.sites.append(site)
        try:
            for number in range(PROCESSES):
                team.start(number)
            _wait_for_first(url, team)
            bench.say(f"{PROCESSES} processes send")
            _watch(team, times.total_s, kill=kill)
            return Seen.of(read_stats(url))
        finally:
            team.end()


def _wait_for_first(url: str, team: _Team) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not read_stats(url)["received"]:
        team.check()
        if time.monotonic() > deadline_s:
            raise BenchError("no request was sent")
        time.sleep(0.05)


def _watch(team: _Team, total_s: int, *, kill: bool) -> None:
    """Wait for the length of the measure. Raise BenchError if a run ends by itself.

    `kill`: kill one run after half of the time and start it again after three quarters.
    """
    began_s = time.monotonic()
    killed = back = not kill
    while (passed_s := time.monotonic() - began_s) < total_s:
        team.check()
        if not killed and passed_s >= total_s / 2:
            killed = True
            team.kill(0)
            team.bench.say("one process is killed")
        if not back and passed_s >= total_s * 3 / 4:
            back = True
            team.start(0)
            team.bench.say("the process is started again")
        time.sleep(0.1)


def _figures(name: str, seen: Seen, times: _Times, target: float) -> list[Figure]:
    used, above = seen.utilisation(RPM, times.counted_from_s, times.total_s), max(0, seen.most_a_minute - RPM)
    counted = f"seconds {times.counted_from_s} to {times.total_s}, headroom {HEADROOM}, {PROCESSES} processes"
    return [
        Figure(name, f"used share of rpm {RPM}", f"{used:.1%}", f"≥ {target:.0%}", at_least(used, target), counted),
        Figure(
            name,
            "share that is refused",
            f"{seen.refused_share:.2%}",
            f"≤ {REFUSED_SHARE:.1%}",
            at_most(seen.refused_share, REFUSED_SHARE),
            f"{sum(seen.refused)} of {sum(seen.received):,}",
        ),
        Figure(
            name,
            "most in 60 s above the quota",
            f"{above}",
            f"≤ {IN_FLIGHT} (in flight of one process)",
            at_most(above, IN_FLIGHT),
            f"{seen.most_a_minute} requests",
        ),
    ]


@contextmanager
def _s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Start an S3 server with a bucket; yield the environment variables with which s3fs finds it."""
    port = _free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with _server([sys.executable, "-c", code], folder, "s3", port):
        make = f"import s3fs; s3fs.S3FileSystem().mkdir('{_BUCKET}')"
        subprocess.run([sys.executable, "-c", make], env={**os.environ, **environment}, check=True, timeout=_WAIT_S)
        yield environment


@contextmanager
def start_redis(folder: Path) -> Iterator[str]:
    """Start a Redis that writes no files; yield its URL. Raise BenchError if it is not installed or does not start."""
    program = shutil.which("redis-server")
    if program is None:
        raise BenchError("redis-server is not installed")
    port = _free_port()
    with _server([program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""], folder, "redis", port):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def _server(command: Sequence[str], folder: Path, name: str, port: int) -> Iterator[None]:
    """Start a server as a child process, wait until it listens, kill it at the end of the block."""
    with (folder / f"{name}.log").open("wb") as log:
        process = start_child(command, folder, log.fileno(), log.fileno())
    try:
        deadline_s = time.monotonic() + _WAIT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise BenchError(f"the {name} server did not start")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
