"""Announcements: on an object store, each request is in the journal before it is sent."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from arkbeam.ark.client import ArkClient
from arkbeam.base.errors import StoreError
from arkbeam.base.files import list_files, read_bytes, remove_file, write_bytes
from arkbeam.emulator.options import FaultShares
from arkbeam.engine import announcing, registry
from arkbeam.engine.outcomes import Stop, StopKind
from arkbeam.store import journal as journal_module
from arkbeam.store.journal import MARK_SUFFIX, OBJECT_SUFFIX, decompress
from arkbeam.store.journal_records import read_records
from arkbeam.store.layout import journals_folder

from tests.engine.conftest import Rig, Server
from tests.places import wait_until


@pytest.fixture
def store() -> str:
    """An empty store in memory, which is to fsspec what an object store is."""
    return f"memory://{uuid.uuid4().hex}"


def test_requests_are_recorded_before_they_are_sent(
    start_server: Callable[..., Server],
    make_rig: Callable[..., Rig],
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the moment of each try, also of a second one, its id is in an uploaded object; at the end there is no object."""
    recorded: set[str] = set()
    unrecorded: list[str] = []
    uploads: list[str] = []
    embed = ArkClient.embed

    def spy_write(uri: str, data: bytes) -> None:
        write_bytes(uri, data)
        if uri.endswith(OBJECT_SUFFIX):
            uploads.append(uri)
            found = read_records([decompress(data)])
            recorded.update(found.sent, found.replies)

    async def spy_embed(client: ArkClient, *arguments: Any, **options: Any) -> Any:
        unrecorded.extend({options["client_request_id"]} - recorded)
        return await embed(client, *arguments, **options)

    monkeypatch.setattr(journal_module, "write_bytes", spy_write)
    monkeypatch.setattr(ArkClient, "embed", spy_embed)
    rig = make_rig(start_server(faults=FaultShares(error_500=0.1), latency_ms=2), store=store)
    report = rig.buy(*(f"text {number}" for number in range(300)))
    assert report.counts.bought == 300
    assert report.counts.retries > 10
    assert unrecorded == []
    assert 1 < len(uploads) < 100
    rig.engine.close()
    assert list_files(journals_folder(store)) == []


def test_a_journal_that_was_recovered_ends_the_run(
    start_server: Callable[..., Server], make_rig: Callable[..., Rig], store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has lost its journal to another run stops sending, and its session gets the reason."""
    monkeypatch.setattr(announcing, "UPLOAD_S", 0.05)
    rig = make_rig(start_server(latency_ms=50), store=store)
    rig.engine.submit(rig.items(*(f"row {number}" for number in range(2000))), rig.sink)
    wait_until(lambda: bool(list_files(journals_folder(store), MARK_SUFFIX)))
    (mark,) = list_files(journals_folder(store), MARK_SUFFIX)
    remove_file(mark)
    report = rig.engine.finish(rig.sink)
    assert report.counts.sent < 1000
    with pytest.raises(StoreError, match="another run has recovered"):
        rig.collect()
    monkeypatch.setattr(registry, "_engines", {"run": rig.engine})
    fresh = make_rig(start_server(latency_ms=50), store=store)
    assert registry.get_engine("run", lambda: fresh.engine) is fresh.engine
    assert registry.get_engine("run", lambda: rig.engine) is fresh.engine


def test_requests_that_will_not_be_sent_are_withdrawn(
    start_server: Callable[..., Server], make_rig: Callable[..., Rig], store: str
) -> None:
    """After a stop, announced requests do not count as lost, even if the process is killed before it ends."""
    rig = make_rig(start_server(latency_ms=300), store=store, requests_in_flight=2)
    rig.engine.submit(rig.items(*(f"row {number}" for number in range(200))), rig.sink)
    wait_until(lambda: rig.engine.status().in_flight == 2)
    rig.engine.stop(Stop(StopKind.INTERRUPTED, "interrupted", "for the test"))
    rig.engine.finish(rig.sink)
    journal = rig.engine._sender._recorder.journal
    journal.upload()
    found = read_records(decompress(read_bytes(uri)) for uri in list_files(journals_folder(store), OBJECT_SUFFIX))
    assert found.sent == {}
