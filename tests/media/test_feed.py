"""Reading media before sending: held bytes are limited, and rows that are ready never wait for room."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from arkbeam.ark.wire import WireOptions
from arkbeam.base.records import Failure, Inline, Modality, Part, Request
from arkbeam.decoding.workers import Interrupted
from arkbeam.engine.items import Item, Room
from arkbeam.manifest.staging import StagedRequest
from arkbeam.media import MediaOptions
from arkbeam.stages.embed import feed as requests
from arkbeam.stages.embed.feed import BATCH_ITEMS, Feed, StagedRow, Unsendable
from hypothesis import given
from hypothesis import strategies as st

SPEC = cast(
    Any,
    SimpleNamespace(
        media=MediaOptions(), model=SimpleNamespace(wire=WireOptions("m")), budget=SimpleNamespace(is_set=False)
    ),
)
BYTES_MAX = 10_000


class Engine:
    """The room of an engine, without the rest of it: submitted items are sent when a caller waits."""

    def __init__(self) -> None:
        self.room = Room(BYTES_MAX)
        self.submitted: list[Item] = []
        self.most = 0

    def reserve(self, size: int, *, wait: bool) -> bool:
        """As in the engine; waiting sends everything that was submitted."""
        if wait:
            assert self.room.items == len(self.submitted), "it waits while something ready is held back"
            self.send()
        entered = self.room.try_enter(size)
        self.most = max(self.most, self.room.bytes if self.room.items > 1 else 0)
        return entered

    def fill(self, item: Item, size: int) -> None:
        """As in the engine."""
        item.reserved = True
        self.room.shrink(size - len(item.body))

    def give_back(self, size: int) -> None:
        """As in the engine."""
        self.room.leave(size)

    def quota_s(self, tokens: float) -> float:
        """As in the engine, with a quota of 100,000 tokens a second."""
        return tokens / 100_000

    def send(self) -> None:
        """Settle everything that was submitted."""
        for item in self.submitted:
            self.room.leave(len(item.body))
        self.submitted = []


def feed_all(engine: Engine, pool: ThreadPoolExecutor, rows: Iterator[StagedRow]) -> Iterator[list[Item] | Unsendable]:
    """Feed rows in two blocks."""
    feed = Feed(SPEC, cast(Any, engine), pool)
    try:
        yield from feed.add(itertools.islice(rows, 20))
        yield from feed.add(rows)
        yield from feed.flush()
    finally:
        feed.give_back()


def row(number: int, size: int) -> StagedRow:
    """A row with one image of `size` bytes, or with one text (0); a size that ends in 7 can't be read."""
    name = number.to_bytes(16, "big")
    if size == 0:
        return StagedRow(name, StagedRequest(Request((Part(Modality.TEXT, "text"),)), (None,)), 1, 0)
    request = Request((Part(Modality.IMAGE, f"s3://bucket/{size}"),))
    return StagedRow(name, StagedRequest(request, ("v",), wire_bytes=4 * (size + 2) // 3 + 200), 1, 0)


def read(uri: str, *_: Any) -> Inline | Failure:
    """Return as many bytes as the name says."""
    size = int(uri.rpartition("/")[2])
    return Failure("media_missing", "gone") if size % 10 == 7 else Inline("image/png", bytes(size))


@given(st.lists(st.one_of(st.just(0), st.integers(1, 3_000), st.integers(9_000, 20_000)), max_size=60))
def test_every_row_comes_out_once_and_memory_is_bounded(sizes: list[int]) -> None:
    """For any sizes: no row is lost or repeated, held bytes stay within the limit, and all room is given back."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(requests, "load_medium", read)
        engine = Engine()
        seen, failed = [], []
        for batch in feed_all(engine, pool, (row(n, size) for n, size in enumerate(sizes))):
            if isinstance(batch, Unsendable):
                failed.append(batch.fingerprint)
                continue
            assert len(batch) <= BATCH_ITEMS
            seen += [item.fingerprint for item in batch]
            engine.submitted += [item for item in batch if item.reserved]
        engine.send()
    names = [number.to_bytes(16, "big") for number in range(len(sizes))]
    assert sorted(seen + failed) == names
    assert failed == [name for name, size in zip(names, sizes, strict=True) if size % 10 == 7]
    assert engine.most <= BYTES_MAX
    assert (engine.room.items, engine.room.bytes) == (0, 0)


def test_a_run_that_stops_gives_back_what_was_read_ahead() -> None:
    """What was read but is not sent gives its room back."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(requests, "load_medium", read)
        engine = Engine()
        batches: Iterator[Any] = feed_all(engine, pool, (row(n, 3_000) for n in range(9)))
        first = next(batches)
        engine.submitted += first
        batches.close()  # type: ignore[attr-defined]
    engine.send()
    assert (engine.room.items, engine.room.bytes) == (0, 0)


def test_rows_whose_media_were_interrupted_are_neither_sent_nor_failed() -> None:
    """After a signal, decoding is interrupted: the rows stay unsettled, and their room is given back."""

    def interrupt(*_: Any) -> Inline:
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(requests, "load_medium", interrupt)
        engine = Engine()
        assert list(feed_all(engine, pool, (row(n, 500) for n in range(9)))) == []
    assert (engine.room.items, engine.room.bytes) == (0, 0)


def test_a_changed_image_holds_its_file_and_its_pixels() -> None:
    """The bytes that a row reserves are those of reading and those of the change."""
    plain = StagedRow(b"", StagedRequest(Request(()), (), wire_bytes=400), 1, 0)
    changed = replace(plain, staged=replace(plain.staged, work_bytes=5_000))
    assert plain.held_bytes == 700
    assert changed.held_bytes == 5_700
