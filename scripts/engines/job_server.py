"""A job server of Beam that runs its engine in its own process: Flink or Spark without a cluster."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.engines.cluster import HOST, JAVA_OPENS, free_ports, listens
from scripts.engines.install import (
    FLINK_JOB_SERVER,
    SPARK_JOB_SERVER,
    EngineError,
    JobServer,
    find_java,
    job_server_jars,
)

_START_S = 120.0
_POLL_S = 0.2
_MASTERS = {
    FLINK_JOB_SERVER.name: ("--flink-master=[local]", "--flink-conf-dir=."),
    SPARK_JOB_SERVER.name: ("--spark-master-url=local[2]",),
}


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A job server that runs: the arguments of Beam for it, and the port of Flink's REST API while a job runs."""

    name: str
    arguments: list[str]
    rest: int


@contextmanager
def run_job_server(server: JobServer) -> Iterator[RunningServer]:
    """Run a job server inside the block; a pipeline with its arguments runs on it, with workers in this process.

    Raise EngineError if it can't be installed or does not start.
    """
    java, jars = find_java(), job_server_jars(server)
    job, artifact, expansion, rest = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="arkbeam-engine-") as folder:
        command = [
            java,
            "-Xmx1g",
            "-XX:TieredStopAtLevel=1",  # short jobs: less time for the compiler
            *JAVA_OPENS,
            f"-Djava.io.tmpdir={folder}",
            "-cp",
            f"{jars}/*",
            server.main,
            *_MASTERS[server.name],
            f"--job-host={HOST}",
            f"--job-port={job}",
            f"--artifact-port={artifact}",
            f"--expansion-port={expansion}",
            f"--artifacts-dir={folder}/artifacts",
        ]
        # The counters of a job are shown with this delay: by default 3 s, when a short job has ended.
        settings = (
            f"rest.bind-port: {rest}\nrest.bind-address: {HOST}\nrest.address: {HOST}\nweb.refresh-interval: 200\n"
        )
        Path(folder, "config.yaml").write_text(settings, "utf-8")
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_for(job, process, log)
            endpoint = f"--job_endpoint={HOST}:{job}"
            arguments = ["--runner=PortableRunner", endpoint, "--environment_type=LOOPBACK", "--parallelism=2"]
            yield RunningServer(server.name, arguments, rest)
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text("utf-8", "replace")[-4_000:])


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_S
    while not listens(port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise EngineError(f"the job server did not start:\n{log.read_text('utf-8', 'replace')[-2_000:]}")
        time.sleep(_POLL_S)
