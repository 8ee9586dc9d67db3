"""Write an output of random vectors, or search it with one engine, in a process of its own.

    python -m scripts.benchmarks.search_child make FOLDER ROWS DIMENSIONS
    python -m scripts.benchmarks.search_child ENGINE FOLDER     numpy, arkbeam, arkbeam --where, faiss, duckdb
    python -m scripts.benchmarks.search_child verify FOLDER     or diff

It prints JSON: the median of the milliseconds of a query, what was found, and the memory at the end.
"""

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from arkbeam.base.schema import Layout, embeddings_schema
from arkbeam.outputs.diff import diff_outputs
from arkbeam.outputs.search import Mode, Searcher
from arkbeam.outputs.verify import verify_output
from arkbeam.stages.publish.layout import vector_rows, writer_options
from arkbeam.stages.spec import PART_ROWS

QUERIES = 8
K = 10
_SCHEMA = embeddings_schema(pa.struct([pa.field("group", pa.int32())]))
_Search = Callable[[int], Sequence[int]]


def make(folder: Path, rows: int, dimensions: int) -> dict[str, Any]:
    """Write an output in parts of the usual size. Every fourth row has the group 0."""
    random, files = np.random.default_rng(0), []
    (folder / "out" / "embeddings").mkdir(parents=True)
    for number, start in enumerate(range(0, rows, PART_ROWS)):
        path = f"embeddings/part-{number:05d}.parquet"
        table = _make_table(random, start, min(PART_ROWS, rows - start), dimensions)
        options = writer_options(_SCHEMA, Layout.PORTABLE)
        pq.write_table(table, folder / "out" / path, row_group_size=vector_rows(dimensions), **options)
        data = (folder / "out" / path).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        files.append({"path": path, "rows": table.num_rows, "bytes": len(data), "sha256": digest})
    note = {"rows": rows, "published": rows, "failed": 0, "files": files, "service": "stand-in"}
    (folder / "out" / "run.json").write_text(json.dumps(note | {"config": {"model": {"dimensions": dimensions}}}))
    (folder / "out" / "_SUCCESS").touch()
    return {"bytes": sum(file["bytes"] for file in files)}


