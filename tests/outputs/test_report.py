"""`report.html` of real runs, and the commands `arkbeam report` and `arkbeam map`."""

import base64
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.cli_outputs import _find_source
from arkbeam.base.errors import OutputInUse, StoreError
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.outputs import originals, publishing
from arkbeam.outputs.atlas import write_map
from arkbeam.outputs.facts import digest_files
from arkbeam.outputs.originals import read_originals
from arkbeam.outputs.published import Published
from arkbeam.outputs.publishing import publish_page
from arkbeam.outputs.summary import CODES_MAX
from arkbeam.store import claim
from PIL import Image

from tests.outputs.samples import embeddings_table, failures_table, write_output
from tests.places import Ended, Place, Started, run_emulator
from tests.warm import WarmProcess

REPORT = {"output.report": True}
TEXT = "a green lantern <script>alert(1)</script>"


def make_picture(colour: str, size: int = 300) -> bytes:
    """Return a JPEG of one colour, with a comment that no thumbnail may have."""
    data = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(data, "JPEG", comment=b"PRIVATE-COMMENT")
    return data.getvalue()


def write_pictures(place: Place) -> None:
    """Write a manifest with texts, local pictures, inlined pictures and pictures of the web."""
    colours = ("red", "green", "blue", "white")
    for colour in colours:
        (place.folder / f"{colour}.jpg").write_bytes(make_picture(colour))
    inline = "data:image/jpeg;base64," + base64.b64encode(make_picture("black")).decode()
    place.write_rows(
        [
            *({"id": f"text-{at}", "text": f"{TEXT} {at}"} for at in range(6)),
            *({"id": colour, "image": f"{colour}.jpg"} for colour in colours),
            {"id": "inline", "image": inline, "text": "inlined"},
            {
                "id": "web",
                "image": "https://example.com/a.jpg?X-Amz-Signature=0123456789abcdef",
                "text": "from the web",
            },
            {"id": "bad"},
        ]
    )


