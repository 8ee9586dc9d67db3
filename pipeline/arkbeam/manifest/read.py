"""Reading a shard: physical rows in, tables out. Rows are parsed and checked once, here; later stages trust them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from arkbeam.ark.tokens import estimate_request
from arkbeam.base import schema
from arkbeam.base.capabilities import exceeds_context
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure, Modality, Request
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RowBatch, quote_row
from arkbeam.manifest.fingerprint import Fingerprinter
from arkbeam.manifest.formats import read_batches
from arkbeam.manifest.kept import build_kept, cast_kept, take_kept, unify_kept
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.retries import Retry, is_masked, read_retry
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import Shard, folder_of
from arkbeam.manifest.staging import StagedRequest, list_changes, request_to_json, text_to_json
from arkbeam.manifest.storage import check_unchanged
from arkbeam.media import MediaInfo, MediaMemory, inspect_many

__all__ = ["ShardChunk", "cast_kept", "read_shard", "unify_kept"]

_TEXT = Modality.TEXT
_PASSED = MediaInfo()

Looks = Mapping[tuple[str, Modality], MediaInfo | Failure]


@dataclass(frozen=True, slots=True)
class ShardChunk:
    """Some consecutive rows of a shard: each physical row is staged, unreadable or blank."""

    staged: pa.Table
    """`schema.STAGED`, and a struct column `kept` where the config keeps columns; its type may differ between chunks."""
    keys: pa.Table
    """`schema.KEYS`. A row's ordinal is its position among all staged rows of the shard."""
    unreadable: pa.Table
    """`schema.UNREADABLE`."""
    rows: int
    """Physical rows, blank ones included: the next chunk's begin after them."""
    blank: int
    over_context: int = 0
    """Staged rows whose estimate is above the model's context. They are sent whole: the service decides."""


def read_shard(
    shard: Shard, options: ManifestOptions, context: ReadContext, memory: MediaMemory | None = None
) -> Iterator[ShardChunk]:
    """Yield a shard's rows in order, in chunks of at most 4,096 rows or about 8 MB.

    `row` counts from the shard's first physical line or record; a CSV's header is not counted. A row that can't be read,
    or whose media can't be sent, is a row of `unreadable`. Media that `memory` knows are not read again unless they have
    changed. Of a shard that was made of failures the rows that these name alone are read. Raises ManifestError when the
    file as a whole can't be read, or is not any more what it was when it was cut.
    """
    if shard.failures:
        yield from _read_again(read_retry(shard.manifest, shard.failures, options), shard, options, context, memory)
    else:
        yield from _read_chunks(shard, options, context, memory, None)


def _read_chunks(
    shard: Shard, options: ManifestOptions, context: ReadContext, memory: MediaMemory | None, retry: Retry | None
) -> Iterator[ShardChunk]:
    model = context.model
    parser = RowParser(options, model, folder_of(shard.manifest))
    fingerprinter = Fingerprinter(context.service, model.name, model.wire.dimensions, model.asks_multi)
    first_row = first_ordinal = 0
    check_unchanged(shard.manifest, shard.version)
    for batch in read_batches(shard, options, parser.columns, retry):
        if retry is not None:
            retry.pick(batch, first_row)
        chunk = _Chunk(batch, first_row)
        chunk.parse(parser, options)
        chunk.identify(fingerprinter, context, memory)
        yield chunk.build(shard.number, first_ordinal, options)
        first_row += len(batch.rows)
        first_ordinal += len(chunk.readable)
        if retry is not None and first_row >= retry.ends_at:
            return
    check_unchanged(shard.manifest, shard.version)


def _read_again(
    retry: Retry, shard: Shard, options: ManifestOptions, context: ReadContext, memory: MediaMemory | None
) -> Iterator[ShardChunk]:
    """Read the rows that failures name, in one pass over their manifest; then give those that can't be tried again."""
    gone = is_masked(shard.manifest)
    if not gone:
        try:
            yield from _read_chunks(shard, options, context, memory, retry)
        except ManifestError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            gone = True
    for table in retry.rest(gone=gone):
        yield ShardChunk(schema.STAGED.empty_table(), schema.KEYS.empty_table(), table, 0, 0)


