"""Media in an S3 store: the time to plan an image, the CPU time to inline one, the memory that videos take.

The store is a stand-in in another process (`s3_stand_in`): the work of a real server would dominate the figures.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator
from PIL import Image

from scripts.benchmarks.runs import BenchError, Ended, Site, run_child
from scripts.benchmarks.s3_stand_in import read_calls, start_stand_in
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import make_texts, row_id, write_rows, write_texts

BUCKET = "bucket"
PLAN_LATENCY_MS = 20.0
TARGET_PLAN_MS = PLAN_LATENCY_MS / 32
TARGET_CPU_RATIO = 2.5
TARGET_PEAK_BYTES = 1e9
_MIXED = (("jpg", "JPEG", 0.6), ("png", "PNG", 0.2), ("webp", "WEBP", 0.2))
_IMAGE_BYTES = 100_000
MP4_START = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + b"\0\0\0\x08moov"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of planned images, of bought images and of rounds of buying, number of videos and the size of one."""

    planned: int
    bought: int
    rounds: int
    videos: int
    video_bytes: int


SIZES = {
    Size.FULL: Sizes(20_000, 2_000, 3, 200, 40_000_000),
    Size.QUICK: Sizes(4_000, 500, 1, 40, 40_000_000),
    Size.TINY: Sizes(80, 12, 1, 3, 400_000),
}


def measure_plan(bench: Bench) -> list[Figure]:
    """Time to plan 20,000 images of an S3 store with 20 ms a call, on the first run and on the next one."""
    count = SIZES[bench.size].planned
    folder = bench.folder / "s3" / BUCKET / "pictures"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:06d}.bmp").write_bytes(_small_picture(number))
    bench.say(f"{count:,} pictures written")
    site = Site(bench.folder / "site")
    site.write_config("emulator")
    rows = [{"id": row_id(n), "image": f"s3://{BUCKET}/pictures/{n:06d}.bmp"} for n in range(count)]
    figures = []
    with start_stand_in(folder.parents[1], PLAN_LATENCY_MS) as endpoint:
        write_texts(site.manifest, ["one text"])
        start_s = run_child(site.command("plan"), site.folder, **credentials(endpoint)).wall_s
        write_rows(site.manifest, rows)
        before: dict[str, int] = {}
        for name in ("first run", "next run"):
            ended = run_child(site.command("plan"), site.folder, **credentials(endpoint))
            if f"{count:,} requests" not in ended.stdout:
                raise BenchError(f"the plan does not hold {count:,} requests: {ended.stdout}")
            calls = read_calls(endpoint)
            made = ", ".join(f"{calls[kind] - before.get(kind, 0):,} {kind}" for kind in sorted(calls))
            wall_ms = (ended.wall_s - start_s) * 1000 / count
            cpu_ms = ended.cpu_s * 1000 / count
            before = calls
            bench.say(f"{name}: {ended.wall_s:.1f} s, {made}")
            figures.append(
                Figure(
                    "media_plan",
                    f"{count:,} images, {name}",
                    f"{wall_ms:.3f} ms/image",
                    f"≤ {TARGET_PLAN_MS:.3f} ms",
                    at_most(wall_ms, TARGET_PLAN_MS),
                    f"{ended.wall_s:.1f} s of `arkbeam plan` less {start_s:.1f} s for one text; {cpu_ms:.2f} ms of"
                    f" CPU an image; calls: {made}",
                )
            )
    return figures


