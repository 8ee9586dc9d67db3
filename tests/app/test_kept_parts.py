"""Parts of the output that do not change are kept: whole runs, one after the other, on one output."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from arkbeam.base.faults import flip_bit
from arkbeam.beam import publish
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.stages.publish import usage
from arkbeam.stages.publish.cuts import cut_rows, find_marks

from tests.places import Place, published_vectors, run_emulator
from tests.warm import WarmProcess

ROWS = 150


def use_small_parts(patched: pytest.MonkeyPatch) -> None:
    """Cut parts of about 40 rows."""
    patched.setattr(publish, "find_marks", partial(find_marks, every=4))
    patched.setattr(publish, "cut_rows", partial(cut_rows, part_rows=40))


def _row(number: int) -> dict[str, Any]:
    return {"id": f"id-{number}", "text": f"row number {number}", "note": f"note {number}"}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[Place]:
    """A place whose output has several parts, and a copy of the place in the folder `copy` beside it."""
    with run_emulator(warm, EmulatorOptions()) as emulator, pytest.MonkeyPatch.context() as patched:
        use_small_parts(patched)
        place = Place(tmp_path_factory.mktemp("kept") / "place", emulator.url)
        place.folder.mkdir()
        # One request at a time: the order of the vectors in the store, and so where parts begin, is always the same.
        place.settings |= {"manifest.keep": ["note"], "store.flush_rows": 20, "limits.requests_in_flight": 1}
        place.write_rows([*map(_row, range(ROWS)), "{broken"])
        place.run()
        shutil.copytree(place.folder, place.folder.parent / "copy")
        yield place


@pytest.fixture
def published(snapshot: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place of the snapshot, as it was at first, with the same times of change."""
    use_small_parts(monkeypatch)
    shutil.rmtree(snapshot.folder)
    shutil.copytree(snapshot.folder.parent / "copy", snapshot.folder)
    return replace(snapshot, settings=dict(snapshot.settings))


def _files(place: Place, kept: bool) -> set[str]:
    return {file["path"] for file in place.note["files"] if file["kept"] is kept}


def _times(place: Place) -> dict[str, int]:
    return {str(path.relative_to(place.output)): path.stat().st_mtime_ns for path in place.output.glob("*/*.parquet")}


def _check(place: Place, rows: list[dict[str, Any]], assert_vectors: Any) -> None:
    """Check that the output has these rows, each with its values and its vector, and no other part than its own."""
    table = place.read("embeddings")
    assert sorted(table.select(["id", "note"]).to_pylist(), key=lambda row: row["id"]) == sorted(
        ({"id": row["id"], "note": row["note"]} for row in rows), key=lambda row: row["id"]
    )
    texts = {row["id"]: row["text"] for row in rows}
    assert_vectors(table, lambda row: [("text", texts[row["id"]])])
    assert set(_times(place)) == {file["path"] for file in place.note["files"]}


def test_a_run_that_changes_nothing_keeps_every_part(published: Place) -> None:
    """No part is written again; rows, usage and sums are those of the run before."""
    before, times, vectors = published.note, _times(published), published_vectors(published.read("embeddings"))
    assert len([path for path in times if path.startswith("embeddings/")]) > 2
    note = published.run()
    assert _times(published) == times
    assert (_files(published, kept=True), _files(published, kept=False)) == (set(times), set())
    assert note["all_runs"] == before["all_runs"]
    assert (note["published"], note["failed"], note["requests_paid"]) == (ROWS, 1, 0)
    assert np.array_equal(published_vectors(published.read("embeddings")), vectors)


def _add(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, *map(_row, range(ROWS, ROWS + 10))]


def _remove(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[:-10]


def _change_a_kept_value(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0] | {"note": "another note"}, *rows[1:]]


def _change_a_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0] | {"text": "another text"}, *rows[1:]]


def _exchange_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rows[0] | {"id": rows[1]["id"]}, rows[1] | {"id": rows[0]["id"]}, *rows[2:]]


