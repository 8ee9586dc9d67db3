"""The length of videos: read from few bytes of the file, wherever its index is, and used for estimates."""

import io

import fsspec
import pytest
from arkbeam.base.records import Failure, Modality
from arkbeam.decoding.ranges import BLOCK_BYTES, BYTES_MAX, READS_MAX, RangedFile
from arkbeam.media import MediaInfo, MediaOptions, inspect, video
from arkbeam.media.files import guard
from arkbeam.media.kinds import detect_kind
from arkbeam.media.video import examine_film
from hypothesis import given
from hypothesis import strategies as st

from tests.media.pictures import boxes, film, pad_film, picture, without
from tests.places import Emulator, Place

SECONDS = 3
FILMS = {
    "mp4": film("mp4", SECONDS),
    "mp4 with sound": film("mp4", SECONDS, sound=True),
    "mp4, index first": film("mp4", SECONDS, front=True),
    "mov": film("mov", SECONDS),
    "avi": film("avi", SECONDS),
}
HEAD = 1_000
LOOK_S = 5.0


class Storage:
    """Bytes that are read in ranges, with a record of the ranges."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []

    def read(self, start: int, end: int) -> bytes:
        """Read a range."""
        self.ranges.append((start, end))
        return self.data[start:end]

    @property
    def duration_s(self) -> float | None:
        """Return the length that is found, reading further bytes as needed."""
        kind = detect_kind(self.data)
        assert kind is not None
        return examine_film(self.data[:HEAD], len(self.data), kind, self.read, LOOK_S)


@pytest.mark.parametrize("name", FILMS)
def test_the_length_is_the_containers(name: str) -> None:
    """A video of three seconds has three seconds in each container."""
    assert Storage(FILMS[name]).duration_s == pytest.approx(SECONDS, abs=0.15)


def test_what_lies_between_is_not_read() -> None:
    """Of a long video with its index at the end, only the start and the end are fetched."""
    parts = dict(boxes(FILMS["mp4"]))
    before_index = without(FILMS["mp4"], [b"moov"])
    long = pad_film(before_index, 20_000_000) + parts[b"moov"]
    storage = Storage(long)
    assert storage.duration_s == pytest.approx(SECONDS, abs=0.15)
    assert sum(end - start for start, end in storage.ranges) < 4 * BLOCK_BYTES
    assert len(storage.ranges) <= 4


def _outcome(data: bytes) -> bool:
    """Return True for a length, None, or a failure of a video without frames."""
    found = guard("a", lambda: Storage(data).duration_s)
    if isinstance(found, Failure):
        return found.code in ("media_not_video", "media_encrypted", "media_truncated")
    return found is None or 0 < found <= 24 * 3600


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", FILMS)
def test_a_film_that_is_no_film_has_no_length(name: str, share: float) -> None:
    """A damaged video gives a length or None, or is refused for having no frames; nothing else is raised."""
    data = FILMS[name]
    at = int(len(data) * share)
    for broken in (data[:at] + bytes(len(data) - at), data[:at]):
        assert _outcome(broken)


@given(st.sampled_from(sorted(FILMS)), st.floats(0, 1), st.binary(min_size=1, max_size=8))
def test_hostile_films_raise_nothing(name: str, share: float, noise: bytes) -> None:
    """Any bytes in an index give a length or None, or a video without frames."""
    at = 12 + int((len(FILMS[name]) - 12) * share)
    assert _outcome(FILMS[name][:at] + noise + FILMS[name][at + len(noise) :])


def test_a_storage_that_fails_is_not_taken_for_a_broken_film() -> None:
    """An exception of the storage is raised, so that the row's failure names it."""
    data = pad_film(FILMS["avi"], 200_000)
    kind = detect_kind(data)
    assert kind is not None

    def fail(start: int, end: int) -> bytes:
        raise PermissionError("no more")

    with pytest.raises(PermissionError):
        examine_film(FILMS["mp4"][:100], len(FILMS["mp4"]), detect_kind(FILMS["mp4"]) or kind, fail, LOOK_S)


@pytest.mark.parametrize("name", FILMS)
def test_the_length_is_read_without_pyav(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is an extra: the index of a usual video is read without it. What it does not tell is unknown."""
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert Storage(FILMS[name]).duration_s == pytest.approx(SECONDS, abs=0.15)
    assert Storage(b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov").duration_s is None


@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(-1, 70_000)), max_size=10))
def test_a_ranged_file_reads_as_a_file_does(steps: list[tuple[int, int]]) -> None:
    """Any seeks and reads return the bytes of the file, in one piece or in several."""
    data = bytes(range(256)) * 1_000
    storage = Storage(data)
    file, plain = RangedFile(data[:HEAD], len(data), storage.read), io.BytesIO(data)
    for at, size in steps:
        file.seek(at)
        plain.seek(at)
        got = file.read(size)
        assert got == plain.read(len(got))
        assert bool(got) == (at < len(data) and size != 0)
        assert file.tell() == at + len(got)


def test_a_ranged_file_stops_before_it_reads_too_much() -> None:
    """Many small reads and a few large ones both reach a limit."""
    file = RangedFile(b"", 10**9, lambda start, end: bytes(end - start))
    for number in range(READS_MAX):
        file.seek(number * 10**7)
        file.read(1)
    file.seek(-1, io.SEEK_END)
    with pytest.raises(OSError, match="too many bytes"):
        file.read()
    with pytest.raises(OSError, match="too many bytes"):
        RangedFile(b"", 10**9, lambda start, end: bytes(end - start)).read(BYTES_MAX + 1)


def test_a_video_is_looked_at_in_storage() -> None:
    """The length is part of MediaInfo; a video whose index has no tracks is left to the service."""
    store = fsspec.filesystem("memory")
    parts = dict(boxes(FILMS["mp4"]))
    store.pipe_file("/video-test/long.mp4", pad_film(without(FILMS["mp4"], [b"moov"]), 500_000) + parts[b"moov"])
    store.pipe_file("/video-test/odd.mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov")
    long, odd = (inspect(f"memory://video-test/{name}.mp4", Modality.VIDEO, MediaOptions()) for name in ("long", "odd"))
    assert isinstance(long, MediaInfo)
    assert isinstance(odd, MediaInfo)
    assert long.duration_s == pytest.approx(SECONDS, abs=0.15)
    assert odd.duration_s is None


@pytest.mark.parametrize("sampling", [{}, {"fps": 2.5}, {"min_frames": 5, "max_frame_tokens": 200}])
def test_tokens_of_videos_and_images_are_known_before_they_are_paid(
    sampling: dict[str, float], place: Place, emulator: Emulator
) -> None:
    """For frames and images, `plan` estimates the tokens that are billed, scaled down or not."""
    for name, data in (("a.mp4", film(seconds=30)), ("b.avi", film("avi", 7))):
        (place.folder / name).write_bytes(data)
    for name, size in (("c.jpg", (2_800, 1_400)), ("d.jpg", (280, 280))):
        (place.folder / name).write_bytes(picture(size=size))
    rows = [{"video": name, "video_sampling": sampling} for name in ("a.mp4", "b.avi")]
    place.write_rows([*rows, {"image": "c.jpg"}, {"image": "d.jpg"}])
    settings = {
        "manifest.columns": {"image": "image", "video": "video", "video_sampling": "video_sampling"},
        "media.fit.resize_max_pixels": 784 * 200,
    }
    planned = place.plan(settings)
    place.run(settings)
    assert planned.image_tokens == emulator.stats["tokens"]["image"] > 300
