"""Queries with the ids that are relevant to them, and the measures of a ranking: recall and nDCG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from arkbeam.base.errors import ConfigError
from arkbeam.outputs.query import Query

EVAL_BYTES_MAX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Judged:
    """A query of an evaluation, and the grades of the ids that are relevant to it."""

    query: Query
    grades: Mapping[str, float]


def judge(ids: Sequence[str], grades: Mapping[str, float], k: int) -> tuple[float, float]:
    """Return recall and nDCG of the first k ids, given the grades of the relevant ones. A repeated id counts once."""
    gains = [grades.get(name, 0.0) if name not in ids[:rank] else 0.0 for rank, name in enumerate(ids[:k])]
    best = sorted(grades.values(), reverse=True)[:k]
    found = sum(gain > 0 for gain in gains)
    return found / len(grades), _discounted(gains) / _discounted(best)


def _discounted(gains: Sequence[float]) -> float:
    values: npt.NDArray[np.float64] = np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))
    return float(values.sum())


def read_judged(path: str) -> list[Judged]:
    """Read the queries of an evaluation: JSON lines with `query` or `image`, and `relevant`, ids or an object of grades by id.

    Raise ConfigError that names the line.
    """
    try:
        if Path(path).stat().st_size > EVAL_BYTES_MAX:
            raise ConfigError(f"--eval {path}: larger than {EVAL_BYTES_MAX:,} bytes")
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--eval {path}: {error}") from None
    judged = [
        _parse_judged(f"--eval {path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not judged:
        raise ConfigError(f"--eval {path}: it has no queries")
    return judged


def _parse_judged(where: str, line: bytes) -> Judged:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict) or set(row) - {"query", "image", "relevant"} or ("query" in row) == ("image" in row):
        raise ConfigError(f"{where}: it must be an object with `relevant` and either `query` or `image`")
    query, relevant = row.get("query", row.get("image")), row.get("relevant")
    grades: Any = dict.fromkeys(relevant, 1.0) if isinstance(relevant, list) and _is_names(relevant) else relevant
    if not isinstance(query, str) or not query.strip():
        raise ConfigError(f"{where}: the query must be a text that is not blank")
    if not isinstance(grades, dict) or not grades or not all(_is_grade(grade) for grade in grades.values()):
        raise ConfigError(
            f"{where}: `relevant` must be a list of ids, or an object of grades above 0 by id, and not empty"
        )
    return Judged(Query(**{"text" if "query" in row else "image": query}), grades)


def _is_names(values: list[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def _is_grade(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
