"""Publish the parts of `usage/`: one row for each attempt that this output's runs paid for, or may have paid for.

Outcomes: `ok`; `unusable`, a reply without a usable vector; `lost`, an attempt without a reply. All count as paid. If
the tokens of an attempt are unknown, those of the successful attempt of the same request are used.

A part is made from some of the store's files, which never change, so it is kept until one of them is gone. Segments and
event files have parts of their own: only events have attempts with unknown tokens. A part that has some left is written
again by each run.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.capabilities import Capabilities, cost_cny
from arkbeam.base.errors import StoreError
from arkbeam.base.files import Listed, read_bytes
from arkbeam.base.parallel import in_parallel
from arkbeam.base.uris import is_local, join, reads_in_flight, storage_errors
from arkbeam.engine.outcomes import Counts
from arkbeam.stages.publish.cuts import choose_cuts
from arkbeam.stages.publish.digests import digest_part
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.parts import publish_part
from arkbeam.stages.read import open_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.events import EventKind
from arkbeam.store.integrity import read_or_set_aside
from arkbeam.store.layout import is_gathered, list_parquet, run_of, segment_id, segments_folder
from arkbeam.store.listing import is_event_file, source_name
from arkbeam.store.replaced import list_current
from arkbeam.store.segments import read_columns, read_parquet

FOLDER = "usage"
FILE_BYTES_MIN = 512 * 1024  # a smaller file counts as so large: it takes as many calls
PART_BYTES = 64 * FILE_BYTES_MIN
PART_BYTES_MIN = 2 * FILE_BYTES_MIN
_WHOLE_BYTES_MAX = 4 * 2**20  # an object of up to this size is read in one call, a larger one by columns
BOUGHT = EventKind.BOUGHT.value
_TOKENS = [field.name for field in schema.USAGE_FIELDS]
_COMMON = ["request_id", "client_request_id", "fingerprint", "model", "created", *_TOKENS, "attempts", "latency_ms"]


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over attempts."""

    attempts: int = 0
    prompt_tokens: int = 0
    total_tokens: int = 0
    text_tokens: int = 0
    image_tokens: int = 0
    cost_cny: float = 0.0

    def plus(self, other: "UsageTotals") -> "UsageTotals":
        """Return the sum of two totals."""
        return UsageTotals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class UsagePart:
    """A part of `usage/`: its file, its totals for this run and for all runs, and the fingerprint of each row.

    `fingerprints` is None for a part that is kept.
    """

    file: PartFile
    this_run: UsageTotals
    all_runs: UsageTotals
    fingerprints: pa.Array | None
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """The attempts of this run by outcome."""


def list_usage_sources(store_uri: str, output_key: str) -> list[tuple[int, tuple[Listed, ...]]]:
    """List the segment and event files of this output's runs, in numbered groups: one group for each part.

    Files that are added change only the last groups; the groups at the end are small. Of files that compaction has
    replaced, either the old or the new ones are listed.
    """
    marker = f"-{output_key}-"
    files = [one for one in list_current(store_uri).values() if marker in run_of(one.uri)]
    segments, events = ([one for one in files if is_event_file(source_name(one.uri)) is kind] for kind in (False, True))
    groups = [*_group(segments), *_group(events)]
    return list(enumerate(groups or [()]))


def _group(files: Sequence[Listed]) -> Iterator[tuple[Listed, ...]]:
    if not files:
        return
    files = sorted(files, key=lambda one: one.uri)
    names = [hashlib.blake2b(source_name(one.uri).encode(), digest_size=8).digest() for one in files]
    ends = np.cumsum([max(one.size, FILE_BYTES_MIN) for one in files])
    keys, starts = np.frombuffer(b"".join(names), np.uint64), np.concatenate([[0], ends[:-1]])
    cuts = choose_cuts(keys, starts, int(ends[-1]), PART_BYTES, PART_BYTES_MIN)
    for start, end in zip([0, *cuts], [*cuts, len(files)], strict=True):
        yield tuple(files[start:end])