def _make_table(random: np.random.Generator, start: int, count: int, dimensions: int) -> pa.Table:
    dense = random.standard_normal((count, dimensions), dtype=np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    dense = (dense.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # exact in bfloat16, as the service sends
    numbers = np.arange(start, start + count)
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * dimensions)
    columns = {
        "id": pa.array([f"row-{n}" for n in numbers]),
        "manifest": pa.array(["rows.jsonl"] * count),
        "row": pa.array(numbers),
        "dense": pa.ListArray.from_arrays(offsets, pa.array(dense.reshape(-1))).cast(_SCHEMA.field("dense").type),
        "norm": pa.array(np.linalg.norm(dense, axis=1)),
        "fingerprint": pa.array([int(n).to_bytes(16, "big") for n in numbers]),
        "group": pa.array((numbers % 4).astype(np.int32)),
    }
    return pa.table(
        [columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in _SCHEMA], schema=_SCHEMA
    )


def _read_matrix(folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read all vectors into memory, one part at a time."""
    paths = sorted((folder / "out" / "embeddings").iterdir())
    rows = [pq.read_metadata(path).num_rows for path in paths]
    matrix: np.ndarray[Any, np.dtype[np.float32]] | None = None
    start = 0
    for path, count in zip(paths, rows, strict=True):
        part = pq.read_table(path, columns=["dense"])["dense"].combine_chunks().flatten().to_numpy().reshape(count, -1)
        matrix = np.empty((sum(rows), part.shape[1]), np.float32) if matrix is None else matrix
        matrix[start : start + count] = part
        start += count
    assert matrix is not None
    return matrix


def _query_numbers(rows: int) -> list[int]:
    """Return the rows whose vectors are the queries."""
    return [rows * n // QUERIES for n in range(QUERIES)]


def open_numpy(folder: Path) -> tuple[_Search, int, str]:
    """Search with a product of the matrix and the query."""
    matrix = _read_matrix(folder)
    norms = np.linalg.norm(matrix, axis=1)

    def search(number: int) -> Sequence[int]:
        scores = (matrix @ matrix[number]) / norms
        best = np.argpartition(-scores, K)[: K + 1]
        return [int(n) for n in best[np.argsort(-scores[best])] if n != number][:K]

    return search, len(matrix), ""


def open_faiss(folder: Path) -> tuple[_Search, int, str]:
    """Search with a flat index of faiss."""
    import faiss  # noqa: PLC0415 - not installed everywhere

    matrix = _read_matrix(folder)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    index, rows = faiss.IndexFlatIP(matrix.shape[1]), len(matrix)
    for start in range(0, rows, PART_ROWS):
        index.add(matrix[start : start + PART_ROWS])
    queries = {number: matrix[number : number + 1].copy() for number in _query_numbers(rows)}
    del matrix

    def search(number: int) -> Sequence[int]:
        return [int(n) for n in index.search(queries[number], K + 1)[1][0] if n != number][:K]

    return search, rows, ""


def open_duckdb(folder: Path) -> tuple[_Search, int, str]:
    """Search with a table of arrays in DuckDB's memory."""
    import duckdb  # noqa: PLC0415 - an extra

    width = len(
        pq.ParquetFile(next((folder / "out" / "embeddings").iterdir())).read_row_group(0, ["dense"])["dense"][0]
    )
    connection = duckdb.connect()
    connection.execute("SET threads = 2")
    files = str(folder / "out" / "embeddings" / "*.parquet")
    connection.execute(f"CREATE TABLE v AS SELECT row, dense::FLOAT[{width}] AS dense FROM read_parquet('{files}')")
    rows = connection.execute("SELECT count(*) FROM v").fetchall()[0][0]
    query = "(SELECT dense AS query FROM v WHERE row = $n)"
    sql = f"SELECT row FROM v, {query} WHERE row <> $n ORDER BY array_cosine_similarity(dense, query) DESC LIMIT {K}"

    def search(number: int) -> Sequence[int]:
        return [int(row[0]) for row in connection.execute(sql, {"n": number}).fetchall()]

    return search, int(rows), ""


def open_arkbeam(folder: Path, where: str | None = None) -> tuple[_Search, int, str]:
    """Search with `arkbeam search`. The cache is made first, and opened again."""
    uri = str(folder / "out")
    began_s = time.perf_counter()
    Searcher(uri)
    made_s = time.perf_counter() - began_s
    searcher = Searcher(uri)

    def search(number: int) -> Sequence[int]:
        return [int(row["row"]) for row in searcher.like(f"row-{number}", mode=Mode.DENSE, count=K, where=where).rows]

    return search, searcher.corpus.count, f"; the cache was made or found in {made_s:.1f} s"


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Open an engine, search with each query twice, and return the median time of the second ones, and the memory."""
    name, _, option = engine.partition(" ")
    began_s = time.perf_counter()
    where = '"group" = 0' if option else None
    openers: dict[str, Callable[[], tuple[_Search, int, str]]] = {
        "numpy": lambda: open_numpy(folder),
        "faiss": lambda: open_faiss(folder),
        "duckdb": lambda: open_duckdb(folder),
        "arkbeam": lambda: open_arkbeam(folder, where),
    }
    search, rows, details = openers[name]()
    open_s = time.perf_counter() - began_s
    numbers = _query_numbers(rows)
    for number in numbers:
        search(number)
    times, found = [], []
    for number in numbers:
        began_s = time.perf_counter()
        found.append(list(search(number)))
        times.append((time.perf_counter() - began_s) * 1000)
    memory = dict(_read_memory())
    said = {"ms": statistics.median(times), "found": found, "open_s": open_s, "details": details}
    return said | {"anonymous": memory["RssAnon"], "mapped": memory["RssFile"]}


def _read_memory() -> Iterator[tuple[str, int]]:
    """Yield the memory that this process has, by kind, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.startswith("Rss"):
            yield name, int(value.split()[0]) * 1024


def check(command: str, folder: Path) -> dict[str, Any]:
    """Verify the output, or compare it with itself."""
    uri, began_s = str(folder / "out"), time.perf_counter()
    sound = verify_output(uri).is_sound if command == "verify" else diff_outputs(uri, uri).is_empty
    assert sound
    return {"seconds": time.perf_counter() - began_s}


def main(what: str, folder: str, *numbers: str) -> None:
    """Do what the command line says."""
    path = Path(folder)
    if what == "make":
        said = make(path, *map(int, numbers))
    elif what in ("verify", "diff"):
        said = check(what, path)
    else:
        said = measure(what, path)
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
