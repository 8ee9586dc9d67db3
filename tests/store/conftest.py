"""Bought vectors for the store tests, generated from a seed, and stores of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.base import schema
from arkbeam.base.records import Failure, Usage
from arkbeam.base.replies import Reply, Sparse
from arkbeam.store.entries import read_entries
from arkbeam.store.events import Event, EventKind, read_rejected, write_events
from arkbeam.store.index import write_entries
from arkbeam.store.layout import events_folder, list_parquet, segments_folder
from arkbeam.store.listing import list_sources
from arkbeam.store.segments import Attempt, Bought, read_index, segment_table, write_segment

DIMENSIONS = 8
RUN = "20250101T000000-0123abcd-89ef4567"


@pytest.fixture
def make_bought() -> Callable[..., Bought]:
    """Return a function that builds one result; fields that are not given are derived from its number."""

    def make(number: int, *, dense: Any = None, sparse: Sparse | None = None, **fields: Any) -> Bought:
        values = np.random.default_rng(number).standard_normal(DIMENSIONS) if dense is None else dense
        attempt = Attempt(
            fields.get("fingerprint", number.to_bytes(16)),
            fields.get("client_request_id", f"client-{number}"),
            fields.get("attempts", 1),
            12.5,
        )
        reply = Reply(
            id=fields.get("id", f"request-{number}"),
            model=fields.get("model", "doubao-embedding-vision-251215"),
            created=fields.get("created", 1_743_575_029),
            dense=np.asarray(values, np.float32),
            sparse=sparse,
            norm=np.float32(number + 0.5),
            usage=fields.get("usage", Usage(7, 7, 7, 0)),
            usage_flaw=None,
            stand_in=True,
        )
        return Bought(attempt, reply)

    return make


@dataclass(slots=True)
class FilledStore:
    """A local store, and what a reader of all of its files finds in it."""

    uri: str
    make_bought: Callable[..., Bought]
    file_ids: Iterator[int] = field(default_factory=lambda: count(1))

    def write(self, numbers: Sequence[int], model: str | None = "m", run: str = RUN) -> str:
        """Write a segment of the vectors with these numbers; return its URI."""
        bought = [self.make_bought(number, model=model, fingerprint=fingerprint(number)) for number in numbers]
        return write_segment(self.uri, run, next(self.file_ids), segment_table(bought, DIMENSIONS))

    def reject(self, numbers: Sequence[int], run: str = RUN) -> str:
        """Write an event file with a rejection, and an attempt without a vector, for each number; return its URI."""
        kinds = [EventKind.REJECTED, EventKind.UNUSABLE]
        events = [
            Event(kind, Attempt(fingerprint(number), f"e{number}{kind}", 1, 0.0), Failure(f"code {number}", "why"))
            for number in numbers
            for kind in kinds
        ]
        return write_events(self.uri, run, next(self.file_ids), events)

    def cover(self, uris: Sequence[str]) -> str:
        """Write an index file for some segments and event files; return its URI."""
        listed = {one.uri: one for one in list_sources(self.uri).values()}
        return write_entries(self.uri, next(self.file_ids), list(read_entries(self.uri, [listed[uri] for uri in uris])))

    def owned(self, model: str | None = None) -> set[tuple[bytes, int, int]]:
        """Read every segment: fingerprint, segment and row of each vector."""
        tables = [read_index(uri, model) for uri in list_parquet(segments_folder(self.uri))]
        return index_rows(schema.concat(tables, schema.INDEX))

    def rejected(self) -> set[tuple[bytes, str]]:
        """Read every event file: fingerprint and code of each rejection."""
        tables = [read_rejected(uri) for uri in list_parquet(events_folder(self.uri))]
        return rejected_rows(schema.concat(tables, schema.REJECTED))


def fingerprint(number: int) -> bytes:
    """Return a fingerprint as a hash would be; that of the same number is the same."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def index_rows(table: pa.Table) -> set[tuple[bytes, int, int]]:
    """Return INDEX rows as a set."""
    return {(row["fingerprint"], row["segment"], row["row"]) for row in table.to_pylist()}


def rejected_rows(table: pa.Table) -> set[tuple[bytes, str]]:
    """Return fingerprint and code of REJECTED rows as a set."""
    return {(row["fingerprint"], row["code"]) for row in table.to_pylist()}


@pytest.fixture
def make_store(tmp_path: Path, make_bought: Callable[..., Bought]) -> Callable[[], FilledStore]:
    """Makes empty stores, each in another folder."""
    numbers = count()
    return lambda: FilledStore(str(tmp_path / f"store-{next(numbers)}"), make_bought)
