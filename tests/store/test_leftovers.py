"""What dead runs left is removed, and what may belong to a living run stays."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arkbeam.base.files import list_files, write_bytes
from arkbeam.store.claim import MARK_NAME, find_dead, show_alive
from arkbeam.store.layout import PLAN_SUFFIX, new_run_name, run_folder, segments_folder, uri_key
from arkbeam.store.leftovers import AGE_S, list_runs, remove_dead_plans, remove_dead_runs, remove_old_results
from arkbeam.store.run_files import note_uri

from tests.s3 import S3

OURS, THEIRS = uri_key("/outputs/ours"), uri_key("/outputs/theirs")
DAY_S = 24 * 3600.0
LEASE_S = 0.4


def _stage(store: str, output_key: str, *, suffix: str = "", age_s: float = 0.0) -> str:
    """Write a staged row of a run that started so long ago; return the run's folder."""
    folder = run_folder(store, new_run_name(output_key, time.time() - age_s, os.urandom(4).hex()) + suffix)
    write_bytes(f"{folder}/rows/000000/0000000000.parquet", b"rows")
    return folder


def _plan_until_killed(folder: str) -> None:
    with show_alive(folder, "a-plan"):
        time.sleep(60)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store on disk and one on an object store."""
    if request.param == "local":
        return str(tmp_path / "store")
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri("store")


def _runs(store: str) -> set[str]:
    return {uri.rsplit("/rows/", 1)[0] for uri in list_files(run_folder(store)) if "/rows/" in uri}


def test_a_killed_plan_is_removed(tmp_path: Path, start_function: Callable[..., Any], wait: Any) -> None:
    """The folder of a plan that was killed is removed, that of one that runs is not, however old they are."""
    store = str(tmp_path / "store")
    killed, living = (_stage(store, OURS, suffix=PLAN_SUFFIX, age_s=30 * DAY_S) for _ in range(2))
    process = start_function(_plan_until_killed, killed)
    wait((Path(killed) / MARK_NAME).exists)
    with show_alive(living, "a-plan"):
        remove_dead_plans(store, OURS)
        assert _runs(store) == {killed, living}
        process.send(signal.SIGKILL)
        process.wait()
        remove_dead_plans(store, OURS)
        assert _runs(store) == {living}


def test_a_plan_that_shows_no_life_on_an_object_store(s3: S3) -> None:
    """A mark that does not change for a lease is that of a dead plan."""
    store = s3.uri("store")
    killed, living = (_stage(store, OURS, suffix=PLAN_SUFFIX, age_s=30 * DAY_S) for _ in range(2))
    write_bytes(f"{killed}/{MARK_NAME}", b'{"run": "a-plan"}')
    with show_alive(living, "a-plan", lease_s=LEASE_S):
        remove_dead_plans(store, OURS, lease_s=3 * LEASE_S)
        assert _runs(store) == {living}


def test_runs_of_this_output_are_removed(store: str) -> None:
    """Those that the caller found dead are removed; plans without a mark are left for a week; other outputs' stay."""
    dead = _stage(store, OURS).rpartition("/")[2]
    living = _stage(store, OURS)
    _stage(store, OURS, suffix=PLAN_SUFFIX, age_s=8 * DAY_S)
    kept = {
        living,
        _stage(store, OURS, suffix=PLAN_SUFFIX, age_s=6 * DAY_S),
        _stage(store, THEIRS),
        _stage(store, THEIRS, suffix=PLAN_SUFFIX, age_s=8 * DAY_S),
    }
    assert sorted(list_runs(store, OURS)) == sorted([dead, living.rpartition("/")[2]])
    remove_dead_runs(store, OURS, [dead])
    remove_dead_plans(store, OURS, lease_s=LEASE_S)
    assert _runs(store) == kept


def test_a_folder_with_a_mark_and_a_lock(tmp_path: Path) -> None:
    """On a local store the lock decides at once: no time passes, and an ended plan counts as dead only if its mark is left."""
    folder = str(tmp_path / "plan")
    with show_alive(folder, "a-plan"):
        assert find_dead([folder], lease_s=60) == ([], [])
    assert find_dead([folder], lease_s=60) == ([], [folder])
    write_bytes(f"{folder}/{MARK_NAME}", b"{}")
    assert find_dead([folder], lease_s=60) == ([folder], [])


def test_temporary_files(tmp_path: Path) -> None:
    """Those in folders of this output's runs are removed; in folders of all runs, only those that are old."""
    store = str(tmp_path)
    ours, theirs = (segments_folder(store, new_run_name(key, 1e9, "0" * 8)) for key in (OURS, THEIRS))
    old = [
        Path(folder) / ".a.parquet.0123abcd.tmp"
        for folder in (ours, f"{store}/index", f"{store}/media", f"{store}/models")
    ]
    new = [
        Path(folder) / ".b.parquet.0123abcd.tmp"
        for folder in (theirs, f"{store}/index", f"{store}/media", f"{store}/models")
    ]
    others = [Path(f"{store}/index") / "c.parquet"]
    for path in (*old, *new, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in (*old[1:], *others):
        os.utime(path, (time.time() - AGE_S - 60,) * 2)
    remove_dead_runs(store, OURS, [])
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([*new, *others])


def test_results_that_nobody_has_read(tmp_path: Path) -> None:
    """The folder of a run of any output goes a week after its start, if the run has ended."""
    now_s, store = time.time(), str(tmp_path)
    old, new = (new_run_name("0000000a", now_s - days * DAY_S, "0" * 8) for days in (8, 6))
    unended = new_run_name("0000000b", now_s - 8 * DAY_S, "0" * 8)
    for run, note in ((old, "result"), (new, "result"), (unended, "running")):
        write_bytes(note_uri(store, run, note), b"{}")
    remove_old_results(store)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted([new, unended])
