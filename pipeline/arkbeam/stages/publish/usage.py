"""Write the parts of `usage/`: one row for each attempt that this output paid for or may have paid for, in all of its runs.

Outcomes: `ok`; `unusable`, a reply without a usable vector; `lost`, an attempt without a reply. All count as paid. If
the tokens of an attempt are unknown, those of the successful attempt of the same request are used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.capabilities import Capabilities, cost_cny
from arkbeam.base.files import reads_in_flight
from arkbeam.base.parallel import in_parallel
from arkbeam.stages.publish.parts import PartFile, write_part
from arkbeam.stages.read import open_index
from arkbeam.stages.spec import RunSpec
from arkbeam.store.integrity import read_or_set_aside
from arkbeam.store.layout import is_gathered, list_parquet, output_key, run_of, segment_id, segments_folder
from arkbeam.store.listing import is_event_file, source_name
from arkbeam.store.replaced import list_current
from arkbeam.store.segments import read_columns

FOLDER = "usage"
FILES_PER_PART = 64
EVENT_BYTES_PER_PART = 16 * 1024 * 1024
BOUGHT = "ok"
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
    """A part of `usage/`: its file, its totals for this run and for all runs, and the fingerprint of each row."""

    file: PartFile
    this_run: UsageTotals
    all_runs: UsageTotals
    fingerprints: pa.Array


def list_usage_sources(store_uri: str, output_uri: str) -> list[tuple[int, tuple[str, ...]]]:
    """List the segment and event files of this output's runs, in numbered groups: one group for each part.

    Of files that compaction has replaced, either the old or the new ones are listed.
    """
    marker, current = f"-{output_key(output_uri)}-", list_current(store_uri)
    own = {name: one.uri for name, one in current.items() if marker in run_of(one.uri)}
    names = sorted(own, key=lambda name: (is_event_file(name), name))
    groups: list[list[str]] = [[]]
    event_bytes = 0
    for name in names:
        size = current[name].size if is_event_file(name) else 0  # gathered ones are large, others have few rows
        if len(groups[-1]) == FILES_PER_PART or (groups[-1] and event_bytes + size > EVENT_BYTES_PER_PART):
            groups.append([])
            event_bytes = 0
        groups[-1].append(own[name])
        event_bytes += size
    return [(number, tuple(group)) for number, group in enumerate(groups)]


def write_usage_part(part: int, uris: Sequence[str], spec: RunSpec) -> UsagePart:
    """Write one part of `usage/` from segment and event files.

    Raise StoreError if the store can't be read or the output can't be written.
    """
    tables = in_parallel(partial(_read_attempts, spec=spec), uris, reads_in_flight(spec.store.uri))
    table = pa.concat_tables([schema.USAGE.empty_table(), *tables])
    table = _fill_lost(table, spec)
    file = write_part(FOLDER, part, [table], schema.USAGE, spec)
    this_run = table.filter(pc.equal(table["run"], spec.run.name))
    return UsagePart(file, _totals(this_run), _totals(table), table["fingerprint"].combine_chunks())


def count_paid_twice(parts: Iterable[UsagePart]) -> int:
    """Count the paid attempts in excess of one for each fingerprint."""
    fingerprints = pa.chunked_array([part.fingerprints for part in parts], schema.PUBLISHED_FINGERPRINT.type)
    return len(fingerprints) - int(pc.count_distinct(fingerprints).as_py()) if len(fingerprints) else 0


def _read_attempts(uri: str, spec: RunSpec) -> pa.Table:
    is_event, run = is_event_file(source_name(uri)), run_of(uri)
    names = [*_COMMON, *(["kind", "paid"] if is_event else []), *(["run"] if is_gathered(run) else [])]
    table = read_or_set_aside(spec.store.uri, uri, partial(read_columns, uri, names))
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
    unknown = pc.and_(pc.not_equal(table["outcome"], BOUGHT), pc.is_null(table["total_tokens"]))
    if not pc.any(unknown).as_py():
        return table
    bought = _bought_again(table.filter(unknown)["fingerprint"], spec)
    at = pc.index_in(table["fingerprint"], value_set=bought["fingerprint"].combine_chunks())
    for name in [*_TOKENS, "model"]:
        filled = pc.if_else(unknown, bought[name].combine_chunks().take(at.combine_chunks()), table[name])
        table = table.set_column(table.column_names.index(name), schema.USAGE.field(name), filled)
    costs = _costs(table, spec.model.capabilities)
    return table.set_column(table.column_names.index("cost_cny"), schema.USAGE.field("cost_cny"), costs)


def _bought_again(fingerprints: pa.ChunkedArray, spec: RunSpec) -> pa.Table:
    types = pa.schema([schema.USAGE.field(name) for name in ("fingerprint", "model", *_TOKENS)])
    wanted = fingerprints.combine_chunks()
    found_before = open_index(spec).find(wanted.cast(schema.FINGERPRINT))  # without what this run has bought
    known = set(found_before.index["segment"].to_pylist())
    listed = list_parquet(segments_folder(spec.store.uri))
    uris = [uri for uri in listed if segment_id(uri) in known or run_of(uri) == spec.run.name]
    found = in_parallel(partial(read_columns, columns=types.names, whole=False), uris)
    some = [table.cast(types).filter(pc.is_in(table["fingerprint"], value_set=wanted)) for table in found]
    return schema.concat(some, types)


def _totals(table: pa.Table) -> UsageTotals:
    prompt, total, text, image = (int(pc.sum(table[name]).as_py() or 0) for name in _TOKENS)
    return UsageTotals(table.num_rows, prompt, total, text, image, float(pc.sum(table["cost_cny"]).as_py() or 0.0))
