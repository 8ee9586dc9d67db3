"""The journal of a process: what it has sent and received since its last segment, so that a kill loses little.

`journals/<run>/<process>.<generation>.log` is a file with records (`store.journal_records`): the requests that may be
billed, and the replies with their vectors. On an object store, a generation is a sequence of small objects. It ends
when the results in the buffer begin to be written, and is removed once they are in the store. So a journal holds at
most the results that are not stored yet. A local journal has each record before the call returns. On an object store
`upload` writes the new records, and a request is sent only after its record is uploaded (`engine.announcing`).

`<process>.open` marks a journal whose process may go on. The run that recovers the journal (`store.recovery`) removes
the mark before it reads the journal. The process looks for its mark after it has recorded a request and before it sends
it, and when it writes a segment. So a process that lives on after its journal was recovered sends nothing that nobody
has recorded, and stores nothing that is recorded already:

- On a local store, it holds a lock on the mark while it writes a segment, and the mark is removed under this lock.
- On an object store, it looks for the mark after it has written a segment, and removes the segment if there is none.
"""

import errno
import fcntl
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pyarrow as pa

from arkbeam.base.errors import StoreError
from arkbeam.base.files import read_if_exists, remove_file, remove_files, write_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.records import Usage
from arkbeam.base.redaction import redact
from arkbeam.base.uris import is_local, join, storage_errors
from arkbeam.store.journal_records import bought_record, first_record, paid_record, sent_record, unpaid_record
from arkbeam.store.layout import journals_folder
from arkbeam.store.segments import Bought

LOG_SUFFIX = ".log"
OBJECT_SUFFIX = ".log.zst"
MARK_SUFFIX = ".open"
_BYTES_MAX = 64 * 1024 * 1024


class TakenOver(StoreError):
    """Another run has recovered the journal of this process."""


class Journal(ABC):
    """The journal of one process. The engine's thread uses it, except for `upload`, `guard` and `settle`."""

    announces = False
    """True if requests must be recorded, and `upload` called, before they are sent."""

    def __init__(self, folder_uri: str, process: str) -> None:
        self._base = join(folder_uri, process)
        self._generation = 0
        self._ended: list[int] = []
        self._stored: set[int] = set()
        self._settling = threading.Lock()
        self._segment = 0
        self._bytes = 0

    @property
    def is_large(self) -> bool:
        """True if the generation should end, even if there are no results."""
        return self._bytes >= _BYTES_MAX

    def sent(self, client_request_id: str, fingerprint: bytes) -> None:
        """Record a request that is about to be sent. Raise StoreError if it must not be sent."""
        self._add(sent_record(client_request_id, fingerprint))

    def unpaid(self, client_request_id: str) -> None:
        """Record that a request was not sent, or was answered with an error, which costs nothing."""
        self._add(unpaid_record(client_request_id))

    def paid(
        self, client_request_id: str, request_id: str | None, model: str | None, created: int | None, usage: Usage
    ) -> None:
        """Record the cost of a reply without a usable vector."""
        self._add(paid_record(client_request_id, request_id, model, created, usage))

    def bought(self, bought: Bought) -> None:
        """Record a usable reply."""
        self._add(bought_record(bought))

    def turn(self, open_requests: Mapping[str, bytes]) -> int:
        """End the generation, and begin the next one with the requests that have no result yet. Return the ended one.

        `open_requests`: fingerprints by client request id.
        """
        ended = self._generation
        self._ended.append(ended)
        self._generation += 1
        records = [sent_record(name, fingerprint) for name, fingerprint in open_requests.items()]
        self._bytes = 0
        self._begin(b"".join(records))
        return ended

    def settle(self, generation: int) -> None:
        """Remove a generation whose results are stored.

        As long as the results of an earlier one are not stored, both are kept, since the later one may complete the
        records of the earlier one.
        """
        with self._settling:
            self._stored.add(generation)
            while self._ended and self._ended[0] in self._stored:
                self._stored.discard(done := self._ended.pop(0))
                self._remove(done)

    @abstractmethod
    def note_stored(self, segment: int) -> None:
        """Record the last id of the files that a block of `guard` has written. Called at its end.

        Whoever recovers the journal writes files with ids above it. A later generation begins with it only when it is
        recorded: if this process was taken for dead before, and lives on, what it records then is compared with what was
        recovered.
        """

    @abstractmethod
    def upload(self) -> None:
        """Write what is not written yet. Raise StoreError, also if another run has recovered the journal."""

    @abstractmethod
    def guard(self, written: list[str]) -> AbstractContextManager[None]:
        """Return a context for a block that writes results to the store, and adds the URIs of the files to `written`.

        Raise StoreError if another run has recovered the journal; the files do not exist then.
        """

    @abstractmethod
    def close(self, *, keep: bool) -> None:
        """Close the journal, and remove it unless `keep` is set because it has results that the store does not have."""

    @abstractmethod
    def _begin(self, record: bytes) -> None:
        """Begin the current generation with a record."""

    @abstractmethod
    def _append(self, record: bytes) -> None:
        """Add a record to the current generation."""

    @abstractmethod
    def _remove(self, generation: int) -> None:
        """Remove what was written of a generation."""

    def _add(self, record: bytes) -> None:
        self._bytes += len(record)
        self._append(record)

    def _taken_over(self) -> "TakenOver":
        return TakenOver(
            f"{redact(self._base)}{MARK_SUFFIX} is missing: another run has recovered the results of this process; this"
            " process stops, and what it did not record before is not stored"
        )


