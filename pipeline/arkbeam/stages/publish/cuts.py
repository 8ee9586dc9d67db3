"""Where the parts of the output begin: so that added and removed rows change few parts.

Rows are published in the order of the store: by segment, and by row in it. New vectors come last. About one fingerprint
of `MARK_EVERY` is a *mark*: its row may begin a part. Of two marks that are too close to each other, the one with the
lower key begins a part. A key is a part of the fingerprint, so a decision depends on the rows near it alone, and segments
that are merged in their order are cut at the same rows.

Parts have about `PART_ROWS` rows. Near the end they are smaller, down to `PART_ROWS_MIN`: the least length of a part
there is half of its distance to the end. So a run that adds few rows writes few others again, and small parts are merged
as rows are added behind them. As in a merge tree, a row is written again about as often as the number of rows doubles.
"""

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arkbeam.stages.spec import PART_ROWS

MARK_EVERY = 256
PART_ROWS_MIN = 1024
_FULL = 0.73  # least distance of two cuts, as a share of the mean length; they are seldom more than twice that apart
_TAPER = 0.5  # near the end: least distance of two cuts, as a share of the distance to the end


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Rows that may begin a part, in the order of publishing, each once: the place of the vector, and the key."""

    segments: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.uint64]


def find_marks(refs: pa.Table, every: int = MARK_EVERY) -> Marks:
    """Find the marks among REFS."""
    keys = refs["cut_key"].to_numpy()
    at = np.flatnonzero(keys <= np.uint64((2**64 - 1) // every))
    return _unique(refs["segment"].to_numpy()[at], refs["segment_row"].to_numpy()[at], keys[at])


def merge_marks(some: Iterable[Marks]) -> Marks:
    """Merge the marks of several tables."""
    each = [NO_MARKS, *some]
    names = ("segments", "rows", "keys")
    return _unique(*(np.concatenate([getattr(marks, name) for marks in each]) for name in names))


def count_rows(refs: pa.Table, marks: Marks) -> npt.NDArray[np.int64]:
    """Count the REFS before the first mark, and from each mark to the next one: one more number than there are marks."""
    return np.bincount(_find_places(refs, marks), minlength=len(marks.keys) + 1)


def cut_rows(marks: Marks, counts: npt.NDArray[np.int64], part_rows: int = PART_ROWS) -> Marks:
    """Choose the marks that begin a part."""
    starts = np.cumsum(counts)
    chosen = choose_cuts(marks.keys, starts[:-1], int(starts[-1]), part_rows, min(PART_ROWS_MIN, part_rows))
    return Marks(marks.segments[chosen], marks.rows[chosen], marks.keys[chosen])


def number_parts(refs: pa.Table, cuts: Marks) -> npt.NDArray[np.int64]:
    """Return the number of the part of each of the REFS, given the marks that begin a part."""
    return _find_places(refs, cuts)


def choose_cuts(
    keys: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64], total: int, mean: int, least: int
) -> Sequence[int]:
    """Choose where to cut a sequence.

    Args:
        keys: the key of each place where it may be cut; lower keys come first.
        starts: the length before each of these places, in ascending order.
        total: the length of the sequence.
        mean: about the length of a piece.
        least: the least length of a piece; the end of the sequence has pieces of about this length.

    Returns: the numbers of the chosen places, in ascending order.
    """

    def gap(start: int) -> float:
        return min(_FULL * mean, max(least, _TAPER * (total - start)))

    cuts, chosen = [0, total], [-1, len(keys)]
    for number in np.argsort(keys, kind="stable").tolist():
        start = int(starts[number])
        after = bisect(chosen, number)
        if start - cuts[after - 1] >= gap(start) and cuts[after] - start >= gap(cuts[after]):
            cuts.insert(after, start)
            chosen.insert(after, number)
    return chosen[1:-1]


def _find_places(refs: pa.Table, marks: Marks) -> npt.NDArray[np.int64]:
    """Return for each of the REFS how many marks are at its place or before it."""
    segments = np.unique(marks.segments)
    keys = _place_keys(marks.segments, marks.rows, segments)
    return np.searchsorted(
        keys, _place_keys(refs["segment"].to_numpy(), refs["segment_row"].to_numpy(), segments), side="right"
    )


def _place_keys(
    segments: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32], known: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return one number for each place that sorts as the place does among those in `known` segments."""
    at = np.searchsorted(known, segments)
    is_known = np.append(known, np.uint64(0))[at] == segments
    is_known &= at < len(known)
    high = (2 * at + is_known).astype(np.uint64) << np.uint64(32)
    keys: npt.NDArray[np.uint64] = high | np.where(is_known, rows, 0).astype(np.uint64)
    return keys


def _unique(segments: npt.NDArray[np.uint64], rows: npt.NDArray[np.uint32], keys: npt.NDArray[np.uint64]) -> Marks:
    order = np.lexsort((rows, segments))
    segments, rows, keys = segments[order], rows[order], keys[order]
    is_first = np.ones(len(keys), np.bool_)
    is_first[1:] = (segments[1:] != segments[:-1]) | (rows[1:] != rows[:-1])
    return Marks(segments[is_first], rows[is_first], keys[is_first])


NO_MARKS = Marks(np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.uint64))
