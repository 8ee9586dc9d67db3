"""Read a shard into tables. Rows are parsed and checked only here; later stages do not check them again."""

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
from arkbeam.manifest.csv_rows import read_csv
from arkbeam.manifest.failures import FailedRows, is_masked, list_failed_rows
from arkbeam.manifest.fingerprint import Fingerprinter
from arkbeam.manifest.jsonl_rows import read_jsonl
from arkbeam.manifest.kept import build_kept, take_kept
from arkbeam.manifest.lines import iter_lines
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.parquet_rows import read_parquet
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import Shard, folder_of
from arkbeam.manifest.staging import StagedRequest, list_changes, request_to_json, text_to_json
from arkbeam.manifest.storage import check_unchanged, open_manifest
from arkbeam.media import MediaCache, MediaInfo, inspect_many

_TEXT = Modality.TEXT
_NOTHING_FOUND = MediaInfo()  # for texts, which are not inspected

Looks = Mapping[tuple[str, Modality], MediaInfo | Failure]
"""What inspection found out about the media of a chunk, by URI and modality."""


@dataclass(frozen=True, slots=True)
class ShardChunk:
    """Consecutive rows of a shard. Each physical row is staged, unreadable or blank."""

    staged: pa.Table
    """`schema.STAGED`, and a struct column `kept` if manifest.keep is set; its type may differ between chunks."""
    keys: pa.Table
    """`schema.KEYS`, one row per staged row. The ordinal is the row's position among all staged rows of the shard."""
    unreadable: pa.Table
    """`schema.UNREADABLE`."""
    rows: int
    """Number of physical rows, including blank ones; the next chunk starts after them."""
    over_context: int = 0
    """Number of staged rows whose estimated tokens exceed the model's context. They are sent uncut: the service
    decides."""


def read_shard(
    shard: Shard, options: ManifestOptions, context: ReadContext, cache: MediaCache | None = None
) -> Iterator[ShardChunk]:
    """Yield a shard's rows in order, in chunks of at most 4,096 rows or about 8 MB.

    `row` counts from the first physical line or record of the shard; a CSV header is not counted. A row that can't be
    read, or whose media can't be sent, is a row of `unreadable`. Media that are in `cache` are read only if they have
    changed. If failure tables name the shard's rows, only those rows are read. Raise ManifestError if the file as a
    whole can't be read, or if it has changed since it was cut into shards.
    """
    if shard.failures:
        yield from _read_failed_rows(
            list_failed_rows(shard.manifest, shard.failures, options), shard, options, context, cache
        )
    else:
        yield from _read_chunks(shard, options, context, cache, None)


def _read_chunks(
    shard: Shard, options: ManifestOptions, context: ReadContext, cache: MediaCache | None, failed: FailedRows | None
) -> Iterator[ShardChunk]:
    model = context.model
    parser = RowParser(options, model, folder_of(shard.manifest))
    fingerprinter = Fingerprinter(context.service, model.name, model.wire.dimensions, model.asks_multi)
    first_row = first_ordinal = 0
    check_unchanged(shard.manifest, shard.version)
    for batch in _read_batches(shard, options, parser.columns, failed):
        if failed is not None:
            failed.pick(batch, first_row)
        chunk = _Chunk(batch, first_row)
        chunk.parse(parser, options)
        chunk.identify(fingerprinter, context, cache)
        yield chunk.build(shard.number, first_ordinal, options)
        first_row += len(batch.rows)
        first_ordinal += len(chunk.readable)
        if failed is not None and first_row >= failed.ends_at:
            return
    check_unchanged(shard.manifest, shard.version)


def _read_failed_rows(
    failed: FailedRows, shard: Shard, options: ManifestOptions, context: ReadContext, cache: MediaCache | None
) -> Iterator[ShardChunk]:
    """Read the rows that failure tables name, in one pass over their manifest; then yield those that can't be read again."""
    gone = is_masked(shard.manifest)
    if not gone:
        try:
            yield from _read_chunks(shard, options, context, cache, failed)
        except ManifestError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            gone = True
    for table in failed.rest(gone=gone):
        yield ShardChunk(schema.STAGED.empty_table(), schema.KEYS.empty_table(), table, 0)


