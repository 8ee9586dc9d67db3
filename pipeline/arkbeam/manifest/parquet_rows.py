"""Rows of Parquet files, read in batches of columns."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact
from arkbeam.base.uris import find_filesystem
from arkbeam.manifest.batches import BATCH_ROWS_MAX, RawRow, RowBatch
from arkbeam.manifest.cells import read_cells
from arkbeam.manifest.kept import NO_VALUE
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.parquet_groups import ParquetGroups
from arkbeam.manifest.shards import Shard
from arkbeam.manifest.storage import manifest_errors, open_parquet_manifest


def read_parquet(
    shard: Shard,
    options: ManifestOptions,
    columns: frozenset[str],
    note_header: Callable[[list[str]], None],
    media: frozenset[str] = frozenset(),
    media_bytes_max: int = 0,
    wanted: Callable[[int, int], bool] | None = None,
) -> Iterator[RowBatch]:
    """Yield the rows of a shard's row groups; only `columns` and the kept columns are read.

    The names of all columns are given to `note_header` first. `media` are those of `columns` that hold images or
    videos. A row may have up to `media_bytes_max` bytes if one of them holds bytes; otherwise `options.line_bytes_max`
    is the limit. `wanted(start, end)` says whether any row in [start, end) is needed, counted from the first row of the
    shard. A row group without such a row is not read: its rows are yielded as blank rows. Raise ManifestError if the
    file is damaged, has changed since it was cut into shards, or has two columns with the name of one that is read.
    """
    with manifest_errors(shard.manifest):
        filesystem, path = find_filesystem(shard.manifest)
        with filesystem.open(path, "rb") as stream:
            file = open_parquet_manifest(shard.manifest, stream, options)
            note_header(file.schema_arrow.names)
            present = _find_columns(file, shard.manifest, columns.union(options.keep))
            groups = ParquetGroups(file, stream, present, media.intersection(present))
            if not shard.failures and shard.end > len(groups.rows):
                raise ManifestError(f"manifest {redact(shard.manifest)} has changed while it was read: run again")
            if groups.has_media:
                options = replace(options, line_bytes_max=max(options.line_bytes_max, media_bytes_max))
            first_row = 0
            for index in range(shard.start, min(shard.end, len(groups.rows))):
                first_row += groups.rows[index]
                if wanted is not None and not wanted(first_row - groups.rows[index], first_row):
                    yield from _blank_batches(groups.rows[index])
                    continue
                rows = 0
                for batch in groups.read(index, options):
                    found = _to_rows(batch, options, columns, media)
                    rows += len(found.rows)
                    yield found
                if rows != groups.rows[index]:
                    raise ManifestError(
                        f"manifest {redact(shard.manifest)} is damaged: row group {index} has {rows} rows, but the footer"
                        f" declares {groups.rows[index]}"
                    )


def _find_columns(file: pq.ParquetFile, manifest: str, wanted: frozenset[str]) -> list[str]:
    """Return the wanted columns that the file has. Raise ManifestError if it has two of the same name."""
    present = [name for name in file.schema_arrow.names if name in wanted]
    for name, count in Counter(present).items():
        if count > 1:
            raise ManifestError(
                f"manifest {redact(manifest)} has {count} columns with the name '{redact(name, 100)}', which is read: rename"
                " them, or map other columns (manifest.columns, manifest.keep)"
            )
    return present


def _blank_batches(rows: int) -> Iterator[RowBatch]:
    for start in range(0, rows, BATCH_ROWS_MAX):
        count = min(BATCH_ROWS_MAX, rows - start)
        yield RowBatch([None] * count, [None] * count)


def _to_rows(
    batch: pa.RecordBatch | Failure, options: ManifestOptions, columns: frozenset[str], media: frozenset[str]
) -> RowBatch:
    if isinstance(batch, Failure):
        return RowBatch([batch], [None], _no_columns(options) if options.keep else None)
    return _parquet_rows(batch, options, columns, media)


def _no_columns(options: ManifestOptions) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(1) for _ in options.keep], names=list(options.keep))


def _parquet_rows(
    batch: pa.RecordBatch, options: ManifestOptions, columns: frozenset[str], media: frozenset[str]
) -> RowBatch:
    bad = _find_invalid(batch)
    names = [name for name in batch.schema.names if name in columns]
    good = (
        batch.take(pa.array([index for index in range(batch.num_rows) if index not in bad], pa.int64()))
        if bad
        else batch
    )
    cells = [read_cells(good.column(name), media=name in media) for name in names]
    found: Iterator[RawRow] = (_name_cells(names, row) for row in zip(*cells, strict=True))
    if not names:
        found = ({} for _ in range(good.num_rows))
    rows: list[RawRow] = (
        [bad[index] if index in bad else next(found) for index in range(batch.num_rows)] if bad else list(found)
    )
    kept = _kept_columns(batch, options) if options.keep else None
    return RowBatch(rows, [None] * len(rows), kept, batch.nbytes)


def _name_cells(names: list[str], cells: tuple[Any, ...]) -> RawRow:
    if NO_VALUE in cells:
        name = names[cells.index(NO_VALUE)]
        return Failure(
            "bad_field", f"column {redact(name, 100)} holds a value out of range, such as a date after the year 9999"
        )
    return dict(zip(names, cells, strict=True))


def _find_invalid(batch: pa.RecordBatch) -> dict[int, Failure]:
    """Return why rows can't be converted, by row. Parquet checks neither that texts are UTF-8 nor the range of values."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        failures = ((index, _find_invalid_cell(batch.slice(index, 1))) for index in range(batch.num_rows))
        return {index: failure for index, failure in failures if failure is not None}
    return {}


def _find_invalid_cell(row: pa.RecordBatch) -> Failure | None:
    for field, cell in zip(row.schema, row.columns, strict=True):
        try:
            cell.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                return Failure("bad_text", "the row holds text that is not valid UTF-8")
            kind = redact(str(field.type), 100)
            return Failure(
                "bad_field", f"column {redact(field.name, 100)} holds a value that its type {kind} does not allow"
            )
    return None


def _kept_columns(batch: pa.RecordBatch, options: ManifestOptions) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    missing = pa.nulls(batch.num_rows)
    return pa.RecordBatch.from_arrays([columns.get(name, missing) for name in options.keep], names=list(options.keep))
