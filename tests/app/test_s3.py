"""Whole runs with manifest, pictures, store and output on an S3 server, also if pictures change."""

import base64
import io
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from arkbeam.base.files import list_files, remove_folder, write_bytes
from arkbeam.base.uris import open_filesystem
from arkbeam.stages.embed import feed
from arkbeam.stages.plan import PlanTotals
from arkbeam.store.layout import journals_folder, media_folder, segments_folder
from PIL import Image

from tests.places import Emulator, Place
from tests.s3 import S3


def picture(number: int) -> bytes:
    """Return a PNG that differs for each number."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 20 + number), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


class S3Place(Place):
    """A place with its manifest, store and output in the bucket."""

    def put_manifest(self, s3: S3, uris: list[str]) -> None:
        """Write a manifest of pictures into the bucket; set manifest, store and output to URIs of the bucket."""
        rows = [orjson.dumps({"id": str(number), "image": uri}) for number, uri in enumerate(uris)]
        manifest = s3.put("manifest/rows.jsonl", b"\n".join(rows) + b"\n")
        self.settings |= {"manifest.uris": [manifest], "store.uri": s3.uri("store"), "output.uri": s3.uri("out")}

    def published(self, s3: S3, name: str = "embeddings") -> list[dict[str, Any]]:
        """Return the rows of a table of the output."""
        rows: list[dict[str, Any]] = []
        for uri in list_files(s3.uri(f"out/{name}"), ".parquet"):
            filesystem, path = open_filesystem(uri)
            rows += pq.read_table(io.BytesIO(filesystem.cat_file(path))).to_pylist()
        return rows


@pytest.fixture
def bucket(tmp_path: Path, emulator: Emulator, short_lease: None) -> S3Place:
    """A place in the bucket, for the emulator without faults."""
    return S3Place(tmp_path, emulator.url)


def test_the_job_runs_on_s3_and_buys_nothing_twice(
    s3: S3, bucket: S3Place, emulator: Emulator, without_obstore: Callable[[], None]
) -> None:
    """A second run sends nothing, nor does one without obstore; a picture that was overwritten is bought again.

    Parts of the output are kept by their etags, and one that was overwritten is written again.
    """
    uris = [s3.put(f"pictures/{number}.png", picture(number)) for number in range(6)]
    bucket.put_manifest(s3, uris)
    first = bucket.run()
    assert (first["published"], first["requests_paid"]) == (6, 6)
    vectors = {row["id"]: row["dense"] for row in bucket.published(s3)}
    second = bucket.run()
    assert second["requests_sent"] == 0
    assert all(file["kept"] for file in second["files"])
    s3.put("pictures/3.png", picture(40))
    third = bucket.run()
    assert (third["published"], third["requests_sent"]) == (6, 1)
    again = {row["id"]: row["dense"] for row in bucket.published(s3)}
    assert {name for name in vectors if vectors[name] != again[name]} == {"3"}
    without_obstore()
    assert bucket.run()["requests_sent"] == 0
    part = next(file for file in third["files"] if file["path"].startswith("embeddings/"))
    s3.put(f"out/{part['path']}", bytes(part["bytes"]))  # the same size and another etag
    last = bucket.run()
    assert [file["path"] for file in last["files"] if not file["kept"]] == [part["path"]]
    assert {row["id"]: row["dense"] for row in bucket.published(s3)} == again
    assert emulator.stats["paid"] == 7
    assert list_files(media_folder(s3.uri("store")), ".parquet")


def test_staged_rows_of_one_process_stay_on_this_machine(
    s3: S3, bucket: S3Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, and a plan, stage no rows in the store, and their local folder is gone at the end.

    A run has a note in the store by which compaction sees it.
    """
    bucket.put_manifest(s3, [s3.put(f"pictures/{number}.png", picture(number)) for number in range(2)])
    seen: dict[str, list[str]] = {}

    def spy(folder: str) -> None:
        seen[folder] = [uri.rpartition("/")[2] for uri in list_files(folder)]
        remove_folder(folder)

    with monkeypatch.context() as patched:
        for module in ("job", "holding"):
            patched.setattr(f"arkbeam.app.{module}.remove_folder", spy)
        patched.setattr(tempfile, "tempdir", str(bucket.folder))
        bucket.plan()
        bucket.run()
    local = [names for folder, names in seen.items() if folder.startswith(str(bucket.folder))]
    assert len(local) == 2
    assert all(any(name.endswith(".parquet") for name in names) for names in local)
    assert [names for folder, names in seen.items() if folder.startswith(s3.uri("store"))] == [["running.json"]]
    assert list_files(s3.uri("store/runs")) == []
    assert list(bucket.folder.glob("arkbeam-*")) == []


