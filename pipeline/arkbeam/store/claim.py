"""One run per output at a time: a run claims its output before the first request and releases it at the end.

On local files the claim is an operating-system lock, which ends with its process. On object stores it is a mark, a
small file that its holder rewrites four times per lease. A run that finds a mark watches it for one lease by its own
clock, never by file times, and takes the output over if the mark did not change.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import orjson

from arkbeam.base import faults
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.base.files import read_bytes, read_if_exists, remove_file, write_bytes
from arkbeam.base.uris import is_local, join, storage_errors

LEASE_S = 10.0
LOCK_NAME = ".lock"
MARK_NAME = ".running.json"
_lost: dict[str, str] = {}  # by run of this process: why its claim is lost


@dataclass(slots=True)
class Claim:
    """A claim of this process."""

    is_left: bool = False

    def leave(self) -> None:
        """Let the mark stay at the end of the block: other processes go on with the run (`release_claim`)."""
        self.is_left = True


@contextmanager
def claim_output(
    output_uri: str, run: str, on_lost: Callable[[str], None], *, lease_s: float = LEASE_S
) -> Iterator[Claim]:
    """Hold the claim on an output for the length of the block.

    `on_lost` is called with the reason, from another thread, if another run took the output over, or may have taken it
    over because the mark could not be renewed for a lease. Raise OutputInUse, which names the holder, if another run
    holds it.
    """
    claim = Claim()
    if is_local(output_uri):
        with _local_lock(output_uri, run, claim):
            yield claim
        return
    _wait_for_mark(output_uri, run, lease_s)
    with _heartbeat(output_uri, run, on_lost, lease_s, claim):
        yield claim


def release_claim(output_uri: str, run: str) -> None:
    """Remove the mark of a run that has ended, and whose mark was left (`Claim.leave`). Raise StoreError."""
    if _run_in(read_if_exists(join(output_uri, MARK_NAME))) == run:
        remove_file(join(output_uri, MARK_NAME))


@contextmanager
def show_alive(folder_uri: str, run: str, *, lease_s: float = LEASE_S) -> Iterator[None]:
    """For the length of the block, show in a folder that nobody else uses that its run is alive (`find_dead`)."""
    if is_local(folder_uri):
        with _local_lock(folder_uri, run, Claim()):
            yield
        return
    write_bytes(join(folder_uri, MARK_NAME), _mark(run, 0))
    with _heartbeat(folder_uri, run, lambda _: None, lease_s, Claim()):
        yield


def find_dead(folder_uris: Sequence[str], *, lease_s: float = LEASE_S) -> tuple[list[str], list[str]]:
    """Return the folders whose runs have shown that they were alive (`show_alive`) and are dead, and those without a mark.

    On object stores this takes one lease, if there are folders with marks.
    """
    marks = {uri: read_if_exists(join(uri, MARK_NAME)) for uri in folder_uris}
    marked = [uri for uri in folder_uris if marks[uri] is not None]
    watched = [uri for uri in marked if not is_local(uri)]
    if watched:
        time.sleep(lease_s)
    dead = [uri for uri in watched if read_if_exists(join(uri, MARK_NAME)) == marks[uri]]
    dead += [uri for uri in marked if uri not in watched and _is_free(join(uri, LOCK_NAME))]
    return dead, [uri for uri in folder_uris if uri not in marked]


def _is_free(path: str) -> bool:
    """True if no process holds a lock."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return False
    lock.release()
    return True


def check_claim(output_uri: str, run: str) -> None:
    """Check that a run still holds its output. Any process of the run may call it.

    Raise OutputInUse if the run does not hold it, or may have lost it; StoreError if the mark can't be read.
    """
    faults.hit("commit.check")
    if run in _lost:
        raise OutputInUse(f"{output_uri} was not changed: {_lost[run]}; run again")
    holder = _run_in(read_if_exists(join(output_uri, MARK_NAME)))
    if holder != run:
        taken = f"run {holder} has taken it over" if holder else f"this run's claim, the file {MARK_NAME}, is missing"
        raise OutputInUse(f"{output_uri} was not changed: {taken}; run again")


@contextmanager
def _local_lock(output_uri: str, run: str, claim: Claim) -> Iterator[None]:
    """Lock the output. The mark names the holder of the lock and exists only while the lock is held."""
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
            if not claim.is_left:
                remove_file(mark_uri)  # before the lock is released: afterwards the mark may be that of another run
    finally:
        lock.release()


def _wait_for_mark(output_uri: str, run: str, lease_s: float) -> None:
    """Wait until no other run renews a mark, write our own, and check that it was not overwritten."""
    uri = join(output_uri, MARK_NAME)
    before = read_if_exists(uri)
    if before is not None:
        time.sleep(lease_s)
        if read_if_exists(uri) not in (None, before):
            raise OutputInUse(_in_use(output_uri))
    ours = _mark(run, 0)
    write_bytes(uri, ours)
    time.sleep(lease_s / 4)  # if two runs saw no mark and both wrote one, the earlier one sees the later one here
    if read_if_exists(uri) != ours:
        raise OutputInUse(_in_use(output_uri))


@contextmanager
def _heartbeat(
    output_uri: str, run: str, on_lost: Callable[[str], None], lease_s: float, claim: Claim
) -> Iterator[None]:
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
                if _run_in(read_if_exists(uri)) != run:  # a missing mark: another run took it over and has ended
                    lose("another run took this output over, because this run did not renew its mark in time")
                    return
                write_bytes(uri, _mark(run, number))
                renewed_s = begun_s
            except StoreError as error:  # one missed beat is harmless: a lease has four
                if time.monotonic() - renewed_s >= lease_s:
                    lose(f"its mark could not be renewed for {lease_s:g} s, so another run may take it over ({error})")
                    return

    thread = threading.Thread(target=beat, name="arkbeam-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=lease_s)
        _lost.pop(run, None)
        if not claim.is_left:
            release_claim(output_uri, run)


def _mark(run: str, beat: int) -> bytes:
    mark = {"run": run, "host": socket.gethostname(), "pid": os.getpid(), "beat": beat, "token": uuid.uuid4().hex}
    return orjson.dumps(mark)


def _run_in(mark: bytes | None) -> str | None:
    """Return the run that a mark names; None if it names none."""
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
    return f"{output_uri} is in use by {holder}: wait until it ends, or set another output.uri for this run"
