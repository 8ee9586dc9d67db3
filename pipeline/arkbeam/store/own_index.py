"""Index files for what a process writes: the entries are known when a file is written, so the next run need not read it."""

import logging
import threading
from collections.abc import Iterator

import pyarrow as pa

from arkbeam.base.errors import StoreError
from arkbeam.store.index import Entries, Source, write_entries
from arkbeam.store.listing import list_sources, source_name

FLUSH_ROWS = 65_536  # about 4 MB in memory
_log = logging.getLogger(__name__)


class OwnIndex:
    """Collects the entries of the segments and event files that one process of a run writes.

    If the process is killed, or the storage fails, files stay uncovered, and the next run reads them.
    """

    def __init__(self, store_uri: str, run: str) -> None:
        self._store_uri, self._run = store_uri, run
        self._lock = threading.Lock()
        self._pending: dict[str, pa.Table] = {}
        self._rows = 0

    def add(self, uri: str, entries: pa.Table) -> None:
        """Add the ENTRIES of a file that has been written."""
        with self._lock:
            self._pending[source_name(uri)] = entries
            self._rows += entries.num_rows

    def flush(self, file_ids: Iterator[int], rows_min: int = 0) -> None:
        """Write an index file, if there are at least `rows_min` new entries. A failure is only logged."""
        with self._lock:
            if not self._pending or self._rows < rows_min:
                return
            pending, self._pending, self._rows = self._pending, {}, 0
        try:
            listed = list_sources(self._store_uri, self._run)  # a version is known only after the file is written
            parts = [
                Entries(Source(name, listed[name].version, table.num_rows), table)
                for name, table in pending.items()
                if name in listed
            ]
            if parts:
                write_entries(self._store_uri, next(file_ids), parts)
        except StoreError as error:
            _log.warning("no index file is written; the next run reads the new segments instead: %s", error)