def measure_cpu(bench: Bench) -> list[Figure]:
    """CPU time of an image over that of a text: 2,000 images of about 100 kB (JPEG, PNG, WebP), at zero latency."""
    sizes = SIZES[bench.size]
    folder = bench.folder / "s3" / BUCKET / "pictures"
    folder.mkdir(parents=True)
    names = list(_write_mixed(folder, sizes.bought))
    mean = sum((folder / name).stat().st_size for name in names) / len(names)
    bench.say(f"{sizes.bought:,} pictures written, {mean / 1000:.0f} kB each")
    ratios, rounds = [], []
    with start_stand_in(folder.parents[1]) as endpoint, start_emulator(EmulatorOptions()) as url:
        for number in range(sizes.rounds):
            took = {}
            for kind in ("text", "image"):
                low, high = (
                    _buy(bench.folder / f"{kind}-{number}-{count}", kind, names[:count], url, endpoint)
                    for count in (max(1, sizes.bought // 10), sizes.bought)
                )
                took[kind] = (low, high)
                bench.say(f"round {number + 1}, {kind}: {high.wall_s:.1f} s, {high.cpu_s:.1f} s of CPU")
            rounds.append(took)
            items = sizes.bought - max(1, sizes.bought // 10)
            cpu = {kind: (high.cpu_s - low.cpu_s) * 1000 / items for kind, (low, high) in took.items()}
            ratios.append(cpu["image"] / cpu["text"] if cpu["text"] > 0 else float("nan"))
    cpu_ms = {
        kind: median((h.cpu_s - low.cpu_s) * 1000 / items for low, h in (r[kind] for r in rounds)) for kind in took
    }
    rate = {
        kind: median(items / max(1e-9, h.wall_s - low.wall_s) for low, h in (r[kind] for r in rounds)) for kind in took
    }
    peak = {kind: max(r[kind][1].peak_bytes for r in rounds) / 1e6 for kind in took}
    ratio = median(ratios)
    return [
        Figure(
            "media_cpu",
            f"{kind}, items/s",
            f"{rate[kind]:,.0f}",
            details=f"{cpu_ms[kind]:.2f} ms of CPU an item, peak {peak[kind]:,.0f} MB of {sizes.bought:,} items",
        )
        for kind in took
    ] + [
        Figure(
            "media_cpu",
            "CPU of an image over that of a text",
            f"{ratio:.2f}",
            f"≤ {TARGET_CPU_RATIO}",
            at_most(ratio, TARGET_CPU_RATIO),
            "by round: " + ", ".join(f"{one:.2f}" for one in ratios),
        )
    ]


def measure_memory(bench: Bench) -> list[Figure]:
    """Peak memory of a run of 200 videos of 40 MB from an S3 store."""
    sizes = SIZES[bench.size]
    folder = bench.folder / "s3" / BUCKET / "films"
    folder.mkdir(parents=True)
    for number in range(sizes.videos):
        with (folder / f"{number:04d}.mp4").open("wb") as file:
            mdat = sizes.video_bytes - len(MP4_START)
            file.write(MP4_START + mdat.to_bytes(4, "big") + b"mdat" + number.to_bytes(8, "big"))
            file.truncate(sizes.video_bytes)  # the rest of the file is sparse
    site = Site(bench.folder / "site")
    rows = [{"id": row_id(n), "video": f"s3://{BUCKET}/films/{n:04d}.mp4"} for n in range(sizes.videos)]
    with start_stand_in(folder.parents[1]) as endpoint, start_emulator(EmulatorOptions(latency_ms=300)) as url:
        site.write_config(url)
        write_rows(site.manifest, rows)
        ended = run_child(site.command(), site.folder, **credentials(endpoint))
    bench.say(f"{sizes.videos} videos: {ended.wall_s:.0f} s, {ended.peak_bytes / 1e6:,.0f} MB")
    note = site.note()
    if note["published"] != sizes.videos:
        raise BenchError(f"{note['published']} of {sizes.videos} videos were published")
    sent_mb_s = sizes.videos * sizes.video_bytes / ended.wall_s / 1e6
    return [
        Figure(
            "media_memory",
            f"peak of {sizes.videos} videos of {sizes.video_bytes / 1e6:,.1f} MB",
            f"{ended.peak_bytes / 1e6:,.0f} MB",
            f"< {TARGET_PEAK_BYTES / 1e6:,.0f} MB",
            ended.peak_bytes < TARGET_PEAK_BYTES,
            f"limits.bytes_in_flight at its default; {ended.wall_s:.0f} s, {sent_mb_s:,.0f} MB/s read and sent,"
            f" {ended.cpu_s:.0f} s of CPU",
        )
    ]


def _buy(folder: Path, kind: str, names: list[str], url: str, endpoint: str) -> Ended:
    site = Site(folder)
    site.write_config(url)
    if kind == "text":
        write_texts(site.manifest, make_texts(len(names)))
    else:
        pictures = ({"id": row_id(n), "image": f"s3://{BUCKET}/pictures/{name}"} for n, name in enumerate(names))
        write_rows(site.manifest, pictures)
    ended = run_child(site.command(), site.folder, **credentials(endpoint))
    paid = site.note()["requests_paid"]
    if paid != len(names):
        raise BenchError(f"the run paid for {paid} requests instead of {len(names)}")
    return ended


def credentials(endpoint: str) -> dict[str, str]:
    """Return the environment in which `s3://` means a stand-in."""
    return {
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
    }


def _small_picture(number: int) -> bytes:
    """Make a bitmap of 16 x 16 pixels that is different for each number."""
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[0, 0] = [number >> 16 & 255, number >> 8 & 255, number & 255]
    header = b"BM" + (54 + pixels.size).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    fields = ((40, 4), (16, 4), (16, 4), (1, 2), (24, 2), (0, 4), (pixels.size, 4), (0, 4), (0, 4), (0, 4), (0, 4))
    return header + b"".join(value.to_bytes(size, "little") for value, size in fields) + pixels.tobytes()


def _write_mixed(folder: Path, count: int) -> Iterator[str]:
    """Write pictures of several formats and sizes, about 100 kB each on average; yield their names."""
    random = Random(0)
    noise = np.random.default_rng(0)
    kinds = random.choices(_MIXED, weights=[share for _, _, share in _MIXED], k=count)
    for number, (extension, pillow_format, _) in enumerate(kinds):
        bytes_wanted = _IMAGE_BYTES * random.uniform(0.5, 1.5)
        bytes_a_pixel = {"JPEG": 0.59, "PNG": 3.0, "WEBP": 0.45}[pillow_format]
        side = max(16, int((bytes_wanted / bytes_a_pixel) ** 0.5))
        picture = Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8))
        name = f"{number:05d}.{extension}"
        picture.save(folder / name, pillow_format, **({"compress_level": 0} if pillow_format == "PNG" else {}))
        yield name
