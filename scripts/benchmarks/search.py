"""Exact search of an output: milliseconds and memory of a query, against numpy, DuckDB and, if it is installed, faiss.

The vectors are random, of unit length and exact in bfloat16, in an output of the layout `portable`. Each engine runs in a
process of its own, and the answers of all are compared with those of numpy.
"""

from importlib.util import find_spec
from typing import Any

from scripts.benchmarks.runs import run_module
from scripts.benchmarks.table import Bench, Figure, Size, at_least, at_most

DIMENSIONS = 1024
ENGINES = ("numpy", "arkbeam", "arkbeam --where", "faiss", "duckdb")
_NAME = "search"
_SIZES = {Size.FULL: (10_000, 200_000, 1_000_000), Size.QUICK: (10_000, 50_000), Size.TINY: (300,)}
_MS_MAX = 1_000.0


def measure(bench: Bench) -> list[Figure]:
    """Milliseconds, memory and recall of exact search, against numpy, DuckDB and faiss; seconds of verify and diff."""
    figures = []
    for rows in _SIZES[bench.size]:
        folder = str(bench.folder / str(rows))
        _, made = run_module("search_child", ["make", folder, str(rows), str(DIMENSIONS)], bench.folder)
        bench.say(f"{rows:,} × {DIMENSIONS:,} written, {made['bytes'] / 1e6:,.0f} MB")
        exact: list[list[int]] = []
        for engine in ENGINES:
            if engine == "faiss" and find_spec("faiss") is None:
                continue
            _, said = run_module("search_child", [engine, folder], bench.folder)
            exact = exact or said["found"]
            figures.append(_figure(rows, engine, said, exact))
            bench.say(f"{rows:,} rows, {engine}: {said['ms']:.1f} ms")
        for command in ("verify", "diff"):
            ended, said = run_module("search_child", [command, folder], bench.folder)
            details = f"{ended.cpu_s:.1f} s of CPU, peak {ended.peak_bytes / 1e6:,.0f} MB"
            figures.append(Figure(_NAME, f"{command}, {rows:,} rows", f"{said['seconds']:.1f} s", details=details))
    return figures


def _figure(rows: int, engine: str, said: dict[str, Any], exact: list[list[int]]) -> Figure:
    """Return the figure of an engine. Its recall is the share of numpy's answers that it has."""
    pairs = list(zip(exact, said["found"], strict=True))
    where = engine.endswith("--where")
    recall = 1.0 if where else sum(len(set(a) & set(b)) for a, b in pairs) / max(1, sum(len(a) for a, _ in pairs))
    memory = f"{said['anonymous'] / 1e6:,.0f} MB, and {said['mapped'] / 1e6:,.0f} MB of mapped files"
    targets = engine == "arkbeam"
    return Figure(
        _NAME,
        f"a query, {rows:,} × {DIMENSIONS:,}, {engine}",
        f"{said['ms']:.1f} ms",
        f"at most {_MS_MAX:,.0f} ms, recall 1" if targets else "",
        at_most(said["ms"], _MS_MAX) and at_least(recall, 1.0) if targets else None,
        f"{memory}; recall {recall:.4f}; {said['open_s']:.1f} s to open{said['details']}",
    )
