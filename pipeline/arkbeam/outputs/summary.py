"""What a report says about the tables of an output: functions over Arrow tables and arrays, without files and clocks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.redaction import redact
from arkbeam.outputs.advice import advise
from arkbeam.outputs.neighbours import Neighbours
from arkbeam.outputs.sampling import Floats

BINS_MAX = 120
CODES_MAX = 30
MESSAGE_CHARS_MAX = 300
NEAR_COSINE = 0.98
"""From this cosine on, the requests of two rows count as near duplicates."""
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 10_800, 43_200, 86_400)

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; `edges` has one more entry than `counts`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of the latency of paid requests of one kind, in milliseconds."""

    kind: str
    requests: int
    p50: float
    p90: float
    p95: float
    p99: float
    highest: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Paid requests of one run over time. `edges_s`: from the first request on; the other fields: one value between two edges.

    `in_flight` is the mean number of open requests, `retries` the tries of rows before the paid one. `p50_ms`, `p95_ms`
    and `p99_ms` are nan where no reply arrived.
    """

    edges_s: tuple[float, ...]
    replies: tuple[float, ...]
    retries: tuple[float, ...]
    in_flight: tuple[float, ...]
    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Rows that failed for one reason: how many of those that were read, an example, and what to do."""

    code: str
    rows: int
    example: str
    """The id of a row, its manifest and its number there."""
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Scalars:
    """Sums over rows of `embeddings/`. Duplicates count with the tokens of their request."""

    rows: int
    text_tokens: int
    image_tokens: int
    with_media: int
    norms: Histogram | None
    norm_low: float
    norm_median: float
    norm_high: float


@dataclass(frozen=True, slots=True)
class SparseUse:
    """The sparse vectors of a sample: rows that have one, active indices."""

    rows: int
    empty: int
    active_median: float
    active_high: int
    distinct: int
    commonest_share: float
    """The share of the rows in which the most frequent index is active."""
    per_row: Histogram | None


@dataclass(frozen=True, slots=True)
class Closeness:
    """How close the rows of a sample are to their nearest neighbours."""

    rows: int
    near: int
    """Rows with another row at `NEAR_COSINE` or above."""
    equal: int
    """Rows with another row of the same vector, to float32."""
    cosines: Histogram | None


def count_codes(tables: Iterable[pa.Table]) -> list[Code]:
    """Count rows of `failures/` by code, the most frequent first; at most `CODES_MAX` codes."""
    counts: dict[str, int] = {}
    examples: dict[str, tuple[str, str]] = {}
    for table in tables:
        for pair in pc.value_counts(table["code"].combine_chunks()).to_pylist():
            code = pair["values"]
            if code not in counts and len(counts) < 1_000:
                row = table.filter(pc.equal(table["code"], code)).slice(0, 1).to_pylist()[0]
                place = f"{row['id']} ({row['manifest'].rpartition('/')[2]}, row {row['row']:,})"
                examples[code] = place, row["message"]
            if code in examples:
                counts[code] = counts.get(code, 0) + pair["counts"]
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:CODES_MAX]
    return [
        Code(
            redact(code, 80),
            rows,
            redact(examples[code][0], MESSAGE_CHARS_MAX),
            redact(examples[code][1], MESSAGE_CHARS_MAX),
            advise(code),
        )
        for code, rows in ordered
    ]


def sum_scalars(table: pa.Table) -> Scalars:
    """Add up tokens and describe the norms of rows of `embeddings/`."""
    norms = _numbers(table["norm"])
    images = _numbers(table["image_tokens"])
    low, median, high = np.percentile(norms, (0, 50, 100)).tolist() if len(norms) else (0.0, 0.0, 0.0)
    text = int(pc.sum(table["text_tokens"]).as_py() or 0)
    return Scalars(
        table.num_rows, text, int(images.sum()), int((images > 0).sum()), _histogram(norms), low, median, high
    )


def measure_latencies(attempts: pa.Table, run: str) -> list[Latency]:
    """Return percentiles of a run's paid requests: all, and those with and without media if there are both."""
    mine = attempts.filter(pc.and_(pc.equal(attempts["run"], run), pc.is_valid(attempts["latency_ms"])))
    latencies = _numbers(mine["latency_ms"])
    media = np.nan_to_num(mine["image_tokens"].to_numpy().astype(np.float64)) > 0
    kinds = [("all requests", latencies)]
    if 0 < media.sum() < len(media):
        kinds += [("text only", latencies[~media]), ("with image or video", latencies[media])]
    return [
        Latency(kind, len(values), *map(float, np.percentile(values, (50, 90, 95, 99, 100))))
        for kind, values in kinds
        if len(values)
    ]


def find_latest_run(attempts: pa.Table, run: str) -> str:
    """Return the run whose pace is shown: the given one if it sent something, else the last that did."""
    timed = attempts.filter(pc.is_valid(attempts["created"]))
    if not timed.num_rows or pc.any(pc.equal(timed["run"], run)).as_py():
        return run
    return str(timed.sort_by([("created", "descending"), ("run", "descending")])["run"][0].as_py())


