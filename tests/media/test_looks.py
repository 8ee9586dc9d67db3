"""Hostile and unusual media: looking at them ends in time, good ones are taken, and what has no pixels is refused."""

import random
import signal
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from arkbeam.base.records import Failure, Modality
from arkbeam.decoding import workers
from arkbeam.media import MediaInfo, MediaOptions, inspect, load_medium
from arkbeam.media.kinds import AVIF, HEIC, detect_kind
from arkbeam.media.memory import ByteLimit
from arkbeam.media.options import FitOptions
from PIL import Image

from tests.media.pictures import (
    audio,
    boxes,
    data_uri,
    film,
    gif_with_comment,
    insert_chunks,
    picture,
    png_chunk,
    rename,
    save,
    without,
)
from tests.media.tiffs import LONG, tiff
from tests.places import Emulator, Place, Started, wait_until

IMAGE, VIDEO = Modality.IMAGE, Modality.VIDEO
FIT = MediaOptions(fit=FitOptions(resize_max_pixels=1_000, transcode=True))
_MIMES = {
    b"\xff\xd8": "image/jpeg",
    b"\x89P": "image/png",
    b"GI": "image/gif",
    b"RI": "image/webp",
    b"II": "image/tiff",
}
_PNG, _JPEG, _GIF = picture("PNG"), picture(), picture("GIF")
_GIF_START = 13 + (3 << (_GIF[10] & 7) + 1)
_NOISE = random.Random(0).randbytes(20_000)
IMAGES = 600


def _webp_of_chunks(count: int) -> bytes:
    plain = picture("WEBP")
    body = b"VP8X\n\0\0\0\x08\0\0\0" + bytes([63, 0, 0, 47, 0, 0]) + plain[12:] + b"abcd\0\0\0\0" * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


BOMBS = {
    "GIF, a comment of many blocks": gif_with_comment(2_000_000),
    "GIF, many comments": _GIF[:_GIF_START] + b"\x21\xfe\x01a\0" * 600_000 + _GIF[_GIF_START:],
    "GIF, a comment of fewer blocks": gif_with_comment(400_000),
    "JPEG, many comments": _JPEG[:2] + b"\xff\xfe\0\2" * 1_100_000 + _JPEG[2:],
    "JPEG, many markers' beginnings": _JPEG[:2] + b"\xff" * 300_000 + _JPEG[2:],
    "JPEG, EXIF of many tags": _JPEG[:2] + b"\xff\xe1\xff\xffExif\0\0II*\0\x08\0\0\0\xff\xff".ljust(65_537, b"\1") * 20 + _JPEG[2:],
    "PNG, many texts": insert_chunks(_PNG, png_chunk(b"tEXt", b"a\0b") * 100_000),
    "PNG, texts that unpack to much": insert_chunks(_PNG, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))) * 50),
    "PNG, a profile that unpacks to much": insert_chunks(_PNG, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**7)))),
    "WebP, many chunks": _webp_of_chunks(1_100_000),
    "TIFF, many strips": tiff(
        np.zeros((48, 64), int), tags={273: (LONG, [8] * 500_000), 279: (LONG, [1] * 500_000), 278: (LONG, [1])}
    ),
    "TIFF, tags that point at much": b"II*\0\x08\0\0\0" + struct.pack("<H", 60_000) + struct.pack("<HHII", 270, 2, 9**7, 8) * 60_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_image_takes_long_to_look_at(name: str) -> None:
    """Millions of tiny blocks end in a few seconds of CPU time, with a result; without and with a change of the image."""
    data = BOMBS[name]
    uri = data_uri(_MIMES[data[:2]], data)
    for options in (MediaOptions(body_bytes_max=10**8, image_bytes_max=10**8), FIT):
        started_s = time.process_time()
        info = inspect(uri, IMAGE, options)
        if isinstance(info, MediaInfo):
            load_medium(uri, IMAGE, info.version, options, info.fit)
        elif "many" in name:
            assert info.code in ("media_too_slow", "media_damaged", "media_unfit")
        assert time.process_time() - started_s < 5


def test_an_image_that_is_slow_to_read_fails_alone(place: Place, emulator: Emulator) -> None:
    """Above media.look_s the row fails with media_too_slow; the other rows are published."""
    (place.folder / "slow.ico").write_bytes(picture("ICO"))  # a worker process reads it, which takes more than this
    (place.folder / "good.png").write_bytes(_PNG)
    place.write_rows([{"id": "slow", "image": "slow.ico"}, {"id": "good", "image": "good.png"}])
    workers.close()
    place.run({"media.look_s": 0.001, "limits.failures_allowed": 1})
    assert place.read("failures")["code"].to_pylist() == ["media_too_slow"]
    assert place.read("embeddings")["id"].to_pylist() == ["good"]
    assert emulator.stats["paid"] == 1


