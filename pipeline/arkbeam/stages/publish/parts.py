"""Assign rows to part files, give rows their published ids and numbers, write one part file."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base import faults, schema
from arkbeam.base.files import writing
from arkbeam.base.parallel import read_ahead
from arkbeam.base.redaction import redact_uri
from arkbeam.base.uris import join
from arkbeam.manifest.kept import cast_kept, merge_kinds, type_of_kept
from arkbeam.manifest.kinds import Kind
from arkbeam.manifest.portable import publish_kept
from arkbeam.stages.publish.cuts import Marks, find_marks, merge_marks
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.layout import ROW_GROUP_ROWS, writer_options
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import PART_ROWS, RunSpec
from arkbeam.store.claim import check_claim
from arkbeam.store.layout import HASH_CHARS, SUFFIX
from arkbeam.store.run_files import read_rows_at, take_rows


@dataclass(frozen=True, slots=True)
class Manifests:
    """What Publish needs to know about the shards, by shard number, and the common type of the kept columns."""

    uris: dict[int, str]
    """The manifest's URI, redacted."""
    labels: dict[int, str]
    """The manifest's name with which default ids begin: `<label>:<row>`."""
    first_rows: dict[int, int]
    """The number of the shard's first row in its manifest."""
    kept: pa.StructType
    published: pa.StructType
    """The types in which the kept columns are published."""

    @classmethod
    def of(cls, summaries: Iterable[ShardSummary]) -> "Manifests":
        """Number the rows of each manifest across its shards, in the order of the shards' numbers."""
        uris, labels, first_rows, next_row = {}, {}, {}, dict[str, int]()
        kept: dict[str, Kind] = {}
        nanoseconds: set[str] = set()
        for shard in sorted(summaries, key=lambda summary: summary.number):
            uris[shard.number], labels[shard.number] = redact_uri(shard.manifest), shard.label
            first_rows[shard.number] = next_row.get(shard.manifest, 0)
            next_row[shard.manifest] = first_rows[shard.number] + shard.lines
            kept = merge_kinds(kept, dict(shard.kept))
            nanoseconds |= shard.nanoseconds
        common = type_of_kept(kept)
        return cls(uris, labels, first_rows, common, publish_kept(common, nanoseconds))


@dataclass(frozen=True, slots=True)
class Divisions:
    """Where rows may be divided into parts: the marks of those with a vector, and how many rows without one each shard has."""

    marks: Marks
    failed: dict[int, int]

    @classmethod
    def of(cls, refs: pa.Table, failed: pa.Table) -> "Divisions":
        """Find the marks among REFS, and count FAILED by shard."""
        return cls(find_marks(refs), count_by(failed, "shard"))

    @classmethod
    def merge(cls, some: Iterable["Divisions"]) -> "Divisions":
        """Join those of several tables."""
        every = list(some)
        return cls(merge_marks(one.marks for one in every), sum_counts(one.failed for one in every))


def assign_parts(counts: Mapping[int, int], rows_max: int = PART_ROWS) -> dict[int, int]:
    """Assign keys (segments or shards), in order, to parts of at most `rows_max` rows; at least one key to a part.

    Args:
        counts: rows by key.
        rows_max: the most rows of a part that holds several keys.

    Returns: the number of the part by key.
    """
    parts: dict[int, int] = {}
    part, filled = 0, 0
    for key in sorted(counts):
        if filled and filled + counts[key] > rows_max:
            part, filled = part + 1, 0
        parts[key] = part
        filled += counts[key]
    return parts


