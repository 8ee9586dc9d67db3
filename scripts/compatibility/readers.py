"""The readers, and an environment for each, in a folder outside the checkout."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.compatibility import read

_INSTALL_S, _READ_S = 900, 1_200


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader at a version: its name in the table and on the command line, its function in `read.py`, its packages."""

    name: str
    function: str
    packages: tuple[str, ...]


_DUCKDB = ("pytz", "numpy")  # DuckDB needs pytz for timestamps with a zone
READERS = {
    reader.name: reader
    for reader in (
        Reader("duckdb-1.1", "duckdb", ("duckdb==1.1.*", *_DUCKDB)),
        Reader("duckdb-1.4", "duckdb", ("duckdb==1.4.*", *_DUCKDB)),
        Reader("duckdb", "duckdb", ("duckdb", *_DUCKDB)),
        Reader("spark-3.5", "spark", ("pyspark==3.5.*",)),
        Reader("spark", "spark", ("pyspark",)),
        Reader("polars", "polars", ("polars",)),
        Reader("pandas", "pandas", ("pandas", "pyarrow")),
        Reader("fastparquet", "fastparquet", ("fastparquet", "pandas")),
        Reader("datasets", "datasets", ("datasets",)),
        Reader("datafusion", "datafusion", ("datafusion", "pyarrow", "pandas")),
        Reader("daft", "daft", ("daft",)),
        Reader("clickhouse-24.8", "clickhouse", ("chdb==2.1.*", "pandas", "pyarrow")),
        Reader("clickhouse", "clickhouse", ("chdb", "pandas", "pyarrow")),
    )
}


def cache_folder() -> Path:
    """Return the default folder of the environments."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arkbeam-compat"


def prepare(reader: Reader, cache: Path) -> Path:
    """Create a reader's environment, if the cache does not have it; return its Python.

    Raise CalledProcessError if a package can't be installed.
    """
    folder = cache / reader.name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = " ".join(reader.packages)
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        # With the pip of this Python: on Debian, the packages with which venv installs a pip may be absent.
        _call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], _INSTALL_S)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        _call([*pip, "install", "--quiet", "--disable-pip-version-check", *reader.packages], _INSTALL_S)
        stamp.write_text(wanted, "utf-8")
    return python


def find_version(reader: Reader, python: Path) -> str:
    """Return the version of the reader's first package; of ClickHouse, its own."""
    code = f"from importlib.metadata import version; print(version({reader.packages[0].partition('=')[0]!r}))"
    if reader.function == "clickhouse":
        code = "import chdb; print(chdb.query('SELECT version()', 'TabSeparatedRaw'))"
    return _call([str(python), "-c", code], 60).strip()


def compare(reader: Reader, python: Path, folders: Sequence[tuple[Path, Path]]) -> list[dict[str, str]]:
    """Read folders with a reader. Each comes with the file of its expected values. Return the outcomes of each."""
    arguments = [str(path) for pair in folders for path in pair]
    out = _call([str(python), read.__file__, reader.function, *arguments], _READ_S)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def time_reading(reader: Reader, python: Path, folder: Path) -> float:
    """Return the seconds in which a reader reads a folder."""
    return float(json.loads(_call([str(python), read.__file__, reader.function, "--time", str(folder)], _READ_S)))


def _call(command: Sequence[str], timeout_s: float) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"TZ": "UTC", "HF_HUB_OFFLINE": "1", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1"}
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise subprocess.CalledProcessError(1, command, stderr=f"it took more than {timeout_s:.0f} s") from None
    if ended.returncode:
        raise subprocess.CalledProcessError(ended.returncode, command, stderr=(ended.stderr or ended.stdout)[-2_000:])
    return ended.stdout
