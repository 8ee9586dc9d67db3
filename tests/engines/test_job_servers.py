"""One small run on each engine that translates the graph itself: Flink and Spark, through Beam's job servers, and Prism.

They are skipped if the engine is not installed. With ARKBEAM_ENGINES=download, as in CI, the jars are downloaded.
"""

import base64
import os
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from apache_beam import coders
from arkbeam.beam.counters import NAMESPACE

from scripts.engines.install import FLINK_JOB_SERVER, SPARK_JOB_SERVER, EngineError, JobServer, find_java, has_jars
from scripts.engines.job_server import RunningServer, run_job_server

# A job server that ends its job cuts the connections of Beam's workers, whose threads raise errors that nobody catches.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")]
ROWS = 40
BAD = "{}"
VERTICES_MAX = 40
SUM_INT64 = "beam:metric:user:sum_int64:v1"


@pytest.fixture
def job_server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """The job server that the test names."""
    server: JobServer = request.param
    try:
        find_java()
    except EngineError as error:
        pytest.skip(str(error))
    downloads = os.environ.get("ARKBEAM_ENGINES") == "download" and shutil.which("mvn") is not None
    if not downloads and not has_jars(server):
        pytest.skip(f"the jars of {server.name} are not there: they need Maven and ARKBEAM_ENGINES=download")
    with run_job_server(server) as running:
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize("job_server", [FLINK_JOB_SERVER, SPARK_JOB_SERVER], indirect=True, ids=lambda one: one.name)
def test_a_job_server_in_java_runs_the_graph(job_server: RunningServer, place: Any) -> None:
    """Flink and Spark translate the graph, and publish what the in-process runner publishes.

    While it runs, the REST API of Flink has the counters of the run. Flink's tasks exchange data all with all, so the
    job has few.
    """
    with _watch_counters(job_server.rest) as counters:
        _check_runner(place, job_server.arguments)
    if job_server.name == FLINK_JOB_SERVER.name:
        assert 0 < counters["vertices"] <= VERTICES_MAX
        assert (counters["rows"], counters["to_buy"], counters["bought"]) == (ROWS + 1, 30, 30)
        assert counters["failed_no_input"] == 1


@contextmanager
def _watch_counters(port: int) -> Iterator[dict[str, int]]:
    """Yield a dictionary with the counters of the last job of Flink, as long as it runs, and the number of its vertices."""
    counters: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            with suppress(OSError, IndexError):  # no job runs yet, or the last one has ended
                counters.update(_read_counters(port))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counters
    finally:
        ended.set()
        thread.join()


def _read_counters(port: int) -> dict[str, int]:
    """Read the number of vertices of the last job, and the counters of this project from Beam's accumulator of it."""
    job = _ask(port, "/jobs")["jobs"][-1]["id"]
    vertices = len(_ask(port, f"/jobs/{job}")["vertices"])
    (accumulator,) = _ask(port, f"/jobs/{job}/accumulators")["user-task-accumulators"][:1] or [{"value": "{}"}]
    found = orjson.loads(accumulator["value"]).get("metrics", {}).get("attempted", [])
    return {"vertices": vertices} | {
        one["labels"]["NAME"]: coders.VarIntCoder().decode(base64.b64decode(one["payload"]))
        for one in found
        if one["labels"].get("NAMESPACE") == NAMESPACE and one["urn"] == SUM_INT64
    }


def _ask(port: int, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        return dict(orjson.loads(reply.read()))


def test_prism_runs_the_graph(place: Any) -> None:
    """Prism publishes what the in-process runner publishes."""
    prism = shutil.which("prism") or Path.home() / "go" / "bin" / "prism"
    if not Path(prism).exists():
        pytest.skip("prism is not installed: go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0")
    _check_runner(place, ["--runner=PrismRunner", f"--prism_location={prism}", "--environment_type=LOOPBACK"])


def _check_runner(place: Any, arguments: list[str]) -> None:
    """Run rows of which some share a vector and one is unreadable; buy on the runner, publish again in this process."""
    place.write_rows([*({"id": str(number), "text": f"text {number % 30}"} for number in range(ROWS)), BAD])
    note = place.run(beam=arguments)
    found = {name: place.read(name) for name in ("embeddings", "failures", "usage")}
    assert (note["rows"], note["published"], note["failed"], note["requests_paid"]) == (ROWS + 1, ROWS, 1, 30)
    assert place.leftovers == []
    again = place.run()
    assert (again["owned"], again["requests_sent"]) == (ROWS, 0)
    for name, table in found.items():
        assert table.sort_by("row" if name != "usage" else "fingerprint").equals(
            place.read(name).sort_by("row" if name != "usage" else "fingerprint")
        ), name
