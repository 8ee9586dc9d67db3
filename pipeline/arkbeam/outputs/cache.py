"""The vectors of an output in files that can be searched without reading them first: a flat matrix, mapped into memory.

    <cache>/<sha256 of the part>-v1.arrow          the part's rows: all columns but `sparse`; vectors have a fixed length
    <cache>/<sha256 of the part>-v1.sparse.arrow   its sparse vectors, by index: index, row, value
    <cache>/queries/                               a store of the queries' vectors (`outputs.query`)

A part of the output has a piece of the cache with its hash in the name, so that a piece is never out of date: a run that
keeps a part keeps its piece, and pieces of parts that are gone are removed. A piece is complete or absent. The folder is
beside the output, not in it, so that no run and no reader takes it for a part. It may be deleted at any time.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import schema
from arkbeam.base.errors import ConfigError, StoreError
from arkbeam.base.files import remove_file, remove_leftovers, writing
from arkbeam.base.parallel import in_parallel
from arkbeam.base.redaction import redact
from arkbeam.base.uris import is_local, join, storage_errors
from arkbeam.outputs.checks import hash_file
from arkbeam.outputs.published import Published, dense_matrix, flat_values, list_ends, local_part, read_batches
from arkbeam.stages.publish import embeddings
from arkbeam.stages.publish.earlier import PartFile

Matrix = npt.NDArray[np.float32]
BLOCK_BYTES = 64 * 2**20
"""About so many bytes of vectors are in one record batch of a piece: what is searched at once."""
_LEFTOVERS_AGE_S = 3600.0
_TRIES = 3
_SUFFIX, _SPARSE_SUFFIX = "-v1.arrow", "-v1.sparse.arrow"
_PIECE = re.compile(r"[0-9a-f]{64}-v[0-9]+(\.sparse)?\.arrow")
_POSTINGS = pa.schema([("index", pa.uint32()), ("row", pa.uint32()), ("value", pa.float32())])


@dataclass(frozen=True, slots=True)
class Postings:
    """The sparse vectors of a piece, by index: `index` is ascending, `row` is the row in the piece."""

    index: npt.NDArray[np.uint32]
    row: npt.NDArray[np.uint32]
    value: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one part of the output, mapped into memory. `start`: the number of its first row among all rows."""

    start: int
    rows: pa.Table
    """All columns but the vectors."""
    blocks: tuple[Matrix, ...]
    """The dense vectors, in order: matrices of [rows, dimensions]."""
    postings: Postings


@dataclass(frozen=True, slots=True)
class Corpus:
    """All rows of an output. Rows are numbered in the order of the parts."""

    pieces: tuple[Piece, ...]
    count: int
    dimensions: int

    @property
    def has_sparse(self) -> bool:
        """True if at least one row has an active sparse index."""
        return any(len(piece.postings.index) for piece in self.pieces)

    @property
    def rows(self) -> pa.Table:
        """All rows, without their vectors; nothing is copied."""
        return pa.concat_tables([piece.rows for piece in self.pieces])

    def blocks(self) -> Iterator[tuple[int, Matrix]]:
        """Yield the number of the first row and the dense vectors of each block."""
        for piece in self.pieces:
            start = piece.start
            for block in piece.blocks:
                yield start, block
                start += len(block)

    def vectors(self, numbers: npt.NDArray[np.int64]) -> Matrix:
        """Return the dense vectors of some rows."""
        found = np.empty((len(numbers), self.dimensions), np.float32)
        for start, block in self.blocks():
            inside = (numbers >= start) & (numbers < start + len(block))
            found[inside] = block[numbers[inside] - start]
        return found


def cache_folder(output_uri: str, chosen: str | None = None) -> Path:
    """Return the folder of an output's cache: beside a local output, else below the user's folder for caches.

    `chosen`: a folder to use instead of the user's; several outputs may share it.
    """
    key = blake2b(output_uri.rstrip("/").encode(), digest_size=8).hexdigest()
    if chosen is not None:
        return Path(chosen).absolute() / key
    if is_local(output_uri):
        path = Path(output_uri)
        if os.access(path.parent, os.W_OK):
            return path.with_name(f".{path.name}.search")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "arkbeam" / "search" / key


def open_corpus(output: Published, folder: Path, note_progress: Callable[[int], None] | None = None) -> Corpus:
    """Open the cache of an output; make the pieces that it lacks, and remove those that belong to no part.

    `note_progress` is called with the number of rows that are in the cache. Raise ConfigError for an output without
    vectors, StoreError if the output can't be read, was changed meanwhile, or the cache can't be written.
    """
    parts = output.filled_parts(embeddings.FOLDER)
    if not parts:
        raise ConfigError(f"{redact(output.uri)} has no vectors to search")
    for attempt in range(_TRIES):
        _make_pieces(output, parts, folder, note_progress or (lambda _: None))
        try:
            corpus = _open_pieces(parts, folder)
            break
        except FileNotFoundError:  # another process has removed a piece: it searches another state of the output
            if attempt == _TRIES - 1:
                raise StoreError(
                    f"pieces of the cache {folder} disappear: is another search of this output running?"
                ) from None
    _remove_others(parts, folder)
    return corpus