def draw_timeline(attempts: pa.Table, run: str, share: float = 1.0) -> Timeline | None:
    """Put a run's paid requests into equal spans of time; None if none has both a time and a latency.

    `share`: the share of the attempts that the table has; counts are scaled up by it. Times are those of the service, in
    whole seconds.
    """
    has_times = pc.and_(pc.is_valid(attempts["created"]), pc.is_valid(attempts["latency_ms"]))
    mine = attempts.filter(pc.and_(pc.equal(attempts["run"], run), has_times))
    if not mine.num_rows:
        return None
    ends = mine["created"].cast(schema.CREATED.type).cast(pa.int64()).to_numpy().astype(np.float64) + 0.5
    latencies = mine["latency_ms"].to_numpy().astype(np.float64) / 1000
    starts = ends - latencies
    first = np.floor(np.quantile(starts, 0.001))  # a single wrong clock does not stretch the axis
    edges = _edges(float(np.quantile(ends, 0.999) - first))
    at = np.clip(np.searchsorted(edges, ends - first, side="right") - 1, 0, len(edges) - 2)
    bins, width = len(edges) - 1, edges[1] - edges[0]
    open_until = np.array([np.clip(edge + first - starts, 0, latencies).sum() for edge in edges])
    tries = np.maximum(mine["attempts"].to_numpy().astype(np.float64) - 1, 0)
    percentiles = _percentiles_by_bin(at, latencies * 1000, bins)
    return Timeline(
        tuple(edges.tolist()),
        tuple((np.bincount(at, minlength=bins) / share).tolist()),
        tuple((np.bincount(at, tries, minlength=bins) / share).tolist()),
        tuple((np.diff(open_until) / width / share).tolist()),
        *(tuple(column) for column in percentiles.T.tolist()),
    )


def describe_sparse(sparse: pa.ChunkedArray) -> SparseUse | None:
    """Describe the sparse vectors of rows; None if no row has one."""
    present = sparse.drop_null().combine_chunks()
    if not len(present):
        return None
    indices = pc.struct_field(present, "indices")
    active = pc.list_value_length(indices).to_numpy().astype(np.float64)
    flat = indices.flatten().to_numpy()
    distinct, counts = np.unique(flat, return_counts=True)
    return SparseUse(
        len(present),
        int((active == 0).sum()),
        float(np.median(active)),
        int(active.max()),
        len(distinct),
        float(counts.max() / len(present)) if len(counts) else 0.0,
        _histogram(active),
    )


def describe_closeness(near: Neighbours) -> Closeness | None:
    """Describe the cosines to the nearest neighbours of a sample; None if it has fewer than two rows."""
    if near.ids.shape[1] == 0:
        return None
    best = near.cosines[:, 0].astype(np.float64)
    return Closeness(
        len(best),
        int((best >= NEAR_COSINE).sum()),
        int((best >= 1 - 1e-6).sum()),
        _histogram(best),
    )


def choose_examples(near: Neighbours, media: npt.NDArray[np.bool_], count: int) -> list[int]:
    """Choose rows to show with their neighbours: evenly spread, of texts and media by turns, if there are both."""
    if not near.ids.shape[1]:
        return []
    groups = [np.flatnonzero(mask).tolist() for mask in (media, ~media)]
    groups = [group for group in groups if group]
    each = -(-count // len(groups))
    picked = [[group[at] for at in _middles(len(group), each)] for group in groups]
    turns = [group[turn] for turn in range(each) for group in picked if turn < len(group)]
    return turns[:count]


def _middles(count: int, wanted: int) -> list[int]:
    wanted = min(count, wanted)
    return [(2 * at + 1) * count // (2 * wanted) for at in range(wanted)]


def _edges(span_s: float) -> Values:
    width = next((width for width in _WIDTHS_S if span_s / width <= BINS_MAX), span_s / BINS_MAX)
    return np.arange(max(1, int(np.ceil(span_s / width))) + 1, dtype=np.float64) * width


def _percentiles_by_bin(at: npt.NDArray[np.int64], values: Values, bins: int) -> Values:
    order = np.argsort(at, kind="stable")
    pieces = np.split(values[order], np.searchsorted(at[order], np.arange(1, bins)))
    gap = [np.nan] * 3
    rows = [np.percentile(piece, (50, 95, 99)).tolist() if len(piece) else gap for piece in pieces]
    return np.array(rows, np.float64)


def _histogram(values: Values, bins: int = 40) -> Histogram | None:
    """Count finite values; None if there are none. Equal values make one bin in the middle."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    margin = max(abs(high) * 1e-3, 1e-6)
    if high - low < margin:
        low, high = low - margin, high + margin
    counts, edges = np.histogram(values, bins, (low, high))
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def _numbers(column: pa.ChunkedArray) -> Values:
    return np.asarray(column.drop_null().to_numpy(), np.float64)


def media_mask(rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Return for each row whether it has an image or a video, by its billed tokens."""
    return np.asarray(pc.greater(pc.fill_null(rows["image_tokens"], 0), 0).to_numpy(zero_copy_only=False), np.bool_)


def vectors_not_finite(vectors: Floats) -> int:
    """Count the rows with a value that is not finite."""
    return int((~np.isfinite(vectors).all(axis=1)).sum()) if vectors.size else 0