@dataclass(slots=True)
class _Chunk:
    """A batch on its way to tables. Lists run in step: one entry for each readable, or each unreadable, row."""

    batch: RowBatch
    first_row: int
    readable: list[int] = field(default_factory=list)
    """Positions in the batch."""
    ids: list[str | None] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    unreadable_ids: list[str | None] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    fingerprints: list[bytes] = field(default_factory=list)
    staged: list[bytes] = field(default_factory=list)
    changes: list[list[str] | None] = field(default_factory=list)
    text_tokens: list[int] = field(default_factory=list)
    image_tokens: list[int] = field(default_factory=list)
    blank: int = 0
    over_context: int = 0

    def parse(self, parser: RowParser, options: ManifestOptions) -> None:
        """Sort the batch's rows into readable, unreadable and blank."""
        keep = options.keep if self.batch.kept is None else ()
        ids = self.batch.ids
        for position, row in enumerate(self.batch.rows):
            if row is None:
                self.blank += 1
                continue
            if isinstance(row, Failure):
                self._fail(position, None if ids is None else ids[position], row)
                continue
            row_id, outcome = parser.parse(row)
            if ids is not None:
                row_id = ids[position]
            if keep and isinstance(outcome, Request):
                outcome = _check_kept(row, keep) or outcome
            if isinstance(outcome, Request):
                self.readable.append(position)
                self.ids.append(row_id)
                self.requests.append(outcome)
            else:
                self._fail(position, row_id, outcome)

    def _fail(self, position: int, row_id: str | None, failure: Failure) -> None:
        self.unreadable.append(position)
        self.unreadable_ids.append(row_id)
        self.failures.append(failure)

    def identify(self, fingerprinter: Fingerprinter, context: ReadContext, memory: MediaMemory | None) -> None:
        """Fill in fingerprints, staged JSON and estimates; rows whose media can't be sent move to the unreadable."""
        wanted = {
            (part.value, part.modality): None
            for request in self.requests
            if len(request.parts) > 1 or request.parts[0].modality is not _TEXT
            for part in request.parts
            if part.modality is not _TEXT
        }
        looks = inspect_many(wanted, context.media, memory) if wanted else {}
        known = {uri: look for (uri, _), look in looks.items() if isinstance(look, MediaInfo)}
        sizes = {uri: look.size_px for uri, look in known.items() if look.size_px}
        durations_s = {uri: look.duration_s for uri, look in known.items() if look.duration_s}
        if wanted:
            self._drop_unsendable(looks, context)
        capabilities = context.model.capabilities
        for request in self.requests:
            parts = request.parts
            if len(parts) == 1 and parts[0].modality is _TEXT:
                self.fingerprints.append(fingerprinter.of_text(parts[0].value, request.instructions, request.sparse))
                self.staged.append(text_to_json(parts[0].value, request.instructions, request.sparse))
                self.changes.append(None)
            else:
                self._identify_parts(request, looks, fingerprinter, context.media.image_bytes_max)
            tokens = estimate_request(request, sizes, durations_s)
            self.text_tokens.append(tokens.text)
            self.image_tokens.append(tokens.image)
            if exceeds_context(tokens, capabilities):
                self.over_context += 1

    def _identify_parts(
        self, request: Request, looks: Looks, fingerprinter: Fingerprinter, image_bytes_max: int
    ) -> None:
        of_parts = [_look_of(looks, part.value, part.modality) for part in request.parts]
        versions = tuple(look.version for look in of_parts)
        fits = tuple(look.fit for look in of_parts)
        keys = [None if fit is None else fit.key for fit in fits]
        self.fingerprints.append(fingerprinter.of_request(request, versions, keys))
        wire_bytes = sum(_bytes_as_sent(look, image_bytes_max) for look in of_parts)
        self.staged.append(request_to_json(StagedRequest(request, versions, fits, wire_bytes)))
        self.changes.append(list_changes(fits))

    def _drop_unsendable(self, looks: Looks, context: ReadContext) -> None:
        rows = list(zip(self.readable, self.ids, self.requests, strict=True))
        self.readable, self.ids, self.requests = [], [], []
        for position, row_id, request in rows:
            failure = _find_unsendable(request, looks, context.media.body_bytes_max)
            if failure is not None:
                self._fail(position, row_id, failure)
                continue
            self.readable.append(position)
            self.ids.append(row_id)
            self.requests.append(request)

    def build(self, shard: int, first_ordinal: int, options: ManifestOptions) -> ShardChunk:
        """Make the tables, each column from one list."""
        count = len(self.readable)
        columns = [
            pa.array([self.first_row + position for position in self.readable], pa.uint64()),
            pa.array(self.ids, pa.string()),
            pa.array(self.fingerprints, schema.FINGERPRINT),
            pa.array(self.staged, pa.large_binary()),
            pa.array(self.changes, schema.MEDIA_CHANGES),
            pa.array([quote_row(self.batch, position) for position in self.readable], pa.large_string()),
        ]
        staged = pa.table(columns, schema=schema.STAGED)
        if options.keep:
            staged = staged.append_column("kept", self._kept(options.keep))
        keys = [
            columns[2],
            pa.repeat(pa.scalar(shard, pa.uint32()), count),
            pa.array(range(first_ordinal, first_ordinal + count), pa.uint32()),
            pa.array(self.text_tokens, pa.uint32()),
            pa.array(self.image_tokens, pa.uint32()),
        ]
        return ShardChunk(
            staged,
            pa.table(keys, schema=schema.KEYS),
            self._build_unreadable(),
            len(self.batch.rows),
            self.blank,
            self.over_context,
        )

    def _build_unreadable(self) -> pa.Table:
        order = sorted(range(len(self.unreadable)), key=self.unreadable.__getitem__)
        columns = [
            pa.array([self.first_row + self.unreadable[index] for index in order], pa.uint64()),
            pa.array([self.unreadable_ids[index] for index in order], pa.string()),
            pa.array([self.failures[index].code for index in order], pa.string()),
            pa.array([self.failures[index].message for index in order], pa.string()),
            pa.array([quote_row(self.batch, self.unreadable[index]) for index in order], pa.large_string()),
        ]
        return pa.table(columns, schema=schema.UNREADABLE)

    def _kept(self, names: Sequence[str]) -> pa.StructArray:
        if self.batch.kept is not None:
            return take_kept(self.batch.kept, self.readable)
        rows: list[Any] = [self.batch.rows[position] for position in self.readable]
        return build_kept(names, [[row.get(name) for row in rows] for name in names])


