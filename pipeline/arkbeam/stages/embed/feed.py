"""Turn staged rows into encoded requests: read their media, encode the bodies, group them into bounded batches."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from arkbeam.ark.tokens import bound_request
from arkbeam.ark.wire import UnencodableRequest, encode_request
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.decoding.workers import Interrupted
from arkbeam.engine.core import Engine
from arkbeam.engine.items import Item
from arkbeam.manifest.staging import StagedRequest, request_from_json
from arkbeam.media import encoded_length, load_medium
from arkbeam.quota.budget import NO_COST
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import read_rows_at

BATCH_ITEMS = 128
BATCH_BYTES = 32 * 1024 * 1024
MEDIA_THREADS = 16  # most rows of a lane whose media are read at the same time
# While a medium is encoded, memory holds its bytes (3/4 of what is sent) and their base64 (4/4): 7 quarters.
_HELD_QUARTERS = 7


@dataclass(frozen=True, slots=True)
class Unsendable:
    """A row that can't be sent, and why: a medium is missing or has changed, or the request is too large."""

    fingerprint: bytes
    failure: Failure


@dataclass(frozen=True, slots=True)
class StagedRow:
    """A row to send, as it was staged. `tokens` is an estimate and includes `image_tokens`. `block`: shard and number."""

    fingerprint: bytes
    staged: StagedRequest
    tokens: int
    image_tokens: int
    block: tuple[int, int] = (0, 0)

    @property
    def reads(self) -> bool:
        """True if some of the row's media are read from storage or resized. Both are slow, so a thread does them."""
        return any(version is not None for version in self.staged.versions) or bool(self.staged.fits)

    @property
    def held_bytes(self) -> int:
        """Bytes that memory holds while the row's media are read, changed and encoded."""
        return self.staged.wire_bytes * _HELD_QUARTERS // 4 + self.staged.work_bytes


def read_rows(buyers: pa.Table, block: tuple[int, int], spec: RunSpec) -> Iterator[StagedRow]:
    """Read the requests of buyers (KEYS, in order) of a block: its shard and its number in the shard."""
    image_tokens = buyers["image_tokens"].to_numpy().astype(np.int64)
    tokens = buyers["text_tokens"].to_numpy() + image_tokens
    fingerprints = buyers["fingerprint"].to_pylist()
    start = 0
    for table in read_rows_at(spec.run_files_uri, spec.run.name, block[0], buyers["ordinal"].to_numpy(), ["request"]):
        bodies = table["request"].to_pylist()
        end = start + len(bodies)
        counts = (tokens[start:end].tolist(), image_tokens[start:end].tolist())
        for name, body, counted, image_counted in zip(fingerprints[start:end], bodies, *counts, strict=True):
            yield StagedRow(name, request_from_json(body), counted, image_counted, block)
        start += len(bodies)


def encode_row(row: StagedRow, spec: RunSpec) -> Item | Unsendable:
    """Encode the request of a row. Blocks while its media are read."""
    request = row.staged.request
    parts, inlined = list(request.parts), {}
    for position, (part, version) in enumerate(zip(request.parts, row.staged.versions, strict=True)):
        if part.modality is Modality.TEXT:
            continue
        loaded = load_medium(part.value, part.modality, version, spec.media, row.staged.fit_of(position))
        if isinstance(loaded, Failure):
            return Unsendable(row.fingerprint, loaded)
        if isinstance(loaded, Inline):
            inlined[position] = loaded
        else:
            parts[position] = replace(part, value=loaded)
    length = sum(
        encoded_length(len(inlined[position].data), inlined[position].mime) if position in inlined else len(part.value)
        for position, part in enumerate(parts)
    )
    if length > spec.media.body_bytes_max:
        message = f"the parts have {length} bytes as sent; a request may have at most {spec.media.body_bytes_max} (media.body_bytes_max)"
        return Unsendable(row.fingerprint, Failure("request_too_large", message))
    try:
        body = encode_request(replace(request, parts=tuple(parts)), spec.model.wire, inlined)
    except UnencodableRequest as error:
        return Unsendable(row.fingerprint, Failure("request_not_encodable", str(error)))
    bound = spec.prices.of_bound(bound_request(request, row.image_tokens)) if spec.budget.is_set else NO_COST
    return Item(row.fingerprint, body, request.modality, request.sparse, float(row.tokens), bound, block=row.block)


