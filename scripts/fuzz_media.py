"""Change bytes of pictures and videos of every accepted format at random, and look at each, without and with a change.

    .venv/bin/python -m scripts.fuzz_media 20000 --seed 1

It ends with 1 if a medium crashed, took too long, gave other bytes at a second call, or if a changed image can't be
decoded. The inputs of these are written to the folder `--keep`.
"""

import argparse
import io
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media.checks import examine, prepare
from arkbeam.media.files import guard
from arkbeam.media.kinds import detect_kind
from arkbeam.media.options import FitOptions, MediaOptions
from PIL import Image

LOOK_S = 5.0
WALL_S_MAX = 60.0
_PLAIN = MediaOptions(look_s=LOOK_S)
_FITTED = MediaOptions(look_s=LOOK_S, fit=FitOptions(resize_max_pixels=2_000, transcode=True))
_ODD_NUMBERS = (0, 1, 127, 128, 255, 256, 32_767, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
_FALLBACK_CODE = "media_unreadable"  # `guard` gives it to exceptions that the rooms of media should have handled


@dataclass(slots=True)
class Report:
    """Counts of outcomes, and the inputs that went wrong with the reasons."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, bytes]] = field(default_factory=list)
    slowest_s: float = 0.0


def seeds() -> dict[str, bytes]:
    """Return a medium of each format and its main variants."""
    from tests.media import test_truncation  # noqa: PLC0415 - needs the packages of the tests
    from tests.media.pictures import deep_colour, deep_grey, picture  # noqa: PLC0415
    from tests.media.test_pixels import COLOUR, GREY  # noqa: PLC0415
    from tests.media.tiffs import tiff  # noqa: PLC0415

    further = {
        "HEIC": picture("HEIF"),
        "AVIF": picture("AVIF"),
        "JPEG, CMYK": picture(mode="CMYK"),
        "PNG, grey 16": deep_grey(),
        "PNG, colour 16": deep_colour(),
        "PNG, palette": picture("PNG", mode="P"),
        "TIFF, planes of 16 bits": tiff(COLOUR.astype(int) * 257, bits=16, photometric=2, planar=2),
        "TIFF, BigTIFF in tiles": tiff(COLOUR, photometric=2, big=True, tile=16, compression="deflate"),
        "TIFF, JPEG": picture("TIFF", compression="jpeg"),
        "TIFF, group 3": picture("TIFF", mode="1", compression="group3"),
        "TIFF, group 4": picture("TIFF", mode="1", compression="group4"),
        "TIFF, 12 bits": tiff(GREY.astype(int) * 16, bits=12),
        "JPEG 2000, lossless": picture("JPEG2000", irreversible=False),
    }
    return test_truncation.WHOLE | further


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change, repeat, remove or swap some bytes, mostly near the start, where the headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        span = len(changed) if chance.random() < 0.4 else min(len(changed), chance.choice((64, 256, 1_024)))
        at = chance.randrange(12, max(13, span))
        match chance.randrange(7):
            case 0 | 1:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                width, layout = chance.choice(((2, ">H"), (2, "<H"), (4, ">I"), (4, "<I")))
                changed[at : at + width] = struct.pack(layout, chance.choice(_ODD_NUMBERS) % (1 << 8 * width))
            case 3:
                del changed[at : at + chance.choice((1, 4, 16, 200))]
            case 4:
                changed[at:at] = changed[at : at + chance.choice((1, 8, 64))] * chance.choice((1, 2, 50))
            case 5:
                del changed[at:]
            case _:
                start = chance.randrange(len(changed) or 1)
                changed[at : at + 32] = changed[start : start + 32]
        if len(changed) < 16:
            return bytes(changed)
    return bytes(changed)


def check(data: bytes, report: Report) -> None:
    """Look at one medium without and with a change, and note what is wrong with the outcome."""
    kind = detect_kind(data[:1_024])
    if kind is None:
        report.outcomes["of no known format"] += 1
        return
    for options in (_PLAIN, _FITTED):
        started_s = time.monotonic()
        outcome, fault = _look(data, kind.modality, options)
        took_s = time.monotonic() - started_s
        report.slowest_s = max(report.slowest_s, took_s)
        report.outcomes[f"{'as it is' if options is _PLAIN else 'with fit'}: {outcome}"] += 1
        if fault or took_s > WALL_S_MAX:
            report.faults.append((fault or f"{took_s:.0f} s", data))


def _look(data: bytes, modality: Modality, options: MediaOptions) -> tuple[str, str]:
    """Return the outcome, and what is wrong with it or an empty string."""
    info = guard(
        "fuzz", lambda: examine(data[:65_536], len(data), modality, options, lambda start, end: data[start:end])
    )
    if info is None:
        info = guard("fuzz", lambda: examine(data, len(data), modality, options, lambda start, end: data[start:end]))
    if isinstance(info, Failure):
        return info.code, info.message if info.code == _FALLBACK_CODE or "crashed" in info.message else ""
    if info is None:
        return "nothing", "nothing is known of all bytes"
    sent, again = (guard("fuzz", lambda: Inline("", prepare(data, modality, info.fit, options)[0])) for _ in range(2))
    if sent != again:
        return "sent", "two calls gave different bytes"
    if isinstance(sent, Failure):
        return sent.code, sent.message if sent.code == _FALLBACK_CODE or "crashed" in sent.message else ""
    if info.fit is None:
        return "sent as it is", ""
    try:
        with Image.open(io.BytesIO(sent.data)) as image:
            image.load()
            fits = image.size == info.fit.size_px and image.get_format_mimetype() == info.fit.mime
            return "sent changed", "" if fits else "the changed image is not as planned"
    except Exception as error:  # noqa: BLE001 - any error shows that what is sent does not decode
        return "sent changed", f"the changed image does not decode: {error}"


def run(count: int, seed: int) -> Report:
    """Check so many changed media."""
    chance, report = random.Random(seed), Report()
    originals = list(seeds().values())
    for number in range(count):
        data = mutate(originals[number % len(originals)], chance)
        check(data, report)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the counts, keep the inputs that went wrong; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts.fuzz_media", description="Look at changed pictures and videos.")
    parser.add_argument("count", type=int, help="number of media")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that went wrong")
    chosen = parser.parse_args(arguments)
    report = run(chosen.count, chosen.seed)
    for outcome, number in report.outcomes.most_common():
        print(f"{number:7,} {outcome}")
    print(f"slowest look: {report.slowest_s:.1f} s; wrong: {len(report.faults)}")
    for number, (reason, data) in enumerate(report.faults):
        print(f"wrong {number}: {reason}")
        if chosen.keep is not None:
            chosen.keep.mkdir(parents=True, exist_ok=True)
            (chosen.keep / f"{chosen.seed}-{number}").write_bytes(data)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
