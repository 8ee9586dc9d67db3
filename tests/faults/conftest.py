"""Fixtures of the fault tests: reading an output, checking that it is incomplete, and injecting named faults."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from arkbeam.base import faults
from arkbeam.base.faults import Injector

from tests.places import Place, published_vectors

COLUMNS = ["id", "manifest", "row", "sparse", "norm", "model", "total_tokens", "fingerprint"]


def published_rows(place: Place) -> set[tuple[Any, ...]]:
    """Return the published rows as a set, with the bytes of their vectors and without the ids of requests."""
    table = place.read("embeddings")
    columns = [table[name].to_pylist() for name in COLUMNS]
    rows = {(*row, vector.tobytes()) for *row, vector in zip(*columns, published_vectors(table), strict=True)}
    assert len(rows) == table.num_rows
    return rows


@pytest.fixture
def read_published() -> Callable[[Place], set[tuple[Any, ...]]]:
    """Returns the published rows of a place as a set, in a form that can be compared."""
    return published_rows


@pytest.fixture
def assert_not_complete() -> Callable[[Place], None]:
    """Checks an incomplete output: there is no `_SUCCESS`, and every part that exists can be read."""

    def check(place: Place) -> None:
        assert not (place.output / "_SUCCESS").exists()
        for path in place.output.rglob("*.parquet"):
            pq.read_table(path)

    return check


def text_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the content that `write_texts` wrote for the row's id."""
    return [("text", f"row number {row['id'].removeprefix('id-')}")]


@pytest.fixture
def parts_of() -> Callable[[dict[str, Any]], list[tuple[str, str]]]:
    """Returns the content of a row that `write_texts` wrote."""
    return text_of


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Prints a line with measured figures to the terminal, for the table in README.md beside this file."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line)

    return say


@pytest.fixture
def inject() -> Callable[[str], AbstractContextManager[None]]:
    """Injects named faults into this process for the length of a block."""

    @contextmanager
    def during(text: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(faults, "hit", Injector.parse(text).hit)
            yield

    return during


@pytest.fixture
def mark_path() -> Callable[[Place], Path]:
    """Returns the path of the mark that a run writes into the output that it has claimed."""
    return lambda place: place.output / ".running.json"
