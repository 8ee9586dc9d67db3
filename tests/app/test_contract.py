"""The contract in whole runs: one model for all vectors, vectors of old models cut, per-token vectors in their own files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from arkbeam.app.config import parse_config
from arkbeam.app.job import run_job
from arkbeam.app.prepare import prepare_job
from arkbeam.emulator.vectors import embed

from tests.places import Emulator

TEXTS = ["a red kite", "a blue whale", "风筝很高"]


def config_of(folder: Path, url: str, model: dict[str, Any]) -> Any:
    """Write a manifest of three rows in a folder; return a config for it."""
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes(b"".join(orjson.dumps({"id": str(n), "text": text}) + b"\n" for n, text in enumerate(TEXTS)))
    sections = {
        "manifest": {"uris": [str(manifest)]},
        "model": model,
        "api": {"base_url": url},
        "store": {"uri": str(folder / "store")},
        "output": {"uri": str(folder / "out")},
    }
    return parse_config(sections)


def run(folder: Path, url: str, model: dict[str, Any], **flags: Any) -> dict[str, Any]:
    """Run the job once and return the content of `run.json`, or of the note of a stopped run."""
    return run_job(prepare_job(config_of(folder, url, model)), **flags)


@pytest.fixture
def serve_version(make_emulator: Callable[..., Emulator]) -> Callable[[str], str]:
    """Starts an emulator whose endpoint `ep-test` is a version of the model; returns its URL."""
    return lambda version: make_emulator(endpoints={"ep-test": f"doubao-embedding-vision-{version}"}).url


def test_changed_model_stops_the_run_until_it_is_accepted(tmp_path: Path, serve_version: Callable[[str], str]) -> None:
    """If a model name resolves to another version, the run stops; with `accept_model_change` all rows get vectors of the new version."""
    model = {"name": "ep-test", "like": "251215", "instructions": "x"}
    before = run(tmp_path, serve_version("250615"), {"name": "ep-test", "like": "250615"})
    assert before["published"] == len(TEXTS)
    url = serve_version("251215")
    stopped = run(tmp_path, url, model)
    assert stopped["stopped"]["code"] == "model_changed"
    assert "files" not in stopped
    accepted = run(tmp_path, url, model, accept_model_change=True)
    assert accepted["published"] == len(TEXTS)
    assert stopped["requests_sent"] + accepted["requests_sent"] == len(
        TEXTS
    )  # the replies that showed the change are used
    assert accepted["all_runs"]["paid_twice"] == 0
    assert run(tmp_path, url, model)["requests_sent"] == 0
    models = pq.read_table(tmp_path / "out" / "embeddings")["model"].unique().to_pylist()
    assert models == ["doubao-embedding-vision-251215-stand-in"]


def test_accepting_no_change_buys_nothing(tmp_path: Path, serve_version: Callable[[str], str]) -> None:
    """With the flag but without a changed version, nothing is bought again."""
    url, model = serve_version("250615"), {"name": "ep-test", "like": "250615"}
    run(tmp_path, url, model)
    assert run(tmp_path, url, model, accept_model_change=True)["requests_sent"] == 0


def test_old_models_are_cut_when_published(tmp_path: Path, emulator: Emulator) -> None:
    """250328 returns 2,048 values, which are stored unchanged; the output has the first 1,024, normalised."""
    model = {"name": "doubao-embedding-vision-250328", "dimensions": 1024}
    assert run(tmp_path, emulator.url, model)["published"] == len(TEXTS)
    table = pq.read_table(tmp_path / "out" / "embeddings").sort_by("id")
    for row, text in zip(table.to_pylist(), TEXTS, strict=True):
        bought = embed([("text", text)], dimensions=2048, instructions=None)[:1024]
        np.testing.assert_allclose(row["dense"], bought / np.linalg.norm(bought), atol=1e-6)
        assert row["norm"] == pytest.approx(1.0, abs=1e-6)
    (segment,) = (tmp_path / "store" / "segments").rglob("*.parquet")
    assert pq.read_schema(segment).field("dense").type.list_size == 2048


@pytest.mark.parametrize("mode", ["plain", "zstd"])
def test_vectors_of_tokens_have_files_of_their_own(tmp_path: Path, emulator: Emulator, mode: str) -> None:
    """If requested, `multi/` has the per-token vectors of each row, and `embeddings/` does not have them."""
    model = {"name": "doubao-embedding-vision-251215", "dimensions": 1024, "instructions": "x", "multi_embedding": mode}
    note = run(tmp_path, emulator.url, model)
    again = run(tmp_path, emulator.url, model)
    assert note["published"] == len(TEXTS)
    assert again["requests_sent"] == 0
    assert "multi" not in pq.read_table(tmp_path / "out" / "embeddings").column_names
    table = pq.read_table(tmp_path / "out" / "multi").sort_by("id")
    assert table["id"].to_pylist() == [str(number) for number in range(len(TEXTS))]
    for vectors in table["multi"].to_pylist():
        assert len(vectors) > 1
        assert all(len(vector) == 1024 for vector in vectors)
    assert any(file["path"].startswith("multi/") for file in note["files"])