def test_a_picture_that_changes_between_plan_and_send_fails(
    s3: S3, bucket: S3Place, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row fails with `media_changed` and does not get the vector of another picture; the next run buys the new picture."""
    uris = [s3.put(f"pictures/{number}.png", picture(number)) for number in range(3)]
    bucket.put_manifest(s3, uris)

    def overwrite(*arguments: Any) -> Any:
        s3.put("pictures/1.png", picture(50))
        return feed.read_rows(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("arkbeam.stages.embed.session.read_rows", overwrite)
        note = bucket.run()
    assert (note["published"], note["failed"]) == (2, 1)
    (failure,) = bucket.published(s3, "failures")
    assert (failure["id"], failure["code"]) == ("1", "media_changed")
    assert emulator.stats["paid"] == 2
    assert bucket.run()["published"] == 3
    assert emulator.stats["paid"] == 3


def test_one_picture_under_two_names_is_bought_once_by_its_content(s3: S3, bucket: S3Place, emulator: Emulator) -> None:
    """With `media.identity: content` equal bytes are bought once, from S3, disk or a data URI; by default the URI counts."""
    (bucket.folder / "c.png").write_bytes(picture(1))
    uris = [s3.put("a.png", picture(1)), s3.put("b.png", picture(1)), str(bucket.folder / "c.png")]
    bucket.put_manifest(s3, [*uris, "data:image/png;base64," + base64.b64encode(picture(1)).decode()])
    bucket.settings |= {"media.allowed_roots": [str(bucket.folder)]}
    by_content: PlanTotals = bucket.plan({"media.identity": "content"})
    assert (by_content.rows, by_content.to_buy) == (4, 1)
    assert bucket.plan().to_buy == 4
    note = bucket.run({"media.identity": "content"})
    assert (note["published"], note["requests_paid"]) == (4, 1)
    s3.put("b.png", picture(2))
    assert bucket.run({"media.identity": "content"})["requests_sent"] == 1
    assert bucket.run({"media.identity": "content"})["requests_sent"] == 0
    assert emulator.stats["paid"] == 2


def test_a_damaged_note_about_media_is_left_out(s3: S3, bucket: S3Place, caplog: pytest.LogCaptureFixture) -> None:
    """If the media cache is damaged, the pictures are read again with a warning, and nothing is bought."""
    bucket.put_manifest(s3, [s3.put(f"{number}.png", picture(number)) for number in range(3)])
    assert bucket.run()["published"] == 3
    for uri in list_files(media_folder(s3.uri("store"))):
        write_bytes(uri, b"PAR1 no more")
    note = bucket.run()
    assert (note["published"], note["requests_sent"]) == (3, 0)
    assert "a file of the media cache is skipped" in caplog.text


@pytest.mark.slow
def test_a_killed_run_loses_no_costs(
    s3: S3, make_place: Callable[[str], Place], make_emulator: Any, start: Any, short_lease: None
) -> None:
    """After `kill -9`, `usage/` is not below the bill, no request is in it twice, and uploaded replies are not bought again."""
    emulator = make_emulator(latency_ms=100)
    place = make_place(emulator.url)
    place.settings |= {"store.uri": s3.uri("store"), "limits.requests_in_flight": 2}
    place.write_texts(120)
    ended = start(*place.arguments("run"), ARKBEAM_FAULTS="embed.answered:kill:60").wait()
    assert ended.code == -signal.SIGKILL
    assert list_files(journals_folder(s3.uri("store")))
    assert list_files(segments_folder(s3.uri("store"))) == []
    note = place.run()
    stats = emulator.stats
    usage = place.read("usage")
    assert (note["published"], stats["paid_distinct"]) == (120, 120)
    assert stats["paid"] - 120 < 60  # in 3 s, at least one upload
    assert usage.num_rows >= stats["paid"]
    assert pc.count_distinct(usage["client_request_id"]).as_py() == usage.num_rows
    assert list_files(journals_folder(s3.uri("store"))) == []