def _check_kept(row: Mapping[str, Any], names: Sequence[str]) -> Failure | None:
    """Refuse kept cells that are nested too deep to be written: 254 levels, by orjson."""
    for name in names:
        value = row.get(name)
        if type(value) in (dict, list):
            try:
                orjson.dumps(value)
            except orjson.JSONEncodeError:
                return Failure("bad_field", f"column {redact(name, 100)} is nested too deep to be kept")
    return None


def _look_of(looks: Looks, value: str, modality: Modality) -> MediaInfo:
    look = looks.get((value, modality), _PASSED)
    return look if isinstance(look, MediaInfo) else _PASSED


def _bytes_as_sent(look: MediaInfo, image_bytes_max: int) -> int:
    """About how long a medium is as sent, if it is read or changed for it; what is changed has 4 bytes a pixel at most."""
    if look.fit is not None:
        width, height = look.fit.size_px
        return min(4 * width * height, image_bytes_max) * 4 // 3
    return 0 if look.version is None else look.wire_bytes or 0


def _find_unsendable(request: Request, looks: Looks, body_bytes_max: int) -> Failure | None:
    """Why a row's media can't be sent: the first that is refused, or that all together are too large for one body."""
    length = 0
    for part in request.parts:
        look = looks.get((part.value, part.modality), _PASSED)
        if isinstance(look, Failure):
            return look
        length += look.wire_bytes or len(part.value)
    if length <= body_bytes_max:
        return None
    return Failure("request_too_large", f"its parts have {length} bytes as sent; a request holds {body_bytes_max}")
