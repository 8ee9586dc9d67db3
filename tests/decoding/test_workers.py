"""The worker processes that decode media: limits of time, crashes, stops, forks, and the end of their parent."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arkbeam.decoding import workers
from arkbeam.decoding.workers import Crashed, Interrupted, TooSlow, ask
from PIL import Image

from scripts.children import child_environment
from tests.places import wait_until

SMALL = io.BytesIO()
Image.new("RGB", (40, 30)).save(SMALL, "PNG")
LARGE = io.BytesIO()
Image.new("RGB", (5_000, 5_000)).save(LARGE, "PNG")


def _fit(data: io.BytesIO, size: tuple[int, int], cpu_s: float = 20.0) -> bytes:
    facts = {"formats": ["PNG"], "size": size, "new_size": size, "mime": "image/png", "orientation": 1, "repairs": {}}
    return ask("fit", facts, data.getvalue(), cpu_s=cpu_s)[1]


def _fit_small() -> bytes:
    return _fit(SMALL, (40, 30))


def _fit_large(cpu_s: float = 60.0) -> bytes:
    """Do a job of seconds."""
    return _fit(LARGE, (5_000, 5_000), cpu_s)


@pytest.fixture(autouse=True)
def idle() -> Iterator[None]:
    """Each test starts and ends without worker processes."""
    workers.close()
    yield
    workers.resume()
    workers.close()


def _children() -> list[int]:
    return [child.process.pid for child in (*workers._pool.idle, *workers._pool.busy)]


def _in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - Interrupted as well
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_a_process_is_used_again() -> None:
    """One job after the other is done by the same process."""
    assert _fit_small() == _fit_small()
    first = _children()
    _fit_small()
    assert _children() == first
    assert len(first) == 1


def test_a_job_that_takes_too_long_is_ended() -> None:
    """Its process dies, and the next job gets another one."""
    started_s = time.monotonic()
    with pytest.raises(TooSlow):
        _fit_large(cpu_s=0.1)
    assert time.monotonic() - started_s < 10
    assert _children() == []
    assert _fit_small()


def test_a_process_that_dies_is_an_error_of_its_job_alone() -> None:
    """A decoder that crashes raises Crashed for its job; an idle process that was killed is replaced."""
    thread, raised = _in_thread(_fit_large)
    wait_until(lambda: bool(workers._pool.busy))
    os.kill(_children()[0], signal.SIGSEGV)
    thread.join()
    assert isinstance(raised[0], Crashed)
    assert "SIGSEGV" in str(raised[0])
    _fit_small()
    os.kill(_children()[0], signal.SIGKILL)
    assert _fit_small()


def test_an_error_of_a_decoder_is_its_answer() -> None:
    """Damaged bytes do not end the process."""
    answer, _ = ask("check", {"formats": ["PNG"]}, SMALL.getvalue()[:60], cpu_s=5)
    assert "error" in answer
    first = _children()
    assert _fit_small()
    assert _children() == first


def test_jobs_wait_for_a_free_process() -> None:
    """More threads than processes: all get an answer, and there are no more processes than allowed."""
    threads = [_in_thread(_fit_small) for _ in range(12)]
    for thread, raised in threads:
        thread.join()
        assert raised == []
    assert 1 <= len(_children()) <= workers._processes_max()


def test_stop_ends_all_jobs_at_once() -> None:
    """Jobs that run and jobs that wait raise Interrupted; after `resume`, jobs are done again."""
    threads = [_in_thread(_fit_large) for _ in range(6)]
    wait_until(lambda: len(workers._pool.busy) == workers._processes_max())
    stopped_s = time.monotonic()
    workers.stop()
    for thread, raised in threads:
        thread.join()
        assert isinstance(raised[0], Interrupted)
    assert time.monotonic() - stopped_s < 5
    with pytest.raises(Interrupted):
        _fit_small()
    workers.resume()
    assert _fit_small()


def test_what_the_storage_raises_is_raised_again() -> None:
    """A task that needs more bytes gets the exception of the function that reads them."""

    def fail(start: int, end: int) -> bytes:
        raise PermissionError("no more")

    facts = {"size": 100_000, "container": "avi"}
    with pytest.raises(PermissionError):
        ask("film", facts, b"RIFF\xf0\xff\0\0AVI LIST\xf0\xff\0\0hdrl", cpu_s=5, read=fail)
    assert _fit_small()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_process_has_no_files_and_no_secrets_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could be taken over by hostile bytes, so it has neither open files nor environment variables of the run."""
    monkeypatch.setenv("ARK_API_KEY", "a-secret-key")
    with open(os.devnull) as kept:
        os.set_inheritable(kept.fileno(), False)
        _fit_small()
        (pid,) = _children()
        assert b"a-secret-key" not in Path(f"/proc/{pid}/environ").read_bytes()
        targets = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(target.startswith("socket:") for target in targets) == 1
    assert all(target.startswith(("socket:", "pipe:", "/dev/")) for target in targets), targets


def test_a_process_ends_with_its_parent() -> None:
    """After kill -9 of the parent no worker process is left, even while it has a job."""
    code = (
        "import threading, tests.decoding.test_workers as t\n"
        "threading.Thread(target=t._fit_large, daemon=True).start(); t._fit_small()\n"
        "print(*t._children(), flush=True); import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=child_environment()) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert pids
    wait_until(lambda: not any(_is_alive(pid) for pid in pids))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_forked_process_starts_its_own() -> None:
    """A fork leaves the processes to its parent, and can decode as well."""
    before = _fit_small()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if _children() == [] and _fit_small() == before else 2
            workers.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert _fit_small() == before