@dataclass(slots=True)
class Feed:
    """Turns rows into batches of items. Threads read media ahead, as long as the engine has room for their bytes.

    A row's bytes are reserved in the engine before its media are read. So one bound (`limits.bytes_in_flight`) covers
    media that are being read, items that wait, and requests in flight. A feed hands over all items that are ready
    before it waits for room; otherwise several feeds of one engine could block each other.
    """

    spec: RunSpec
    engine: Engine
    pool: ThreadPoolExecutor
    _pending: deque[tuple[int, Future[Item | Unsendable]]] = field(default_factory=deque)
    _ready: list[Item] = field(default_factory=list)
    _ready_bytes: int = 0
    _unsendable: list[Unsendable] = field(default_factory=list)

    def batches(self, rows: Iterator[StagedRow]) -> Iterator[list[Item] | Unsendable]:
        """Yield batches, the unit of submission, and rows that can't be sent. End early if the run stops."""
        try:
            for row in rows:
                if not row.reads:
                    self._take(encode_row(row, self.spec))
                while row.reads and not self._start(row):
                    if len(self._pending) >= MEDIA_THREADS:
                        self._collect()
                        continue
                    if not self._pending and not self._ready:
                        if not self.engine.reserve(row.held_bytes, wait=True):
                            return
                        self._read(row)
                        break
                    self._collect()
                    yield from self._drain()
                while self._pending and self._pending[0][1].done():
                    self._collect()
                if len(self._ready) >= BATCH_ITEMS or self._ready_bytes >= BATCH_BYTES or self._unsendable:
                    yield from self._drain()
            while self._pending:
                self._collect()
                if len(self._ready) >= BATCH_ITEMS or self._ready_bytes >= BATCH_BYTES:
                    yield from self._drain()
            yield from self._drain()
        finally:
            self._give_back()

    def _start(self, row: StagedRow) -> bool:
        """Start to read a row's media if a thread is free and the engine has room. Return whether it was started."""
        if len(self._pending) >= MEDIA_THREADS or not self.engine.reserve(row.held_bytes, wait=False):
            return False
        self._read(row)
        return True

    def _read(self, row: StagedRow) -> None:
        self._pending.append((row.held_bytes, self.pool.submit(encode_row, row, self.spec)))

    def _collect(self) -> None:
        """Wait for the oldest row that is being read; take it and the finished rows that follow it."""
        while self._pending:
            held_bytes, future = self._pending.popleft()
            try:
                encoded = future.result()
            except Interrupted:  # the run stops, and the row is not sent
                self.engine.give_back(held_bytes)
                continue
            if isinstance(encoded, Item):
                self.engine.fill(encoded, held_bytes)
            else:
                self.engine.give_back(held_bytes)
            self._take(encoded)
            if not (self._pending and self._pending[0][1].done()):
                return

    def _take(self, encoded: Item | Unsendable) -> None:
        if isinstance(encoded, Unsendable):
            self._unsendable.append(encoded)
            return
        self._ready.append(encoded)
        self._ready_bytes += len(encoded.body)

    def _drain(self) -> Iterator[list[Item] | Unsendable]:
        unsendable, self._unsendable = self._unsendable, []
        yield from unsendable
        if self._ready:
            ready, self._ready, self._ready_bytes = self._ready, [], 0
            yield ready

    def _give_back(self) -> None:
        """Release the reserved bytes of rows that will not be sent, because the run stops."""
        for held_bytes, future in self._pending:
            future.cancel()
            self.engine.give_back(held_bytes)
        for item in self._ready:
            if item.reserved:
                self.engine.give_back(len(item.body))
        self._pending.clear()
        self._ready.clear()