def publish_usage_part(part: int, files: Sequence[Listed], spec: RunSpec, earlier: Earlier) -> UsagePart:
    """Publish one part of `usage/` from segment and event files, or keep the one that was made from them.

    Raise StoreError if the store can't be read or the output can't be written.
    """
    capabilities = spec.model.capabilities
    prices = [capabilities.price_text_cny_per_million, capabilities.price_image_cny_per_million]
    sources = [[source_name(one.uri), one.size, one.version] for one in files]
    digest = digest_part(FOLDER, schema.USAGE, spec, [prices, sources])
    # A part with files of this run is there if a runner repeats the commit: its totals do not tell the runs apart.
    is_own = any(run_of(one.uri) == spec.run.name for one in files)
    kept = None if is_own else earlier.find(digest, spec)
    if kept is not None and kept.totals is not None:
        return UsagePart(kept, UsageTotals(), UsageTotals(**kept.totals), None)
    tables = in_parallel(partial(_read_attempts, spec=spec), files, reads_in_flight(spec.store.uri))
    table = _fill_lost(pa.concat_tables([schema.USAGE.empty_table(), *tables]), spec)
    totals = _totals(table)
    file = publish_part(FOLDER, part, [table], schema.USAGE, spec, earlier)
    if not pc.any(_is_unknown(table)).as_py():
        file = replace(file, digest=digest, totals=asdict(totals))
    this_run = table.filter(pc.equal(table["run"], spec.run.name))
    fingerprints = table["fingerprint"].combine_chunks()
    return UsagePart(file, _totals(this_run), totals, fingerprints, _count_outcomes(this_run))


def count_own_outcomes(spec: RunSpec) -> Mapping[str, int]:
    """Count the paid attempts of this run in the store by outcome. Raise StoreError."""
    files = [one for one in list_current(spec.store.uri).values() if run_of(one.uri) == spec.run.name]
    tables = in_parallel(partial(_read_attempts, spec=spec), files, reads_in_flight(spec.store.uri))
    return _count_outcomes(pa.concat_tables([schema.USAGE.empty_table(), *tables]))


def settle_counts(counts: Counts, outcomes: Mapping[str, int]) -> Counts:
    """Return the counts of a run with several processes, given its paid attempts in the store by outcome.

    The store is right if it has as many as the notes. A process that was killed wrote its last note up to a second before,
    and one that was taken for dead may have received replies that count as lost. If the store has fewer, since its listing is
    out of date or a file is damaged, the greater number counts, which is at most the true one.
    """
    names = {"bought": BOUGHT, "unusable": EventKind.UNUSABLE.value, "lost": EventKind.LOST.value}
    noted = {name: getattr(counts, name) for name in names}
    paid = {name: outcomes.get(outcome, 0) for name, outcome in names.items()}
    if sum(paid.values()) < sum(noted.values()):
        paid = {name: max(noted[name], paid[name]) for name in names}
    return replace(counts, **paid, sent=counts.unpaid + sum(paid.values()))


def _count_outcomes(attempts: pa.Table) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(attempts["outcome"]).to_pylist()}


def count_paid_twice(parts: Sequence[UsagePart], spec: RunSpec, earlier: Earlier) -> int:
    """Count the paid attempts in excess of one for each fingerprint. Kept parts are read only if there are new ones."""
    before = {part.path for part in earlier.parts if part.folder == FOLDER}
    if earlier.paid_twice is not None and before == {part.file.path for part in parts}:
        return earlier.paid_twice
    kept = [part.file for part in parts if part.fingerprints is None]
    read = in_parallel(partial(_read_fingerprints, spec.run.output_uri), kept, reads_in_flight(spec.run.output_uri))
    new = [part.fingerprints for part in parts if part.fingerprints is not None]
    fingerprints = pa.chunked_array([*new, *read], schema.PUBLISHED_FINGERPRINT.type)
    return len(fingerprints) - int(pc.count_distinct(fingerprints).as_py()) if len(fingerprints) else 0


def _read_fingerprints(output_uri: str, part: PartFile) -> pa.Array:
    uri = join(output_uri, part.path)
    try:
        if _reads_whole(uri, part.bytes):
            with storage_errors("read", uri):
                table = read_parquet(read_bytes(uri), ["fingerprint"])
        else:
            table = read_columns(uri, ["fingerprint"], whole=False)
    except StoreError as error:
        raise StoreError(f"{error}; run again with --verify, which writes damaged parts of the output again") from error
    return table["fingerprint"].combine_chunks()


