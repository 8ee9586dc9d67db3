"""One small run on each engine that translates the graph itself: Flink and Spark, through Beam's job servers, and Prism.

They are skipped if the engine is not installed. With ARKBEAM_ENGINES=download, as in CI, the jars are downloaded.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.engines.install import FLINK_JOB_SERVER, SPARK_JOB_SERVER, EngineError, JobServer, find_java, has_jars
from scripts.engines.job_server import run_job_server

# A job server that ends its job cuts the connections of Beam's workers, whose threads raise errors that nobody catches.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")]
ROWS = 40
BAD = "{}"


@pytest.fixture
def job_server(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The arguments of Beam for the job server that the test names."""
    server: JobServer = request.param
    try:
        find_java()
    except EngineError as error:
        pytest.skip(str(error))
    downloads = os.environ.get("ARKBEAM_ENGINES") == "download" and shutil.which("mvn") is not None
    if not downloads and not has_jars(server):
        pytest.skip(f"the jars of {server.name} are not there: they need Maven and ARKBEAM_ENGINES=download")
    with run_job_server(server) as arguments:
        yield arguments


@pytest.mark.timeout(900)
@pytest.mark.parametrize("job_server", [FLINK_JOB_SERVER, SPARK_JOB_SERVER], indirect=True, ids=lambda one: one.name)
def test_a_job_server_in_java_runs_the_graph(job_server: list[str], place: Any, make_place: Any) -> None:
    """Flink and Spark translate the graph, and publish what the in-process runner publishes."""
    _check_runner(place, job_server)


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
