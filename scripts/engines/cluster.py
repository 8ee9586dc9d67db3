"""A Flink cluster on this machine: job manager, task managers with a worker pool each, and Beam's job server.

Everything is in one folder: ports, configuration, logs, pid files. A restarted job reads its data again from the task
managers that are left. The worker pools get the environment of the command that starts them, so an API key that a run needs
must be set then.
"""

import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from scripts.engines.install import (
    FLINK_JOB_SERVER,
    EngineError,
    cache_folder,
    find_java,
    flink_home,
    job_server_jars,
)
from scripts.engines.processes import Recorded, end, forget_ended, list_children, list_recorded, start

HOST = "127.0.0.1"
POOL = "worker-pool"
"""The host name under which each task manager finds its own pool (`_write_hosts`)."""
JOB_MANAGER, JOB_SERVER = "job-manager", "job-server"
_TASK_MANAGER, _POOL = "task-manager-", "worker-pool-"  # followed by a number
_WAIT_S = 180.0
_POLL_S = 0.2
JAVA_OPENS = (
    *(
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in (
            "java.lang",
            "java.lang.invoke",
            "java.lang.reflect",
            "java.net",
            "java.io",
            "java.nio",
            "java.text",
            "java.time",
            "java.util",
            "java.util.concurrent",
            "java.util.concurrent.atomic",
            "java.util.concurrent.locks",
            "sun.nio.ch",
            "sun.nio.cs",
            "sun.security.action",
            "sun.util.calendar",
        )
    ),
    "--add-exports=java.base/sun.net.util=ALL-UNNAMED",
)
"""What Flink and Spark need of Java 17."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a cluster, which were free when it was started."""

    rest: int
    rpc: int
    job: int
    artifact: int
    expansion: int
    pool: int
    """Each pool listens on this port of an address of its own."""
    slots: int
    """Slots of each task manager."""


def cluster_folder() -> Path:
    """Return the folder of the cluster's files."""
    return cache_folder() / "cluster"


def start_cluster(task_managers: int, slots: int, first_pool: Mapping[str, str] = {}) -> None:
    """Start a cluster. `first_pool`: variables for the workers of the first task manager alone.

    Raise EngineError if a cluster runs, if something can't be installed, or if a part does not start.
    """
    if sys.platform != "linux":
        raise EngineError("the cluster needs Linux: each worker pool has an address of its own, such as 127.0.0.2")
    java, jars, home, folder = find_java(), job_server_jars(FLINK_JOB_SERVER), flink_home(), cluster_folder()
    if any(process.is_running for process in list_recorded(folder)):
        raise EngineError("a cluster runs already: end it first with `scripts/flink down`")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    shutil.copytree(home / "conf", folder / "conf")
    rest, rpc, job, artifact, expansion, pool = free_ports(6)
    ports = Ports(rest, rpc, job, artifact, expansion, pool, slots)
    (folder / "ports.json").write_bytes(orjson.dumps(asdict(ports)))
    (folder / "conf" / "config.yaml").write_text(_configuration(ports, folder), "utf-8")
    with ExitStack() as started:
        started.callback(stop_cluster)
        start(JOB_MANAGER, [str(home / "bin" / "jobmanager.sh"), "start-foreground"], folder, _environment(folder))
        start(JOB_SERVER, _job_server_command(java, jars, home, ports, folder), folder)
        numbers = range(1, task_managers + 1)
        for number in numbers:
            _start_task_manager(number, ports, folder, first_pool if number == 1 else {})
        _wait(lambda: listens(ports.job), "the job server", folder)
        _wait_for_task_managers(numbers, ports, folder)
        started.pop_all()


def add_task_manager() -> None:
    """Add a task manager to the cluster. Raise EngineError if no cluster runs, or if it does not start."""
    ports, folder = read_ports(), cluster_folder()
    if _ask(ports, "/overview") == {}:
        raise EngineError("no cluster runs: start one with `scripts/flink up`")
    forget_ended(folder)
    number = 1 + max((int(pool.name.rpartition("-")[2]) for pool in _pools(folder)), default=0)
    _start_task_manager(number, ports, folder)
    _wait_for_task_managers([number], ports, folder)


