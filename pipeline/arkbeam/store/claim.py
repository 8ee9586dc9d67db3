"""One output has one run at a time: it is claimed before the first request and let go at the end.

On local files the claim is an operating-system lock, gone with its process. On object stores it is a mark that its holder
changes four times a lease; whoever finds one watches it for a lease by its own clock, never by file times, and takes over
a mark that did not change.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import orjson

from arkbeam.base import faults
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.base.files import exists, is_local, join, read_bytes, remove_file, storage_errors, write_bytes

LEASE_S = 10.0
LOCK_NAME = ".lock"
MARK_NAME = ".running.json"
_lost: dict[str, str] = {}  # runs of this process whose claim is lost, and why


@contextmanager
def claim_output(
    output_uri: str, run: str, on_lost: Callable[[str], None], *, lease_s: float = LEASE_S
) -> Iterator[None]:
    """Hold an output for the length of the block.

    `on_lost` is called with the reason, from another thread, when a mark was taken over, or could not be renewed for a lease,
    so that another run may take it over.

    Raises: OutputInUse when another run holds it, naming that run.
    """
    if is_local(output_uri):
        with _local_lock(output_uri, run):
            yield
        return
    _wait_for_mark(output_uri, run, lease_s)
    with _heartbeat(output_uri, run, on_lost, lease_s):
        yield


def check_claim(output_uri: str, run: str) -> None:
    """Make sure that an output is still a run's, in whichever process this is.

    Raises: OutputInUse when it is not, or when nobody can tell; StoreError when the storage does not answer.
    """
    faults.hit("commit.check")
    if run in _lost:
        raise OutputInUse(f"{output_uri} is left as it is: {_lost[run]}")
    holder = _run_in(_read_mark(join(output_uri, MARK_NAME)))
    if holder != run:
        taken = f"run {holder} has taken it over" if holder else "the mark of this run's claim has gone"
        raise OutputInUse(f"{output_uri} is left as it is: {taken}; run again")


@contextmanager
def _local_lock(output_uri: str, run: str) -> Iterator[None]:
    """Lock the output. The mark says who has the lock, and is there only as long as that is so."""
    with storage_errors("create", output_uri):
        Path(output_uri).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(join(output_uri, LOCK_NAME))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OutputInUse(_in_use(output_uri)) from None
    except OSError as error:
        raise StoreError(f"cannot lock {output_uri}: {error}") from error
    mark_uri = join(output_uri, MARK_NAME)
    try:
        write_bytes(mark_uri, _mark(run, 0), durable=False)
        try:
            yield
        finally:
            remove_file(mark_uri)  # before the lock is let go: after it, the mark may be another's
    finally:
        lock.release()


def _wait_for_mark(output_uri: str, run: str, lease_s: float) -> None:
    """Write our mark once nobody else's changes, and make sure that it is ours that stands."""
    uri = join(output_uri, MARK_NAME)
    before = _read_mark(uri)
    if before is not None:
        time.sleep(lease_s)
        if _read_mark(uri) not in (None, before):
            raise OutputInUse(_in_use(output_uri))
    ours = _mark(run, 0)
    write_bytes(uri, ours)
    time.sleep(lease_s / 4)  # two that saw no mark both wrote one: the later stands, the earlier sees it
    if _read_mark(uri) != ours:
        raise OutputInUse(_in_use(output_uri))


@contextmanager
def _heartbeat(output_uri: str, run: str, on_lost: Callable[[str], None], lease_s: float) -> Iterator[None]:
    uri = join(output_uri, MARK_NAME)
    stop = threading.Event()

    def lose(reason: str) -> None:
        _lost[run] = reason
        on_lost(reason)

    def beat() -> None:
        number, renewed_s = 0, time.monotonic()
        while not stop.wait(lease_s / 4):
            number, begun_s = number + 1, time.monotonic()
            try:
                if _run_in(_read_mark(uri)) != run:  # a mark that has gone was taken over by a run that has ended since
                    lose("another run took this output over, since this one's heartbeat did not get through")
                    return
                write_bytes(uri, _mark(run, number))
                renewed_s = begun_s
            except StoreError as error:  # a missed beat is made good by the next; a lease has four
                if time.monotonic() - renewed_s >= lease_s:
                    lose(
                        f"its mark could not be renewed for {lease_s:g} s, so that another run may take it over ({error})"
                    )
                    return

    thread = threading.Thread(target=beat, name="arkbeam-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=lease_s)
        _lost.pop(run, None)
        if _run_in(_read_mark(uri)) == run:
            remove_file(uri)


def _mark(run: str, beat: int) -> bytes:
    mark = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat, "token": uuid.uuid4().hex}
    return orjson.dumps(mark)


def _read_mark(uri: str) -> bytes | None:
    """Read a mark; None when there is none."""
    try:
        return read_bytes(uri)
    except StoreError:
        if exists(uri):
            raise
        return None


def _run_in(mark: bytes | None) -> str | None:
    """Return the run that a mark names; None where it names none."""
    try:
        return str(orjson.loads(mark or b"")["run"])
    except (ValueError, KeyError, TypeError):
        return None


def _in_use(output_uri: str) -> str:
    try:
        mark = orjson.loads(read_bytes(join(output_uri, MARK_NAME)))
        holder = f"run {mark['run']} (process {mark['pid']} on {mark['host']})"
    except (StoreError, ValueError, KeyError, TypeError):
        holder = "another run"
    return f"{output_uri} is in use by {holder}: wait until it ends, or give this run an output of its own"
