"""Exact search: the rows whose dense or sparse vectors are nearest to a query's, and both rankings in one.

Dense vectors are compared by cosine, sparse ones by dot product. usearch reads every vector of the flat matrix; the scores
of what it finds are computed again in float64, and rows with equal scores are in the order of their numbers.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arkbeam.base.errors import ConfigError
from arkbeam.base.parallel import in_parallel
from arkbeam.outputs.cache import Corpus, Matrix

FUSED_MAX = 1_000
"""Most rows of each ranking that the fusion of two rankings looks at."""
RRF = 60
"""The constant of reciprocal rank fusion: a row's score is the sum of 1 / (60 + its rank) over the rankings."""
_SPARE = 16  # more candidates than asked for, since float32 may order near ties in another way
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows by their numbers, best first, with their scores."""

    numbers: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def head(self, count: int) -> "Ranking":
        """Return the first rows."""
        return Ranking(self.numbers[:count], self.scores[:count])


def load_usearch() -> Any:
    """Return usearch's function for exact search, with one thread. Raise ConfigError with the command that installs it."""
    try:
        from usearch.index import search  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"search needs more packages: pip install 'arkbeam[search]' ({error})") from None
    return lambda matrix, queries, count: search(matrix, queries, count, "cos", exact=True, threads=1)


def search_dense(corpus: Corpus, queries: Matrix, count: int, mask: Mask | None = None) -> list[Ranking]:
    """Return the `count` rows with the highest cosine for each query, a matrix of [queries, dimensions].

    `mask`: True for the rows that may be found; None: all of them.
    """
    exact, wanted = load_usearch(), count + _SPARE

    def compare(item: tuple[int, Matrix]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the numbers and the distances of the nearest rows of a block, for each query."""
        start, block = item
        chosen = np.arange(len(block)) if mask is None else np.flatnonzero(mask[start : start + len(block)])
        if not len(chosen):
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        found = exact(block if len(chosen) == len(block) else block[chosen], queries, min(wanted, len(chosen)))
        inside = (
            np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)
        )  # of one query, usearch returns a list
        return start + chosen[inside], np.asarray(found.distances).reshape(inside.shape)

    numbers, distances = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for more, further in in_parallel(compare, corpus.blocks(), os.cpu_count() or 1):
        numbers, distances = np.concatenate([numbers, more], axis=1), np.concatenate([distances, further], axis=1)
        best = np.argsort(distances, axis=1, kind="stable")[:, :wanted]
        numbers, distances = np.take_along_axis(numbers, best, 1), np.take_along_axis(distances, best, 1)
    return [_score(corpus, query, row, count) for query, row in zip(queries, numbers, strict=True)]


def _score(corpus: Corpus, query: Matrix, numbers: npt.NDArray[np.int64], count: int) -> Ranking:
    """Compute the cosines of some rows in float64; return the best ones in order."""
    vectors, wide = corpus.vectors(numbers).astype(np.float64), query.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wide)
    scores = np.divide(vectors @ wide, lengths, out=np.zeros(len(numbers)), where=lengths > 0)
    return _best(numbers, scores, count)


def search_sparse(
    corpus: Corpus,
    indices: npt.NDArray[np.integer[Any]],
    values: npt.NDArray[np.floating[Any]],
    count: int,
    mask: Mask | None = None,
) -> Ranking:
    """Return the `count` rows with the highest dot product with a sparse vector, of those that share an index with it."""
    numbers, scores = [np.empty(0, np.int64)], [np.empty(0)]
    for piece in corpus.pieces:
        totals = np.zeros(piece.rows.num_rows)
        hit = np.zeros(piece.rows.num_rows, np.bool_)
        starts = np.searchsorted(piece.postings.index, indices, side="left")
        ends = np.searchsorted(piece.postings.index, indices, side="right")
        for start, end, value in zip(starts.tolist(), ends.tolist(), values.tolist(), strict=True):
            rows = piece.postings.row[start:end]  # a row has an index at most once
            totals[rows] += piece.postings.value[start:end].astype(np.float64) * value
            hit[rows] = True
        if mask is not None:
            hit &= mask[piece.start : piece.start + len(hit)]
        inside = np.flatnonzero(hit)
        best = _best(inside + piece.start, totals[inside], count)
        numbers.append(best.numbers)
        scores.append(best.scores)
    return _best(np.concatenate(numbers), np.concatenate(scores), count)


def fuse(rankings: Sequence[Ranking], count: int) -> Ranking:
    """Join rankings by reciprocal rank fusion."""
    numbers = np.concatenate([ranking.numbers for ranking in rankings])
    shares = np.concatenate([1.0 / (RRF + 1 + np.arange(len(ranking.numbers))) for ranking in rankings])
    found, places = np.unique(numbers, return_inverse=True)
    scores: npt.NDArray[np.float64] = np.bincount(places, shares, len(found)).astype(np.float64)
    return _best(found, scores, count)


def _best(numbers: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], count: int) -> Ranking:
    order = np.lexsort((numbers, -scores))[:count]
    return Ranking(numbers[order], scores[order])
