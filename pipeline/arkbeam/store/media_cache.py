"""What runs find out about media, kept so that the next run need not read every header again.

A cache: what is damaged or gone is found out again. Files are written once, and put together when there are many.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.files import join, remove_file, write_bytes
from arkbeam.media.cache import Entry, KnownMedia, media_table, merge
from arkbeam.store.layout import list_parquet, media_folder, segment_id, segment_name
from arkbeam.store.segments import parquet_bytes, read_columns

ENTRIES_MAX = 2_000_000  # about 200 MB in memory; older ones are found out again
LEARNED_MAX = 65_536  # entries of a file: what a kill costs, and what is held until it is written
FILES_MAX = 64
_log = logging.getLogger(__name__)


class StoredMediaCache:
    """What one process knows of media and learns while it reads shards. Nothing is read before it is asked for."""

    def __init__(self, store_uri: str, file_ids: Iterator[int]) -> None:
        self._store_uri = store_uri
        self._file_ids = file_ids
        self._lock = threading.Lock()
        self._known: KnownMedia | None = None
        self._learned: dict[bytes, Entry] = {}

    def known(self) -> KnownMedia:
        """Return what earlier runs found out, read once."""
        with self._lock:
            if self._known is None:
                self._known = KnownMedia(read_media(list_parquet(media_folder(self._store_uri))))
            return self._known

    def learn(self, entries: Mapping[bytes, Entry]) -> None:
        """Remember what was found out, by key; it is written when there is much of it."""
        with self._lock:
            self._learned |= entries
            full = len(self._learned) >= LEARNED_MAX
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what was learned. That this can't be done ends no run: where the store matters, it shows."""
        with self._lock:
            learned, self._learned = self._learned, {}
            if not learned:
                return
            uri = join(media_folder(self._store_uri), segment_name(next(self._file_ids)))
        try:
            write_bytes(uri, parquet_bytes(media_table(learned)))
        except StoreError as error:
            _log.warning("what was found out about media is not kept: %s", error)


def read_media(uris: Sequence[str]) -> pa.Table:
    """Read files of a store's media folder, the newest first, up to ENTRIES_MAX; one that can't be read is left out."""
    tables: list[pa.Table] = []
    rows = 0
    for uri in reversed(uris):
        if rows >= ENTRIES_MAX:
            break
        try:
            table = read_columns(uri, schema.MEDIA.names).cast(schema.MEDIA)
        except (StoreError, pa.ArrowException, ValueError) as error:
            _log.warning("what is known of media is not all read: %s", error)
            continue
        tables.append(table.slice(0, ENTRIES_MAX - rows))
        rows += tables[-1].num_rows
    return merge(tables)


def compact_media(store_uri: str) -> bool:
    """Put many files together into one; True when there were so many. Another run may do the same at the same time."""
    try:
        uris = list_parquet(media_folder(store_uri))
        if len(uris) <= FILES_MAX:
            return False
        name = segment_name(
            segment_id(uris[-1]) + 1
        )  # so it is newer than these, and older than what is written meanwhile
        write_bytes(join(media_folder(store_uri), name), parquet_bytes(read_media(uris)))
        for uri in uris:
            remove_file(uri)
    except StoreError as error:
        _log.warning("files about media are not put together: %s", error)
    return True
