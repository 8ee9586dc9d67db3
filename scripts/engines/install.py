"""Install the engines into a cache folder: Beam's job servers with Maven, Flink with pip. Only what is missing is installed."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_INSTALL_S = 900
_JAVA_MIN, _JAVA_MAX = 11, 17
FLINK = ("apache-flink==1.19.3", "apache-flink-libraries==1.19.3")
"""Packages from PyPI. The folder `pyflink` of the first is a Flink distribution."""


class EngineError(Exception):
    """An engine can't be installed or started. The message says what to do."""


@dataclass(frozen=True, slots=True)
class JobServer:
    """A job server of Beam: its main class, and its Maven artifacts (`group:artifact:version`) with all that they need."""

    name: str
    main: str
    artifacts: tuple[str, ...]


_BEAM = "2.62.0"  # the portable protocol is the same for later versions of the Python SDK
_SPARK = "3.5.1"
FLINK_JOB_SERVER = JobServer(
    "flink-1.19",
    "org.apache.beam.runners.flink.FlinkJobServerDriver",
    (f"org.apache.beam:beam-runners-flink-1.19:{_BEAM}",),
)
SPARK_JOB_SERVER = JobServer(
    "spark-3",
    "org.apache.beam.runners.spark.SparkJobServerDriver",
    (
        f"org.apache.beam:beam-runners-spark-3:{_BEAM}",
        *(f"org.apache.spark:spark-{part}_2.12:{_SPARK}" for part in ("core", "streaming", "sql")),
    ),
)


def cache_folder() -> Path:
    """Return the folder of everything that this package installs and writes: $ARKBEAM_FLINK_HOME or below ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ARKBEAM_FLINK_HOME") or base / "arkbeam" / "flink").absolute()


def find_java() -> str:
    """Return the path of Java. Raise EngineError if there is none, or if its version does not suit Flink and Spark."""
    java = shutil.which("java")
    if java is None:
        raise EngineError(
            f"Java is not installed: install Java {_JAVA_MIN} or {_JAVA_MAX}, for example the Debian package"
            " openjdk-17-jre-headless"
        )
    printed = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', printed)
    if version is None or not _JAVA_MIN <= int(version[1]) <= _JAVA_MAX:
        found = version[1] if version else "of an unknown version"
        raise EngineError(f"{java} is Java {found}: put Java {_JAVA_MIN} or {_JAVA_MAX} first on PATH")
    return java


def has_jars(server: JobServer) -> bool:
    """True if the jars of a job server need not be downloaded."""
    return _is_installed(_jars_folder(server), " ".join(server.artifacts))


def job_server_jars(server: JobServer) -> Path:
    """Return the folder with the jars of a job server. The first call downloads about 150 to 300 MB with Maven.

    Raise EngineError if Maven is missing or fails.
    """
    folder = _jars_folder(server)
    if has_jars(server):
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise EngineError(
            f"the jars of {server.name} are not in {folder}, and Maven, which downloads them, is not installed: install it,"
            " for example the Debian package maven"
        )
    _say(f"downloading the jars of {server.name} with Maven; this takes a minute, once")
    partial = _new_folder(folder)
    (partial / "pom.xml").write_text(_pom(server), "utf-8")
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={partial}"]
    _call([maven, "--batch-mode", "--quiet", "--file", str(partial / "pom.xml"), goal, *options])
    _finish(partial, folder, " ".join(server.artifacts))
    return folder


def flink_home() -> Path:
    """Return the folder of Flink, with `bin`, `conf` and `lib`. The first call downloads about 250 MB with pip.

    Raise EngineError if pip fails.
    """
    folder = cache_folder() / "flink-1.19"
    wanted = " ".join(FLINK)
    if not _is_installed(folder, wanted):
        _say("downloading Flink with pip; this takes a minute, once")
        partial = _new_folder(folder)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--target", str(partial)]
        _call([sys.executable, "-m", "pip", "install", *options, *FLINK])
        for script in (partial / "pyflink" / "bin").glob("*.sh"):
            script.chmod(0o755)
        _finish(partial, folder, wanted)
    return folder / "pyflink"


def _jars_folder(server: JobServer) -> Path:
    return cache_folder() / "jars" / server.name


def _is_installed(folder: Path, wanted: str) -> bool:
    stamp = folder / "installed"
    return stamp.exists() and stamp.read_text("utf-8") == wanted


def _new_folder(folder: Path) -> Path:
    """Make an empty folder beside `folder`, to which it is renamed when it is complete."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _finish(partial: Path, folder: Path, wanted: str) -> None:
    (partial / "installed").write_text(wanted, "utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _pom(server: JobServer) -> str:
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *artifact.split(":")
        )
        for artifact in server.artifacts
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>arkbeam</groupId>'
        f"<artifactId>{server.name}</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )


def _call(command: Sequence[str]) -> None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise EngineError(f"{command[0]} took more than {_INSTALL_S} s: try again") from None
    if ended.returncode:
        raise EngineError(f"{command[0]} failed:\n{(ended.stdout + ended.stderr)[-2_000:]}")


def _say(text: str) -> None:
    print(f"arkbeam: {text}", file=sys.stderr, flush=True)