def _read_batches(
    shard: Shard, options: ManifestOptions, columns: frozenset[str], failed: FailedRows | None
) -> Iterator[RowBatch]:
    """Yield all physical rows of a shard in order.

    `columns` are the columns that are needed in addition to the kept ones; of a Parquet file no others are read. With
    `failed`, rows that it does not name may be yielded as blank rows. Raise ManifestError if the file as a whole, or
    the header of a CSV file, can't be read.
    """
    if shard.format == "parquet":
        yield from read_parquet(shard, options, columns, None if failed is None else failed.wants)
        return
    start = max(shard.start - 1, 0)
    with open_manifest(shard.manifest, shard.compression, start, options) as source:
        lines = iter_lines(source, shard.start, shard.end, options.line_bytes_max)
        if shard.format == "jsonl":
            yield from read_jsonl(lines, options, None if failed is None else frozenset(failed.rows.tolist()))
        else:
            yield from read_csv(lines, shard.manifest, "\t" if shard.format == "tsv" else ",", options)


@dataclass(slots=True)
class _Chunk:
    """A batch that is being turned into tables. Each list has one entry per readable, or per unreadable, row."""

    batch: RowBatch
    first_row: int
    readable: list[int] = field(default_factory=list)
    """Positions of the readable rows in the batch."""
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
    over_context: int = 0

    def parse(self, parser: RowParser, options: ManifestOptions) -> None:
        """Sort the rows of the batch into readable, unreadable and blank."""
        keep = options.keep if self.batch.kept is None else ()
        ids = self.batch.ids
        for position, row in enumerate(self.batch.rows):
            if row is None:
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

    def identify(self, fingerprinter: Fingerprinter, context: ReadContext, cache: MediaCache | None) -> None:
        """Compute fingerprints, staged JSON and estimates; rows whose media can't be sent become unreadable."""
        wanted = {
            (part.value, part.modality): None
            for request in self.requests
            if len(request.parts) > 1 or request.parts[0].modality is not _TEXT
            for part in request.parts
            if part.modality is not _TEXT
        }
        looks = inspect_many(wanted, context.media, cache) if wanted else {}
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
        work_bytes = sum(look.held_bytes or 0 for look in of_parts)
        self.staged.append(request_to_json(StagedRequest(request, versions, fits, wire_bytes, work_bytes)))
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
        """Build the tables, each column from one list."""
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
    """Return a failure if a kept cell is nested too deeply to be written (orjson allows 254 levels), else None."""
    for name in names:
        value = row.get(name)
        if type(value) in (dict, list):
            try:
                orjson.dumps(value)
            except orjson.JSONEncodeError:
                return Failure(
                    "bad_field",
                    f"column {redact(name, 100)} is nested too deeply to be kept (limit: 254 levels): remove it from manifest.keep",
                )
    return None


def _look_of(looks: Looks, value: str, modality: Modality) -> MediaInfo:
    look = looks.get((value, modality), _NOTHING_FOUND)
    return look if isinstance(look, MediaInfo) else _NOTHING_FOUND


def _bytes_as_sent(look: MediaInfo, image_bytes_max: int) -> int:
    """Return about how many bytes a medium has as sent; 0 if it is passed on as a URL.

    A changed image has at most 4 bytes per pixel. Base64 adds a third.
    """
    if look.fit is not None:
        width, height = look.fit.size_px
        return min(4 * width * height, image_bytes_max) * 4 // 3
    return 0 if look.version is None else look.wire_bytes or 0


def _find_unsendable(request: Request, looks: Looks, body_bytes_max: int) -> Failure | None:
    """Return why a row's media can't be sent: the first refused medium, or their total size; None if they can be sent."""
    length = 0
    for part in request.parts:
        look = looks.get((part.value, part.modality), _NOTHING_FOUND)
        if isinstance(look, Failure):
            return look
        length += look.wire_bytes or len(part.value)
    if length <= body_bytes_max:
        return None
    return Failure(
        "request_too_large",
        f"the parts have {length} bytes as sent; a request may have at most {body_bytes_max} (media.body_bytes_max)",
    )
