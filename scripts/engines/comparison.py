"""The same run on each engine: its time, what the server counted, and if the output is that of the in-process runner."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.engines import cluster
from scripts.engines.install import FLINK_JOB_SERVER, SPARK_JOB_SERVER, EngineError, JobServer
from scripts.engines.job_server import run_job_server
from scripts.engines.trials import Outcome, Trial, open_trial

COLUMNS = (
    "exit",
    "rows",
    "paid",
    "refused",
    "most in 60 s",
    "share from minute 2",
    "wall",
    "equal",
    "again, all owned",
)


@contextmanager
def _flink(*, keeps_workers: bool = True) -> Iterator[list[str]]:
    try:
        cluster.start_cluster(2, 2)
        yield cluster.beam_arguments(keeps_workers=keeps_workers)
    finally:
        cluster.stop_cluster()


@contextmanager
def _prism() -> Iterator[list[str]]:
    prism = shutil.which("prism", path=f"{Path.home() / 'go' / 'bin'}:/usr/local/bin:/usr/bin")
    if prism is None:
        raise EngineError(
            "prism is not installed: go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0 installs it"
        )
    yield ["--runner=PrismRunner", f"--prism_location={prism}", "--environment_type=LOOPBACK"]


def _multi_processing() -> AbstractContextManager[list[str]]:
    return nullcontext(["--direct_running_mode=multi_processing", "--direct_num_workers=2"])


@contextmanager
def _job_server(server: JobServer) -> Iterator[list[str]]:
    with run_job_server(server) as running:
        yield running.arguments


ENGINES: Mapping[str, tuple[str, Callable[[], AbstractContextManager[list[str]]]]] = {
    "in_process": ("in process", lambda: nullcontext([])),
    "multi_processing": ("in process, two worker processes", _multi_processing),
    "prism": ("Prism", _prism),
    "flink_local": ("Flink, in the job server", lambda: _job_server(FLINK_JOB_SERVER)),
    "flink_local_s3": ("Flink, in the job server; S3 store", lambda: _job_server(FLINK_JOB_SERVER)),
    "flink": ("Flink cluster", _flink),
    "flink_uncached": ("Flink cluster without Beam's worker cache", lambda: _flink(keeps_workers=False)),
    "flink_s3": ("Flink cluster, S3 store", _flink),
    "flink_redis": ("Flink cluster, quota in Redis", _flink),
    "spark": ("Spark, in the job server", lambda: _job_server(SPARK_JOB_SERVER)),
}
"""What each engine is called, and how it is started; with it, Beam's arguments."""


def run_engine(name: str, folder: Path, rows: int, rpm: int) -> tuple[Outcome, pa.Table, float]:
    """Run on an engine twice; return the first run's outcome and output, and the seconds of the second, which sends nothing.

    Raise BenchError, EngineError.
    """
    with (
        open_trial(folder, rows, rpm, s3=name.endswith("_s3"), redis=name.endswith("_redis")) as trial,
        ENGINES[name][1]() as beam,
    ):
        first = _run(trial, beam)
        return first, read_output(trial.site.output), _run(trial, beam).wall_s


def read_output(output: Path) -> pa.Table:
    """Return the rows of an output by their place in the manifest: ids and vectors."""
    return pq.read_table(output / "embeddings", columns=["row", "id", "dense"]).sort_by("row")


def cells(outcome: Outcome, table: pa.Table, expected: pa.Table | None, again_s: float) -> Sequence[str]:
    """Return the cells of `COLUMNS`. `expected`: the output of the in-process runner."""
    code, rows, paid, _, _, _, refused, most, _, wall = outcome.cells()
    equal = "-" if expected is None else "yes" if table.equals(expected) else "no"
    share = "-" if math.isnan(outcome.used_share) else f"{outcome.used_share:.1%}"
    return [code, rows, paid, refused, most, share, wall, equal, f"{again_s:.0f} s"]


def _run(trial: Trial, beam: Sequence[str]) -> Outcome:
    running = trial.again()
    with running.submit(beam) as process:
        return running.conclude(running.wait_for_end(process))
