"""Read some rows of a manifest again, for people to look at. Nothing is sent."""

from collections.abc import Collection, Iterator

import numpy as np

from arkbeam.base.records import Request
from arkbeam.manifest.columns import ColumnWatch
from arkbeam.manifest.failures import FailedRows
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.raw_rows import ShardPlace, read_batches
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import WHOLE, Shard, describe_manifest, folder_of


def read_rows_again(
    uri: str, rows: Collection[int], options: ManifestOptions, context: ReadContext
) -> Iterator[tuple[int, str | None, Request]]:
    """Yield number, own id and request of some rows of a manifest; a row that can't be read is left out.

    Media are not looked at. Reading stops after the last of the rows. Raise ManifestError if the file as a whole can't
    be read.
    """
    manifest = describe_manifest(uri, options)
    # `failures` is set so that a Parquet file is read whatever its row groups are.
    shard = Shard(0, uri, manifest.label, manifest.format, manifest.compression, 0, WHOLE, failures=(uri,))
    parser = RowParser(options, context.model, folder_of(uri))
    wanted = FailedRows(uri, (), options, np.array(sorted(rows), np.uint64), [], [], np.zeros(len(rows), np.uint8))
    first = 0
    for batch in read_batches(shard, options, parser, context, ColumnWatch(()), ShardPlace(), wanted):
        for number in rows:
            row = batch.rows[number - first] if first <= number < first + len(batch.rows) else None
            if isinstance(row, dict):
                row_id, request = parser.parse(row, batch.originals[number - first])
                if isinstance(request, Request):
                    yield number, row_id, request
        first += len(batch.rows)
        if first >= wanted.ends_at:
            return
