"""One run per output at a time: a run claims its output before the first request and releases it at the end.

The claim is held by the process that starts the run. On local files it is an operating-system lock, which ends with its
process. On object stores it is a mark, a small file that its holder rewrites four times per lease. A run that finds a mark
watches it for one lease by its own clock, never by file times, and takes the output over if the mark did not change. On
local files the mark names the holder of the lock.

A run works on when the process that started it has ended, if other processes work for it. Its mark then stays, and the
next run looks for those processes (`store.living`). All steps are described in PROTOCOL.md.
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
from arkbeam.base.files import read_if_exists, remove_file, write_bytes
from arkbeam.base.uris import is_local, join, storage_errors
from arkbeam.store.layout import start_of_run

LEASE_S = 10.0
LOCK_NAME = ".lock"
MARK_NAME = ".running.json"
WAYS_OUT = "wait until it ends, or run with --take-over, which ends it first"
_lost: dict[str, str] = {}  # by run of this process: why its claim is lost


@dataclass(slots=True)
class Claim:
    """A claim or a sign of life of this process. `before`: the run that held it and did not release it; None if there is none.

    The process that started the run `before` has ended.
    """

    before: str | None = None
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

    def lose(reason: str) -> None:
        _lost[run] = reason
        on_lost(reason)

    try:
        if is_local(output_uri):
            with _local_lock(output_uri, run) as claim, _watching(output_uri, run, lose, lease_s, renew=False):
                yield claim
            return
        claim = Claim(wait_for_mark(output_uri, run, lease_s))
        with _marked(output_uri, run, claim), _watching(output_uri, run, lose, lease_s, renew=True):
            yield claim
    finally:
        _lost.pop(run, None)


@contextmanager
def show_alive(folder_uri: str, run: str, *, lease_s: float = LEASE_S) -> Iterator[Claim]:
    """For the length of the block, show in a folder that nobody else uses that its run is alive.

    See `find_dead` and `store.living`.
    """
    if is_local(folder_uri):
        with _local_lock(folder_uri, run) as claim:
            yield claim
        return
    write_bytes(join(folder_uri, MARK_NAME), _mark(run, 0))
    claim = Claim()
    with _marked(folder_uri, run, claim), _watching(folder_uri, run, lambda _: None, lease_s, renew=True):
        yield claim


def release_claim(output_uri: str, run: str) -> None:
    """Remove the mark of a run that has ended, and whose mark was left (`Claim.leave`). Raise StoreError."""
    if _run_in(read_if_exists(join(output_uri, MARK_NAME))) == run:
        remove_file(join(output_uri, MARK_NAME))


def displace(output_uri: str, run: str) -> str | None:
    """Write the mark of a run over that of another one, which then changes nothing more (`check_claim`).

    Return the run that was displaced; None if there is no mark of another run. The output is not claimed by this. Raise
    StoreError.
    """
    holder = _run_in(read_if_exists(join(output_uri, MARK_NAME)))
    if holder in (None, run):
        return None
    write_bytes(join(output_uri, MARK_NAME), _mark(run, 0))
    return holder


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
    dead += [uri for uri in marked if uri not in watched and not is_locked(uri)]
    return dead, [uri for uri in folder_uris if uri not in marked]


def is_locked(folder: str) -> bool:
    """True if a process holds the lock of a local folder (`claim_output`, `show_alive`)."""
    path = join(folder, LOCK_NAME)
    if not os.path.exists(path):
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


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


def describe_run(run: str, now_s: float) -> str:
    """Return the name of a run, and how long ago it began."""
    started_s = start_of_run(run)
    if started_s is None:
        return f"run {run}"
    minutes, hours = int(max(0.0, now_s - started_s) // 60), int(max(0.0, now_s - started_s) // 3600)
    return f"run {run}, which began {f'{hours} h' if hours else f'{minutes} min'} ago"


@contextmanager
def _local_lock(folder: str, run: str) -> Iterator[Claim]:
    """Lock a folder. The mark names the holder of the lock; it is removed before the lock is released."""
    with storage_errors("create", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(join(folder, LOCK_NAME))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OutputInUse(_in_use(folder)) from None
    except OSError as error:
        raise StoreError(f"cannot lock {folder}: {error}") from error
    try:
        claim = Claim(_run_in(read_if_exists(join(folder, MARK_NAME))))
        write_bytes(join(folder, MARK_NAME), _mark(run, 0), durable=False)
        with _marked(folder, run, claim):
            yield claim
    finally:
        lock.release()


@contextmanager
def _marked(folder_uri: str, run: str, claim: Claim) -> Iterator[None]:
    """At the end of the block, remove the mark, unless it is left or another run's."""
    try:
        yield
    finally:
        if not claim.is_left:
            release_claim(folder_uri, run)


