"""The media cache: facts about media that runs have read, so that the next run need not read every header again.

If entries are damaged or missing, the media are read again. Files are written once, and merged when there are many.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import remove_file, write_bytes
from arkbeam.base.uris import join
from arkbeam.media.cache import CachedMedia, Entry, media_table, merge
from arkbeam.store.layout import list_parquet, media_folder, segment_id, segment_name
from arkbeam.store.segments import parquet_bytes, read_columns

ENTRIES_MAX = 2_000_000  # about 200 MB in memory; older entries are dropped, and their media are read again
NEW_MAX = 65_536  # entries per file, and so the most that a kill loses
FILES_MAX = 64
_log = logging.getLogger(__name__)


class StoredMediaCache:
    """A `MediaCache` in the store, for one process. Entries of earlier runs are loaded at the first use."""

    def __init__(self, store_uri: str, file_ids: Iterator[int]) -> None:
        self._store_uri = store_uri
        self._file_ids = file_ids
        self._lock = threading.Lock()
        self._cached: CachedMedia | None = None
        self._new: dict[bytes, Entry] = {}

    def load(self) -> CachedMedia:
        """Return the entries of earlier runs; the files are read once."""
        with self._lock:
            if self._cached is None:
                self._cached = CachedMedia(read_media(list_parquet(media_folder(self._store_uri))))
            return self._cached

    def add(self, entries: Mapping[bytes, Entry]) -> None:
        """Add new entries by key; they are written once there are NEW_MAX of them."""
        with self._lock:
            self._new |= entries
            full = len(self._new) >= NEW_MAX
        if full:
            self.flush()

    def flush(self) -> None:
        """Write the new entries. A failure is only logged, since the run does not depend on the cache."""
        with self._lock:
            new, self._new = self._new, {}
            if not new:
                return
            uri = join(media_folder(self._store_uri), segment_name(next(self._file_ids)))
        try:
            write_bytes(uri, parquet_bytes(media_table(new)))
        except StoreError as error:
            _log.warning("new entries of the media cache are not stored: %s", error)


def read_media(uris: Sequence[str]) -> pa.Table:
    """Read cache files, newest first, up to ENTRIES_MAX entries; files that can't be read are skipped."""
    tables: list[pa.Table] = []
    rows = 0
    for uri in reversed(uris):
        if rows >= ENTRIES_MAX:
            break
        try:
            table = read_columns(uri, schema.MEDIA.names).cast(schema.MEDIA)
        except (StoreError, pa.ArrowException, ValueError) as error:
            _log.warning("a file of the media cache is skipped: %s", error)
            continue
        tables.append(table.slice(0, ENTRIES_MAX - rows))
        rows += tables[-1].num_rows
    return merge(tables)


def compact_media(store_uri: str) -> bool:
    """Merge the files into one if there are more than FILES_MAX. Return False if there are not.

    Another run may do the same at the same time.
    """
    try:
        uris = list_parquet(media_folder(store_uri))
        if len(uris) <= FILES_MAX:
            return False
        # The name sorts after the merged files, and before files that are written meanwhile.
        name = segment_name(segment_id(uris[-1]) + 1)
        write_bytes(join(media_folder(store_uri), name), parquet_bytes(read_media(uris)))
        for uri in uris:
            remove_file(uri)
    except StoreError as error:
        _log.warning("files of the media cache are not merged: %s", error)
    return True
