"""Embed: a lane's missing rows become requests, go through the engine, and come back as refs or failures."""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import schema
from pipeline.ark.client import ArkClient, read_api_key
from pipeline.ark.wire import REQUEST_BYTES_MAX, encode_request
from pipeline.engine.core import Engine, EngineOptions
from pipeline.engine.items import Item
from pipeline.engine.outcomes import LaneReport, Sink
from pipeline.engine.recorder import Recorder, StoreTarget
from pipeline.engine.registry import get_engine
from pipeline.manifest.staging import StagedRequest, request_from_json
from pipeline.media import resolve
from pipeline.pacing.budget import Pacer
from pipeline.records import Failure, Modality, Part, ServiceKind
from pipeline.schema import concat
from pipeline.spec import RunSpec
from pipeline.store.events import read_refused
from pipeline.store.journal import open_journal
from pipeline.store.layout import events_folder, list_parquet, new_segment_id, segments_folder
from pipeline.store.run_files import buyers_uri, read_block, read_rows_at
from pipeline.store.segments import read_index

BATCH_ITEMS = 128
BATCH_BYTES = 32 * 1024 * 1024
_MEDIA_THREADS = 16
_EMIT_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a lane's work: one row group of a shard's buyers."""

    shard: int
    number: int
    rows: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of some of a lane's items: INDEX rows of those with a vector, REFUSED rows of the others."""

    index: pa.Table
    refused: pa.Table


def open_engine(spec: RunSpec) -> Engine:
    """Return this process's engine of the run, made on first use.

    Raises: ConfigError when the API key is not in the environment.
    """
    return get_engine(spec.run, lambda: _make_engine(spec))


def embed_lane(blocks: Sequence[Block], spec: RunSpec, engine: Engine) -> Iterator[Outcomes | LaneReport]:
    """Buy what a lane's blocks miss; give outcomes as they gather and the lane's report at the end.

    A lane that an engine runs again begins with what its first try already bought. A run that stops leaves the rest out:
    whatever is in no outcome was not bought.
    """
    before = _own_outcomes(spec)
    done = set(before.index.column("fingerprint").to_pylist()) | set(before.refused.column("fingerprint").to_pylist())
    yield before
    engine.expect(sum(block.rows for block in sorted(blocks, key=_order)))
    sink, gathered = Sink(), _Gathered()
    with ThreadPoolExecutor(_MEDIA_THREADS, thread_name_prefix="arkbeam-media") as pool:
        for batch in _batches(blocks, spec, done, sink, pool):
            if not engine.submit(batch, sink):
                break
            yield from gathered.add(sink)
    report = engine.finish(sink)
    yield from gathered.add(sink)
    yield gathered.take()
    yield report


def _make_engine(spec: RunSpec) -> Engine:
    api_key = read_api_key(spec.api.api_key_env) if spec.needs_key else "stand-in"
    limits, store = spec.limits, spec.store
    stand_in = spec.service is ServiceKind.STAND_IN
    process = f"{os.getpid()}-{secrets.token_hex(4)}"
    recorder = Recorder(
        StoreTarget(store.uri, spec.run, spec.dimensions), segment_ids(), open_journal(store.uri, spec.run, process)
    )
    return Engine(
        EngineOptions(limits, spec.dimensions, stand_in, store.flush_rows, store.flush_s),
        lambda: ArkClient(spec.api, api_key, connections_max=limits.requests_in_flight),
        lambda now_s: Pacer(spec.rpm, spec.tpm, spec.quota.headroom / spec.processes, now_s),
        recorder,
    )


def segment_ids() -> Iterator[int]:
    """Give ids for this process's segments, ever larger."""
    previous = 0
    while True:
        previous = new_segment_id(time.time(), secrets.randbits(22), previous)
        yield previous


class _Gathered:
    """Outcomes until they are worth an element: a table for each segment would be thousands of small ones."""

    def __init__(self) -> None:
        self._index: list[pa.Table] = []
        self._refused: list[pa.Table] = []
        self._rows = 0

    def add(self, sink: Sink) -> Iterator[Outcomes]:
        index, refused = sink.collect()
        self._index += index
        self._refused.append(refused)
        self._rows += sum(table.num_rows for table in index) + refused.num_rows
        if self._rows >= _EMIT_ROWS:
            yield self.take()

    def take(self) -> Outcomes:
        outcomes = Outcomes(concat(self._index, schema.INDEX), concat(self._refused, schema.REFUSED))
        self._index, self._refused, self._rows = [], [], 0
        return outcomes


