"""Rows of Parquet files, read one row group at a time as columns."""

from collections.abc import Callable, Iterator
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, RawRow, RowBatch, too_long
from arkbeam.manifest.int96 import int96_columns, join_int96
from arkbeam.manifest.kept import NO_VALUE, to_python
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.shards import Shard
from arkbeam.manifest.storage import manifest_errors, open_parquet_manifest

# Types of dictionary values whose lengths Arrow can measure.
_BYTES_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
# The declared size of a row includes columns that are not read, so a batch of very wide rows has at least this many.
_BATCH_ROWS_MIN = 16


def read_parquet(
    shard: Shard,
    options: ManifestOptions,
    columns: frozenset[str],
    wanted: Callable[[int, int], bool] | None = None,
) -> Iterator[RowBatch]:
    """Yield the rows of a shard's row groups; only `columns` and the kept columns are read.

    `wanted(start, end)` says whether any row in [start, end) is needed, counted from the first row of the shard. A row
    group without such a row is not read: its rows are yielded as blank rows.
    """
    with manifest_errors(shard.manifest):
        filesystem, path = fsspec.core.url_to_fs(shard.manifest)
        stream = filesystem.open(path, "rb")
    with stream:
        with manifest_errors(shard.manifest):
            file = open_parquet_manifest(shard.manifest, stream, options)
            wanted_columns = columns.union(options.keep)
            present = [name for name in file.schema_arrow.names if name in wanted_columns]
            reader = _open_with_dictionaries(stream, file)
            int96 = [name for name in int96_columns(file) if name in present]
            coarse = pq.ParquetFile(stream, metadata=file.metadata, coerce_int96_timestamp_unit="us") if int96 else None
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            if not shard.failures and shard.end > len(groups):
                raise ManifestError(f"manifest {redact(shard.manifest)} has changed while it was read: run again")
        first_row = 0
        for index in range(shard.start, min(shard.end, len(groups))):
            first_row += groups[index]
            if wanted is not None and not wanted(first_row - groups[index], first_row):
                yield from _blank_batches(groups[index])
                continue
            with manifest_errors(shard.manifest):
                rows_max = _batch_rows(file.metadata.row_group(index))
                batches = reader.iter_batches(rows_max, row_groups=[index], columns=present)
                if coarse is not None:
                    in_microseconds = coarse.iter_batches(rows_max, row_groups=[index], columns=int96)
                    batches = map(join_int96, batches, in_microseconds)
            while (batch := _next_batch(shard, batches)) is not None:
                with manifest_errors(shard.manifest):
                    pieces = list(_split_batch(batch, options))
                for rows in pieces:
                    if isinstance(rows, Failure):
                        yield RowBatch([rows], [None], _no_columns(options) if options.keep else None)
                        continue
                    with manifest_errors(shard.manifest):
                        plain = _decode_dictionaries(rows)
                        plain_rows = _parquet_rows(plain, options, columns)
                    yield plain_rows


def _open_with_dictionaries(stream: IO[bytes], file: pq.ParquetFile) -> pq.ParquetFile:
    """Open the file so that texts and bytes are read as dictionaries.

    In a small file a million rows may refer to one long text. In a dictionary this text is in memory once. It is copied
    to the rows only after their size is known.
    """
    leaves = (file.schema.column(number) for number in range(len(file.schema)))
    paths = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(stream, metadata=file.metadata, read_dictionary=paths, page_checksum_verification=True)


def _blank_batches(rows: int) -> Iterator[RowBatch]:
    for start in range(0, rows, BATCH_ROWS_MAX):
        count = min(BATCH_ROWS_MAX, rows - start)
        yield RowBatch([None] * count, [None] * count)


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Return how many rows make about one batch, by the size that the row group declares. Too large batches are split later."""
    row_bytes = max(int(group.total_byte_size) // max(int(group.num_rows), 1), 1)
    return min(max(BATCH_BYTES_MAX // row_bytes, _BATCH_ROWS_MIN), BATCH_ROWS_MAX)


def _next_batch(shard: Shard, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with manifest_errors(shard.manifest):
        batch = next(batches, None)
        if batch is not None:
            for column in batch.columns:
                column.validate()
        return batch


def _split_batch(batch: pa.RecordBatch, options: ManifestOptions) -> Iterator[pa.RecordBatch | Failure]:
    """Halve a batch until each piece is small enough; a single row above the limit becomes a failure.

    A batch is larger than its row group declares if it has dictionaries or long texts.
    """
    size = sum(map(_plain_bytes, batch.columns))
    if size <= 2 * BATCH_BYTES_MAX:
        yield batch
    elif batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _split_batch(batch.slice(0, half), options)
        yield from _split_batch(batch.slice(half), options)
    elif size <= options.line_bytes_max + BATCH_BYTES_MAX:
        yield batch
    else:
        yield too_long(size, options)


def _plain_bytes(array: "pa.Array[Any]") -> int:
    """Return the bytes that an array takes once its dictionaries are decoded."""
    if isinstance(array, pa.DictionaryArray):
        if array.type.value_type not in _BYTES_TYPES:
            return int(array.nbytes)
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return 8 * len(array) + int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if isinstance(array, pa.MapArray):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return 8 * len(array) + sum(_plain_bytes(one.slice(start, end - start)) for one in (array.keys, array.items))
    if isinstance(array, (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray)):
        return 8 * len(array) + _plain_bytes(array.flatten())
    if isinstance(array, pa.StructArray):
        return sum(map(_plain_bytes, array.flatten()))
    return int(array.nbytes)


def _decode_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    if not batch.num_columns:
        return batch
    columns = [column.cast(_plain_type(column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with all dictionaries replaced by the types of their values."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        children = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([child.with_type(_plain_type(child.type)) for child in children])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind


def _no_columns(options: ManifestOptions) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(1) for _ in options.keep], names=list(options.keep))


def _parquet_rows(batch: pa.RecordBatch, options: ManifestOptions, columns: frozenset[str]) -> RowBatch:
    bad = _invalid_utf8(batch)
    names = [name for name in batch.schema.names if name in columns]
    good = (
        batch.take(pa.array([index for index in range(batch.num_rows) if index not in bad], pa.int64()))
        if bad
        else batch
    )
    cells = [to_python(good.column(name)) for name in names]
    found: Iterator[RawRow] = (_name_cells(names, row) for row in zip(*cells, strict=True))
    if not names:
        found = ({} for _ in range(good.num_rows))
    failure = Failure("bad_text", "the row holds text that is not valid UTF-8")
    rows: list[RawRow] = (
        [failure if index in bad else next(found) for index in range(batch.num_rows)] if bad else list(found)
    )
    kept = _kept_columns(batch, options) if options.keep else None
    return RowBatch(rows, [None] * len(rows), kept, batch.nbytes)


def _name_cells(names: list[str], cells: tuple[Any, ...]) -> RawRow:
    if NO_VALUE in cells:
        name = names[cells.index(NO_VALUE)]
        return Failure("bad_field", f"column {name} holds a value out of range, such as a date after the year 9999")
    return dict(zip(names, cells, strict=True))


def _invalid_utf8(batch: pa.RecordBatch) -> set[int]:
    """Return the rows with invalid UTF-8. Parquet does not check texts, and converting bad ones to Python would raise."""
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
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    missing = pa.nulls(batch.num_rows)
    return pa.RecordBatch.from_arrays([columns.get(name, missing) for name in options.keep], names=list(options.keep))
