"""Vectors of a stand-in are never published as vectors of the real service."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arkbeam.emulator.vectors import embed

ROWS = [{"id": f"id-{number}", "text": f"text {number}"} for number in range(12)]
DIMENSIONS = 1024


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets an API key in the environment."""
    monkeypatch.setenv("ARK_API_KEY", "key-of-the-test")


def read_dense(place: Any) -> dict[str, np.ndarray]:
    """Return the published vectors by id."""
    table = place.read("embeddings")
    dense = table["dense"].combine_chunks().values.to_numpy().reshape(-1, DIMENSIONS)
    return dict(zip(table["id"].to_pylist(), dense, strict=True))


def test_stand_ins_vectors_do_not_pass_for_real(place: Any, emulator: Any, real_service: Any, key: None) -> None:
    """On one store, a run on the real service buys its own vectors; a later run on the stand-in publishes the stand-in's."""
    place.write_rows(ROWS)
    place.run()
    place.url = real_service.url
    assert (place.plan().owned, place.plan().to_buy) == (0, 12)
    note = place.run()
    assert (note["service"], note["owned"], note["requests_sent"]) == ("ark", 0, 12)
    assert len(real_service.requests) == 12
    for row_id, vector in read_dense(place).items():
        assert np.array_equal(vector, -embed([("text", f"text {row_id.removeprefix('id-')}")], dimensions=DIMENSIONS))
    assert set(place.read("embeddings")["model"].to_pylist()) == {"doubao-embedding-vision-251215"}

    place.url = emulator.url
    assert place.run()["requests_sent"] == 0
    assert set(place.read("embeddings")["model"].to_pylist()) == {"doubao-embedding-vision-251215-stand-in"}


def test_a_stand_in_behind_a_real_address(place: Any, real_service: Any, key: None, call: Callable[..., Any]) -> None:
    """If a reply shows that the server is a stand-in, the run stops with 4; none of its vectors is kept."""
    real_service.headers["X-Arkbeam-Stand-In"] = "1"
    place.url = real_service.url
    place.write_rows(ROWS)
    ended = call(*place.arguments("run", {"limits.requests_in_flight": 2}))
    assert ended.code == 4
    assert "api.base_url" in ended.err
    assert len(real_service.requests) <= 2
    real_service.headers.clear()
    assert place.plan().owned == 0


def test_an_endpoint_by_its_model(place: Any, emulator: Any) -> None:
    """An `ep-` endpoint works with `model.like`; its vectors are not shared with those of the model's own name."""
    place.write_rows(ROWS)
    place.run()
    place.settings |= {"model.name": "ep-20250101-abcde", "model.like": "doubao-embedding-vision-251215"}
    note = place.run()
    assert (note["owned"], note["requests_sent"], emulator.stats["paid"]) == (0, 12, 24)
