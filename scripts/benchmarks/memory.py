"""Peak memory of a run: how it grows with the number of rows, and its value for a million owned rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.owned import own_texts
from scripts.benchmarks.runs import BenchError, Ended, Site
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, row_id, write_rows, write_texts

TARGET_RATIO = 1.4
TARGET_OWNED_BYTES = 2e9
OWNED_DIMENSIONS = 1024
KEPT_BYTES = 1_000
_POOL_BYTES = 8 * 2**20  # far more than the window of the compression


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of the two runs that buy all rows, and of the run that owns all rows."""

    low: int
    high: int
    owned: int


SIZES = {
    Size.FULL: Sizes(20_000, 200_000, 1_000_000),
    Size.QUICK: Sizes(2_000, 20_000, 50_000),
    Size.TINY: Sizes(50, 150, 500),
}


def measure(bench: Bench) -> list[Figure]:
    """Peak memory of a 200,000-row run over a 20,000-row run, and of 1,000,000 owned rows with 1 kB of kept text."""
    sizes = SIZES[bench.size]
    with start_emulator(EmulatorOptions()) as url:
        low, high = (_buy(bench, url, rows) for rows in (sizes.low, sizes.high))
        owned = _run_owned(bench, url, sizes.owned)
    ratio = high.peak_bytes / low.peak_bytes
    return [
        Figure(
            "memory",
            f"peak of {sizes.high:,} rows over {sizes.low:,}",
            f"{ratio:.2f}",
            f"≤ {TARGET_RATIO}",
            at_most(ratio, TARGET_RATIO),
            f"{_mb(high)} in {high.wall_s:.0f} s over {_mb(low)} in {low.wall_s:.0f} s, all bought",
        ),
        Figure(
            "memory",
            f"peak of {sizes.owned:,} owned rows",
            _mb(owned),
            f"< {TARGET_OWNED_BYTES / 1e6:,.0f} MB",
            owned.peak_bytes < TARGET_OWNED_BYTES,
            f"{KEPT_BYTES:,} bytes of kept text a row, {OWNED_DIMENSIONS:,}-d, store made by the bench; "
            f"{owned.wall_s:.0f} s, {owned.cpu_s:.0f} s of CPU",
        ),
    ]


def _buy(bench: Bench, url: str, rows: int) -> Ended:
    site = Site(bench.folder / f"bought-{rows}")
    site.write_config(url)
    write_texts(site.manifest, make_texts(rows))
    ended = site.run()
    bench.say(f"{rows:,} rows bought: {_mb(ended)}, {ended.wall_s:.0f} s")
    return ended


def _run_owned(bench: Bench, url: str, rows: int) -> Ended:
    site = Site(bench.folder / f"owned-{rows}")
    site.write_config(url, model={"dimensions": OWNED_DIMENSIONS}, manifest={"keep": ["body"]})
    write_rows(site.manifest, rows_with_body(rows))
    own_texts(site, make_texts(rows), OWNED_DIMENSIONS)
    bench.say(f"manifest and store of {rows:,} rows written")
    ended = site.run()
    note = site.note()
    if (note["published"], note["owned"], note["requests_sent"]) != (rows, rows, 0):
        raise BenchError(f"the run was not all owned: {note['published']} published, {note['owned']} owned")
    bench.say(f"{rows:,} rows owned: {_mb(ended)}, {ended.wall_s:.0f} s")
    return ended


def rows_with_body(rows: int) -> Iterator[dict[str, object]]:
    """Yield the rows of `make_texts`, each with 1 kB of text to keep."""
    random = Random(1)
    pool = " ".join(text for text in make_texts(_POOL_BYTES // 75, seed=2) if text.isascii())
    for number, text in enumerate(make_texts(rows)):
        start = random.randrange(len(pool) - KEPT_BYTES)
        yield {"id": row_id(number), "text": text, "body": pool[start : start + KEPT_BYTES]}


def _mb(ended: Ended) -> str:
    return f"{ended.peak_bytes / 1e6:,.0f} MB"
