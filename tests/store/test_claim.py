"""One run per output: by a lock on local files, by a mark with a heartbeat in other storages."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.base.files import exists, read_bytes, remove_file, write_bytes
from arkbeam.store import claim
from arkbeam.store.claim import MARK_NAME, check_claim, claim_output

ROOT = Path(__file__).parents[2]
LEASE_S = 0.4

HOLDER = """
import sys
from arkbeam.store.claim import claim_output
with claim_output(sys.argv[1], "run-of-holder", print):
    print("held", flush=True)
    sys.stdin.read()
"""


def _setter(event: threading.Event) -> Callable[[str], None]:
    return lambda _: event.set()


def _unexpected(_: str) -> None:
    raise AssertionError("nobody took the output over")


def _claim_and_fail(output: Path) -> None:
    with claim_output(str(output), "run", _unexpected):
        assert (output / MARK_NAME).exists()
        raise StoreError("failed")


@contextmanager
def _holder(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold an output in another process until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "pipeline")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    """The message names run and process; the output is free as soon as its holder is killed."""
    with _holder(tmp_path) as process:
        with pytest.raises(OutputInUse, match=rf"run run-of-holder \(process {process.pid} on "):  # noqa: SIM117
            with claim_output(str(tmp_path), "run-of-second", _unexpected):
                pytest.fail("two hold it")
        process.kill()
        process.wait()
        with claim_output(str(tmp_path), "run-of-third", _unexpected):
            assert orjson.loads((tmp_path / MARK_NAME).read_bytes())["run"] == "run-of-third"


def test_an_output_is_free_after_its_run(tmp_path: Path) -> None:
    """The folder is created, the mark exists only during the run, and a run that fails releases its claim too."""
    output = tmp_path / "deep/output"
    for _ in range(2):
        with pytest.raises(StoreError, match="failed"):
            _claim_and_fail(output)
        assert not (output / MARK_NAME).exists()


def test_a_process_refuses_itself(tmp_path: Path) -> None:
    """Two runs in one process exclude each other too."""
    with claim_output(str(tmp_path), "first", _unexpected):
        with pytest.raises(OutputInUse, match="run first"), claim_output(str(tmp_path), "second", _unexpected):
            pytest.fail("two hold it")
        assert orjson.loads((tmp_path / MARK_NAME).read_bytes())["run"] == "first"


def test_the_mark_goes_before_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next holder of the lock would lose its mark, and no message could name it."""
    held = []

    def remove(uri: str) -> None:
        with pytest.raises(OutputInUse), claim_output(str(tmp_path), "other", _unexpected):
            pytest.fail("it is held until the mark is gone")
        held.append(uri)
        remove_file(uri)

    with claim_output(str(tmp_path), "run", _unexpected):
        monkeypatch.setattr(claim, "remove_file", remove)
    assert held == [f"{tmp_path}/{MARK_NAME}"]


def test_an_output_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    """The error names the file that is where the folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/output"), claim_output(f"{tmp_path}/file/output", "r", _unexpected):
        pytest.fail("it was claimed")


@pytest.fixture
def output() -> str:
    """Return a folder in a storage without locks, like an object store."""
    return f"memory://claims/{uuid.uuid4().hex}"


def _mark(output: str) -> dict[str, object]:
    mark: dict[str, object] = orjson.loads(read_bytes(f"{output}/{MARK_NAME}"))
    return mark


def test_a_mark_that_changes_holds_an_output(output: str) -> None:
    """The holder's beat is seen within a lease, the error names the holder, and the mark is removed at the end."""
    with claim_output(output, "first", _unexpected, lease_s=LEASE_S):
        with pytest.raises(OutputInUse, match="run first"):  # noqa: SIM117
            with claim_output(output, "second", _unexpected, lease_s=LEASE_S):
                pytest.fail("two hold it")
        assert _mark(output)["run"] == "first"
    assert not exists(f"{output}/{MARK_NAME}")


