"""The journal: the requests that were sent since the last flush, so that the bill is known even after a kill.

One line is appended when a request is sent and one when its reply arrives, without buffering, so the lines survive the
process. The journal holds no vectors. The next run of the same output records as lost the attempts that are in a dead
run's journal but not in its segments or events. Files in object stores can't be appended to, so only local stores have
journals. If a run on an object store is killed, the requests that were in flight or not yet flushed are missing from
`usage/`.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import is_local, join, list_files, read_bytes, remove_folder, storage_errors
from arkbeam.base.parallel import in_parallel
from arkbeam.base.records import Failure, Usage
from arkbeam.store.events import Event, EventKind, write_events
from arkbeam.store.layout import events_folder, journals_folder, list_parquet, runs_of_output, segments_folder
from arkbeam.store.segments import Attempt, is_damaged, read_columns


class Journal:
    """An append-only file of one process. Without a path (object stores) nothing is written."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: int | None = None
        if path is not None:
            with storage_errors("create", path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def sent(self, client_request_id: str, fingerprint: bytes) -> None:
        """Record a request that is about to be sent."""
        self._append(f"s {client_request_id} {fingerprint.hex()}\n".encode())

    def unpaid(self, client_request_id: str) -> None:
        """Record that a sent request was answered with an error, which costs nothing."""
        self._append(f"u {client_request_id}\n".encode())

    def paid(
        self, client_request_id: str, request_id: str | None, model: str | None, created: int | None, usage: Usage
    ) -> None:
        """Record the cost of a paid request, whose vector is still in the buffer and can be lost."""
        if self._file is not None:
            cost = [usage.prompt_tokens, usage.total_tokens, usage.text_tokens, usage.image_tokens]
            line = orjson.dumps([request_id, model, created, cost])
            self._append(b"p %s %s\n" % (client_request_id.encode(), line))

    def close(self, *, keep: bool) -> None:
        """Close the file, and remove it unless `keep` is set because it has attempts that the store does not have."""
        if self._file is not None and self._path is not None:
            os.close(self._file)
            self._file = None
            if not keep:
                Path(self._path).unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        if self._file is not None:
            try:
                os.write(self._file, line)
            except OSError as error:
                raise StoreError(f"cannot write {self._path}: {error}") from error


def open_journal(store_uri: str, run: str, process: str) -> Journal:
    """Open the journal of a process of a run."""
    local = is_local(store_uri)
    return Journal(join(journals_folder(store_uri, run), f"{process}.log") if local else None)


def record_lost_attempts(store_uri: str, output_uri: str, new_segment: Iterator[int]) -> int:
    """Record the attempts that dead runs of this output paid for but did not store; return their number.

    Only the holder of the output may call this, because then all earlier runs of the output are dead. If a kill
    interrupts this, it is safe to call it again: attempts that are already recorded are recognised by their client
    request ids.
    """
    recorded = 0
    for run in runs_of_output(journals_folder(store_uri), output_uri):
        lines = [line for uri in list_files(journals_folder(store_uri, run)) for line in read_bytes(uri).splitlines()]
        lost = list(read_journal(lines))
        if lost:  # the journal of a run that ended normally is empty or removed: skip the look-up
            known = _known_client_ids(store_uri, run)
            lost = [event for event in lost if event.attempt.client_request_id not in known]
        if lost:
            write_events(store_uri, run, next(new_segment), lost)
            recorded += len(lost)
        remove_folder(journals_folder(store_uri, run))
    return recorded


def read_journal(lines: Iterable[bytes]) -> Iterator[Event]:
    """Yield an event for each request that was sent and not answered with an error. An incomplete last line is ignored."""
    sent: dict[str, bytes] = {}
    paid: dict[str, Any] = {}
    for line in lines:
        kind, _, rest = line.partition(b" ")
        client_id, _, details = rest.partition(b" ")
        name = client_id.decode(errors="replace")
        try:
            if kind == b"s" and len(details) == 2 * schema.FINGERPRINT_BYTES:
                sent[name] = bytes.fromhex(details.decode())
            elif kind == b"u":
                sent.pop(name, None)
            elif kind == b"p" and details.endswith(b"]]"):
                paid[name] = orjson.loads(details)
        except ValueError:  # a cut or garbled line, for example after a power cut, must not stop later runs
            continue
    for name, fingerprint in sent.items():
        yield _lost_event(name, fingerprint, paid.get(name))


def _lost_event(client_request_id: str, fingerprint: bytes, paid: list[Any] | None) -> Event:
    request_id, model, created, tokens = paid or (None, None, None, [None] * 4)
    failure = Failure("lost", "the process ended before it could store the reply")
    attempt = Attempt(fingerprint, client_request_id, 1, 0.0)
    return Event(EventKind.LOST, attempt, failure, Usage(*tokens), request_id, model, created)


def _known_client_ids(store_uri: str, run: str) -> set[str]:
    folders = (segments_folder(store_uri, run), events_folder(store_uri, run))
    uris = [uri for folder in folders for uri in list_parquet(folder)]
    return {name for names in in_parallel(_client_ids, uris) for name in names}


def _client_ids(uri: str) -> list[str]:
    """Return the client request ids in a file; none if it is damaged, since Read will then set it aside."""
    try:
        table = read_columns(uri, ["client_request_id"])
    except StoreError:
        if is_damaged(uri, ["client_request_id"]):
            return []
        raise
    names: list[str] = table.column(0).to_pylist()
    return names