def wait_for_mark(
    output_uri: str, run: str, lease_s: float = LEASE_S, sleep: Callable[[float], None] = time.sleep
) -> str | None:
    """Wait until no other run renews a mark, write our own, and check that it was not overwritten.

    Return the run that the mark before names. Raise OutputInUse, StoreError.
    """
    uri = join(output_uri, MARK_NAME)
    before = read_if_exists(uri)
    if before is not None and _run_in(before) != run:  # not after `displace`
        sleep(lease_s)
        if read_if_exists(uri) not in (None, before):
            raise OutputInUse(_in_use(output_uri))
    ours = _mark(run, 0)
    write_bytes(uri, ours)
    sleep(lease_s / 4)  # if two runs saw no mark and both wrote one, the earlier one sees the later one here
    if read_if_exists(uri) != ours:
        raise OutputInUse(_in_use(output_uri))
    return _run_in(before)


@contextmanager
def _watching(output_uri: str, run: str, lose: Callable[[str], None], lease_s: float, *, renew: bool) -> Iterator[None]:
    """For the length of the block, look whether the mark is still ours, in a thread; with `renew`, renew it."""
    stop = threading.Event()

    def beat() -> None:
        number, renewed_s = 0, time.monotonic()
        while not stop.wait(lease_s / 4):
            number, begun_s = number + 1, time.monotonic()
            try:
                reason = look_at_mark(output_uri, run, number, renew=renew)
                if reason is not None:
                    lose(reason)
                    return
                renewed_s = begun_s
            except StoreError as error:  # one missed beat is harmless: a lease has four
                if renew and time.monotonic() - renewed_s >= lease_s:
                    lose(f"its mark could not be renewed for {lease_s:g} s, so another run may take it over ({error})")
                    return

    thread = threading.Thread(target=beat, name="arkbeam-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=lease_s)


def look_at_mark(output_uri: str, run: str, number: int, *, renew: bool) -> str | None:
    """Return why the claim is lost; None if it is not. With `renew`, renew the mark for the `number`th time. Raise StoreError."""
    data = read_if_exists(join(output_uri, MARK_NAME))
    holder = _run_in(data)
    if holder != run and (renew or data is not None):
        return _describe_loss(holder)
    if renew:
        write_bytes(join(output_uri, MARK_NAME), _mark(run, number))
    return None


def _describe_loss(holder: str | None) -> str:
    if holder is None:  # another run took it over and has ended
        return "another run took this output over, because this run did not renew its mark in time"
    return f"run {holder} took this output over, with --take-over or because this run did not renew its mark in time"


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
        mark = orjson.loads(read_if_exists(join(output_uri, MARK_NAME)) or b"")
        age = describe_run(str(mark["run"]), time.time()).partition(", ")[2]
        holder = f"run {mark['run']} (process {mark['pid']} on {mark['host']})" + (f", {age}" if age else "")
    except (StoreError, ValueError, KeyError, TypeError):
        holder = "another run"
    return f"{output_uri} is in use by {holder}: {WAYS_OUT}"