def _own_outcomes(spec: RunSpec) -> Outcomes:
    """Read what this very run has in the store: nothing, unless the lane is run again."""
    segments = list_parquet(segments_folder(spec.store.uri, spec.run))
    events = list_parquet(events_folder(spec.store.uri, spec.run))
    return Outcomes(
        concat([read_index(uri) for uri in segments], schema.INDEX),
        concat([read_refused(uri) for uri in events], schema.REFUSED),
    )


def _order(block: Block) -> tuple[int, int]:
    return block.shard, block.number


def _batches(
    blocks: Sequence[Block], spec: RunSpec, done: set[bytes], sink: Sink, pool: ThreadPoolExecutor
) -> Iterator[list[Item]]:
    """Encode the rows of the blocks, in the order of the manifest, in batches of bounded count and bytes."""
    batch: list[Item] = []
    size = 0
    for block in sorted(blocks, key=_order):
        for rows in _read_rows(block, spec, done):
            for item in _encode(rows, spec, sink, pool):
                batch.append(item)
                size += len(item.body)
                if len(batch) >= BATCH_ITEMS or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Row:
    fingerprint: bytes
    staged: StagedRequest
    tokens: int


def _read_rows(block: Block, spec: RunSpec, done: set[bytes]) -> Iterator[list[_Row]]:
    """Read a block's requests, a few at a time, without those that are done."""
    buyers = read_block(buyers_uri(spec.store.uri, spec.run, block.shard), block.number)
    tokens = buyers["text_tokens"].to_numpy().astype(np.int64) + buyers["image_tokens"].to_numpy()
    ordinals = buyers["ordinal"].to_numpy()
    start = 0
    for table in read_rows_at(spec.store.uri, spec.run, block.shard, ordinals, ["request"]):
        requests = table.column("request").to_pylist()
        for first in range(0, len(requests), _MEDIA_THREADS):
            low, high = start + first, start + min(first + _MEDIA_THREADS, len(requests))
            fingerprints = buyers["fingerprint"].slice(low, high - low).to_pylist()
            rows = zip(fingerprints, requests[first : first + _MEDIA_THREADS], tokens[low:high].tolist(), strict=True)
            yield [_Row(name, request_from_json(body), count) for name, body, count in rows if name not in done]
        start += len(requests)


def _encode(rows: Sequence[_Row], spec: RunSpec, sink: Sink, pool: ThreadPoolExecutor) -> Iterator[Item]:
    """Turn rows into requests as they are sent. A medium that can't be had is a failure, and nothing is sent."""
    with_media = any(row.staged.request.modality is not Modality.TEXT for row in rows)
    encoded = (
        pool.map(lambda row: _encode_row(row, spec), rows) if with_media else (_encode_row(row, spec) for row in rows)
    )
    for row, result in zip(rows, encoded, strict=True):
        if isinstance(result, Failure):
            sink.add(1)
            sink.counts.failed += 1
            sink.refuse(row.fingerprint, result.code, result.message)
        else:
            yield result


def _encode_row(row: _Row, spec: RunSpec) -> Item | Failure:
    request = row.staged.request
    parts = []
    for part, version in zip(request.parts, row.staged.versions, strict=True):
        value = (
            part.value
            if part.modality is Modality.TEXT
            else resolve(part.value, part.modality, version, spec.reading.media)
        )
        if isinstance(value, Failure):
            return value
        parts.append(Part(part.modality, value))
    body = encode_request(type(request)(tuple(parts), request.instructions, request.sparse), spec.wire)
    if len(body) > REQUEST_BYTES_MAX:
        return Failure(
            "request_too_large", f"the request has {len(body):,} bytes; the service takes {REQUEST_BYTES_MAX:,}"
        )
    return Item(row.fingerprint, body, request.modality, request.sparse, float(row.tokens))
