"""Read a bounded sample of an output. Which rows it has depends only on the files and a fixed seed.

Files and row groups are spread evenly over the output, rows are drawn within them. So the cost has a bound, however
large the output is, and a small output is read whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import reads_in_flight
from arkbeam.outputs.published import Published, flat_values, kept_names, open_in_place
from arkbeam.stages.publish import embeddings, failures, usage
from arkbeam.stages.publish.earlier import PartFile

SEED = 20_260
ROWS_MAX = 5_000
"""Rows whose vectors are read."""
GROUPS_MAX = 48
"""Row groups with vectors that are read: about 16 MiB each."""
SCALAR_FILES_MAX = 128
SCALAR_ROWS_MAX = 1_100_000
"""Rows of which numbers are read, such as tokens and latencies."""
KEPT_MAX = 6
_SCALARS = ("norm", "text_tokens", "image_tokens")
_ATTEMPTS = ("created", "latency_ms", "attempts", "image_tokens", "outcome", "run")
_SAMPLED = ("id", "manifest", "row", "fingerprint", "dense", "sparse", *_SCALARS)
_FAILED = ("id", "manifest", "row", "code", "message")
_BATCH_ROWS = 8_192

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of the output with their vectors. No two rows have the same fingerprint.

    `vectors`: float32 [rows, dimensions]; `rows`: their other columns; `kept`: names of the kept columns among them.
    """

    vectors: Floats
    rows: pa.Table
    kept: tuple[str, ...]

    def head(self, rows: int) -> "Sample":
        """Return the sample with at most this many rows, spread evenly."""
        at = spread(self.rows.num_rows, rows)
        return Sample(self.vectors[at], self.rows.take(pa.array(at, pa.int64())), self.kept)


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` positions, in order and evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)).tolist() if count else []


def choose_files(files: Sequence[PartFile], files_max: int, rows_max: int) -> list[PartFile]:
    """Choose files, evenly spread, with about `rows_max` rows together at most; at least one, if there is one."""
    total = sum(file.rows for file in files)
    wanted = min(files_max, len(files) if total <= rows_max else len(files) * rows_max // total)
    return [files[at] for at in spread(len(files), max(wanted, 1))]


def read_sample(output: Published, rows_max: int = ROWS_MAX) -> Sample:
    """Read at most `rows_max` rows of `embeddings/` with their vectors. Raise StoreError."""
    parts = output.filled_parts(embeddings.FOLDER)
    files = [parts[at] for at in spread(len(parts), GROUPS_MAX)]
    groups_each = max(1, GROUPS_MAX // max(len(files), 1))
    rows_each = _shares(files, rows_max)

    def read(at: int) -> tuple[Floats, pa.Table]:
        with open_in_place(output, files[at]) as file:
            return _read_file(file, groups_each, rows_each[at], SEED + at)

    read_files = list(in_parallel(read, range(len(files)), reads_in_flight(output.uri)))
    if not read_files:
        wanted = schema.embeddings_schema(pa.struct([]))
        return Sample(
            np.empty((0, 0), np.float32), wanted.empty_table().select(list(_SAMPLED)).drop_columns(["dense"]), ()
        )
    vectors = np.concatenate([vectors for vectors, _ in read_files])
    rows = pa.concat_tables([rows for _, rows in read_files], promote_options="permissive")
    first = _first_of_each(rows["fingerprint"])
    return Sample(vectors[first], rows.take(pa.array(first, pa.int64())), _list_kept(rows.schema))


def read_scalars(output: Published) -> pa.Table:
    """Read norms and tokens of about `SCALAR_ROWS_MAX` rows of `embeddings/` at most. Raise StoreError."""
    return _read_columns(output, embeddings.FOLDER, _SCALARS, schema.embeddings_schema(pa.struct([])))


def read_attempts(output: Published) -> pa.Table:
    """Read times and outcomes of about `SCALAR_ROWS_MAX` attempts of `usage/` at most. Raise StoreError."""
    return _read_columns(output, usage.FOLDER, _ATTEMPTS, schema.USAGE)


def choose_failures(output: Published) -> list[PartFile]:
    """Choose files of `failures/` with about `SCALAR_ROWS_MAX` rows together at most."""
    return choose_files(output.filled_parts(failures.FOLDER), SCALAR_FILES_MAX, SCALAR_ROWS_MAX)


def read_failures(output: Published, files: Sequence[PartFile]) -> Iterator[pa.Table]:
    """Yield the rows of files of `failures/` without the originals, some at a time. Raise StoreError."""
    for file in files:
        with open_in_place(output, file) as reader:
            for batch in reader.iter_batches(_BATCH_ROWS, columns=list(_FAILED)):
                yield pa.Table.from_batches([batch])


def _read_columns(output: Published, folder: str, columns: Sequence[str], wanted: pa.Schema) -> pa.Table:
    def read(file: PartFile) -> pa.Table:
        with open_in_place(output, file) as reader:
            return reader.read(columns=list(columns), use_threads=False)

    chosen = choose_files(output.filled_parts(folder), SCALAR_FILES_MAX, SCALAR_ROWS_MAX)
    tables = list(in_parallel(read, chosen, reads_in_flight(output.uri)))
    return pa.concat_tables(tables) if tables else wanted.empty_table().select(list(columns))


def _list_kept(found: pa.Schema) -> tuple[str, ...]:
    """Return the kept columns that are shown: the first few, without those that hold bytes."""
    kept = [name for name in kept_names(found.names) if not _holds_bytes(found.field(name).type)]
    return tuple(kept[:KEPT_MAX])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _shares(files: Sequence[PartFile], rows_max: int) -> list[int]:
    """Return how many rows to take of each file, so that together they are at most `rows_max`."""
    total = sum(file.rows for file in files)
    return [file.rows if total <= rows_max else max(1, file.rows * rows_max // total) for file in files]


def _read_file(file: pq.ParquetFile, groups_max: int, rows_max: int, seed: int) -> tuple[Floats, pa.Table]:
    """Read at most `rows_max` rows from at most `groups_max` row groups of a file."""
    columns = [*_SAMPLED, *_list_kept(file.schema_arrow)]
    groups = spread(file.num_row_groups, groups_max)
    sizes = [file.metadata.row_group(group).num_rows for group in groups]
    drawn = np.random.default_rng(seed).choice(sum(sizes), min(rows_max, sum(sizes)), replace=False)
    drawn.sort()
    starts = np.cumsum([0, *sizes])
    vectors, tables = [], []
    for number, group in enumerate(groups):
        at = drawn[(drawn >= starts[number]) & (drawn < starts[number + 1])] - starts[number]
        if len(at):
            table = file.read_row_group(group, columns=columns, use_threads=False).take(pa.array(at))
            vectors.append(flat_values(table["dense"]).astype(np.float32, copy=False).reshape(len(at), -1))
            tables.append(table.drop_columns(["dense"]))
    return np.concatenate(vectors), pa.concat_tables(tables)


def _first_of_each(fingerprints: pa.ChunkedArray) -> list[int]:
    encoded = pc.dictionary_encode(fingerprints).combine_chunks()
    codes = encoded.indices.to_numpy() if isinstance(encoded, pa.DictionaryArray) else np.empty(0, np.int64)
    return [int(at) for at in np.sort(np.unique(codes, return_index=True)[1])]