class LocalJournal(Journal):
    """A journal in files. They are created with the first record."""

    def __init__(self, folder: str, process: str) -> None:
        super().__init__(folder, process)
        self._file: int | None = None
        self._file_lock = threading.RLock()  # `note_stored` is called by another thread
        self._mark: int | None = None
        self._is_guarded = False

    def note_stored(self, segment: int) -> None:
        """Record the last id of the files that a block of `guard` has written: nobody recovers the journal meanwhile."""
        with self._file_lock:
            self._append(first_record(segment))
            self._segment = max(self._segment, segment)

    def sent(self, client_request_id: str, fingerprint: bytes) -> None:
        """Record a request that is about to be sent. Raise StoreError if it must not be sent."""
        super().sent(client_request_id, fingerprint)
        self._check()

    def upload(self) -> None:
        """Do nothing: all records are in the file."""

    @contextmanager
    def guard(self, written: list[str]) -> Iterator[None]:
        """Keep other runs from recovering the journal during the block."""
        self._is_guarded = True  # if the block hangs, the lock stays until the process ends
        if self._mark is not None:
            lock(self._mark, fcntl.LOCK_EX)
            self._check()
        try:
            yield
        finally:
            if self._mark is not None:
                lock(self._mark, fcntl.LOCK_UN)
            self._is_guarded = False

    def close(self, *, keep: bool) -> None:
        """Close the journal, and remove it unless `keep` is set because it has results that the store does not have."""
        if self._file is not None:
            os.close(self._file)
        if not keep:
            for generation in (*self._ended, self._generation):
                self._remove(generation)
            Path(self._base + MARK_SUFFIX).unlink(missing_ok=True)
        if self._mark is not None and not self._is_guarded:
            os.close(self._mark)
        self._file = self._mark = None

    def _begin(self, record: bytes) -> None:
        with self._file_lock:
            if self._mark is None:
                self._mark = self._create(self._base + MARK_SUFFIX, os.O_RDWR)
            old = self._file
            self._file = self._create(f"{self._base}.{self._generation}{LOG_SUFFIX}", os.O_APPEND | os.O_WRONLY)
            if old is not None:
                os.close(old)
            self._append(first_record(self._segment) + record)

    def _append(self, record: bytes) -> None:
        with self._file_lock:
            if self._file is None:
                self._begin(b"")
            assert self._file is not None
            try:
                written = os.write(self._file, record)
            except OSError as error:
                raise StoreError(f"cannot write the journal {self._base}{LOG_SUFFIX}: {error}") from error
        if written < len(record):
            raise StoreError(f"cannot write the journal {self._base}{LOG_SUFFIX}: the disk is full")

    def _remove(self, generation: int) -> None:
        Path(f"{self._base}.{generation}{LOG_SUFFIX}").unlink(missing_ok=True)

    def _create(self, path: str, flags: int) -> int:
        with storage_errors("create", path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags | os.O_CREAT, 0o644)

    def _check(self) -> None:
        if self._mark is not None and os.fstat(self._mark).st_nlink == 0:
            raise self._taken_over()


