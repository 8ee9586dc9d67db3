"""A worker pool on a loopback address, for one task manager: it starts Beam's SDK workers with this Python.

Beam's own pool listens on all addresses and starts the first `python` on PATH. Workers end with the pool.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.runners.worker.sdk_worker import SdkHarness

_END_S = 10.0  # how long a worker may take to end after SIGTERM
_THREADS = 16


class LoopbackPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts and ends workers, each in its own process."""

    def __init__(self) -> None:
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def StartWorker(self, request: Any, _: Any) -> Any:
        """Start a worker."""
        command = [sys.executable, "-P", "-m", "scripts.engines.pool"]
        command += ["--worker", request.worker_id, "--control", request.control_endpoint.url]
        self._workers[request.worker_id] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, _: Any) -> Any:
        """End a worker, and wait for its end."""
        worker = self._workers.pop(request.worker_id, None)
        if worker is not None:
            worker.terminate()
            try:
                worker.wait(_END_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        return beam_fn_api_pb2.StopWorkerResponse()


def serve(address: str) -> None:
    """Serve a pool until the process is told to end."""
    server = grpc.server(ThreadPoolExecutor(_THREADS))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(LoopbackPool(), server)
    server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def work(worker: str, control: str) -> None:
    """Be a worker until the engine ends the connection, or the pool ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    SdkHarness(control, worker_id=worker).run()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help="address of the pool: 127.0.0.1:50000")
    parser.add_argument("--worker", help="id of a worker, with --control")
    parser.add_argument("--control", help="the engine's address for this worker")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    else:
        work(options.worker, options.control)


if __name__ == "__main__":
    main()
