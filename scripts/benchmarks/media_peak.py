"""Peak memory of runs with large media: videos from a web server that tells no length, and large images that are changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator
from PIL import Image

from scripts.benchmarks.media import MP4_START
from scripts.benchmarks.runs import BenchError, Site, run_child
from scripts.benchmarks.s3_stand_in import start_stand_in
from scripts.benchmarks.table import Bench, Figure, Size, at_most
from scripts.benchmarks.texts import row_id, write_rows

TARGET_PEAK_BYTES = 700e6
WEB = {"access": {"http": "inline"}, "allowed_hosts": ["127.0.0.1"], "http_timeout_s": 600}
FIT = {"fit": {"transcode": True, "resize_max_pixels": 1_028_608}}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Number of videos and of images, bytes of a video, width of an image, and width of the largest image."""

    count: int
    video_bytes: int
    image_px: int
    largest_px: int


SIZES = {
    Size.FULL: Sizes(40, 40_000_000, 3_870, 8_900),
    Size.QUICK: Sizes(12, 40_000_000, 3_870, 8_900),
    Size.TINY: Sizes(2, 400_000, 300, 600),
}


def measure(bench: Bench) -> list[Figure]:
    """Peak memory of runs of 40 videos of 40 MB from a web server, 40 TIFFs of 45 MB, and one PNG of 79 megapixels."""
    sizes, folder = SIZES[bench.size], bench.folder / "web" / "media"
    folder.mkdir(parents=True)
    rows: dict[str, tuple[Iterator[tuple[str, str]], dict[str, Any]]] = {
        "videos, identity: content": (_videos(folder, sizes, ""), {**WEB, "identity": "content"}),
        "videos without a length": (_videos(folder, sizes, "?length=no"), WEB),
        "TIFFs with fit": (_images(folder, sizes), FIT),
        "one large PNG with fit": (_largest(folder, sizes), FIT),
    }
    figures = []
    for number, (name, (media, settings)) in enumerate(rows.items()):
        named = list(media)
        with start_stand_in(folder.parent) as web, start_emulator(EmulatorOptions(latency_ms=300)) as url:
            site = Site(bench.folder / f"site-{number}")
            site.write_config(url, media={"allowed_roots": [str(folder)], **settings})
            uris = [(kind, uri.replace("WEB", web)) for kind, uri in named]
            write_rows(site.manifest, [{"id": row_id(n), kind: uri} for n, (kind, uri) in enumerate(uris)])
            ended = run_child(site.command(), site.folder)
        if site.note()["published"] != len(named):
            raise BenchError(f"{site.note()['published']} of {len(named)} rows were published")
        bench.say(f"{name}: {ended.wall_s:.0f} s, {ended.tree_bytes / 1e6:,.0f} MB")
        figures.append(_figure(name, len(named), ended.tree_bytes, ended.wall_s))
    return figures


def _figure(name: str, count: int, peak: int, wall_s: float) -> Figure:
    return Figure(
        "media_peak",
        f"peak of {count} {name}" if count > 1 else f"peak of {name}",
        f"{peak / 1e6:,.0f} MB",
        f"≤ {TARGET_PEAK_BYTES / 1e6:,.0f} MB",
        at_most(peak, TARGET_PEAK_BYTES),
        f"with its worker processes, limits.bytes_in_flight at its default; {wall_s:.0f} s",
    )


def _videos(folder: Path, sizes: Sizes, query: str) -> Iterator[tuple[str, str]]:
    for number in range(sizes.count):
        mdat = sizes.video_bytes - len(MP4_START)
        with (folder / f"{number:04d}.mp4").open("wb") as file:
            file.write(MP4_START + mdat.to_bytes(4, "big") + b"mdat" + number.to_bytes(8, "big"))
            file.truncate(sizes.video_bytes)  # the rest of the file is sparse
        yield "video", f"WEB/media/{number:04d}.mp4{query}"


def _images(folder: Path, sizes: Sizes) -> Iterator[tuple[str, str]]:
    pixels = np.zeros((sizes.image_px, sizes.image_px, 3), np.uint8)
    for number in range(sizes.count):
        pixels[:, :, 0] = number
        Image.fromarray(pixels).save(folder / f"{number:04d}.tiff")
        yield "image", str(folder / f"{number:04d}.tiff")


def _largest(folder: Path, sizes: Sizes) -> Iterator[tuple[str, str]]:
    Image.new("RGBA", (sizes.largest_px, sizes.largest_px), (200, 30, 90, 128)).save(folder / "largest.png")
    yield "image", str(folder / "largest.png")
