"""The formats of manifests, by name."""

from collections.abc import Iterator

from arkbeam.manifest.batches import RowBatch
from arkbeam.manifest.csv_rows import read_csv
from arkbeam.manifest.jsonl_rows import read_jsonl
from arkbeam.manifest.lines import iter_lines
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.parquet_rows import read_parquet
from arkbeam.manifest.retries import Retry
from arkbeam.manifest.shards import Shard
from arkbeam.manifest.storage import open_manifest


def read_batches(
    shard: Shard, options: ManifestOptions, columns: frozenset[str], retry: Retry | None = None
) -> Iterator[RowBatch]:
    """Yield all physical rows of a shard in order.

    `columns` are those that are needed beside the kept ones; Parquet reads no others. With `retry`, rows that it does not
    want may come as blank ones. Raises ManifestError when the file
    as a whole can't be read, which for CSV includes its header.
    """
    if shard.format == "parquet":
        yield from read_parquet(shard, options, columns, None if retry is None else retry.wants)
        return
    start = max(shard.start - 1, 0)
    with open_manifest(shard.manifest, shard.compression, start, options) as source:
        lines = iter_lines(source, shard.start, shard.end, options.line_bytes_max)
        if shard.format == "jsonl":
            yield from read_jsonl(lines, options, None if retry is None else frozenset(retry.rows.tolist()))
        else:
            yield from read_csv(lines, shard.manifest, "\t" if shard.format == "tsv" else ",", options)