def count_by(table: pa.Table, name: str) -> dict[int, int]:
    """Count a table's rows by one of its columns."""
    values, counts = np.unique(table.column(name).to_numpy(), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def sum_counts(counts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Add up counts by key."""
    result: dict[int, int] = {}
    for one in counts:
        for key, count in one.items():
            result[key] = result.get(key, 0) + count
    return result


def part_numbers(table: pa.Table, name: str, parts: Mapping[int, int]) -> npt.NDArray[np.int64]:
    """Return the number of each row's part, given the part of each key and the name of the key's column."""
    values, inverse = np.unique(table.column(name).to_numpy(), return_inverse=True)
    return np.array([parts[value] for value in values.tolist()], np.int64)[inverse]


def gather_rows(table: pa.Table, manifests: Manifests, spec: RunSpec, columns: Sequence[str]) -> pa.Table:
    """Read the staged rows that a table names by shard and ordinal, in the table's order, with published manifest, row and id."""
    shards, ordinals = table["shard"].to_numpy(), table["ordinal"].to_numpy()
    order = np.lexsort([ordinals, shards])
    pieces = []
    for shard in np.unique(shards).tolist():
        for rows in read_rows_at(
            spec.run_files_uri, spec.run.name, shard, ordinals[order][shards[order] == shard], columns
        ):
            pieces.append(name_rows(rows, shard, manifests, wants_kept="kept" in columns))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return take_rows(pa.concat_tables(pieces), back)


def name_rows(rows: pa.Table, shard: int, manifests: Manifests, *, wants_kept: bool = False) -> pa.Table:
    """Number a shard's rows within their manifest, add the manifest's URI, and fill in missing ids."""
    numbers = pc.add(rows["row"], pa.scalar(manifests.first_rows[shard], pa.uint64()))
    default = pc.binary_join_element_wise(manifests.labels[shard], numbers.cast(pa.string()), ":")
    named = rows.set_column(rows.column_names.index("row"), schema.ROW, numbers.cast(schema.ROW.type))
    named = named.set_column(rows.column_names.index("id"), "id", pc.coalesce(rows["id"], default))
    named = named.append_column("manifest", pa.array([manifests.uris[shard]] * rows.num_rows, pa.string()))
    if not wants_kept:
        return named
    kept = rows["kept"].combine_chunks() if "kept" in rows.column_names else pa.nulls(rows.num_rows, pa.struct([]))
    bare = named.drop_columns(["kept"]) if "kept" in rows.column_names else named
    return bare.append_column("kept", cast_kept(kept, manifests.kept))


def cut(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """Cut a table into slices of so many rows."""
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))


def publish_part(
    folder: str,
    part: int,
    tables: Iterable[pa.Table],
    wanted: pa.Schema,
    spec: RunSpec,
    earlier: Earlier,
    *,
    digest: str = "",
    row_group_rows: int = ROW_GROUP_ROWS,
) -> PartFile:
    """Keep the part with these inputs, or write one from tables of one schema. No row group has rows of two tables.

    Only a few tables are in memory at a time; none is computed for a part that is kept. The name of a new part has the
    number of the part and a hash of its bytes. If the output has a part with the same bytes, that one is kept.

    Raise OutputInUse if this run has lost its claim on the output; then nothing is changed.
    """
    faults.hit("publish.part", folder)
    known = earlier.find(digest, spec) if digest else None
    if known is not None:
        return known
    draft = f"{folder}/part-{part:05d}"
    done = PartFile(draft, 0, 0, "", digest)

    def settle(local: Path) -> str:
        nonlocal done
        with local.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        kept = earlier.find_content(folder, sha256, spec)
        path = f"{draft}-{sha256[:HASH_CHARS]}{SUFFIX}" if kept is None else kept.path
        version = "" if kept is None else kept.version
        size = local.stat().st_size
        done = replace(done, path=path, bytes=size, sha256=sha256, version=version, kept=kept is not None)
        return "" if kept is not None else path.rpartition("/")[2]

    rows = 0
    uri, claim = join(spec.run.output_uri, draft), partial(check_claim, spec.run.output_uri, spec.run.name)
    with (
        writing(uri, check=claim, name=settle) as local,
        pq.ParquetWriter(local, wanted, **writer_options(wanted, spec.layout)) as writer,
    ):
        for table in read_ahead(tables):
            rows += table.num_rows
            writer.write_table(table, row_group_size=row_group_rows)
    return replace(done, rows=rows)
