"""Rows of Parquet: row groups, read as columns."""

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError
from pipeline.manifest.batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, Row, RowBatch
from pipeline.manifest.options import ManifestOptions
from pipeline.manifest.shards import Shard
from pipeline.manifest.storage import check_row_groups, manifest_errors
from pipeline.records import Failure
from pipeline.redaction import redact


def read_parquet(
    shard: Shard,
    options: ManifestOptions,
    columns: frozenset[str],
    wanted: Callable[[int, int], bool] | None = None,
) -> Iterator[RowBatch]:
    """Yield the rows of a shard's row groups; of all columns only `columns` and the kept ones are read.

    A row group of which `wanted` says that it wants no row from the first to the one behind the last is not read: its
    rows come as blank ones.
    """
    with manifest_errors(shard.manifest):
        filesystem, path = fsspec.core.url_to_fs(shard.manifest)
        stream = filesystem.open(path, "rb")
    with stream:
        with manifest_errors(shard.manifest):
            file = pq.ParquetFile(stream)
            check_row_groups(shard.manifest, file.metadata, [*columns, *options.keep], options)
            present = [name for name in file.schema_arrow.names if name in columns or name in options.keep]
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            if not shard.failures and shard.end > len(groups):
                raise ManifestError(f"manifest {redact(shard.manifest)} changed while it was read: run again")
        first_row = 0
        for index in range(shard.start, min(shard.end, len(groups))):
            first_row += groups[index]
            if wanted is not None and not wanted(first_row - groups[index], first_row):
                yield from _blank_batches(groups[index])
                continue
            with manifest_errors(shard.manifest):
                rows_max = _batch_rows(file.metadata.row_group(index), present)
                batches = file.iter_batches(rows_max, row_groups=[index], columns=present)
            while (batch := _next_batch(shard, batches)) is not None:
                yield from _split_batch(batch, options, columns)


def _blank_batches(rows: int) -> Iterator[RowBatch]:
    for start in range(0, rows, BATCH_ROWS_MAX):
        count = min(BATCH_ROWS_MAX, rows - start)
        yield RowBatch([None] * count, [None] * count)


def _batch_rows(group: pq.RowGroupMetaData, present: list[str]) -> int:
    """Rows that make about one batch, by the sizes of the columns that are read."""
    columns = (group.column(index) for index in range(group.num_columns))
    size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema.partition(".")[0] in present)
    row_bytes = max(int(size) // max(int(group.num_rows), 1), 1)
    return min(max(BATCH_BYTES_MAX // row_bytes, 1), BATCH_ROWS_MAX)


def _next_batch(shard: Shard, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with manifest_errors(shard.manifest):
        return next(batches, None)


def _split_batch(batch: pa.RecordBatch, options: ManifestOptions, columns: frozenset[str]) -> Iterator[RowBatch]:
    """Halve what came out larger than its row group said, as dictionaries and long texts do."""
    if batch.nbytes > 2 * BATCH_BYTES_MAX and batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _split_batch(batch.slice(0, half), options, columns)
        yield from _split_batch(batch.slice(half), options, columns)
        return
    yield _parquet_rows(batch, options, columns)


def _parquet_rows(batch: pa.RecordBatch, options: ManifestOptions, columns: frozenset[str]) -> RowBatch:
    bad = _invalid_utf8(batch)
    names = [name for name in batch.schema.names if name in columns]
    good = batch.take(pa.array([index for index in range(batch.num_rows) if index not in bad])) if bad else batch
    cells = [good.column(name).to_pylist() for name in names]
    found: Iterator[dict[str, Any]] = (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))
    if not names:
        found = ({} for _ in range(good.num_rows))
    failure = Failure("bad_text", "the row holds text that is not UTF-8")
    rows: list[Row] = (
        [failure if index in bad else next(found) for index in range(batch.num_rows)] if bad else list(found)
    )
    kept = _kept_columns(batch, options) if options.keep else None
    return RowBatch(rows, [None] * len(rows), kept, batch.nbytes)


def _invalid_utf8(batch: pa.RecordBatch) -> set[int]:
    """Rows with text that is not UTF-8: Parquet does not check it, and reading it as Python strings would raise."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return {index for index in range(batch.num_rows) if not _is_valid(batch.slice(index, 1))}
    return set()


def _is_valid(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _kept_columns(batch: pa.RecordBatch, options: ManifestOptions) -> pa.RecordBatch:
    arrays: list[pa.Array[Any]] = []
    for name in options.keep:
        if name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows))
            continue
        array = batch.column(name)
        arrays.append(array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array)
    return pa.RecordBatch.from_arrays(arrays, names=list(options.keep))
