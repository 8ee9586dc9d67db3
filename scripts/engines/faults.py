"""Faults in the middle of a run on a Flink cluster: what they cost, and what is published after them.

Each fault has a cluster of its own, with two task managers of two slots. Beside each task manager is a worker: the
process in which arkbeam sends.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.engines import cluster
from scripts.engines.proxy import Proxy, start_proxy
from scripts.engines.trials import Outcome, Trial, open_trial

LEASES_S = 15.0
"""Three leases of an attempt (`arkbeam.engine.attempts`)."""
DEAD_S = 25.0
"""Long enough that others take a process for dead."""
CUT_S = 60.0
_EARLY = 0.25  # Flink needs up to 40 s to begin a retry
_ENDPOINT = "FSSPEC_S3_ENDPOINT_URL"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault acts on.

    `wait_for` waits until a share of the rows is paid, `wait_for_retry` until an attempt at a block is repeated.
    """

    wait_for: Callable[[float], None]
    wait_for_retry: Callable[[], None]
    proxy: Proxy | None = None

    def first(self) -> tuple[int, list[int]]:
        """Return the process ids of the first task manager that runs and of its workers."""
        found = cluster.describe_cluster()["task_managers"][0]
        return found["pid"], [worker["pid"] for worker in found["workers"]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    `cached`: workers go on from stage to stage. `s3`, `cut`: the store is on an S3 server, which one worker reaches by a
    proxy. `resubmits`: the submitter is killed, and the command is given again.
    """

    what: str
    act: Callable[[Scene], None]
    cached: bool = True
    s3: bool = False
    cut: bool = False
    resubmits: bool = False


def _nothing(_: Scene) -> None:
    pass


def _kill(scene: Scene, at: float = 0.5) -> None:
    scene.wait_for(at)
    task_manager, _ = scene.first()
    _replace_task_manager(task_manager)


def _replace_task_manager(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    time.sleep(1.0)  # until then it may count as running, and its end as a failure of the cluster
    cluster.add_task_manager()


def _kill_four_times(scene: Scene) -> None:
    for at in (0.2, 0.4, 0.6, 0.8):
        _kill(scene, at)


def _stop_worker(scene: Scene, seconds: float) -> None:
    scene.wait_for(0.5)
    _, workers = scene.first()
    with _stopped(workers):
        time.sleep(seconds)


def _stop_task_manager(scene: Scene, *, with_worker: bool) -> None:
    """Stop a task manager; Flink takes it for dead, but its retry waits for it."""
    scene.wait_for(0.5)
    task_manager, workers = scene.first()
    with _stopped([*workers, task_manager] if with_worker else [task_manager]):
        cluster.add_task_manager()
        time.sleep(DEAD_S)


def _stop_and_kill(scene: Scene) -> None:
    """Stop a worker and kill its task manager; the worker goes on when its blocks are worked on by others."""
    scene.wait_for(_EARLY)
    task_manager, workers = scene.first()
    with _stopped(workers):
        _replace_task_manager(task_manager)
        scene.wait_for_retry()
        time.sleep(DEAD_S)


def _cut(scene: Scene) -> None:
    assert scene.proxy is not None
    scene.wait_for(0.5)
    scene.proxy.cut()
    time.sleep(CUT_S)
    scene.proxy.mend()


def _wait_for_half(scene: Scene) -> None:
    scene.wait_for(0.5)


FAULTS: Mapping[str, Fault] = {
    "none": Fault("none", _nothing),
    "kill": Fault("a task manager killed at half", _kill),
    # Without the cache, Flink ends the other worker as well when it repeats the job's tasks.
    "kill_uncached": Fault("the same without Beam's worker cache", _kill, cached=False),
    "kill_s3": Fault("the same with an S3 store", _kill, s3=True),
    "kill_four": Fault("task managers killed four times", _kill_four_times),
    "stop": Fault("a worker stopped for 15 s, three leases", lambda scene: _stop_worker(scene, LEASES_S)),
    "stop_long": Fault("a worker stopped for 25 s, longer than dead", lambda scene: _stop_worker(scene, DEAD_S)),
    "stall": Fault(
        "a task manager stopped for 25 s; its worker goes on",
        lambda scene: _stop_task_manager(scene, with_worker=False),
    ),
    "machine": Fault(
        "a task manager and its worker stopped for 25 s",
        lambda scene: _stop_task_manager(scene, with_worker=True),
    ),
    "zombie": Fault("a worker stopped, its task manager killed; resumed beside the retry", _stop_and_kill),
    "zombie_s3": Fault("the same with an S3 store", _stop_and_kill, s3=True),
    "cut": Fault("the S3 store unreachable for one worker for a minute", _cut, s3=True, cut=True),
    "submitter": Fault("the submitter killed, the command given again", _wait_for_half, resubmits=True),
}


def run_fault(fault: Fault, folder: Path, rows: int, rpm: int) -> Outcome:
    """Bring up a cluster, run a job on it with a fault, take the cluster down. Raise BenchError, EngineError."""
    with open_trial(folder, rows, rpm, s3=fault.s3) as trial, ExitStack() as stack:
        proxy = stack.enter_context(start_proxy(_port_of(trial))) if fault.cut else None
        beside_first = {_ENDPOINT: f"http://127.0.0.1:{proxy.port}"} if proxy is not None else {}
        stack.callback(_keep_logs, folder / "cluster")
        stack.callback(cluster.stop_cluster)
        cluster.start_cluster(2, 2, first_pool=beside_first)
        beam = cluster.beam_arguments(keeps_workers=fault.cached)
        return _run(fault, trial.again(), beam, proxy)


def _run(fault: Fault, trial: Trial, beam: Sequence[str], proxy: Proxy | None) -> Outcome:
    rows = len(trial.texts)
    with trial.submit(beam) as process:
        scene = Scene(
            lambda share: trial.wait_for_paid(round(share * rows), process),
            lambda: trial.wait_for_retry(process),
            proxy,
        )
        fault.act(scene)
        if not fault.resubmits:
            return trial.conclude(trial.wait_for_end(process))
        process.kill()
        process.wait()
    with trial.submit(beam) as process:
        return trial.conclude(trial.wait_for_end(process))


def _keep_logs(folder: Path) -> None:
    folder.mkdir()
    for log in cluster.cluster_folder().glob("*.log"):
        shutil.copy(log, folder)


def _port_of(trial: Trial) -> int:
    return int(urlsplit(trial.environment[_ENDPOINT]).port or 0)


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes for the length of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
