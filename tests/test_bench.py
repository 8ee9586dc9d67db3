"""The bench: its measures run, and its checks can fail. The values of its figures are not tested.

Three measures are run: `kill`, `plan` and `bytes`. With ARKBEAM_PROMISES=all in the environment all measures are run.
"""

import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base.schema import dense_type
from arkbeam.emulator.vectors import embed
from rich.console import Console

from scripts.benchmarks.__main__ import MEASURES, run_measures
from scripts.benchmarks.outputs import Checked, check_vectors
from scripts.benchmarks.runs import BenchError, run_child
from scripts.benchmarks.table import Bench, Figure, Size, at_least, at_most, describe_machine, figures_table
from scripts.benchmarks.texts import make_texts, row_id
from scripts.children import ROOT

MEASURES_RUN = MEASURES if os.environ.get("ARKBEAM_PROMISES") == "all" else ("kill", "plan", "bytes")
# The targets of these figures do not depend on the speed of the machine or on the size.
ALWAYS_MET = {"vectors that differ in a bit", "output", "refused"}


def render(figures: list[Figure]) -> str:
    """Return the table as text, so wide that no cell is cut."""
    console = Console(file=StringIO(), width=400)
    console.print(figures_table(figures, Size.TINY))
    return console.file.getvalue()  # type: ignore[attr-defined]


def bench_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `scripts/bench` with this Python instead of that of .venv."""
    env = {**os.environ, "PYTHON": sys.executable, "COLUMNS": "200", "TERM": "dumb"}
    command = [str(ROOT / "scripts" / "bench"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES_RUN)
def test_measure_fills_the_table(name: str, tmp_path: Path) -> None:
    """A measure runs at its smallest size and its figures are in the table; targets that do not depend on speed are met."""
    if name == "quota_redis" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    said: list[str] = []
    figures = MEASURES[name](Bench(Size.TINY, tmp_path, said.append))
    text = render(figures)
    assert figures
    assert said
    for one in figures:
        assert one.measured
        assert one.figure in text
        assert one.measured in text
        assert one.met is not False or one.figure not in ALWAYS_MET, text


def test_failed_measure_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed measure is a line in the table, and the bench counts as incomplete; the other measures run."""

    def fail(_: Bench) -> list[Figure]:
        raise BenchError("no disk")

    monkeypatch.setitem(MEASURES, "plan", fail)
    monkeypatch.setitem(MEASURES, "kill", lambda _: [Figure("kill", "output", "complete")])
    progress = Console(file=StringIO())
    figures, complete = run_measures(["plan", "kill"], Size.TINY, progress)
    assert [one.measure for one in figures] == ["plan", "kill"]
    assert not complete
    assert "no disk" in progress.file.getvalue()  # type: ignore[attr-defined]
    assert "could not be made" in render(figures)


def test_folders_of_measures_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a measure is removed at its end."""
    folders: list[Path] = []

    def write(bench: Bench) -> list[Figure]:
        (bench.folder / "manifest.jsonl").write_text("{}")
        folders.append(bench.folder)
        return []

    monkeypatch.setitem(MEASURES, "fixed", write)
    assert run_measures(["fixed"], Size.TINY, Console(file=StringIO())) == ([], True)
    assert not folders[0].exists()


def test_table_tells_met_from_missed() -> None:
    """A figure with a target shows whether it was met; one without shows neither."""
    figures = [
        Figure("fixed", "quick", "1 s", "≤ 3 s", True),
        Figure("fixed", "slow", "9 s", "≤ 3 s", False),
        Figure("kill", "told", "7"),
    ]
    lines = {line.split("│")[2].strip(): line for line in render(figures).splitlines() if line.count("│") == 7}
    assert "met" in lines["quick"]
    assert "missed" in lines["slow"]
    assert "met" not in lines["told"]
    assert "missed" not in lines["told"]


def test_figure_that_is_no_number_is_missed() -> None:
    """NaN, for runs too short to compare, meets no target."""
    assert not at_least(float("nan"), 0.6)
    assert not at_most(float("nan"), 12)


def test_machine_line_names_the_cores() -> None:
    """The line below the table says how many cores there are."""
    assert f"of {os.cpu_count()}" in describe_machine()


def write_output(folder: Path, rows: list[tuple[int, str]]) -> None:
    """Write an output that gives each row the vector of the text beside it."""
    vectors = np.concatenate([embed([("text", text)]) for _, text in rows])
    dense = pa.FixedSizeListArray.from_arrays(pa.array(vectors), type=dense_type(2048))
    (folder / "embeddings").mkdir()
    pq.write_table(pa.table({"id": [row_id(n) for n, _ in rows], "dense": dense}), folder / "embeddings" / "p.parquet")


def test_check_accepts_right_vectors(tmp_path: Path) -> None:
    """An output is right if each row has its own vector, in any order of rows."""
    texts = list(make_texts(5))
    write_output(tmp_path, list(reversed(list(enumerate(texts)))))
    assert check_vectors(tmp_path, texts) == Checked(5, wrong=0, missing=0, repeated=0)


def test_check_finds_wrong_missing_and_repeated_rows(tmp_path: Path) -> None:
    """Rows with a wrong vector, missing rows and repeated rows are counted."""
    texts = list(make_texts(5))
    write_output(tmp_path, [(0, texts[1]), (1, texts[0]), (2, texts[2]), (2, texts[2]), (3, texts[3])])
    checked = check_vectors(tmp_path, texts)
    assert checked == Checked(5, wrong=2, missing=1, repeated=1)
    assert not checked.is_right


def test_failed_child_is_an_error_with_its_words(tmp_path: Path) -> None:
    """If a child does not exit with 0, its measure fails with an error that contains the output of the child."""
    with pytest.raises(BenchError, match="no such thing"):
        run_child([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_the_childs_own(tmp_path: Path) -> None:
    """The peak is that of the child, without its parent and its own children."""
    ballast = "import time; block = bytearray(200_000_000); time.sleep(0.3)"
    large = run_child([sys.executable, "-c", ballast], tmp_path)
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ballast!r}])"
    small = run_child([sys.executable, "-c", nested], tmp_path)
    assert large.peak_bytes > 200_000_000
    assert 0 < small.peak_bytes < 100_000_000


def test_help_names_every_measure() -> None:
    """`scripts/bench --help` describes each measure."""
    done = bench_command("--help")
    assert done.returncode == 0
    for name, measure in MEASURES.items():
        assert f"{name}: {(measure.__doc__ or '')[:20]}" in done.stdout


def test_unknown_measure_is_refused() -> None:
    """An unknown measure exits with 2 and the names of the known ones."""
    done = bench_command("thruput")
    assert done.returncode == 2
    assert "throughput" in done.stderr
