"""What a process of a run with several processes shows and checks: that it works for the run, and that it is set up.

The submitter is the process that starts the run. The others are started by the runner, on any machine.
"""

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import orjson

from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import read_if_exists, write_bytes
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.engine.attempts import RENEW_S, blocks_folder, processes_folder
from arkbeam.quota.marks import remove_mark, write_mark
from arkbeam.stages.spec import RunSpec
from arkbeam.store.layout import PLAN_SUFFIX
from arkbeam.store.living import is_running
from arkbeam.store.run_files import note_uri

_ERROR = "error"
_log = logging.getLogger(__name__)
_checked: set[str] = set()
_lock = threading.Lock()


@contextmanager
def showing_process(spec: RunSpec) -> Iterator[None]:
    """For the length of the block, in which the output is changed, show other runs that this process is alive.

    The mark is there before the block begins. Raise StoreError if it can't be written.
    """
    if not spec.many_processes:
        yield
        return
    folder = processes_folder(blocks_folder(spec.store.uri, spec.run.name))
    name, details = f"{os.getpid()}-{secrets.token_hex(4)}", {"host": socket.gethostname(), "pid": str(os.getpid())}
    ended = threading.Event()

    def renew() -> None:
        number = 1
        while not ended.wait(RENEW_S):
            with suppress(StoreError):  # the steps of the block report a storage that stays away
                write_mark(folder, name, number, details)
                number += 1

    write_mark(folder, name, 0, details)
    thread = threading.Thread(target=renew, name="arkbeam-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            remove_mark(folder, name)
        except StoreError as error:
            _log.warning("a mark in %s can't be removed: %s", redact_uri(folder), error)


def check_process(spec: RunSpec, check_secrets: Callable[[RunSpec], None]) -> None:
    """Check once in each process that it sees the run's folder in the store, and has the secrets that it needs.

    Raise ConfigError, and leave it as a note for the submitter: some runners pass on only a trace of their own.
    """
    if not spec.many_processes or spec.run.name in _checked:
        return
    with _lock:
        if spec.run.name in _checked:
            return
        if not is_running(spec.store.uri, spec.run.name):
            raise ConfigError(
                f"the process {os.getpid()} on {socket.gethostname()} finds no run {spec.run.name} in the store"
                f" {redact_uri(spec.store.uri)}: set store.uri to a place that is the same for the submitter and all"
                " workers, such as an object store (if it is one, another run has ended this run)"
            )
        try:
            if not spec.run.name.endswith(PLAN_SUFFIX):
                check_secrets(spec)
        except ConfigError as error:
            with suppress(StoreError):
                _note_error(spec, error)
            raise
        _checked.clear()  # a process has one run at a time
        _checked.add(spec.run.name)


def _note_error(spec: RunSpec, error: ConfigError) -> None:
    uri = note_uri(spec.store.uri, spec.run.name, _ERROR)
    write_bytes(uri, orjson.dumps({"message": str(error), "host": socket.gethostname()}), durable=False)


def read_error(spec: RunSpec) -> ConfigError | None:
    """Return the error that a process has left as a note; None if there is none. Raise StoreError."""
    data = read_if_exists(note_uri(spec.store.uri, spec.run.name, _ERROR)) if spec.many_processes else None
    if data is None:
        return None
    note = orjson.loads(data)
    return ConfigError(redact(f"on the worker {note['host']}: {note['message']}"))
