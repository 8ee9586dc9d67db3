"""Read: a shard becomes staged rows, rows that can't be read, and keys; a store's files become its index.

Keys and index alone travel on.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schema
from pipeline.errors import StoreError
from pipeline.files import remove_folder
from pipeline.manifest.read import read_shard
from pipeline.manifest.shards import Shard
from pipeline.schema import concat
from pipeline.spec import RunSpec
from pipeline.store.events import REFUSED_COLUMNS, read_refused
from pipeline.store.layout import events_folder, list_parquet, segments_folder
from pipeline.store.run_files import PieceWriter, rows_folder, unreadable_folder
from pipeline.store.segments import INDEX_COLUMNS, is_damaged, read_index, set_aside

STORE_FILES_PER_GROUP = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What a shard turned out to hold. `lines` are physical ones, blank ones included: the next shard's rows begin after."""

    number: int
    manifest: str
    label: str
    lines: int
    staged: int
    unreadable: int
    kept: tuple[pa.DataType, ...]
    over_context: int = 0

    @property
    def rows(self) -> int:
        """Rows of the manifest: each becomes a published row or a failure row."""
        return self.staged + self.unreadable


def stage_shard(shard: Shard, spec: RunSpec) -> Iterator[pa.Table | ShardSummary]:
    """Read a shard once and write its rows to the run's folder; give its KEYS as they come, then what it holds.

    Raises: ManifestError when the manifest can't be read, StoreError when the run's folder can't be written.
    """
    store_uri, run = spec.store.uri, spec.run
    folders = (rows_folder(store_uri, run, shard.number), unreadable_folder(store_uri, run, shard.number))
    for folder in folders:
        remove_folder(folder)  # an earlier try may have cut its pieces elsewhere
    lines = over_context = 0
    kept: dict[pa.DataType, None] = {}
    with PieceWriter(folders[0]) as staged, PieceWriter(folders[1]) as unreadable:
        for chunk in read_shard(shard, spec.manifest, spec.reading):
            lines += chunk.rows
            over_context += chunk.over_context
            staged.write(chunk.staged)
            unreadable.write(chunk.unreadable)
            if chunk.staged.num_rows and "kept" in chunk.staged.column_names:
                kept[chunk.staged.schema.field("kept").type] = None
            yield chunk.keys
    yield ShardSummary(
        shard.number, shard.manifest, shard.label, lines, staged.rows, unreadable.rows, tuple(kept), over_context
    )


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """Some of a store's segments and event files: one element's worth."""

    segments: tuple[str, ...] = ()
    events: tuple[str, ...] = ()


def list_store_files(store_uri: str) -> list[StoreFiles]:
    """List all that a store holds, in groups."""
    size = STORE_FILES_PER_GROUP
    segments, events = list_parquet(segments_folder(store_uri)), list_parquet(events_folder(store_uri))
    return [
        *(StoreFiles(segments=tuple(segments[start : start + size])) for start in range(0, len(segments), size)),
        *(StoreFiles(events=tuple(events[start : start + size])) for start in range(0, len(events), size)),
    ]


def read_store_files(files: StoreFiles, spec: RunSpec) -> tuple[pa.Table, pa.Table]:
    """Read the INDEX of segments and the REFUSED rows of events. A damaged file is set aside: what it held is bought again."""
    index = _read_all(files.segments, lambda uri: read_index(uri, spec.model_owned), INDEX_COLUMNS, spec)
    refused = _read_all(files.events, read_refused, REFUSED_COLUMNS, spec)
    return concat(index, schema.INDEX), concat(refused, schema.REFUSED)


def _read_all(
    uris: Sequence[str], read: Callable[[str], pa.Table], columns: Sequence[str], spec: RunSpec
) -> list[pa.Table]:
    tables = []
    for uri in uris:
        try:
            tables.append(read(uri))
        except StoreError as error:
            if not is_damaged(uri, columns):  # the storage failed, not the file: buying again would be wrong
                tables.append(read(uri))
                continue
            _log.warning("damaged and set aside as %s: %s", set_aside(spec.store.uri, uri), error)
    return tables