@pytest.mark.parametrize("change", [_add, _remove, _change_a_kept_value, _change_a_text, _exchange_ids])
def test_a_change_of_rows_changes_the_parts_that_have_them(
    published: Place, assert_vectors: Any, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    """The output is that of the new manifest, and some parts of the old output are in it as they were."""
    times = _times(published)
    rows = change([*map(_row, range(ROWS))])
    published.write_rows([*rows, "{broken"])
    published.run()
    _check(published, rows, assert_vectors)
    kept = {path for path in _files(published, kept=True) if path.startswith("embeddings/")}
    assert kept
    assert any(path.startswith("embeddings/") for path in _files(published, kept=False))
    assert {path: times[path] for path in kept} == {path: _times(published)[path] for path in kept}


@pytest.mark.parametrize("settings", [{"output.layout": "compact"}, {"manifest.keep": ["note", "text"]}])
def test_a_change_of_columns_or_layout_changes_every_part(published: Place, settings: dict[str, Any]) -> None:
    """No part of `embeddings/` is kept if its columns or their encoding change."""
    published.run(settings)
    assert not [path for path in _files(published, kept=True) if path.startswith("embeddings/")]
    assert published.read("embeddings").num_rows == ROWS


def test_rows_that_move_are_published_with_their_numbers(published: Place, assert_vectors: Any) -> None:
    """A row that is put in front changes the numbers of all others, which are then right."""
    rows = [_row(ROWS), *map(_row, range(ROWS))]
    published.write_rows(rows)
    published.run()
    _check(published, rows, assert_vectors)
    table = published.read("embeddings")
    numbers = dict(zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert numbers == {row["id"]: number for number, row in enumerate(rows)}


def test_parts_that_are_not_as_they_were_are_written_again(published: Place, assert_vectors: Any) -> None:
    """A part that is missing, or has another size or time of change, is written again; the others are kept."""
    first, second, *_ = sorted((published.output / "embeddings").iterdir())
    (failures,), usage = (published.output / "failures").iterdir(), min((published.output / "usage").iterdir())
    before = {path: path.read_bytes() for path in (first, second, failures, usage)}
    first.unlink()
    second.write_bytes(before[second][:-10])
    usage.unlink()
    failures.write_bytes(before[failures][:-1] + b"x")
    note = published.run()
    assert {path: path.read_bytes() for path in before} == before
    assert _files(published, kept=False) == {str(path.relative_to(published.output)) for path in before}
    assert note["all_runs"]["requests_paid"] == ROWS
    _check(published, [*map(_row, range(ROWS))], assert_vectors)


def test_verify_finds_a_part_whose_size_and_time_did_not_change(published: Place) -> None:
    """With `verify`, a part with a flipped bit is written again; the others are kept."""
    paths = [min((published.output / folder).iterdir()) for folder in ("embeddings", "failures", "usage")]
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        times = path.stat()
        flip_bit(str(path), 8 * 200)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    published.run()
    assert not any(path.read_bytes() == data for path, data in before.items())
    published.run(verify=True)
    assert {path: path.read_bytes() for path in paths} == before
    assert _files(published, kept=False) == {str(path.relative_to(published.output)) for path in paths}


def test_a_late_writer_replaces_no_part(published: Place, assert_vectors: Any) -> None:
    """What a writer of an earlier run writes late has another name than each part of the output; the next run removes it."""
    old = {path: path.read_bytes() for path in published.output.glob("*/*.parquet")}
    rows = _change_a_kept_value([*map(_row, range(ROWS))])
    published.write_rows([*rows, "{broken"])
    published.run()
    for path, data in old.items():
        if path.exists():
            assert path.read_bytes() == data
        else:
            path.write_bytes(data)
    times = {path: time for path, time in _times(published).items() if published.output / path not in old}
    published.run()
    _check(published, rows, assert_vectors)
    assert times.items() <= _times(published).items()


def test_usage_of_ended_runs_is_kept(published: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run that buys, sums and requests paid twice are those of all parts; then all parts of `usage/` are kept."""
    for name in ("PART_BYTES", "PART_BYTES_MIN"):  # a part for each file: where they are cut depends on the runs' names
        monkeypatch.setattr(usage, name, usage.FILE_BYTES_MIN)
    segment = min((published.store / "segments").glob("*/*"))
    rows = pq.read_metadata(segment).num_rows
    segment.rename(published.folder / "away")  # so that its rows are bought again
    assert published.run()["requests_paid"] == rows
    (published.folder / "away").rename(segment)
    note, table = published.run(), published.read("usage")
    assert table.num_rows == note["all_runs"]["requests_paid"] == ROWS + rows
    assert note["all_runs"]["tokens"]["total"] == pc.sum(table["total_tokens"]).as_py()
    assert note["all_runs"]["paid_twice"] == rows
    assert any(path.startswith("usage/") for path in _files(published, kept=True))
    assert len([path for path in _files(published, kept=False) if path.startswith("usage/")]) == 1
    published.run()
    assert published.note["all_runs"] == note["all_runs"]
    assert not [path for path in _files(published, kept=False) if path.startswith("usage/")]


def test_vectors_of_tokens_are_kept(published: Place) -> None:
    """Parts of `multi/` are kept as those of `embeddings/` are, unless `run.json` is damaged."""
    published.settings |= {"model.multi_embedding": "zstd", "model.instructions": "x"}
    published.write_rows([*map(_row, range(30))])
    published.run()
    assert published.run()["published"] == 30
    assert _files(published, kept=False) == set()
    (published.output / "run.json").write_bytes(b"{")
    assert published.run()["published"] == published.read("multi").num_rows == 30
    assert _files(published, kept=True) == set()


def test_vectors_of_another_model_replace_those_of_kept_parts(published: Place) -> None:
    """A run that plans without a record of the model keeps no part by its inputs: its vectors may be of several models."""
    (record,) = (published.store / "models").iterdir()
    data = record.read_bytes()
    record.unlink()
    published.run()
    record.write_bytes(data)
    published.run()
    # The part is made, and has no digest. Its bytes are the same here, so the file stays.
    digests = {file["digest"] for file in published.note["files"] if file["path"].startswith("embeddings/")}
    record.unlink()
    published.run()
    others = {file["digest"] for file in published.note["files"] if file["path"].startswith("embeddings/")}
    assert others == {""}
    assert "" not in digests
