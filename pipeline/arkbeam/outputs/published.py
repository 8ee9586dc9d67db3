"""Open a finished output: its `run.json`, its files, and the tables in them, read a row group at a time."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import exists, fetch_file, read_if_exists, temporary_folder
from arkbeam.base.parallel import LOCAL_IN_FLIGHT, in_parallel
from arkbeam.base.redaction import redact
from arkbeam.base.uris import absolute, is_local, join, open_filesystem, storage_errors
from arkbeam.stages.publish.commit import PART_FOLDERS, SUCCESS
from arkbeam.stages.publish.earlier import RUN_NOTE, PartFile, parse_part

PARTS_IN_FLIGHT = 4
"""Most parts of an output on an object store that are copied to this machine at once; a part has about 100 MB."""
BATCH_ROWS = 4_096
_PART = re.compile(rf"({'|'.join(PART_FOLDERS)})/part-[0-9]{{5,}}(-[0-9a-f]{{16}})?\.parquet")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Published:
    """An output, as its `run.json` describes it."""

    uri: str
    note: Mapping[str, Any]
    """The content of `run.json`."""
    files: tuple[PartFile, ...]

    @classmethod
    def of(cls, uri: str, note: Mapping[str, Any]) -> "Published":
        """Return the output at `uri`, given the content of its `run.json`."""
        files = (parse_part(file) for file in note["files"])
        return cls(uri, note, tuple(sorted(files, key=lambda file: file.path)))

    def parts(self, folder: str) -> list[PartFile]:
        """Return the part files of `embeddings`, `multi`, `failures` or `usage`, in order."""
        return [file for file in self.files if file.path.startswith(f"{folder}/")]

    def filled_parts(self, folder: str) -> list[PartFile]:
        """Return the part files of a folder that have rows."""
        return [file for file in self.parts(folder) if file.rows]

    @property
    def in_flight(self) -> int:
        """How many parts to work on at once."""
        return LOCAL_IN_FLIGHT if is_local(self.uri) else PARTS_IN_FLIGHT


def open_output(uri: str) -> Published:
    """Open a complete output. Raise ConfigError if there is none, StoreError if its `run.json` can't be used."""
    uri = absolute(uri)
    if not exists(join(uri, SUCCESS)):
        raise ConfigError(f"{redact(uri)} is not a complete output: it has no {SUCCESS}")
    return read_output(uri)


def read_output(uri: str) -> Published:
    """Read the `run.json` of an output, complete or not. Raise ConfigError if there is none, StoreError if it is damaged."""
    data = read_if_exists(join(uri, RUN_NOTE))
    if data is None:
        raise ConfigError(f"{redact(uri)} is not an output: it has no {RUN_NOTE}")
    try:
        note = orjson.loads(data)
        output = Published.of(uri, note)
        counts = [int(note[name]) for name in ("rows", "published", "failed")]
        note["run"]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{RUN_NOTE} of {redact(uri)} is damaged: {type(error).__name__}: {redact(str(error))}"
        ) from None
    wrong = [file for file in output.files if not (_PART.fullmatch(file.path) and _HASH.fullmatch(file.sha256))]
    if wrong or min(counts) < 0:
        raise StoreError(f"{RUN_NOTE} of {redact(uri)} names what is no file of an output: {redact(str(wrong[:1]))}")
    return output


@contextmanager
def local_part(output: Published, file: PartFile) -> Iterator[Path | None]:
    """Yield the path of a part, or of a copy of it on this machine; None if the output has no such file."""
    with temporary_folder() as folder:
        yield fetch_file(join(output.uri, file.path), folder)


@contextmanager
def open_part(output: Published, file: PartFile) -> Iterator[pq.ParquetFile]:
    """Open a part to read from it. Raise StoreError if it is missing, has another size, or can't be read."""
    with local_part(output, file) as path:
        _check_size(output, file, None if path is None else path.stat().st_size)
        with storage_errors("read", join(output.uri, file.path)), pq.ParquetFile(path) as reader:
            yield reader


@contextmanager
def open_in_place(output: Published, file: PartFile) -> Iterator[pq.ParquetFile]:
    """Open a part where it is: of an object, only what is read is fetched.

    Raise StoreError if it is missing, has another size, or can't be read.
    """
    uri = join(output.uri, file.path)
    filesystem, path = open_filesystem(uri)
    with storage_errors("read", uri), filesystem.open(path, "rb") as stream:
        _check_size(output, file, stream.seek(0, os.SEEK_END))
        with pq.ParquetFile(stream) as reader:
            yield reader


def _check_size(output: Published, file: PartFile, size: int | None) -> None:
    if size != file.bytes:
        raise StoreError(
            f"{redact(join(output.uri, file.path))} is missing or not the file that {RUN_NOTE} names: if a run is"
            f" writing the output, try again after it; else see `arkbeam verify {redact(output.uri)}`"
        )


def read_batches(reader: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number of the first row, and a table of at most `BATCH_ROWS` rows of one row group, until the end."""
    start, names = 0, None if columns is None else list(columns)
    for group in range(reader.num_row_groups):
        for batch in reader.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=names):
            yield start, pa.Table.from_batches([batch])
            start += batch.num_rows


def kept_names(names: Sequence[str]) -> list[str]:
    """Return the columns that were kept from the manifest."""
    return [name for name in names if name not in schema.OWN_COLUMNS]


def list_ends(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int64]:
    """Return where each list ends in the flattened values, after a 0: one number more than there are rows. Nulls are empty."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def flat_values(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    """Return the values of all lists of a column, one after the other, without a copy where this is possible."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten()
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values


def dense_matrix(column: pa.ChunkedArray | pa.Array, dimensions: int) -> npt.NDArray[np.float32]:
    """View a dense column as a matrix [rows, dimensions]. Raise StoreError if a vector has another length or a null."""
    values = flat_values(column)
    lengths = np.diff(list_ends(column))
    if values.dtype != np.float32 or (lengths != dimensions).any():
        raise StoreError(f"a column dense has vectors that are not {dimensions} float32 values: see `arkbeam verify`")
    return values.reshape(-1, dimensions)


def gather_rows(
    output: Published,
    parts: Sequence[PartFile],
    numbers: npt.NDArray[np.integer[Any]],
    rows: npt.NDArray[np.integer[Any]],
    columns: Sequence[str],
) -> pa.Table:
    """Read some rows of some parts, in the order in which they are given.

    Args:
        output: the output.
        parts: part files of one schema.
        numbers: for each row, the number of its part in `parts`; at least one row.
        rows: for each row, its number in its part.
        columns: the columns to read. Only the row groups with one of the rows are read.
    """
    order = np.lexsort((rows, numbers))
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)

    def read(positions: npt.NDArray[np.int64]) -> pa.Table:
        with open_in_place(output, parts[int(numbers[positions[0]])]) as reader:
            return _take_rows(reader, rows[positions].astype(np.int64), columns)

    table = pa.concat_tables(in_parallel(read, groups, output.in_flight))
    return table.take(pa.array(np.argsort(order, kind="stable")))


def _take_rows(reader: pq.ParquetFile, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Read rows of a file, given in ascending order."""
    counts = [reader.metadata.row_group(group).num_rows for group in range(reader.num_row_groups)]
    ends = np.cumsum(counts)
    of_row = np.searchsorted(ends, rows, side="right")
    tables = []
    for group in np.unique(of_row).tolist():
        start = int(ends[group]) - counts[group]
        tables.append(reader.read_row_group(group, list(columns)).take(pa.array(rows[of_row == group] - start)))
    return pa.concat_tables(tables)