def read_page(place: Place) -> str:
    """Return the page of the place's output."""
    return (place.output / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def finished_pictures(warm: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place whose run has written pictures and a page."""
    with run_emulator(warm, EmulatorOptions()) as emulator:
        place = Place(tmp_path_factory.mktemp("pictures"), emulator.url)
        write_pictures(place)
        place.run(REPORT)
    return place


def test_each_run_writes_a_page(finished_pictures: Place, call: Callable[..., Ended]) -> None:
    """A run's page has its rows, texts and small pictures; `arkbeam report` makes the same page; it is not written later than `_SUCCESS`."""
    place = finished_pictures
    text = read_page(place)
    assert "13 = 12 + 1" in text
    assert text.count("<img ") > 4
    assert "a green lantern &lt;script&gt;" in text
    assert "no_input" in text
    assert "0123456789abcdef" not in text
    for found in re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', text):
        data = base64.b64decode(found)
        assert b"PRIVATE-COMMENT" not in data
        assert max(Image.open(io.BytesIO(data)).size) <= 96
    assert (place.output / "report.html").stat().st_mtime_ns <= (place.output / "_SUCCESS").stat().st_mtime_ns
    (place.output / "report.html").unlink()
    ended = call("report", str(place.output))
    assert (ended.code, ended.err) == (0, "")
    assert str(place.output / "report.html") in ended.out
    assert read_page(place) == text


def describe(place: Place) -> dict[str, Any]:
    """Return what `run.json` of a run of the place says about reading its manifests."""
    spec = place.prepare().spec
    return {"config": spec.config, "service": spec.run.service.value, "files": []}


def make_stub(output: Published, source: Any) -> bytes:
    """Return a page that says only which files it describes, and who paid for them."""
    return f'<meta content="{digest_files(output.note)}">{output.note["run"]}'.encode()


def test_run_that_changed_nothing_keeps_its_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the run that sent the requests stays until the files change; `output.report: false` removes it."""
    monkeypatch.setattr(publishing, "_make", make_stub)
    place.write_texts(1)

    def publish(run: str, requests: int, digest: str, settings: dict[str, Any] = REPORT) -> None:
        files = [{"path": "embeddings/part-00000.parquet", "rows": 1, "bytes": 1, "sha256": digest}]
        spec = place.prepare(settings).spec
        with claim.claim_output(spec.run.output_uri, spec.run.name, lambda _: None):
            publish_page({"run": run, "requests_sent": requests, "files": files}, spec)

    publish("first", 8, "a")
    publish("second", 0, "a")
    assert read_page(place).endswith("first")
    publish("third", 0, "b")
    assert read_page(place).endswith("third")
    publish("last", 0, "b", {"output.report": False})
    assert not (place.output / "report.html").exists()


def test_failure_of_the_page_fails_no_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the page can't be made, the run says so and publishes; the page of earlier files is removed."""
    place.output.mkdir()
    (place.output / "report.html").write_text("an old page")

    def fail(*_: Any) -> bytes:
        raise MemoryError("no more")

    monkeypatch.setattr(publishing, "_make", fail)
    place.write_texts(4)
    with caplog.at_level(logging.WARNING):
        note = place.run(REPORT)
    assert note["published"] == 4
    assert (place.output / "_SUCCESS").exists()
    assert not (place.output / "report.html").exists()
    assert "report.html was not written: MemoryError: no more; make it with `arkbeam report`" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_run_that_lost_its_output_writes_no_page(place: Place, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """A run whose output another run claimed while the page was made changes nothing: the page may be that of the other run."""
    place.write_texts(3)
    place.output.mkdir()
    (place.output / "report.html").write_text("the other page")
    mark = place.output / claim.MARK_NAME

    def lose(*_: Any) -> bytes:
        if mark.exists():
            mark.write_text(json.dumps({**json.loads(mark.read_text()), "run": "another"}))
        if fails:
            raise StoreError("a part is gone")
        return b"a page"

    monkeypatch.setattr(publishing, "_make", lose)
    spec = place.prepare(REPORT).spec
    claimed = claim.claim_output(spec.run.output_uri, spec.run.name, lambda _: None)
    with claimed, pytest.raises(OutputInUse):
        publish_page({"requests_sent": 3, "files": []}, spec)
    assert read_page(place) == "the other page"


def test_report_needs_a_complete_output(tmp_path: Path, call: Callable[..., Ended]) -> None:
    """Without `_SUCCESS`, both commands end with code 2 and say why."""
    for command in ("report", "map"):
        ended = call(command, str(tmp_path))
        assert ended.code == 2
        assert "is not a complete output" in ended.err


def test_map_is_what_embedding_atlas_reads(finished_pictures: Place, call: Callable[..., Ended]) -> None:
    """The map has a row for each request, with finite places, neighbours by row number, and the texts; the command is printed."""
    place = finished_pictures
    ended = call("map", str(place.output))
    assert ended.code == 0, ended.err
    path = place.folder / "out.map.parquet"
    assert f"embedding-atlas {path} --x x --y y --neighbors neighbors --text text" in ended.out
    table = pq.read_table(path)
    assert sorted(table["id"].to_pylist()) == sorted(place.read("embeddings")["id"].to_pylist())
    places = np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()])
    assert ((places >= 0) & (places <= 1)).all()
    assert table.schema.field("neighbors").type == pa.struct(
        [("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))]
    )
    for at, near in enumerate(table["neighbors"].to_pylist()):
        assert len(near["ids"]) == table.num_rows - 1
        assert at not in near["ids"]
        assert near["distances"] == sorted(near["distances"])
    texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert texts["text-3"] == f"{TEXT} 3"
    kinds = dict(zip(table["id"].to_pylist(), table["kind"].to_pylist(), strict=True))
    assert (kinds["text-3"], kinds["red"]) == ("text", "media")


def test_map_of_a_row_that_is_there_twice(place: Place) -> None:
    """In a damaged output, a row of a manifest may be there twice: it is on the map twice, with its text."""
    place.write_rows([{"id": "a", "text": "first"}, {"id": "b", "text": "second"}])
    table = embeddings_table(
        np.eye(3), id=["a", "a", "b"], manifest=[str(place.folder / "rows.jsonl")] * 3, row=[0, 0, 1]
    )
    source = _find_source(Published.of(str(place.output), describe(place)))
    output = write_output(place.folder / "damaged", {"embeddings": [table]})
    write_map(output, str(place.folder / "map.parquet"), 10, source)
    found = pq.read_table(place.folder / "map.parquet")
    assert (found["id"].to_pylist(), found["text"].to_pylist()) == (["a", "a", "b"], ["first", "first", "second"])


def test_inspect_counts_the_codes_that_it_does_not_list(tmp_path: Path, call: Callable[..., Ended]) -> None:
    """With more failure codes than are listed, `inspect` says how many rows have another one."""
    codes = [f"code-{at:02d}" for at in range(CODES_MAX)] * 2
    failed = failures_table([*codes, *(f"rare-{at}" for at in range(7))])
    output = write_output(tmp_path / "out", {"failures": [failed]}, unusable=0)
    document = json.loads(call("inspect", output.uri, "--json").out)
    assert (len(document["failures"]), document["failures_of_other_codes"]) == (CODES_MAX, 7)
    assert re.search(
        rf"others +│ 7 +│ only the {CODES_MAX} most frequent codes are shown", call("inspect", output.uri).out
    )


def test_only_files_below_the_roots_are_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`arkbeam report` reads no manifest and no picture outside the working directory and the output's own folder."""
    write_pictures(place)
    note, wanted = (
        describe(place),
        {(str(place.folder / "rows.jsonl"), at): name for at, name in ((0, "text-0"), (6, "red"))},
    )
    source = _find_source(Published.of(str(place.output), note))
    assert len(read_originals(wanted, source)) == 2
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert read_originals(wanted, _find_source(Published.of(str(elsewhere / "copy"), note))) == {}
    inner = place.folder / "inner"
    inner.mkdir()
    (inner / "rows.jsonl").write_text(json.dumps({"id": "a", "image": str(place.folder / "red.jpg")}))
    monkeypatch.chdir(inner)
    shown = read_originals({(str(inner / "rows.jsonl"), 0): "a"}, _find_source(Published.of(str(inner / "copy"), note)))
    assert list(shown.values()) == [originals.Original("", (), 1)]


def test_rows_that_changed_or_can_not_be_read_are_left_out(place: Place) -> None:
    """A row whose id is another, a manifest that is gone, and a picture that takes too long leave a page without them."""
    write_pictures(place)
    manifest = str(place.folder / "rows.jsonl")
    source = _find_source(Published.of(str(place.output), describe(place)))
    assert read_originals({(manifest, 0): "text-0"}, source)[manifest, 0].text == f"{TEXT} 0"
    assert read_originals({(manifest, 0): "another"}, source) == {}
    assert (
        read_originals(
            {(manifest, 99): "text-0", (f"{manifest}-gone.jsonl", 0): "x", ("s3://b/a.jsonl", 1): "y"}, source
        )
        == {}
    )
    slow = originals._Thumbnails((str(place.folder),), slow=originals._SLOW_MAX)
    assert slow.make(str(place.folder / "red.jpg")) is None


def print_drawing_modules() -> None:
    """Print which libraries for pages are loaded in a process that has imported all that a run and a worker import."""
    print([name for name in ("matplotlib", "jinja2", "openTSNE") if name in sys.modules])  # noqa: T201


def test_commands_and_workers_load_no_charts(start_function: Callable[..., Started]) -> None:
    """What the command line, a job and its workers import does not load matplotlib, jinja2 or openTSNE."""
    assert start_function(print_drawing_modules).wait().out.strip() == "[]"
