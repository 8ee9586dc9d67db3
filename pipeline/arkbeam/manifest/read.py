"""Read a shard into tables. Rows are parsed and checked only here; later stages do not check them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from arkbeam.ark.tokens import estimate_request, estimate_texts
from arkbeam.base import schema
from arkbeam.base.capabilities import Capabilities, exceeds_context
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import Failure, Modality, Request, TokenEstimate
from arkbeam.base.redaction import also_mask, redact
from arkbeam.manifest.batches import RowBatch, quote_rows
from arkbeam.manifest.columns import ColumnWatch
from arkbeam.manifest.failures import FailedRows, is_masked, list_failed_rows
from arkbeam.manifest.fingerprint import Fingerprinter
from arkbeam.manifest.hive import fill_missing, list_folder_values
from arkbeam.manifest.jsonl_rows import blame_json
from arkbeam.manifest.kept import JsonWriter, Kept, build_kept, take_kept
from arkbeam.manifest.kinds import Kind
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.raw_rows import ShardPlace, read_batches
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import Shard, folder_of
from arkbeam.manifest.staging import StagedRequest, list_changes, request_to_json, text_to_json
from arkbeam.manifest.storage import check_unchanged
from arkbeam.media import MediaCache, MediaInfo, inspect_many

_TEXT = Modality.TEXT
_LEVELS_MAX = 254  # orjson writes no more
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
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """What the values of each kept column are."""
    not_finite: int = 0
    """Number of kept values that are NaN or Infinity in JSON, and null here."""


def read_shard(
    shard: Shard,
    options: ManifestOptions,
    context: ReadContext,
    cache: MediaCache | None = None,
    watch: ColumnWatch | None = None,
    place: ShardPlace | None = None,
) -> Iterator[ShardChunk]:
    """Yield a shard's rows in order, in chunks of at most 4,096 rows or about 8 MB.

    `row` counts from the first physical line or record of the shard; a CSV header is not counted. A row that can't be
    read, or whose media can't be sent, is a row of `unreadable`. Media that are in `cache` are read only if they have
    changed. If failure tables name the shard's rows, only those rows are read. `watch` notes the shard's columns, and
    `place` how much of it is read. Raise ManifestError if the file as a whole can't be read, or if it has changed since
    it was cut into shards.
    """
    watch, place = watch or ColumnWatch(()), place or ShardPlace()
    if shard.failures:
        failed = list_failed_rows(shard.manifest, shard.failures, options)
        yield from _read_failed_rows(failed, shard, options, context, cache, watch, place)
    else:
        yield from _read_chunks(shard, options, context, cache, watch, place, None)


def _read_chunks(
    shard: Shard,
    options: ManifestOptions,
    context: ReadContext,
    cache: MediaCache | None,
    watch: ColumnWatch,
    place: ShardPlace,
    failed: FailedRows | None,
) -> Iterator[ShardChunk]:
    model = context.model
    parser = RowParser(options, model, folder_of(shard.manifest))
    ignored = context.media.url_ignore_params
    also_mask(ignored)
    fingerprinter = Fingerprinter(context.service, model.name, model.wire.dimensions, model.asks_multi, ignored)
    from_folders = list_folder_values(shard.manifest, options.keep)
    watch.note_path(from_folders)
    first_row = first_ordinal = 0
    check_unchanged(shard.manifest, shard.version)
    for batch in read_batches(shard, options, parser, context, watch, place, failed):
        if failed is not None:
            failed.pick(batch, first_row)
        chunk = _Chunk(batch, first_row, from_folders)
        chunk.parse(parser, options)
        watch.note_rows(batch.rows, requests=len(chunk.readable))
        chunk.identify(parser, fingerprinter, context, cache)
        yield chunk.build(shard.number, first_ordinal, options)
        first_row += len(batch.rows)
        first_ordinal += len(chunk.readable)
        if failed is not None and first_row >= failed.ends_at:
            return
    check_unchanged(shard.manifest, shard.version)


def _read_failed_rows(
    failed: FailedRows,
    shard: Shard,
    options: ManifestOptions,
    context: ReadContext,
    cache: MediaCache | None,
    watch: ColumnWatch,
    place: ShardPlace,
) -> Iterator[ShardChunk]:
    """Read the rows that failure tables name, in one pass over their manifest; then yield those that can't be read again."""
    gone = is_masked(shard.manifest)
    if not gone:
        try:
            yield from _read_chunks(shard, options, context, cache, watch, place, failed)
        except ManifestError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            gone = True
    for table in failed.rest(gone=gone):
        yield ShardChunk(schema.STAGED.empty_table(), schema.KEYS.empty_table(), table, 0)