def test_signals_are_obeyed_while_images_are_looked_at(
    place: Place, start: Callable[..., Started], emulator: Emulator
) -> None:
    """SIGTERM ends a run that reads its manifest at once, though workers are decoding images for it."""
    noise = np.random.default_rng(0).integers(0, 65_536, (2_500, 2_500)).astype(np.uint16)
    (place.folder / "a.png").write_bytes(save(Image.fromarray(noise), "PNG", compress_level=1))
    for number in range(IMAGES):  # far more than are looked at before the signal
        (place.folder / f"{number}.png").hardlink_to(place.folder / "a.png")
    place.write_rows([{"id": str(number), "image": f"{number}.png"} for number in range(IMAGES)])
    settings = {
        "media.fit.transcode": True,
        "media.fit.resize_max_pixels": 100_000,
        "media.image_bytes_max": 50_000_000,
    }
    run = start(*place.arguments("run", settings))
    wait_until(lambda: "reading | " in run.err)
    time.sleep(1.5)
    run.send(signal.SIGTERM)
    sent_s = time.monotonic()
    ended = run.wait()
    assert ended.code == 130
    assert time.monotonic() - sent_s < 8
    assert emulator.stats["paid"] == 0


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (_PNG[:33] + png_chunk(b"IEND", b""), "media_damaged"),
        (b"\xff\xd8\xff\xf7\0\x0b\x08\0\x30\0\x40\1\1\x11\0" + _NOISE + b"\xff\xd9", "media_not_image"),
        (_PNG[:25] + b"\x05" + _PNG[26:], "media_damaged"),
    ],
)
def test_images_without_pixels_are_refused(data: bytes, code: str) -> None:
    """A PNG without pixel data or of an unknown kind of colours, and JPEG-LS under the name of JPEG."""
    info = inspect(data_uri(_MIMES[data[:2]], data), IMAGE, MediaOptions())
    assert isinstance(info, Failure)
    assert info.code == code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (audio(), "media_not_video"),
        (audio("avi"), "media_not_video"),
        (without(film(), [b"mdat"]), "media_truncated"),
        (without(film(front=True), [b"mdat"]), "media_truncated"),
        (rename(film(), b"mp4v", b"encv"), "media_encrypted"),
        (rename(film(), b"vide", b"text"), "media_not_video"),
        (rename(film("mov"), b"vide", b"soun"), "media_not_video"),
        (film(), None),
        (film(sound=True), None),
        (film("mov", sound=True), None),
        (film("avi"), None),
        (film() + b"text behind the last box, which is no box " * 5, None),
        (film(front=True) + bytes(5), None),
        (film() + struct.pack(">I4s", 5_000, b"free"), None),
        (b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov", None),
    ],
)
@pytest.mark.parametrize("has_pyav", [True, False])
def test_videos_need_frames(data: bytes, code: str | None, has_pyav: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound alone, an index alone and encrypted frames are refused, with PyAV and without it; whole videos are taken."""
    if not has_pyav:
        monkeypatch.setattr("arkbeam.media.video.find_spec", lambda name: None)
    mime = "video/avi" if data.startswith(b"RIFF") else "video/quicktime" if b"ftypqt" in data else "video/mp4"
    info = inspect(data_uri(mime, data), VIDEO, MediaOptions())
    assert (info.code if isinstance(info, Failure) else None) == code


def test_a_fragmented_video_has_its_frames_behind_the_index() -> None:
    """With fragments it is taken; its index alone is refused."""
    parts = boxes(film())
    moov = dict(parts)[b"moov"]
    mvex = struct.pack(">I4sI4s", 16, b"mvex", 8, b"trex")
    index = dict(parts)[b"ftyp"] + struct.pack(">I", len(moov) + len(mvex)) + moov[4:] + mvex
    whole = index + struct.pack(">I4s", 16, b"moof") + bytes(8) + struct.pack(">I4s", 16, b"mdat") + bytes(8)
    outcomes = [inspect(data_uri("video/mp4", data), VIDEO, MediaOptions()) for data in (whole, index)]
    assert isinstance(outcomes[0], MediaInfo)
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].code == "media_truncated"


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"mif1", b"avif"), AVIF),
        ((b"miaf", b"mif1", b"avif"), AVIF),
        ((b"MA1B", b"avif"), AVIF),
        ((b"mif1", b"heic"), HEIC),
        ((b"mif1",), HEIC),
        ((b"msf1", b"hevc"), HEIC),
    ],
)
def test_shared_brands_are_told_apart(brands: tuple[bytes, ...], kind: object) -> None:
    """AVIF and HEIC have a main brand in common; the compatible brands tell which it is."""
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    assert detect_kind(struct.pack(">I4s", 8 + len(body), b"ftyp") + body + bytes(40)) is kind


def test_a_limit_on_bytes_lets_one_in_and_no_more_than_fit() -> None:
    """Anything enters an empty limit; another waits until there is room for it."""
    limit = ByteLimit(100)
    with limit.take(500):
        entered: list[int] = []

        def enter(size: int) -> None:
            with limit.take(size):
                entered.append(size)

        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(enter, 60)
            time.sleep(0.05)
            assert entered == []
            limit.resize(1_000)
            waiting.result(5)
    assert entered == [60]
