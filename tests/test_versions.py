"""This version reads what an earlier one wrote: nothing in its store is bought again, and its output can be inspected.

Two runs of version 0.1.0 against its emulator wrote `data/version-0.1.0`. The manifest has texts in two languages, pictures as
data URIs and paths, a duplicate, a line that is not JSON, a row that the service rejects, and kept columns.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.config import load_config
from arkbeam.app.job import plan_job, run_job
from arkbeam.app.prepare import prepare_job

from tests.places import Emulator, published_vectors

DATA = Path(__file__).parent / "data" / "version-0.1.0"
PUBLISHED, FAILED = 11, 2
NOT_COMPARED = {"embeddings": ["manifest"], "failures": ["manifest", "message"]}
"""The manifest has another path here, and the wording of messages may change."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the earlier version's folder as the working directory, since the paths in its config are relative."""
    copy = tmp_path / "copy"
    shutil.copytree(DATA, copy)
    monkeypatch.chdir(copy)
    return copy


def read_rows(output: Path, name: str) -> pa.Table:
    """Read `embeddings` or `failures` in the order of the manifest, without the columns that may differ."""
    return pq.read_table(output / name).drop_columns(NOT_COMPARED[name]).sort_by("row")


def read_bits(table: pa.Table) -> bytes:
    """Return the bytes of all dense vectors, since `equals` does not distinguish 0.0 and -0.0."""
    return bytes(published_vectors(table).tobytes())


def test_a_store_of_the_version_before_costs_nothing(folder: Path, emulator: Emulator) -> None:
    """Nothing is sent. All rows are published with the same vector bits, kept columns and fingerprint; failures are the same."""
    before = {name: read_rows(folder / "out", name) for name in ("embeddings", "failures")}
    shutil.rmtree(folder / "out")
    settings = [f"api.base_url={emulator.url}"]
    totals = plan_job(prepare_job(load_config("config.yaml", settings)))
    assert (totals.rows + totals.unreadable, totals.owned, totals.rejected, totals.to_buy) == (13, PUBLISHED, 1, 0)
    note = run_job(prepare_job(load_config("config.yaml", settings)))
    assert (note["published"], note["failed"], note["owned"]) == (PUBLISHED, FAILED, PUBLISHED)
    assert (note["requests_sent"], note["requests_paid"], emulator.stats["received"]) == (0, 0, 0)
    for name, table in before.items():
        again = read_rows(folder / "out", name)
        again = again.select(table.column_names)
        assert again.equals(table.cast(again.schema))  # the earlier version had unsigned integers and fixed-size lists
    again = read_rows(folder / "out", "embeddings")
    assert read_bits(again) == read_bits(before["embeddings"])
    assert before["embeddings"]["fingerprint"].null_count == 0
    assert {"title", "price", "tags", "dense", "sparse"} <= set(before["embeddings"].column_names)


def test_an_output_of_the_version_before_is_inspected(folder: Path, call: Callable[..., Any]) -> None:
    """`inspect` shows the counts, columns and failures of the earlier output as it is."""
    note = orjson.loads((folder / "out" / "run.json").read_bytes())
    ended = call("inspect", "out")
    assert (ended.code, ended.err) == (0, "")
    for word in (note["run"], "dense", "title", "tags", "bad_json", "SensitiveContentDetected"):
        assert word in ended.out


def test_an_output_of_the_version_before_is_replaced(folder: Path, emulator: Emulator) -> None:
    """The next run of an earlier output writes every part in the types of this version, and buys nothing."""
    assert pq.read_schema(folder / "out" / "embeddings" / "part-00000.parquet").field("row").type == pa.uint64()
    note = run_job(prepare_job(load_config("config.yaml", [f"api.base_url={emulator.url}"])))
    assert (note["published"], note["failed"], note["requests_sent"]) == (PUBLISHED, FAILED, 0)
    assert (folder / "out" / "_SUCCESS").exists()
    for path in (folder / "out").rglob("*.parquet"):
        assert "uint" not in str(pq.read_schema(path)), path


@pytest.mark.parametrize("rewritten", [False, True])
def test_failures_of_each_version_are_a_manifest(folder: Path, emulator: Emulator, rewritten: bool) -> None:
    """The failure tables of the earlier version, whose rows are unsigned, name the same rows as those of this version."""
    settings = [f"api.base_url={emulator.url}"]
    if rewritten:
        run_job(prepare_job(load_config("config.yaml", settings)))
    (path,) = (folder / "out" / "failures").glob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.field("row").type == (pa.int64() if rewritten else pa.uint64())
    here = pa.array([str(folder / "rows.jsonl")] * table.num_rows)  # the manifest had another path when it was written
    pq.write_table(table.set_column(1, table.schema.field("manifest"), here), path)
    rows = read_rows(folder / "out", "failures")["row"].to_pylist()
    again = [*settings, "manifest.uris=[out/failures]", "output.uri=again"]
    note = run_job(prepare_job(load_config("config.yaml", again)))
    assert (note["rows"], note["failed"]) == (FAILED, FAILED)
    assert read_rows(folder / "again", "failures")["row"].to_pylist() == rows
