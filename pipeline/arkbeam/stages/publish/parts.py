"""How rows are numbered into part files, and how one part file is written."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base import faults, schema
from arkbeam.base.files import join, writing
from arkbeam.stages.spec import PART_ROWS, RunSpec
from arkbeam.store.claim import check_claim

ROW_GROUP_ROWS = 4096


@dataclass(frozen=True, slots=True)
class PartFile:
    """One published file. `path` is relative to the output."""

    path: str
    rows: int
    bytes: int
    sha256: str


def assign_parts(counts: Mapping[int, int], rows_max: int = PART_ROWS) -> dict[int, int]:
    """Number the parts: keys (segments or shards) in order, as many to a part as stay within `rows_max`, at least one."""
    parts: dict[int, int] = {}
    part, filled = 0, 0
    for key in sorted(counts):
        if filled and filled + counts[key] > rows_max:
            part, filled = part + 1, 0
        parts[key] = part
        filled += counts[key]
    return parts


def count_by(table: pa.Table, name: str) -> dict[int, int]:
    """Count a table's rows by one of its columns."""
    values, counts = np.unique(table.column(name).to_numpy(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def part_numbers(table: pa.Table, name: str, parts: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """Return each row's part, by the key in one of its columns."""
    values, inverse = np.unique(table.column(name).to_numpy(), return_inverse=True)
    return np.array([parts[value] for value in values.tolist()], np.int64)[inverse]


def read_ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Make each table while the one before it is being written: reading and writing take about as long."""
    iterator = iter(tables)
    with ThreadPoolExecutor(1, thread_name_prefix="arkbeam-publish") as pool:
        coming = pool.submit(next, iterator, None)
        while (table := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield table


def write_part(folder: str, part: int, tables: Iterable[pa.Table], wanted: pa.Schema, spec: RunSpec) -> PartFile:
    """Write one part file from tables of one schema, in bounded memory, and hash it.

    Raises: OutputInUse when the output is not this run's any more; nothing is changed then.
    """
    faults.hit("publish.part", folder)
    path = f"{folder}/part-{part:05d}.parquet"
    rows = 0
    with writing(join(spec.output_uri, path), check=partial(check_claim, spec.output_uri, spec.run)) as local:
        with pq.ParquetWriter(local, wanted, **schema.parquet_options(wanted)) as writer:
            for table in read_ahead(tables):
                rows += table.num_rows
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        size = local.stat().st_size
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PartFile(path, rows, size, digest)
