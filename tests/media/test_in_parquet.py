"""Images and videos inside Parquet: media like any other, in bounded memory, and nothing of them in failures or logs."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.options import ColumnMap, ReadContext
from arkbeam.media import MediaOptions

from tests.manifest.test_parquet import MODEL, arrow_peak, read_bad, read_chunks, read_rows
from tests.media.pictures import cut, data_uri, film, pad_film, picture, png_chunk
from tests.places import Emulator, Place, RealService, find_words

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
JPEG, PNG, TIFF = picture(), picture("PNG"), picture("TIFF")
MP4 = film()


def holds(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    """Make a cell as Hugging Face data sets have it."""
    return {"bytes": data, "path": path}


def context(folder: Path, **options: Any) -> ReadContext:
    """Allow media of a folder to be read."""
    return ReadContext(ServiceKind.ARK, MODEL, MediaOptions(allowed_roots=(str(folder),), **options))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the key that the real service needs."""
    monkeypatch.setenv("ARK_API_KEY", "key-of-the-test")


def write(folder: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Write a Parquet manifest."""
    path = folder / "m.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


# What is sent


def sent_media(service: RealService) -> dict[str, list[str]]:
    """Return the URLs of the media of each request by its text."""
    return {
        body["input"][0]["text"]: [part[part["type"]]["url"] for part in body["input"][1:]] for body in service.requests
    }


def test_the_bytes_arrive(real_service: RealService, make_place: Callable[[str], Place], key: None) -> None:
    """The service receives the bytes of structs, lists and paths with their own types; equal rows are bought once."""
    place = make_place(real_service.url)
    (place.folder / "near.png").write_bytes(PNG)
    rows = [
        ("one", [holds(JPEG, "named.png")], None),
        ("again", [holds(JPEG, "other name")], None),
        ("list", [holds(PNG), None, holds(JPEG)], None),
        ("file", [holds(None, "near.png")], None),
        ("film", None, holds(MP4, "a.mp4")),
        ("none", [holds(None)], holds(None)),
    ]
    texts = [text if text != "again" else "one" for text, _, _ in rows]
    columns = {
        "id": [text for text, _, _ in rows],
        "caption": texts,
        "pictures": pa.array([images for _, images, _ in rows], pa.list_(MEDIUM)),
        "film": pa.array([video for _, _, video in rows], MEDIUM),
    }
    names = {"id": "id", "text": "caption", "image": "pictures", "video": "film"}
    settings = {"manifest.uris": [str(write(place.folder, columns))], "manifest.columns": names}
    note = place.run({**settings, "manifest.keep": ["film", "caption"]})
    assert (note["published"], note["failed"], note["requests_paid"]) == (6, 0, 5)
    assert sent_media(real_service) == {
        "one": [data_uri("image/jpeg", JPEG)],
        "list": [data_uri("image/png", PNG), data_uri("image/jpeg", JPEG)],
        "file": [data_uri("image/png", PNG)],
        "film": [data_uri("video/mp4", MP4)],
        "none": [],
    }
    published = {row["id"]: row for row in place.read("embeddings").to_pylist()}
    assert published["film"]["film"] == holds(MP4, "a.mp4")
    assert published["one"]["fingerprint"] == published["again"]["fingerprint"]


def test_images_are_fitted(real_service: RealService, make_place: Callable[[str], Place], key: None) -> None:
    """`media.fit` changes images inside Parquet, too, and the output says so."""
    place = make_place(real_service.url)
    path = write(place.folder, {"text": ["t"], "image": pa.array([TIFF])})
    note = place.run({"manifest.uris": [str(path)], "media.fit.transcode": True})
    assert note["published"] == 1
    ((url,),) = sent_media(real_service).values()
    assert base64.b64decode(url.partition("data:image/jpeg;base64,")[2]).startswith(b"\xff\xd8\xff")
    (changes,) = place.read("embeddings")["media_changes"].to_pylist()
    assert changes == ["parts[1]: 64x48 image/tiff -> 64x48 image/jpeg"]


def test_equal_bytes_have_one_identity(place: Place, emulator: Emulator) -> None:
    """Bytes in Parquet are the same medium as their data URI, and with `identity: content` as a file of these bytes."""
    (place.folder / "a.png").write_bytes(PNG)
    columns = {
        "image": pa.array([PNG, data_uri("image/png", PNG).encode(), b"file://" + bytes(place.folder / "a.png")])
    }
    settings = {"manifest.uris": [str(write(place.folder, columns))]}
    assert place.plan(settings).to_buy == 2
    assert place.plan({**settings, "media.identity": "content"}).to_buy == 1
    assert place.run({**settings, "media.identity": "content"})["published"] == 3
    assert emulator.stats["paid"] == 1


# Failures


def test_nothing_of_bad_media_is_shown(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Failures of images have the codes of other media; their rows show sizes and hashes of bytes, but no bytes."""
    secret = PNG[:33] + png_chunk(b"tEXt", b"Comment\0private words") + PNG[33:]
    plain = b"private words, and no image"
    cells = [cut(secret, 0.9), plain, b"", JPEG + b"private words", film()[:1000], picture("PNG", (14, 90))]
    columns = {"id": [str(number) for number in range(7)], "image": pa.array([holds(data, "x.png") for data in cells] + [None], MEDIUM)}  # fmt: skip
    path = write(place.folder, {**columns, "text": [None] * 6 + ["t"]})
    place.run({"manifest.uris": [str(path)]})
    failures = {row["id"]: row for row in place.read("failures").to_pylist()}
    assert {name: row["code"] for name, row in failures.items()} == {
        "0": "media_truncated",
        "1": "media_not_image",
        "2": "media_empty",
        "4": "media_not_image",
        "5": "media_too_small",
    }
    assert "this is text, not an image" in failures["1"]["message"]
    shown = json.loads(failures["1"]["original"])["image"]
    assert shown["path"] == "x.png"
    assert shown["bytes"].startswith(f"<{len(plain)} bytes, blake2b ")
    words = ["private words", base64.b64encode(plain).decode()[:16], base64.b64encode(secret).decode()[:24]]
    assert find_words(place.output, words) == []
    assert not any(word in caplog.text for word in words)


def test_rows_that_failed_are_tried_again(
    real_service: RealService, make_place: Callable[[str], Place], key: None
) -> None:
    """A failure table finds rows with images again, and notices if their bytes have changed."""
    place = make_place(real_service.url)
    path = write(place.folder, {"text": ["a", "b", "c"], "image": pa.array([JPEG, PNG, TIFF])})
    real_service.rejected = {"a": "no", "b": "no"}
    place.run({"manifest.uris": [str(path)]})
    assert place.read("failures")["code"].to_pylist() == ["InvalidParameter"] * 2
    real_service.rejected = {}
    write(place.folder, {"text": ["a", "b", "c"], "image": pa.array([JPEG, JPEG, TIFF])})
    settings = {"manifest.uris": [str(place.output / "failures")], "output.uri": str(place.folder / "again")}
    note = place.run(settings, retry_failed=True)
    assert (note["published"], note["failed"]) == (1, 1)
    assert place.read_from(place.folder / "again", "failures")["code"].to_pylist() == ["row_changed"]
    assert sent_media(real_service)["a"] == [data_uri("image/jpeg", JPEG)]


def test_paths_follow_the_rules_of_files(tmp_path: Path) -> None:
    """A path counts only without bytes, starts at the manifest's folder, and must be in a folder that may be read."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(PNG)
    cells = [holds(None, "gone.png"), holds(None, "../out.png"), holds(None, "hf://datasets/a/b.png")]
    path = write(tmp_path / "in", {"image": pa.array(cells, MEDIUM)})
    codes = [row["code"] for row in read_bad(path, context(tmp_path / "in"))]
    assert codes == ["media_missing", "media_forbidden", "media_forbidden"]
    path = write(tmp_path / "in", {"image": pa.array([holds(PNG, "/etc/passwd")], MEDIUM)})
    assert read_rows(path, context(tmp_path / "in")) == [(None, [data_uri("image/png", PNG)])]


@pytest.mark.parametrize(
    ("column", "cell", "says"),
    [
        ("image", [{"url": "x", "width": 3}], "an object with the fields url, width"),
        ("image", [{"bytes": "abc", "path": "x"}], "column image.bytes holds a string; expected bytes"),
        ("image", [{"bytes": None, "path": 3}], "column image.path holds a number; expected a string"),
        ("image", [3], "column image holds a number"),
        ("text", [PNG], r"bytes that are not text.* This is image/png: name the column in manifest\.columns\.image"),
        ("text", [holds(MP4)], r"an object.* This is video/mp4: name the column in manifest\.columns\.video"),
    ],
)
def test_what_is_no_medium_is_named(column: str, cell: Any, says: str, tmp_path: Path) -> None:
    """A cell of another shape, and media in a text column, are failures whose message says what was found."""
    (bad,) = read_bad(write(tmp_path, {column: cell}))
    assert bad["code"] == "bad_text"
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(bad["message"])


# Types and sizes


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([PNG]),
        pa.array([PNG], pa.large_binary()),
        pa.array([PNG], pa.binary_view()),
        pa.array([PNG], pa.binary(len(PNG))),
        pa.array([PNG]).dictionary_encode(),
        pa.array([[None, PNG]]),
        pa.array([[PNG]], pa.large_list(pa.large_binary())),
        pa.array([[PNG]], pa.list_(pa.binary(), 1)),
        pa.array([[PNG]], pa.list_view(pa.binary())),
        pa.array([holds(PNG)], pa.struct([("path", pa.binary()), ("bytes", pa.large_binary())])),
        pa.array([{"bytes": PNG}]),
        pa.array([holds(PNG) | {"width": 64}], pa.struct([*MEDIUM, ("width", pa.int32())])),
    ],
    ids=lambda cells: str(cells.type),
)
@pytest.mark.parametrize("large", [False, True])
def test_columns_of_every_type(cells: Any, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are found in every type that holds them, in small and in large row groups."""
    if large:
        monkeypatch.setattr("arkbeam.manifest.parquet_groups._SMALL_GROUP_BYTES", -1)
    path = write(tmp_path, {"pic": cells, "image": ["not this"]})
    assert read_rows(path, columns=ColumnMap(image="pic")) == [(None, [data_uri("image/png", PNG)])]


def test_thousands_of_pictures_in_a_row_group_stay_small_in_memory(tmp_path: Path) -> None:
    """Of a row group of 60 MB of images, Arrow holds a part at a time, and chunks have about 8 MB."""
    pictures = [
        PNG[:33] + png_chunk(b"tEXt", b"n\0" + number.to_bytes(4) * 12_500) + PNG[33:] for number in range(1_200)
    ]
    columns = {"image": pa.array([holds(data) for data in pictures], MEDIUM)}
    path = write(tmp_path, columns, write_batch_size=16, compression="none", use_dictionary=False)
    assert pq.read_metadata(path).num_row_groups == 1
    rows = 0
    with arrow_peak() as peak:
        for chunk in read_chunks(path, context(tmp_path)):
            assert chunk.staged["request"].nbytes < 13_000_000
            rows += chunk.staged.num_rows
        assert peak() < 50_000_000
    assert rows == 1_200


def test_the_limits_of_media_hold_instead_of_that_of_lines(tmp_path: Path) -> None:
    """A row with media may be as long as a request; then the limits of images and videos decide."""
    size = 9_500_000
    short: dict[str, Any] = {"line_bytes_max": 1_000_000}
    path = write(tmp_path, {"video": pa.array([pad_film(MP4, size)])})
    ((_, (value,)),) = read_rows(path, **short)
    assert len(value) == len(data_uri("video/mp4", bytes(size)))
    large = PNG[:33] + png_chunk(b"tEXt", bytes(size)) + PNG[33:]
    path = write(tmp_path, {"image": pa.array([large])})
    assert len(read_rows(path, **short)) == 1
    (bad,) = read_bad(path, context(tmp_path, image_bytes_max=9_000_000), **short)
    assert bad["code"] == "media_too_large"
    (bad,) = read_bad(path, context(tmp_path, body_bytes_max=1_000_000), **short)
    assert bad["code"] == "media_body_too_large"
    (bad,) = read_bad(write(tmp_path, {"text": ["x" * size]}), **short)
    assert bad["code"] == "line_too_long"
