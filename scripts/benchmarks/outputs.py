"""Check what a run has published."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from arkbeam.emulator.vectors import embed

from scripts.benchmarks.texts import row_number

_BATCH_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Checked:
    """Published rows compared with the manifest.

    `wrong`: rows with another vector than that of their text. `missing`: rows that are not published. `repeated`: rows
    beyond the first with the same id.
    """

    rows: int
    wrong: int
    missing: int
    repeated: int

    @property
    def is_right(self) -> bool:
        """True if every row is published once with the vector of its text."""
        return not (self.wrong or self.missing or self.repeated)


def check_vectors(output: Path, texts: Sequence[str]) -> Checked:
    """Compare every published vector, bit for bit, with the vector that the emulator computes from the row's text."""
    seen: set[int] = set()
    rows = wrong = 0
    for batch in read_batches(output, ["id", "dense"]):
        dense = vectors_of(batch)
        for name, values in zip(batch.column("id").to_pylist(), dense, strict=True):
            number = row_number(name)
            expected = embed([("text", texts[number])], dimensions=len(values))
            wrong += not np.array_equal(values.view(np.uint32), expected.view(np.uint32))
            seen.add(number)
            rows += 1
    return Checked(rows, wrong, missing=len(texts) - len(seen), repeated=rows - len(seen))


def vectors_of(batch: pa.RecordBatch) -> npt.NDArray[np.float32]:
    """Return the dense vectors of rows of `embeddings/`, as a matrix [rows, dimensions]."""
    vectors: npt.NDArray[np.float32] = batch.column("dense").flatten().to_numpy().reshape(batch.num_rows, -1)
    return vectors


def read_batches(output: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of `embeddings/`, in batches of 1,024 rows."""
    for path in sorted((output / "embeddings").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns))


def count_bytes(folder: Path) -> int:
    """Add up the sizes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def sum_usage(output: Path) -> tuple[int, int]:
    """Return the number of requests and the sum of tokens in `usage/`."""
    table = pa.concat_tables(pq.read_table(path, columns=["total_tokens"]) for path in (output / "usage").iterdir())
    return table.num_rows, int(pc.sum(table["total_tokens"]).as_py() or 0)