def _reads_whole(uri: str, size: int) -> bool:
    """True if a file is read in one call. By columns takes three or more calls, but fewer bytes."""
    return not is_local(uri) and size <= _WHOLE_BYTES_MAX


def _read_attempts(listed: Listed, spec: RunSpec) -> pa.Table:
    uri = listed.uri
    is_event, run = is_event_file(source_name(uri)), run_of(uri)
    names = [*_COMMON, *(["kind", "paid"] if is_event else []), *(["run"] if is_gathered(run) else [])]
    whole = _reads_whole(uri, listed.size)
    table = read_or_set_aside(spec.store.uri, uri, partial(read_columns, uri, names, whole=whole))
    if is_event:
        table = table.filter(table["paid"])
    outcome = table["kind"] if is_event else pa.array([BOUGHT] * table.num_rows, pa.string())
    columns = {name: table[name].cast(schema.USAGE.field(name).type) for name in _COMMON} | {
        "cost_cny": _costs(table, spec.model.capabilities),
        "outcome": outcome,
        "run": table["run"] if is_gathered(run) else pa.array([run] * table.num_rows, pa.string()),
    }
    return pa.table([columns[name] for name in schema.USAGE.names], schema=schema.USAGE)


def _costs(table: pa.Table, capabilities: Capabilities) -> pa.Array:
    per_token = [cost_cny(1, 0, capabilities), cost_cny(0, 1, capabilities)]
    text, image = (table[name].cast(pa.float64()) for name in ("text_tokens", "image_tokens"))
    return pc.add(pc.multiply(text, per_token[0]), pc.multiply(image, per_token[1]))


def _fill_lost(table: pa.Table, spec: RunSpec) -> pa.Table:
    """Fill in unknown token counts with those of the successful attempt of the same request; null if there is none."""
    unknown = _is_unknown(table)
    if not pc.any(unknown).as_py():
        return table
    bought = _bought_again(table.filter(unknown)["fingerprint"], spec)
    at = pc.index_in(table["fingerprint"], value_set=bought["fingerprint"].combine_chunks())
    for name in [*_TOKENS, "model"]:
        filled = pc.if_else(unknown, bought[name].combine_chunks().take(at.combine_chunks()), table[name])
        table = table.set_column(table.column_names.index(name), schema.USAGE.field(name), filled)
    costs = _costs(table, spec.model.capabilities)
    return table.set_column(table.column_names.index("cost_cny"), schema.USAGE.field("cost_cny"), costs)


def _is_unknown(table: pa.Table) -> pa.ChunkedArray:
    return pc.and_(pc.not_equal(table["outcome"], BOUGHT), pc.is_null(table["total_tokens"]))


def _bought_again(fingerprints: pa.ChunkedArray, spec: RunSpec) -> pa.Table:
    types = pa.schema([schema.USAGE.field(name) for name in ("fingerprint", "model", *_TOKENS)])
    wanted = fingerprints.combine_chunks()
    found_before = open_index(spec).find(wanted.cast(schema.FINGERPRINT))  # without what this run has bought
    known = set(found_before.index["segment"].to_pylist())
    listed = list_parquet(segments_folder(spec.store.uri))
    uris = [uri for uri in listed if segment_id(uri) in known or run_of(uri) == spec.run.name]
    found = in_parallel(partial(_read_segment, columns=types.names, spec=spec), uris, reads_in_flight(spec.store.uri))
    some = [table.cast(types).filter(pc.is_in(table["fingerprint"], value_set=wanted)) for table in found]
    return schema.concat(some, types)


def _read_segment(uri: str, columns: Sequence[str], spec: RunSpec) -> pa.Table:
    return read_or_set_aside(spec.store.uri, uri, partial(read_columns, uri, columns, whole=False))


def _totals(table: pa.Table) -> UsageTotals:
    prompt, total, text, image = (int(pc.sum(table[name]).as_py() or 0) for name in _TOKENS)
    return UsageTotals(table.num_rows, prompt, total, text, image, float(pc.sum(table["cost_cny"]).as_py() or 0.0))
