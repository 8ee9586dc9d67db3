"""Staged rows become requests as they are sent: media resolved, bodies encoded, in batches of bounded count and bytes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.ark.tokens import bound_request
from pipeline.ark.wire import UnencodableRequest, encode_request
from pipeline.engine.items import Item
from pipeline.manifest.staging import StagedRequest, request_from_json
from pipeline.media import resolve
from pipeline.pacing.spending import NOTHING
from pipeline.records import Failure, Modality
from pipeline.spec import RunSpec
from pipeline.store.run_files import read_rows_at

BATCH_ITEMS = 128
BATCH_BYTES = 32 * 1024 * 1024
MEDIA_THREADS = 16  # images read together: with 10 MB each, about 200 MB as base64


@dataclass(frozen=True, slots=True)
class Unsendable:
    """A row that can't be sent, and why: its medium is gone or has changed, or the request is too large."""

    fingerprint: bytes
    failure: Failure


@dataclass(frozen=True, slots=True)
class _Row:
    fingerprint: bytes
    staged: StagedRequest
    tokens: int
    image_tokens: int


def encode_rows(buyers: pa.Table, shard: int, spec: RunSpec, pool: ThreadPoolExecutor) -> Iterator[Item | Unsendable]:
    """Read the requests of a shard's buyers (KEYS, in order) and encode them.

    Images are read many at a time in `pool`, videos one at a time, since each may be 50 MB.
    """
    for rows in _read_rows(buyers, shard, spec):
        heaviest = {row.staged.request.modality for row in rows}
        together = Modality.IMAGE in heaviest and Modality.VIDEO not in heaviest
        yield from (pool.map if together else map)(lambda row: _encode_row(row, spec), rows)


def batch_items(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Gather items into batches: our unit of submission, since the API takes one sample a request."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.body)
        if len(batch) >= BATCH_ITEMS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_rows(buyers: pa.Table, shard: int, spec: RunSpec) -> Iterator[list[_Row]]:
    image_tokens = buyers["image_tokens"].to_numpy().astype(np.int64)
    tokens = buyers["text_tokens"].to_numpy() + image_tokens
    fingerprints = buyers["fingerprint"].to_pylist()
    start = 0
    for table in read_rows_at(spec.store.uri, spec.run, shard, buyers["ordinal"].to_numpy(), ["request"]):
        bodies = table["request"].to_pylist()
        end = start + len(bodies)
        counts = (tokens[start:end].tolist(), image_tokens[start:end].tolist())
        rows = zip(fingerprints[start:], bodies, *counts, strict=False)
        staged = [_Row(name, request_from_json(body), *counted) for name, body, *counted in rows]
        for first in range(0, len(staged), MEDIA_THREADS):
            yield staged[first : first + MEDIA_THREADS]
        start += len(bodies)


def _encode_row(row: _Row, spec: RunSpec) -> Item | Unsendable:
    request = row.staged.request
    parts = []
    for index, (part, version) in enumerate(zip(request.parts, row.staged.versions, strict=True)):
        if part.modality is Modality.TEXT:
            parts.append(part)
            continue
        value = resolve(part.value, part.modality, version, spec.reading.media, row.staged.fit_of(index))
        if isinstance(value, Failure):
            return Unsendable(row.fingerprint, value)
        parts.append(replace(part, value=value))
    length, length_max = sum(len(part.value) for part in parts), spec.reading.media.body_bytes_max
    if length > length_max:
        message = f"its parts have {length} bytes as sent; a request holds {length_max}"
        return Unsendable(row.fingerprint, Failure("request_too_large", message))
    try:
        body = encode_request(replace(request, parts=tuple(parts)), spec.wire)
    except UnencodableRequest as error:
        return Unsendable(row.fingerprint, Failure("request_not_encodable", str(error)))
    bound = spec.prices.of_bound(bound_request(request, row.image_tokens)) if spec.budget.is_set else NOTHING
    return Item(row.fingerprint, body, request.modality, request.sparse, float(row.tokens), bound)
