"""Nearest neighbours by cosine within a sample, and the position of each row on a map of two dimensions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TSNE_POINTS_MAX = 5_000
"""More points than this are placed by PCA: t-SNE would take minutes."""
WITHOUT_TSNE = "PCA, because openTSNE is not installed"
NEIGHBOURS = 15
_PERPLEXITY = 30
_CHUNK_ROWS = 512
_SUBSPACE, _ITERATIONS = 8, 10

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """For each row, the other rows with the highest cosine, the best first. Both arrays: [rows, neighbours]."""

    ids: Positions
    cosines: Floats

    def head(self, count: int) -> "Neighbours":
        """Return only the first `count` neighbours of each row."""
        return Neighbours(self.ids[:, :count], self.cosines[:, :count])


@dataclass(frozen=True, slots=True)
class Layout:
    """A map: `points` [rows, 2], from 0 to 1, and the name of the method."""

    points: Floats
    method: str


def to_units(vectors: Floats) -> Floats:
    """Scale each row to length 1. A row that is zero or not finite becomes zero."""
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        units = vectors / lengths
    units[~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))] = 0
    return np.asarray(units, np.float32)


def find_neighbours(units: Floats, count: int = NEIGHBOURS) -> Neighbours:
    """Compare each row with each other one. `units` are rows of length 1; the similarity matrix is held in pieces."""
    rows = len(units)
    count = max(0, min(count, rows - 1))
    ids, cosines = np.empty((rows, count), np.int64), np.empty((rows, count), np.float32)
    for start in range(0, rows if count else 0, _CHUNK_ROWS):
        scores = units[start : start + _CHUNK_ROWS] @ units.T
        own = np.arange(len(scores))
        scores[own, start + own] = -np.inf
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(scores, best, axis=1)
        order = np.lexsort((best, -found), axis=1)
        ids[start : start + len(scores)] = np.take_along_axis(best, order, axis=1)
        cosines[start : start + len(scores)] = np.take_along_axis(found, order, axis=1)
    return Neighbours(ids, np.clip(cosines, -1, 1))


def lay_out(units: Floats, points_max: int = TSNE_POINTS_MAX) -> Layout:
    """Place rows on a map: by t-SNE (the extra `map`), or by PCA without it or if there are more than `points_max` rows."""
    points, method = _project(units), "PCA"
    if 10 <= len(units) <= points_max:
        try:
            points, method = _place_by_tsne(units, points), "t-SNE"
        except ImportError:
            method = WITHOUT_TSNE
    return Layout(_scale(points), method)


def _project(units: Floats) -> Floats:
    """Return the first two principal components, by subspace iteration from a fixed start."""
    if len(units) < 3:
        return np.zeros((len(units), 2), np.float32)
    centred = units - units.mean(axis=0)
    basis = np.random.default_rng(0).normal(size=(units.shape[1], _SUBSPACE)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    left, lengths, _ = np.linalg.svd(centred @ basis, full_matrices=False)
    points = (left * lengths)[:, :2]
    return np.asarray(points * np.sign(points[np.abs(points).argmax(axis=0), [0, 1]]), np.float32)


def _place_by_tsne(units: Floats, start: Floats) -> Floats:
    import openTSNE  # noqa: PLC0415 - an extra, and slow to import
    from openTSNE.nearest_neighbors import PrecomputedNeighbors  # noqa: PLC0415

    near = find_neighbours(units, 3 * min(_PERPLEXITY, (len(units) - 1) // 3))
    distances = np.sqrt(np.maximum(0, 2 - 2 * near.cosines))
    affinities = openTSNE.affinity.PerplexityBasedNN(
        perplexity=near.ids.shape[1] / 3, knn_index=PrecomputedNeighbors(near.ids, distances)
    )
    placed: Any = openTSNE.TSNEEmbedding(
        openTSNE.initialization.rescale(start),
        affinities,
        negative_gradient_method="bh",  # with "fft", a few far points cost gigabytes
        random_state=0,
    )
    placed = placed.optimize(n_iter=125, exaggeration=12, momentum=0.5)
    return np.asarray(placed.optimize(n_iter=250, momentum=0.8), np.float32)


def _scale(points: Floats) -> Floats:
    if not len(points):
        return np.empty((0, 2), np.float32)
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    return np.asarray((points - low) / np.where(span > 0, span, 1), np.float32)