def _make_pieces(output: Published, parts: Sequence[PartFile], folder: Path, note: Callable[[int], None]) -> None:
    suffixes = (_SUFFIX, _SPARSE_SUFFIX)
    missing = [file for file in parts if not all((folder / f"{file.sha256}{end}").exists() for end in suffixes)]
    if not missing:
        return
    with storage_errors("write", str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(str(folder), age_s=_LEFTOVERS_AGE_S)
    done = sum(file.rows for file in parts) - sum(file.rows for file in missing)
    for file, _ in zip(
        missing, in_parallel(lambda one: _make_piece(output, one, folder), missing, output.in_flight), strict=True
    ):
        done += file.rows
        note(done)


def _make_piece(output: Published, file: PartFile, folder: Path) -> None:
    """Make the piece of one part, whose hash is checked first: the name of the piece says what it is made of."""
    uri = join(output.uri, file.path)
    with local_part(output, file) as path:
        if path is None or hash_file(path) != (file.bytes, file.sha256):
            raise StoreError(
                f"{redact(uri)} is not the file that run.json names: if a run is writing the output, search after it;"
                f" else see `arkbeam verify {redact(output.uri)}`"
            )
        with storage_errors("read", uri), pq.ParquetFile(path) as reader:
            width = _first_length(reader)
            _check_space(folder, file.rows * width * 4)
            postings: list[pa.Table] = []
            with writing(str(folder / f"{file.sha256}{_SUFFIX}"), durable=False) as target:
                _write_rows(reader, target, width, postings)
                _write_postings(postings, folder / f"{file.sha256}{_SPARSE_SUFFIX}")


def _first_length(reader: pq.ParquetFile) -> int:
    first = next(reader.iter_batches(batch_size=1, columns=["dense"]))
    return int(list_ends(first.column(0))[-1])


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size * 1.1:
        raise StoreError(
            f"the cache needs {size:,} bytes more in {folder}, where {free:,} are free: name another folder with --cache"
        )


def _write_rows(reader: pq.ParquetFile, target: Path, width: int, postings: list[pa.Table]) -> None:
    """Write all rows of a part in blocks, and add the postings of each table that is read."""
    writer: pa.RecordBatchFileWriter | None = None
    waiting: list[pa.Table] = []
    block_rows = max(1, BLOCK_BYTES // (4 * max(1, width)))
    try:
        for start, table in read_batches(reader):
            postings.append(_postings_of(table["sparse"], start))
            dense = pa.FixedSizeListArray.from_arrays(
                pa.array(dense_matrix(table["dense"], width).reshape(-1)), type=schema.dense_type(width)
            )
            rows = table.drop_columns(["sparse"])
            waiting.append(rows.set_column(rows.column_names.index("dense"), "dense", dense))
            writer = writer or pa.ipc.new_file(str(target), waiting[0].schema)
            if sum(one.num_rows for one in waiting) >= block_rows:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting = []
        if writer is not None and waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    finally:
        if writer is not None:
            writer.close()


def _postings_of(column: pa.ChunkedArray, start: int) -> pa.Table:
    """Return index, row and value of each active entry of some rows; `start` is the number of the first row."""
    sparse = column.combine_chunks()
    if sparse.null_count == len(sparse):
        return _POSTINGS.empty_table()
    indices, values = (pc.struct_field(sparse, name) for name in ("indices", "values"))
    rows = np.repeat(np.arange(start, start + len(sparse), dtype=np.uint32), np.diff(list_ends(indices)))
    return pa.table([flat_values(indices).astype(np.uint32), rows, flat_values(values)], schema=_POSTINGS)


def _write_postings(tables: list[pa.Table], target: Path) -> None:
    """Write the postings of a piece, sorted by index."""
    table = schema.concat(tables, _POSTINGS)
    order = np.argsort(table["index"].to_numpy(), kind="stable")
    with writing(str(target), durable=False) as path, pa.ipc.new_file(str(path), _POSTINGS) as writer:
        writer.write_table(table.take(pa.array(order)).combine_chunks())


def _open_pieces(parts: Sequence[PartFile], folder: Path) -> Corpus:
    pieces, start, widths = [], 0, set[int]()
    for file in parts:
        table = _map_file(folder / f"{file.sha256}{_SUFFIX}")
        widths.add(table.schema.field("dense").type.list_size)
        blocks = tuple(_matrix(chunk) for chunk in table["dense"].chunks if len(chunk))
        sparse = _map_file(folder / f"{file.sha256}{_SPARSE_SUFFIX}")
        postings = Postings(*(_whole_column(sparse[name]) for name in _POSTINGS.names))
        pieces.append(Piece(start, table.drop_columns(["dense"]), blocks, postings))
        start += table.num_rows
    if len(widths) > 1:
        raise StoreError(f"the output has vectors of different lengths ({', '.join(map(str, sorted(widths)))})")
    return Corpus(tuple(pieces), start, widths.pop())


def _map_file(path: Path) -> pa.Table:
    if not path.exists():
        raise FileNotFoundError(path)
    with storage_errors("read", str(path)):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _whole_column(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the values of a column that was written as one batch, without a copy."""
    values: npt.NDArray[Any] = column.chunk(0).to_numpy() if column.num_chunks else column.to_numpy()
    return values


def _matrix(chunk: "pa.FixedSizeListArray[Any]") -> Matrix:
    matrix: Matrix = chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), -1)
    return matrix


def _remove_others(parts: Sequence[PartFile], folder: Path) -> None:
    """Remove pieces of parts that the output no longer has, and of other versions of this program."""
    wanted = {f"{file.sha256}{suffix}" for file in parts for suffix in (_SUFFIX, _SPARSE_SUFFIX)}
    for path in folder.iterdir():
        if _PIECE.fullmatch(path.name) and path.name not in wanted:
            remove_file(str(path))