def stop_cluster() -> None:
    """End the processes of the cluster, and no others. The logs are kept until the next start."""
    folder = cluster_folder()
    end(list_recorded(folder), folder)


def describe_cluster() -> dict[str, Any]:
    """Return what runs: slots, processes by part, jobs. The task managers' workers are in `workers`."""
    running = {process.name: process for process in list_recorded(cluster_folder()) if process.is_running}
    overview: dict[str, Any] = {}
    jobs: list[dict[str, Any]] = []
    if JOB_MANAGER in running:
        ports = read_ports()
        overview = _ask(ports, "/overview")
        jobs = [_describe_job(ports, job["jid"]) for job in _ask(ports, "/jobs/overview").get("jobs", [])]
    return {
        "slots": overview.get("slots-total", 0),
        "job_manager": _describe(running.get(JOB_MANAGER)),
        "job_server": _describe(running.get(JOB_SERVER)),
        "task_managers": [
            {"pid": process.pid, "pool": _describe(running.get(_pool_of(name))), "workers": _workers(running, name)}
            for name, process in running.items()
            if name.startswith(_TASK_MANAGER)
        ],
        "jobs": jobs,
    }


def beam_arguments(*, keeps_workers: bool = True) -> list[str]:
    """Return the arguments of Beam with which a pipeline runs on the cluster. Raise EngineError if none runs.

    `keeps_workers`: SDK workers go on from stage to stage.
    """
    status, ports = describe_cluster(), read_ports()
    if status["job_server"] is None:
        raise EngineError("no cluster runs: start one with `scripts/flink up`")
    return [
        "--runner=PortableRunner",
        f"--job_endpoint={HOST}:{ports.job}",
        "--environment_type=EXTERNAL",
        f"--environment_config={POOL}:{ports.pool}",
        f"--environment_cache_millis={60_000 if keeps_workers else 0}",
        f"--parallelism={status['slots']}",
    ]


def read_ports() -> Ports:
    """Return the ports of the cluster. Raise EngineError if there is none."""
    try:
        return Ports(**orjson.loads((cluster_folder() / "ports.json").read_bytes()))
    except FileNotFoundError:
        raise EngineError("no cluster runs: start one with `scripts/flink up`") from None


def _start_task_manager(number: int, ports: Ports, folder: Path, environment: Mapping[str, str] = {}) -> None:
    """Start a worker pool and its task manager. Each pool has its own address, as a sidecar in a pod has."""
    name = f"{_TASK_MANAGER}{number}"
    address = _address(number)
    pool = [sys.executable, "-P", "-m", "scripts.engines.pool", "--serve", f"{address}:{ports.pool}"]
    start(f"{_POOL}{number}", pool, folder, {"AWS_EC2_METADATA_DISABLED": "true", **environment})
    options = f"-Djdk.net.hosts.file={_write_hosts(name, address, folder)}"
    command = [
        str(flink_home() / "bin" / "taskmanager.sh"),
        "start-foreground",
        "-D",
        f"taskmanager.resource-id={name}",
    ]
    start(name, command, folder, _environment(folder) | {"FLINK_ENV_JAVA_OPTS_TM": options})


def _wait_for_task_managers(numbers: Sequence[int], ports: Ports, folder: Path) -> None:
    """Wait until the pools of task managers listen and the task managers are registered."""
    names, addresses = {f"{_TASK_MANAGER}{number}" for number in numbers}, list(map(_address, numbers))
    _wait(lambda: all(listens(ports.pool, address) for address in addresses), "the worker pools", folder)
    _wait(lambda: names <= _registered(ports), "the task managers", folder)


def _registered(ports: Ports) -> set[str]:
    return {one["id"] for one in _ask(ports, "/taskmanagers").get("taskmanagers", [])}


def _pools(folder: Path) -> list[Recorded]:
    return [process for process in list_recorded(folder) if process.name.startswith(_POOL)]


def _address(number: int) -> str:
    return f"127.0.0.{number}"


