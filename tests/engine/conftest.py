"""Engines that send to emulators, each emulator in its own process."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from arkbeam.ark.client import ApiOptions, ArkClient
from arkbeam.ark.wire import WireOptions, encode_request
from arkbeam.base import schema
from arkbeam.base.records import Modality, Part, Request
from arkbeam.emulator.app import API_PATH, STATS_PATH
from arkbeam.emulator.options import EmulatorOptions, write_options
from arkbeam.emulator.serve import start_emulator
from arkbeam.emulator.vectors import embed
from arkbeam.engine.attempts import Attempt
from arkbeam.engine.core import Engine
from arkbeam.engine.items import Item
from arkbeam.engine.outcomes import RunReport, Sink
from arkbeam.engine.recorder import Recorder, StoreTarget
from arkbeam.engine.sender import EngineOptions, Sender
from arkbeam.engine.stopping import ReplyCheck
from arkbeam.quota import retry
from arkbeam.quota.options import LimitsOptions
from arkbeam.quota.pacer import Pacer
from arkbeam.store.journal import open_journal
from arkbeam.store.journal_records import Journaled, read_records
from arkbeam.store.layout import events_folder, journals_folder, list_parquet, segment_id, segments_folder
from arkbeam.store.segments import dense_values, read_columns

MODEL = "doubao-embedding-vision-251215"
DIMENSIONS = 1024
RUN = "20250101T000000-0123abcd-89ef4567"


@dataclass(frozen=True)
class Server:
    """An emulator in another process. Tests share it, so they must count its requests by differences."""

    url: str

    def stats(self) -> dict[str, Any]:
        """Return what it has counted so far."""
        answer = httpx.get(self.url.removesuffix(API_PATH) + STATS_PATH, trust_env=False)
        counts: dict[str, Any] = answer.raise_for_status().json()
        return counts


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Start a server with given options, or return the one that has them."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(**options: Any) -> Server:
            wanted = EmulatorOptions(**options)
            key = str(write_options(wanted))
            if key not in servers:
                servers[key] = Server(stack.enter_context(start_emulator(wanted)))
            return servers[key]

        yield start


def name_of(text: str) -> bytes:
    """Return the fingerprint that a text has in these tests."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


@dataclass
class Rig:
    """An engine with its store."""

    engine: Engine
    store: Path
    sink: Sink = field(default_factory=Sink)
    texts: dict[bytes, str] = field(default_factory=dict)

    def items(self, *texts: str, sparse: bool = False, size: int = 0, attempt: Attempt | None = None) -> list[Item]:
        """Make items of texts. `size` pads their bodies with blanks, which JSON ignores."""
        made = []
        for text in texts:
            request = Request((Part(Modality.TEXT, text),), sparse=sparse)
            body = encode_request(request, WireOptions(MODEL, DIMENSIONS)).ljust(size)
            made.append(Item(name_of(text), body, Modality.TEXT, sparse, 30.0, attempt=attempt or Attempt()))
            self.texts[name_of(text)] = text
        return made

    def buy(self, *texts: str, batch: int = 64) -> RunReport:
        """Submit texts in batches until the engine stops, and wait for all of them."""
        for start in range(0, len(texts), batch):
            if not self.engine.submit(self.items(*texts[start : start + batch]), self.sink):
                break
        return self.engine.finish(self.sink)

    def collect(self) -> tuple[dict[bytes, tuple[int, int]], dict[bytes, tuple[str, str]]]:
        """Return what the sink received, by fingerprint: the places of the vectors, and the reasons of the failures."""
        tables, failed = self.sink.collect()
        index = schema.concat(tables, schema.INDEX).to_pylist()
        assert len({row["fingerprint"] for row in index}) == len(index)
        return (
            {row["fingerprint"]: (row["segment"], row["row"]) for row in index},
            {row["fingerprint"]: (row["code"], row["message"]) for row in failed.to_pylist()},
        )

    def stored(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Read all segments: rows by segment and row number, with the vector as an array."""
        rows = {}
        names = ["fingerprint", "sparse", "request_id", "client_request_id", "total_tokens", "attempts", "model"]
        for uri in list_parquet(segments_folder(str(self.store))):
            vectors = dense_values(read_columns(uri, ["dense"])["dense"])
            for at, row in enumerate(read_columns(uri, names).to_pylist()):
                rows[segment_id(uri), at] = row | {"dense": vectors[at]}
        return rows

    def events(self) -> list[dict[str, Any]]:
        """Read all events."""
        uris = list_parquet(events_folder(str(self.store)))
        names = [field.name for field in schema.EVENTS if field.name != "created"]
        tables = [read_columns(uri, names) for uri in uris]
        return pa.concat_tables(tables).to_pylist() if tables else []

    def journals(self) -> list[Path]:
        """List the remaining journals."""
        return sorted(Path(journals_folder(str(self.store))).glob("*/*.log"))

    def journaled(self) -> Journaled:
        """Read the remaining journals of an engine."""
        return read_records([path.read_bytes() for path in self.journals()])

    def check_vectors(self, index: dict[bytes, tuple[int, int]]) -> None:
        """Check that the index points each fingerprint to the vector of its own text."""
        stored = self.stored()
        for name, place in index.items():
            assert stored[place]["fingerprint"] == name
            expected = embed([("text", self.texts[name])], dimensions=DIMENSIONS)
            assert np.array_equal(stored[place]["dense"], expected)


@pytest.fixture
def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Make an engine for a server; retries wait for 0.01 to 0.05 s. All engines are closed at the end."""
    monkeypatch.setattr(retry, "WAIT_S_FIRST", 0.01)
    monkeypatch.setattr(retry, "WAIT_S_MAX", 0.05)
    rigs: list[Rig] = []
    ids = itertools.count(1)

    def make(
        server: Server,
        *,
        stand_in: bool = True,
        flush_rows: int = 32,
        flush_s: float = 10.0,
        rpm: int = 10**7,
        model: str | None = None,
        timeout_s: float = 60.0,
        flush_timeout_s: float = 60.0,
        store: str | None = None,
        **limits: Any,
    ) -> Rig:
        bounds = LimitsOptions(**({"requests_in_flight": 8, "drain_s": 10.0} | limits))
        sender = Sender(
            EngineOptions(bounds, DIMENSIONS, flush_rows, flush_s, flush_timeout_s=flush_timeout_s),
            lambda: ArkClient(
                ApiOptions(server.url, timeout_text_s=timeout_s), "any", connections_max=bounds.requests_in_flight
            ),
            lambda now_s: Pacer(rpm, 10**10, 1.0, now_s),
            Recorder(
                StoreTarget(store or str(tmp_path), RUN, DIMENSIONS),
                ids,
                open_journal(store or str(tmp_path), RUN, str(len(rigs))),
            ),
            ReplyCheck(stand_in, model, lambda _: None),
        )
        rigs.append(Rig(Engine(sender), tmp_path))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.engine.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "arkbeam-engine"]
