"""The processes of `scripts/flink`: which are ended, and what is said when something is missing."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from scripts.engines import cluster, install
from scripts.engines.install import FLINK_JOB_SERVER, EngineError
from scripts.engines.processes import Recorded, end, forget_ended, list_children, list_recorded, start

# Python warns of a process that nobody waits for: these outlive the command that starts them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
FAMILY = ["sh", "-c", "trap '' TERM; sleep 60 & wait"]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Recorded]:
    """A process that ignores SIGTERM, with a child."""
    started = start("family", FAMILY, tmp_path)
    yield started
    end([started], tmp_path)


def test_the_whole_family_is_ended(
    tmp_path: Path, family: Recorded, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not end by itself is killed together with its children, and its pid file is removed."""
    monkeypatch.setattr("scripts.engines.processes._END_S", 1.0)
    wait(lambda: list_children(family.pid))
    (child,) = list_children(family.pid)
    assert list_recorded(tmp_path) == [family]
    end(list_recorded(tmp_path), tmp_path)
    assert not family.is_running
    wait(lambda: _has_ended(child))
    assert list_recorded(tmp_path) == []


def test_children_of_all_threads_are_found() -> None:
    """A worker pool starts workers in threads of its server; they are found as well."""
    with ThreadPoolExecutor(1) as pool:
        child = pool.submit(subprocess.Popen, ["sleep", "60"]).result()
        try:
            assert child.pid in list_children(os.getpid())
        finally:
            child.kill()
            child.wait()


def test_another_process_with_the_number_is_left_alone(tmp_path: Path, family: Recorded) -> None:
    """A pid file whose process has ended may name a number that another process has now: that one is not ended."""
    other = replace(family, name="other", started=family.started - 1)
    (tmp_path / "other.pid").write_bytes(orjson.dumps(asdict(other)))
    end([other], tmp_path)
    assert family.is_running
    assert list_recorded(tmp_path) == [family]
    (tmp_path / "other.pid").write_bytes(orjson.dumps(asdict(other)))
    forget_ended(tmp_path)
    assert list_recorded(tmp_path) == [family]


def test_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cluster, the status is empty, `down` does nothing, and `add` and `run` say how to start one."""
    monkeypatch.setenv("ARKBEAM_FLINK_HOME", str(tmp_path))
    found = cluster.describe_cluster()
    assert (found["slots"], found["job_manager"], found["task_managers"], found["jobs"]) == (0, None, [], [])
    cluster.stop_cluster()
    for act in (cluster.add_task_manager, cluster.beam_arguments):
        with pytest.raises(EngineError, match="scripts/flink up"):
            act()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java, with a Java that Flink does not run on, or without Maven, the message says what to install."""
    monkeypatch.setenv("ARKBEAM_FLINK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="install Java 11 or 17"):
        install.find_java()
    with pytest.raises(EngineError, match="Debian package maven"):
        install.job_server_jars(FLINK_JOB_SERVER)
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n")
    java.chmod(0o755)
    with pytest.raises(EngineError, match="is Java 21"):
        install.find_java()


def _has_ended(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] in ("", "Z")