def _write_hosts(name: str, address: str, folder: Path) -> Path:
    """Write the only host names that a task manager knows: its pool's, and those of this machine."""
    path = folder / f"{name}.hosts"
    path.write_text(f"{address} {POOL}\n{HOST} localhost {socket.gethostname()}\n", "utf-8")
    return path


def _job_server_command(java: str, jars: Path, home: Path, ports: Ports, folder: Path) -> list[str]:
    logging = ":".join(str(path) for path in sorted((home / "lib").glob("log4j-*.jar")))
    return [
        java,
        "-Xmx1g",
        *JAVA_OPENS,
        f"-Dlog4j.configurationFile={folder / 'conf' / 'log4j-session.properties'}",
        "-cp",
        f"{jars}/*:{logging}",
        FLINK_JOB_SERVER.main,
        f"--flink-master={HOST}:{ports.rest}",
        f"--job-host={HOST}",
        f"--job-port={ports.job}",
        f"--artifact-port={ports.artifact}",
        f"--expansion-port={ports.expansion}",
        f"--artifacts-dir={folder / 'artifacts'}",
    ]


def _configuration(ports: Ports, folder: Path) -> str:
    """Return Flink's config.yaml."""
    settings = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": ports.rpc,
        "jobmanager.bind-host": HOST,
        "jobmanager.memory.process.size": "1200m",
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": ports.slots,
        "taskmanager.memory.process.size": "1600m",
        "taskmanager.memory.network.min": "256m",
        "taskmanager.memory.network.max": "256m",
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": ports.rest,
        "heartbeat.interval": 1000,
        "heartbeat.timeout": 8000,
        # Until a lost task manager counts as dead, each attempt to deploy tasks on it fails, too.
        "restart-strategy.type": "failure-rate",
        "restart-strategy.failure-rate.max-failures-per-interval": 20,
        "restart-strategy.failure-rate.failure-rate-interval": "5 min",
        "restart-strategy.failure-rate.delay": "5 s",
        "classloader.resolve-order": "parent-first",
        "env.java.opts.all": " ".join(JAVA_OPENS),
        "io.tmp.dirs": str(folder / "tmp"),
    }
    return "".join(f"{name}: {value}\n" for name, value in settings.items())


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of Flink's scripts.

    Beam's jars are on Flink's own class path: only then do task managers keep SDK workers from one stage to the next.
    """
    return {
        "FLINK_CONF_DIR": str(folder / "conf"),
        "FLINK_LOG_DIR": str(folder),
        "FLINK_PID_DIR": str(folder / "tmp"),
        "HADOOP_CLASSPATH": f"{job_server_jars(FLINK_JOB_SERVER)}/*",
    }


def _pool_of(name: str) -> str:
    return name.replace(_TASK_MANAGER, _POOL)


def _describe(process: Recorded | None) -> dict[str, int] | None:
    return None if process is None else {"pid": process.pid}


def _workers(running: dict[str, Recorded], name: str) -> list[dict[str, int]]:
    pool = running.get(_pool_of(name))
    return [] if pool is None else [{"pid": pid} for pid in list_children(pool.pid)]


def _describe_job(ports: Ports, job: str) -> dict[str, Any]:
    found = _ask(ports, f"/jobs/{job}")
    vertices = len(found.get("vertices", []))
    return {"id": job, "name": found.get("name"), "state": found.get("state"), "vertices": vertices}


def _ask(ports: Ports, path: str) -> dict[str, Any]:
    """Ask the job manager; empty if it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{ports.rest}{path}", timeout=10) as reply:
            answer: dict[str, Any] = orjson.loads(reply.read())
            return answer
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def _wait(holds: Callable[[], bool], what: str, folder: Path) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not holds():
        ended = [process.name for process in list_recorded(folder) if not process.is_running]
        if ended:
            raise EngineError(f"{', '.join(ended)} ended: see {folder / f'{ended[0]}.log'}")
        if time.monotonic() > deadline_s:
            raise EngineError(f"{what} did not start in {_WAIT_S:.0f} s: see the logs in {folder}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> Sequence[int]:
    """Return ports of the loopback address on which nothing listens."""
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def listens(port: int, host: str = HOST) -> bool:
    """True if something listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
