"""Make the page of an output: read a bounded sample, describe it, draw it. Importing this module imports matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from arkbeam import __version__
from arkbeam.base.redaction import redact, redact_uri
from arkbeam.base.words import format_seconds
from arkbeam.outputs import facts, summary
from arkbeam.outputs.charts import Layer, draw_lines, draw_steps
from arkbeam.outputs.html import Chart, Map, Page, Point, Row, render
from arkbeam.outputs.neighbours import Neighbours, find_neighbours, lay_out, to_units
from arkbeam.outputs.originals import SEARCHED_CHARS, Original, Place, Source, read_originals
from arkbeam.outputs.published import Published
from arkbeam.outputs.sampling import (
    ROWS_MAX,
    Sample,
    choose_failures,
    read_attempts,
    read_failures,
    read_sample,
    read_scalars,
)
from arkbeam.outputs.summary import Closeness, Histogram, Scalars, SparseUse, Timeline
from arkbeam.stages.publish import failures, usage

EXAMPLES = 10
EXAMPLE_NEIGHBOURS = 4
MAP_POINTS_MAX = 2_000
"""t-SNE of more takes longer than a page is worth; `arkbeam map` places more."""
_MAP_HEIGHT = 700
_TITLE_CHARS_MAX, _CELL_CHARS_MAX = 80, 120
_LIST_MAX = 20
_MINUTE_S = 60.0


def make_page(output: Published, source: Source | None = None) -> bytes:
    """Return the page of an output in HTML. The same output gives the same bytes.

    `source`: how to read its manifests again, for texts and pictures; None: show neither. Raise StoreError if the output
    can't be read.
    """
    note = output.note
    scalars = summary.sum_scalars(read_scalars(output))
    sample = read_sample(output)
    codes = summary.count_codes(read_failures(output, choose_failures(output)))
    attempts = read_attempts(output)
    run = summary.find_latest_run(attempts, note["run"])
    share = attempts.num_rows / max(1, sum(file.rows for file in output.parts(usage.FOLDER)))
    timeline = summary.draw_timeline(attempts, run, share) if attempts.num_rows else None
    units = to_units(sample.vectors)
    near = find_neighbours(units)
    closeness, sparse = summary.describe_closeness(near), summary.describe_sparse(sample.rows["sparse"])
    page = Page(
        title=redact(redact_uri(output.uri).rstrip("/").rpartition("/")[2] or output.uri, 200),
        run=redact(note["run"], 200),
        model=redact(str(note.get("config", {}).get("model", {}).get("name", "")), 200),
        digest=facts.digest_files(note),
        version=__version__,
        tiles=tuple(facts.list_tiles(note)),
        notes=tuple(facts.list_notes(note)),
        work=tuple(facts.list_work(note, scalars)),
        charges=tuple(facts.list_charges(note)),
        pace=tuple(facts.list_pace(note)),
        pace_run="" if run == note["run"] else redact(run, 200),
        latencies=tuple(summary.measure_latencies(attempts, run)) if attempts.num_rows else (),
        time_charts=(*_draw_pace(note), *_draw_time(timeline)),
        codes=tuple(codes),
        failures_remark=_say_failures(note, sum(code.rows for code in codes)),
        folders=tuple(facts.list_bytes(output)),
        vectors=tuple(_list_vectors(sample, scalars, closeness, sparse)),
        vector_charts=tuple(_draw_vectors(scalars, closeness, sparse)),
        map=_make_map(sample),
        examples=_make_examples(sample, near.head(EXAMPLE_NEIGHBOURS), source),
        examples_remark=f"{EXAMPLES} rows at most, each with the rows of the sample whose vectors are nearest to it.",
        sampled=_say_sampled(note, sample, scalars),
        config=facts.describe_config(note),
    )
    return render(page)


def _draw_pace(note: Mapping[str, Any]) -> Iterable[Chart]:
    pace = facts.read_pace(note)
    if pace is None:
        return
    x, layers = "minutes from the start", [Layer("accepted", pace.accepted), Layer("refused", pace.refused)]
    yield Chart(
        "Requests a minute",
        f"up to {max(map(sum, zip(pace.accepted, pace.refused, strict=True))):,.0f} of {pace.rpm:,}; refused ones stand on top",
        draw_steps("requests", pace.edges, layers, x, "requests", ("limit", pace.rpm)),
    )
    yield Chart(
        "Tokens a minute",
        f"up to {max(pace.tokens):,.0f} of {pace.tpm:,}",
        draw_steps("tokens", pace.edges, [Layer("tokens", pace.tokens)], x, "tokens", ("limit", pace.tpm)),
    )


def _draw_time(timeline: Timeline | None) -> Iterable[Chart]:
    if timeline is None:
        return
    width_s = timeline.edges_s[1]
    in_minutes = timeline.edges_s[-1] > 3 * _MINUTE_S
    x = "minutes" if in_minutes else "seconds"
    edges = [edge / _MINUTE_S if in_minutes else edge for edge in timeline.edges_s]
    span = format_seconds(width_s)
    percentiles = [("median", timeline.p50_ms), ("95 %", timeline.p95_ms), ("99 %", timeline.p99_ms)]
    yield Chart(
        "Latency",
        f"of paid requests, by {span} in which the reply was made",
        draw_lines("latency", edges, [Layer(*one) for one in percentiles], x, "ms"),
    )
    yield Chart(
        "In flight",
        f"open requests that were paid later, mean of {span}; at most {max(timeline.in_flight):,.1f}",
        draw_steps("flight", edges, [Layer("in flight", timeline.in_flight)], x, "requests"),
    )
    yield Chart(
        "Replies and retries",
        f"paid replies, and the earlier tries of their rows, by {span}; {sum(timeline.retries):,.0f} retries",
        draw_steps(
            "replies",
            edges,
            [Layer("paid replies", timeline.replies), Layer("earlier tries", timeline.retries)],
            x,
            "number",
        ),
    )


def _draw_vectors(scalars: Scalars, closeness: Closeness | None, sparse: SparseUse | None) -> Iterable[Chart]:
    if scalars.norms is not None:
        yield _draw_histogram("Norms", "length (L2) of the dense vectors", scalars.norms, "norm")
    if closeness is not None and closeness.cosines is not None:
        remark = "cosine of each row of the sample to its nearest neighbour"
        yield _draw_histogram("Nearest neighbours", remark, closeness.cosines, "cosine")
    if sparse is not None and sparse.per_row is not None:
        yield _draw_histogram("Sparse vectors", "active indices of a row", sparse.per_row, "active indices")


def _draw_histogram(title: str, remark: str, histogram: Histogram, x: str) -> Chart:
    return Chart(title, remark, draw_steps(title, histogram.edges, [Layer(title, histogram.counts)], x, "rows"))


def _list_vectors(
    sample: Sample, scalars: Scalars, closeness: Closeness | None, sparse: SparseUse | None
) -> Iterable[facts.Fact]:
    if not sample.rows.num_rows:
        return
    odd = summary.vectors_not_finite(sample.vectors)
    yield facts.Fact("dimensions", f"{sample.vectors.shape[1]:,}", "float32")
    yield facts.Fact("norm", f"{scalars.norm_median:.4f}", f"from {scalars.norm_low:.4f} to {scalars.norm_high:.4f}")
    if odd:
        yield facts.Fact("not finite", f"{odd:,}", "vectors of the sample with NaN or infinite values", "bad")
    share = scalars.with_media / scalars.rows if scalars.rows else 0.0
    yield facts.Fact("with image or video", f"{share:.1%}", "of the rows, by billed tokens")
    if closeness is not None:
        share = closeness.near / closeness.rows
        yield facts.Fact(
            "near duplicates", f"{share:.1%}", f"of the sample: another row at cosine {summary.NEAR_COSINE} or more"
        )
        yield facts.Fact(
            "equal vectors", f"{closeness.equal:,}", "rows of the sample with the vector of another request"
        )
    if sparse is not None:
        yield facts.Fact(
            "sparse vectors",
            f"{sparse.rows / sample.rows.num_rows:.1%}",
            f"of the sample; {sparse.empty:,} have no active index",
        )
        yield facts.Fact(
            "active indices",
            f"{sparse.active_median:,.0f} a row",
            f"at most {sparse.active_high:,}; {sparse.distinct:,} different ones; the commonest in {sparse.commonest_share:.1%}",
        )


def _make_map(sample: Sample) -> Map | None:
    shown = sample.head(MAP_POINTS_MAX)
    if shown.rows.num_rows < 3:
        return None
    layout = lay_out(to_units(shown.vectors))
    spots = np.rint(layout.points * (1_000, _MAP_HEIGHT)).astype(int).tolist()
    titles = [redact(name[:SEARCHED_CHARS], _TITLE_CHARS_MAX) for name in shown.rows["id"].to_pylist()]
    points = [Point(x, y, title) for (x, y), title in zip(spots, titles, strict=True)]
    media = summary.media_mask(shown.rows)
    groups = [
        (name, tuple(point for point, chosen in zip(points, mask.tolist(), strict=True) if chosen))
        for name, mask in (("text only", ~media), ("with image or video", media))
    ]
    return Map(layout.method, len(points), tuple(groups))


def _make_examples(sample: Sample, near: Neighbours, source: Source | None) -> tuple[tuple[Row, ...], ...]:
    chosen = summary.choose_examples(near, summary.media_mask(sample.rows), EXAMPLES)
    families = [[(at, None), *zip(near.ids[at].tolist(), near.cosines[at].tolist(), strict=True)] for at in chosen]
    needed = sorted({at for family in families for at, _ in family})
    columns = ["id", "manifest", "row", *sample.kept]
    found = sample.rows.select(columns).take(pa.array(needed, pa.int64())).to_pylist()
    rows = dict(zip(needed, found, strict=True))
    originals = read_originals({(row["manifest"], row["row"]): row["id"] for row in found}, source)
    return tuple(
        tuple(_make_row(rows[at], sample.kept, originals, cosine) for at, cosine in family) for family in families
    )


def _make_row(
    row: Mapping[str, Any], kept: Sequence[str], originals: Mapping[Place, Original], cosine: float | None
) -> Row:
    original = originals.get((row["manifest"], row["row"]), Original())
    values = [(name, row[name]) for name in kept if row[name] is not None]
    return Row(
        redact(row["id"][:SEARCHED_CHARS], _TITLE_CHARS_MAX),
        redact(f"{row['manifest'].rpartition('/')[2]}, row {row['row']:,}", 200),
        original.text,
        tuple(
            (redact(name, _TITLE_CHARS_MAX), redact(_to_text(value)[:SEARCHED_CHARS], _CELL_CHARS_MAX))
            for name, value in values
        ),
        original.pictures,
        original.others,
        cosine,
    )


def _to_text(value: Any) -> str:
    return ", ".join(map(str, value[:_LIST_MAX])) if isinstance(value, list) else str(value)


def _say_failures(note: Mapping[str, Any], counted: int) -> str:
    if counted >= note["failed"]:
        return f"{note['failed']:,} rows failed. All are in {failures.FOLDER}/, with the original rows."
    return f"{note['failed']:,} rows failed; the table counts {counted:,} of them. All are in {failures.FOLDER}/."


def _say_sampled(note: Mapping[str, Any], sample: Sample, scalars: Scalars) -> str:
    """Return a sentence about what the figures of the vectors are from."""
    total, rows = note["published"], sample.rows.num_rows
    whole = "all rows" if scalars.rows >= total else f"{scalars.rows:,} rows, evenly spread"
    if total <= ROWS_MAX:
        return f"From all {total:,} published rows; rows with the same request count once where vectors are compared."
    return (
        f"Norms and tokens are from {whole}. Vectors are compared within a sample of {rows:,} different requests out of"
        f" {total:,} published rows: neighbours and duplicates outside the sample are not seen."
    )