class ObjectJournal(Journal):
    """A journal in objects, each with the records since the one before it.

    The objects of a generation are removed in the order in which they were written. So after a kill in between, no
    request is left without the answer that was recorded.
    """

    announces = True

    def __init__(self, folder_uri: str, process: str) -> None:
        super().__init__(folder_uri, process)
        self._lock = threading.Lock()
        self._pending: dict[int, list[bytes]] = {}
        self._firsts: dict[int, bytes] = {}
        self._written: dict[int, list[str]] = {}
        self._settled: list[list[str]] = []
        self._uploads = 0
        self._is_marked = False
        self._last_stored = 0

    def note_stored(self, segment: int) -> None:
        """Record with the next upload the last id of the files that a block of `guard` has written."""
        with self._lock:
            self._last_stored = max(self._last_stored, segment)

    def upload(self) -> None:
        """Write what is not written yet. Raise StoreError, also if another run has recovered the journal."""
        with self._lock:
            pending = {generation: list(records) for generation, records in self._pending.items() if records}
            firsts, stored = dict(self._firsts), self._last_stored
            settled, self._settled = self._settled, []
        if not pending and not settled:
            return
        if not self._is_marked:
            write_bytes(self._base + MARK_SUFFIX, b"open")
            self._is_marked = True
        for generation, records in pending.items():
            self._uploads += 1
            uri = f"{self._base}.{generation}-{self._uploads}{OBJECT_SUFFIX}"
            write_bytes(uri, compress(b"".join([firsts[generation], first_record(stored), *records])))
            with self._lock:
                if generation in self._pending:
                    del self._pending[generation][: len(records)]
                    self._written.setdefault(generation, []).append(uri)
                else:  # it was settled meanwhile
                    self._settled.append([uri])
        self._check()
        if pending:
            with self._lock:
                self._segment = max(self._segment, stored)
        remove_in_order(settled)

    @contextmanager
    def guard(self, written: list[str]) -> Iterator[None]:
        """Remove what the block has written if another run has recovered the journal."""
        yield
        try:
            self._check()
        except TakenOver:
            remove_files(written)
            raise

    def close(self, *, keep: bool) -> None:
        """Remove the journal, or complete it if `keep` is set because it has results that the store does not have."""
        if keep:
            with suppress(StoreError):  # the storage may have failed, and that error is reported already
                self.upload()
        elif self._is_marked:
            remove_in_order([*self._settled, *self._written.values()])
            remove_file(self._base + MARK_SUFFIX)

    def _begin(self, record: bytes) -> None:
        if record:
            self._append(record)

    def _append(self, record: bytes) -> None:
        with self._lock:
            if self._generation not in self._pending:
                self._pending[self._generation] = []
                self._firsts[self._generation] = first_record(self._segment)
            self._pending[self._generation].append(record)

    def _remove(self, generation: int) -> None:
        with self._lock:
            self._pending.pop(generation, None)
            self._firsts.pop(generation, None)
            if uris := self._written.pop(generation, []):
                self._settled.append(uris)

    def _check(self) -> None:
        mark = self._base + MARK_SUFFIX
        if self._is_marked and read_if_exists(mark) is None:
            raise self._taken_over()


def open_journal(store_uri: str, run: str, process: str) -> Journal:
    """Open the journal of a process of a run. Nothing is written before the first record."""
    kind = LocalJournal if is_local(store_uri) else ObjectJournal
    return kind(journals_folder(store_uri, run), process)


def remove_in_order(groups: Iterable[Sequence[str]]) -> None:
    """Remove groups of files, many groups at once, and the files of each group one after the other."""

    def remove(uris: Sequence[str]) -> None:
        for uri in uris:
            remove_file(uri)

    for _ in in_parallel(remove, groups):
        pass


def lock(file: int, operation: int) -> None:
    """Lock or unlock a file. On a file system without locks, do nothing. Raise BlockingIOError if it is locked."""
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF):
            raise


def compress(data: bytes) -> bytes:
    """Compress records: the vectors of the service are rounded, so half of their bytes are zeros."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


def decompress(data: bytes) -> bytes:
    """Reverse `compress`."""
    return bytes(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read())
