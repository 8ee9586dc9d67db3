"""A job server of Beam that runs its engine in its own process: Flink or Spark without a cluster."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    FLINK_JOB_SERVER.name: "--flink-master=[local]",
    SPARK_JOB_SERVER.name: "--spark-master-url=local[2]",
}


@contextmanager
def run_job_server(server: JobServer) -> Iterator[list[str]]:
    """Run a job server inside the block; yield the arguments of Beam with which a pipeline runs on it, with workers here.

    Raise EngineError if it can't be installed or does not start.
    """
    java, jars = find_java(), job_server_jars(server)
    job, artifact, expansion = free_ports(3)
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
            _MASTERS[server.name],
            f"--job-host={HOST}",
            f"--job-port={job}",
            f"--artifact-port={artifact}",
            f"--expansion-port={expansion}",
            f"--artifacts-dir={folder}/artifacts",
        ]
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_for(job, process, log)
            endpoint = f"--job_endpoint={HOST}:{job}"
            yield ["--runner=PortableRunner", endpoint, "--environment_type=LOOPBACK", "--parallelism=2"]
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