@dataclass(slots=True)
class _Chunk:
    """A batch that is being turned into tables. Each list has one entry per readable, or per unreadable, row."""

    batch: RowBatch
    first_row: int
    from_folders: Mapping[str, str | None]
    """Kept columns that are in the names of folders. A column of the same name in the file takes precedence."""
    readable: list[int] = field(default_factory=list)
    """Positions of the readable rows in the batch."""
    ids: list[str | None] = field(default_factory=list)
    requests: list[Request | str] = field(default_factory=list)
    """Of a row with one text and the settings of the run, the text alone (`RowParser.parse_text`)."""
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
            line = self.batch.originals[position]
            outcome: Request | str | Failure
            row_id, outcome = parser.parse_text(row) or parser.parse(row, line)
            if ids is not None:
                row_id = ids[position]
            if keep and not isinstance(outcome, Failure):
                outcome = _check_kept(row, keep, line) or outcome
            if isinstance(outcome, Failure):
                self._fail(position, row_id, blame_json(line, outcome) if type(line) is bytes else outcome)
            else:
                self.readable.append(position)
                self.ids.append(row_id)
                self.requests.append(outcome)

    def _fail(self, position: int, row_id: str | None, failure: Failure) -> None:
        self.unreadable.append(position)
        self.unreadable_ids.append(row_id)
        self.failures.append(failure)

    def identify(
        self, parser: RowParser, fingerprinter: Fingerprinter, context: ReadContext, cache: MediaCache | None
    ) -> None:
        """Compute fingerprints, staged JSON and estimates; rows whose media can't be sent become unreadable."""
        wanted = {
            (part.value, part.modality): None
            for request in self.requests
            if type(request) is Request
            for part in request.parts
            if part.modality is not _TEXT
        }
        looks = inspect_many(wanted, context.media, cache) if wanted else {}
        known = {uri: look for (uri, _), look in looks.items() if isinstance(look, MediaInfo)}
        sizes = {uri: look.size_px for uri, look in known.items() if look.size_px}
        durations_s = {uri: look.duration_s for uri, look in known.items() if look.duration_s}
        if wanted:
            self._drop_unsendable(parser, looks, context)
        usual = parser.text_request("")
        besides = estimate_request(usual, {}).text
        estimates = iter(estimate_texts([request for request in self.requests if isinstance(request, str)]).tolist())
        for request in self.requests:
            if isinstance(request, str):
                self._identify_text(request, usual, fingerprinter)
                self.text_tokens.append(besides + next(estimates))
                self.image_tokens.append(0)
                continue
            parts = request.parts
            if len(parts) == 1 and parts[0].modality is _TEXT:
                self._identify_text(parts[0].value, request, fingerprinter)
            else:
                self._identify_parts(request, looks, fingerprinter, context.media.image_bytes_max)
            tokens = estimate_request(request, sizes, durations_s)
            self.text_tokens.append(tokens.text)
            self.image_tokens.append(tokens.image)
        self.over_context = _count_over_context(self.text_tokens, self.image_tokens, context.model.capabilities)

    def _identify_text(self, text: str, settings: Request, fingerprinter: Fingerprinter) -> None:
        self.fingerprints.append(fingerprinter.of_text(text, settings.instructions, settings.sparse))
        self.staged.append(text_to_json(text, settings.instructions, settings.sparse))
        self.changes.append(None)

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

    def _drop_unsendable(self, parser: RowParser, looks: Looks, context: ReadContext) -> None:
        rows = list(zip(self.readable, self.ids, self.requests, strict=True))
        self.readable, self.ids, self.requests = [], [], []
        for position, row_id, request in rows:
            whole = parser.text_request(request) if isinstance(request, str) else request
            failure = _find_unsendable(whole, looks, context.media.body_bytes_max)
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
            quote_rows(self.batch, self.readable),
        ]
        staged = pa.table(columns, schema=schema.STAGED)
        kept = self._kept(options.keep)
        if options.keep:
            staged = staged.append_column("kept", kept.columns)
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
            kept.kinds,
            kept.not_finite,
        )

    def _build_unreadable(self) -> pa.Table:
        order = sorted(range(len(self.unreadable)), key=self.unreadable.__getitem__)
        columns = [
            pa.array([self.first_row + self.unreadable[index] for index in order], pa.uint64()),
            pa.array([self.unreadable_ids[index] for index in order], pa.string()),
            pa.array([self.failures[index].code for index in order], pa.string()),
            pa.array([self.failures[index].message for index in order], pa.string()),
            quote_rows(self.batch, [self.unreadable[index] for index in order]),
        ]
        return pa.table(columns, schema=schema.UNREADABLE)

    def _kept(self, names: Sequence[str]) -> Kept:
        if self.batch.kept is not None:
            return take_kept(fill_missing(self.batch.kept, self.from_folders), self.readable)
        rows: list[Any] = [self.batch.rows[position] for position in self.readable]
        lines = [self.batch.originals[position] for position in self.readable]
        defaults = [self.from_folders.get(name) for name in names]
        cells = [[row.get(name, value) for row in rows] for name, value in zip(names, defaults, strict=True)]
        return build_kept(names, cells, lines)


def _check_kept(row: Mapping[str, Any], names: Sequence[str], line: bytes | str | None) -> Failure | None:
    """Return a failure if a kept cell is nested too deeply to be written, else None."""
    for name in names:
        value = row.get(name)
        if type(value) in (dict, list):
            if type(line) is bytes and line.count(b"[") + line.count(b"{") <= _LEVELS_MAX:
                return None
            try:
                JsonWriter().write(value)
            except orjson.JSONEncodeError:
                return Failure(
                    "bad_field",
                    f"column {redact(name, 100)} is nested too deeply to be kept (limit: {_LEVELS_MAX} levels): remove it from manifest.keep",
                )
    return None


def _count_over_context(text: Sequence[int], image: Sequence[int], capabilities: Capabilities) -> int:
    """Count the rows whose estimate is above the model's context. Few chunks have one."""
    if not exceeds_context(TokenEstimate(max(text, default=0), max(image, default=0)), capabilities):
        return 0
    return sum(exceeds_context(TokenEstimate(*tokens), capabilities) for tokens in zip(text, image, strict=True))


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
