"""Changes of images: published with each vector, and part of the fingerprint."""

import pyarrow as pa
import pytest
from arkbeam.base.records import Modality, Part, Request, VideoSampling
from arkbeam.manifest.staging import StagedRequest, list_changes, request_from_json, request_to_json
from arkbeam.media import Fit

from tests.media.pictures import picture
from tests.places import Emulator, Place

FIT = {"media.fit.transcode": True, "media.fit.resize_max_pixels": 10_000}
TIFF = "100x100 image/tiff -> 100x100 image/jpeg"
LARGE = "200x200 image/jpeg -> 100x100 image/jpeg"


@pytest.fixture
def album(place: Place) -> Place:
    """A place with three images, and rows that name one, two, or one of them twice."""
    for name, data in (
        ("a.tiff", picture("TIFF", (100, 100))),
        ("b.jpg", picture(size=(200, 200))),
        ("c.jpg", picture(size=(90, 90))),
    ):
        (place.folder / name).write_bytes(data)
    place.write_rows(
        [
            {"id": "one", "image": "a.tiff"},
            {"id": "again", "image": "a.tiff"},
            {"id": "two", "text": "both", "image": ["c.jpg", "a.tiff", "b.jpg"]},
            {"id": "none", "image": "c.jpg"},
            {"id": "text", "text": "both"},
        ]
    )
    return place


def _changes(place: Place) -> dict[str, list[str] | None]:
    table = place.read("embeddings")
    assert table.schema.field("media_changes").type == pa.list_(pa.string())
    return {row["id"]: row["media_changes"] for row in table.select(["id", "media_changes"]).to_pylist()}


def test_changes_are_told_with_every_vector(album: Place, emulator: Emulator) -> None:
    """The changes are published also for rows that share an image, and for rows whose vector is from an earlier run."""
    album.run(FIT)
    told = {
        "one": [f"parts[0]: {TIFF}"],
        "again": [f"parts[0]: {TIFF}"],
        "two": [f"parts[2]: {TIFF}", f"parts[3]: {LARGE}"],
        "none": None,
        "text": None,
    }
    assert _changes(album) == told
    paid = emulator.stats["paid"]
    assert paid == 4
    album.run(FIT)
    assert _changes(album) == told
    assert emulator.stats["paid"] == paid


def test_only_what_is_changed_is_bought_again(album: Place, emulator: Emulator) -> None:
    """Setting an option embeds the images that it changes; removing it uses the earlier vectors again."""
    album.run()
    assert set(_changes(album).values()) == {None}
    assert emulator.stats["paid"] == 4
    album.run(FIT)
    assert emulator.stats["paid"] == 4 + 2
    album.run({"media.fit.transcode": True})
    assert emulator.stats["paid"] == 4 + 2 + 1  # the row with several images, of which only one is changed now
    album.run()
    assert set(_changes(album).values()) == {None}
    assert emulator.stats["paid"] == 4 + 2 + 1


def test_several_processes_change_alike(album: Place, emulator: Emulator) -> None:
    """The change is staged with the row, so each process applies the same."""
    album.run(FIT)
    assert _changes(album)["two"] == [f"parts[2]: {TIFF}", f"parts[3]: {LARGE}"]
    assert emulator.stats["paid"] == 4


def test_a_body_that_is_too_large_is_refused_as_it_is_sent(album: Place) -> None:
    """The size of a changed image is known only after encoding; it is then checked against the limit, before it is paid."""
    album.run({**FIT, "media.body_bytes_max": 4_000, "limits.failures_allowed": 5})
    failures = {row["id"]: (row["code"], row["message"]) for row in album.read("failures").to_pylist()}
    assert failures["two"][0] == "request_too_large"
    assert "a request may have at most 4000" in failures["two"][1]


def test_staged_requests_keep_what_is_to_be_changed() -> None:
    """Staged changes are read back as written; without changes the format is unchanged."""
    parts = (
        Part(Modality.TEXT, "a"),
        Part(Modality.IMAGE, "/b"),
        Part(Modality.VIDEO, "/c", VideoSampling(fps=2.0)),
    )
    fits = (None, Fit((3, 4), "image/png", "30x40 image/tiff"), None)
    staged = StagedRequest(Request(parts), (None, "v", None), fits)
    assert request_from_json(request_to_json(staged)) == staged
    plain = StagedRequest(Request(parts), (None, "v", None))
    assert request_from_json(request_to_json(plain)) == plain
    assert request_to_json(StagedRequest(Request(parts), (None, "v", None), (None,) * 3)) == request_to_json(plain)
    assert list_changes(fits) == ["parts[1]: 30x40 image/tiff -> 3x4 image/png"]
    assert list_changes((None, None)) is None
