"""Bytes of a published row with a 2,048-d vector, and a check that each vector has the bits that the server sent."""

import base64

import httpx
import numpy as np
from arkbeam.ark.client import endpoint_url
from arkbeam.ark.wire import WireOptions, encode_request
from arkbeam.base.records import Modality, Part, Request
from arkbeam.base.schema import Layout
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.outputs import check_vectors, count_bytes, read_batches, vectors_of
from scripts.benchmarks.runs import DIMENSIONS, MODEL, Site
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, row_number, write_texts

TARGETS_BYTES = {Layout.PORTABLE: 3_100, Layout.COMPACT: 2_950}
FETCHED_MAX = 200
ROWS = {Size.FULL: 10_000, Size.QUICK: 2_000, Size.TINY: 50}


def measure(bench: Bench) -> list[Figure]:
    """Bytes of a row in `embeddings/` with 2,048 values that are exact in bfloat16, and bit-equality with the server."""
    rows = ROWS[bench.size]
    texts = list(make_texts(rows))
    site = Site(bench.folder)
    sizes: dict[Layout, float] = {}
    with start_emulator(EmulatorOptions()) as url:
        write_texts(site.manifest, texts)
        for layout in (Layout.COMPACT, Layout.PORTABLE):
            site.write_config(url, output={"layout": layout.value})
            site.run()
            sizes[layout] = count_bytes(site.output / "embeddings") / rows
        fetched, differing = _compare_with_server(site, url, texts)
    checked = check_vectors(site.output, texts)
    told = ", ".join(f"{size:,.0f} bytes a row ({layout})" for layout, size in sizes.items())
    bench.say(f"{rows:,} rows: {told}, {checked.wrong} wrong vectors")
    return [
        *(_size_figure(layout, sizes[layout], rows) for layout in Layout),
        Figure(
            "bytes",
            "vectors that differ in a bit",
            f"{checked.wrong + differing}",
            "0",
            checked.is_right and not differing,
            f"of {checked.rows:,} recomputed by the emulator's function, and of {fetched} requested again; "
            f"{checked.missing} missing, {checked.repeated} repeated",
        ),
    ]


def _size_figure(layout: Layout, size: float, rows: int) -> Figure:
    target = TARGETS_BYTES[layout]
    return Figure(
        "bytes",
        f"bytes a row of embeddings/, {layout}",
        f"{size:,.0f}",
        f"≤ {target:,}",
        at_most(size, target),
        f"{rows:,} rows of text, {DIMENSIONS:,}-d; {size / (4 * DIMENSIONS):.2f} of the bare float32 values",
    )


def _compare_with_server(site: Site, url: str, texts: list[str]) -> tuple[int, int]:
    """Request the first rows again; return their number, and how many of them differ from the published vectors."""
    batch = next(read_batches(site.output, ["id", "dense"])).slice(0, FETCHED_MAX)
    names, dense = batch.column("id").to_pylist(), vectors_of(batch)
    with httpx.Client(trust_env=False, headers={"Authorization": "Bearer stand-in"}) as client:
        sent = [_fetch(client, url, texts[row_number(name)]) for name in names]
    return len(names), sum(values.tobytes() != raw for values, raw in zip(dense, sent, strict=True))


def _fetch(client: httpx.Client, url: str, text: str) -> bytes:
    body = encode_request(Request((Part(Modality.TEXT, text),)), WireOptions(MODEL, DIMENSIONS))
    answer = client.post(endpoint_url(url), content=body, headers={"Content-Type": "application/json"})
    raw = base64.b64decode(answer.raise_for_status().json()["data"]["embedding"])
    return np.frombuffer(raw, "<f4").astype(np.float32).tobytes()