def test_a_dead_runs_mark_is_taken_over_after_a_lease(output: str) -> None:
    """A mark that does not change for a lease belongs to a dead run."""
    write_bytes(f"{output}/{MARK_NAME}", orjson.dumps({"run": "dead", "host": "h", "pid": 1, "beat": 5}))
    begun_s = time.monotonic()
    with claim_output(output, "second", _unexpected, lease_s=LEASE_S):
        assert time.monotonic() - begun_s >= LEASE_S
        assert _mark(output)["run"] == "second"


def test_a_run_that_ends_while_it_is_watched_leaves_its_output_free(output: str) -> None:
    """A mark that disappears does not count as one that changes."""
    uri = f"{output}/{MARK_NAME}"
    write_bytes(uri, b"whatever")
    timer = threading.Timer(LEASE_S / 4, remove_file, (uri,))
    timer.start()
    with claim_output(output, "second", _unexpected, lease_s=LEASE_S):
        assert _mark(output)["run"] == "second"
    timer.join()


@pytest.mark.parametrize("other", [b'{"run": "thief"}', b"[1]", b"no JSON", None])
def test_a_run_hears_that_its_output_was_taken_over(output: str, other: bytes | None) -> None:
    """Another mark, or a missing one, is noticed at the next beat; the other run's mark is left unchanged."""
    lost = threading.Event()
    uri = f"{output}/{MARK_NAME}"
    with claim_output(output, "first", _setter(lost), lease_s=LEASE_S):
        if other is None:
            remove_file(uri)
        else:
            write_bytes(uri, other)
        assert lost.wait(10)
    assert read_bytes(uri) == other if other is not None else not exists(uri)


def test_a_beat_that_fails_is_made_good_by_the_next(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that fails for a moment does not end a run."""
    lost = threading.Event()
    failed = threading.Semaphore(0)

    def fail(*_: object) -> None:
        failed.release()
        raise StoreError("cannot write: TimeoutError")

    with claim_output(output, "first", _setter(lost), lease_s=LEASE_S):
        before = _mark(output)["beat"]
        with monkeypatch.context() as patched:
            patched.setattr(claim, "write_bytes", fail)
            assert failed.acquire(timeout=10)
        deadline_s = time.monotonic() + 10
        while _mark(output)["beat"] == before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert _mark(output)["beat"] != before
    assert not lost.is_set()


def test_of_two_that_see_no_mark_one_wins(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write; the later mark stays, and the earlier run sees it before it sends anything."""
    writes = claim.write_bytes  # type: ignore[attr-defined]

    def write_then_lose(uri: str, data: bytes) -> None:
        writes(uri, data)
        monkeypatch.setattr(claim, "write_bytes", writes)
        writes(uri, orjson.dumps({"run": "other", "pid": 7, "host": "h"}))

    monkeypatch.setattr(claim, "write_bytes", write_then_lose)
    with pytest.raises(OutputInUse, match="run other"), claim_output(output, "first", _unexpected, lease_s=LEASE_S):
        pytest.fail("two hold it")


def test_a_run_that_can_not_renew_its_mark_for_a_lease_stops(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may have taken the output over: the run gets the reason, and its commit fails, whatever the mark says."""
    reasons: list[str] = []
    lost = threading.Event()

    def note(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    def fail(*_: object) -> None:
        raise StoreError("cannot write: TimeoutError")

    with claim_output(output, "first", note, lease_s=LEASE_S):
        check_claim(output, "first")
        monkeypatch.setattr(claim, "write_bytes", fail)
        assert lost.wait(10)
        assert "could not be renewed for 0.4 s" in reasons[0]
        assert _mark(output)["run"] == "first"
        with pytest.raises(OutputInUse, match="could not be renewed"):
            check_claim(output, "first")


@pytest.mark.parametrize("other", ["thief", None])
def test_a_claim_is_checked_by_its_mark(tmp_path: Path, other: str | None) -> None:
    """The run that the mark names holds the output; without a mark no run does."""
    with claim_output(str(tmp_path), "first", _unexpected):
        check_claim(str(tmp_path), "first")
        mark = tmp_path / MARK_NAME
        mark.unlink() if other is None else mark.write_bytes(orjson.dumps({"run": other}))
        with pytest.raises(OutputInUse, match=other or "is missing"):
            check_claim(str(tmp_path), "first")
