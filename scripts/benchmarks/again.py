"""What it costs to run again: calls, seconds and bytes if little or nothing is new.

Store and output are on the S3 stand-in with 20 ms a call; the last measure is on the local disk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

from scripts.benchmarks.media import BUCKET, credentials
from scripts.benchmarks.memory import KEPT_BYTES, OWNED_DIMENSIONS, rows_with_body
from scripts.benchmarks.owned import own_texts
from scripts.benchmarks.runs import BenchError, Ended, Site, run_child, run_module
from scripts.benchmarks.s3_stand_in import read_calls, start_stand_in
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, write_rows, write_texts

DIMENSIONS = 1024
LATENCY_MS = 20.0
_STORE = f"s3://{BUCKET}/store"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows owned and rows that are new, on S3; rows owned when nothing is new; rows owned on the local disk."""

    owned: int
    new: int
    same: int
    local: int


@dataclass(frozen=True, slots=True)
class Targets:
    """The most calls, seconds, and share of the output's bytes that are uploaded."""

    calls: int
    seconds: float
    share: float = 1.0


SIZES = {
    Size.FULL: Sizes(30_000, 300, 250_000, 1_000_000),
    Size.QUICK: Sizes(30_000, 300, 50_000, 50_000),
    Size.TINY: Sizes(600, 30, 600, 500),
}
NEW, SAME = Targets(300, 20.0, 0.25), Targets(600, 30.0)
LOCAL_S, LOCAL_SAME_S, LOCAL_BYTES = 20.0, 12.0, 700e6


def measure(bench: Bench) -> list[Figure]:
    """A second run on S3 with 30,000 rows owned and 300 new, and with 250,000 owned and nothing new."""
    sizes = SIZES[bench.size]
    return [
        *_run_twice(bench, "new", sizes.owned, sizes.new, NEW),
        *_run_twice(bench, "same", sizes.same, 0, SAME),
    ]


def measure_local(bench: Bench) -> list[Figure]:
    """1,000,000 owned rows with 1 kB of kept text on the local disk: the first output, and a run that changes nothing."""
    rows = SIZES[bench.size].local
    site = Site(bench.folder / "local")
    with start_emulator(EmulatorOptions()) as url:
        site.write_config(url, model={"dimensions": OWNED_DIMENSIONS}, manifest={"keep": ["body"]})
        write_rows(site.manifest, rows_with_body(rows))
        own_texts(site, make_texts(rows), OWNED_DIMENSIONS)
        bench.say(f"manifest and store of {rows:,} rows written")
        return [
            _local_figure(bench, site, rows, name, target)
            for name, target in (("first output", LOCAL_S), ("nothing new", LOCAL_SAME_S))
        ]


def _local_figure(bench: Bench, site: Site, rows: int, name: str, target_s: float) -> Figure:
    ended, note = site.run(), site.note()
    if (note["published"], note["requests_sent"]) != (rows, 0):
        raise BenchError(f"the run was not all owned: {note['published']} published")
    bench.say(f"{rows:,} rows, {name}: {ended.wall_s:.1f} s, {ended.peak_bytes / 1e6:,.0f} MB")
    met = at_most(ended.wall_s, target_s) and at_most(ended.peak_bytes, LOCAL_BYTES)
    return Figure(
        "again",
        f"local, {rows:,} owned, {name}",
        f"{ended.wall_s:.1f} s, {ended.peak_bytes / 1e6:,.0f} MB",
        f"≤ {target_s:.0f} s, ≤ {LOCAL_BYTES / 1e6:,.0f} MB",
        met,
        f"{KEPT_BYTES:,} bytes of kept text a row; {ended.cpu_s:.1f} s of CPU; {_tell_kept(note)}",
    )


def _run_twice(bench: Bench, name: str, owned: int, new: int, targets: Targets) -> Iterator[Figure]:
    """Publish owned rows, add new ones to the manifest, and run again."""
    site = Site(bench.folder / name)
    (site.folder / "s3" / BUCKET).mkdir(parents=True)
    output = {"uri": f"s3://{BUCKET}/out"}
    site.write_config("emulator", model={"dimensions": DIMENSIONS}, store={"uri": _STORE}, output=output)
    with start_stand_in(site.folder / "s3") as endpoint:
        run_module(
            "store_child", ["fill", _STORE, str(owned), "1", "each", "differ"], site.folder, **credentials(endpoint)
        )
    bench.say(f"{owned:,} vectors written")
    for rows, latency_ms in ((owned, 0.0), (owned + new, LATENCY_MS)):
        write_texts(site.manifest, islice(make_texts(rows), rows))
        with start_stand_in(site.folder / "s3", latency_ms) as endpoint:
            ended = run_child(site.command(), site.folder, **credentials(endpoint))
            calls = read_calls(endpoint)
        note = orjson.loads((site.folder / "s3" / BUCKET / "out" / "run.json").read_bytes())
        if note["published"] != rows:
            raise BenchError(f"{note['published']} of {rows} rows are published")
        bench.say(f"{rows:,} rows: {ended.wall_s:.1f} s, {calls}, {_tell_kept(note)}")
    yield _figure(f"S3, {owned:,} owned, {new:,} new", ended, calls, note, targets)


def _figure(name: str, ended: Ended, calls: dict[str, int], note: dict[str, Any], targets: Targets) -> Figure:
    uploaded = calls.pop("bytes", 0)
    share = uploaded / sum(file["bytes"] for file in note["files"])
    made = sum(calls.values())
    listed = ", ".join(f"{count:,} {kind}" for kind, count in sorted(calls.items()))
    return Figure(
        "again",
        name,
        f"{made:,} calls, {ended.wall_s:.1f} s, {share:.0%} uploaded",
        f"≤ {targets.calls} calls, ≤ {targets.seconds:.0f} s, ≤ {targets.share:.0%}",
        made <= targets.calls and at_most(ended.wall_s, targets.seconds) and at_most(share, targets.share),
        f"calls: {listed}; {_tell_kept(note)}; {ended.cpu_s:.1f} s of CPU, {ended.peak_bytes / 1e6:,.0f} MB",
    )


def _tell_kept(note: dict[str, Any]) -> str:
    files = note["files"]
    return f"{sum(file.get('kept', False) for file in files)} of {len(files)} parts kept"
