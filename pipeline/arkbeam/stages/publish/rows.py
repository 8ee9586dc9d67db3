"""Staged rows as they are published: numbered through their manifest, named, with kept columns of one type."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base.redaction import redact_uri
from arkbeam.manifest.kept import cast_kept, unify_kept
from arkbeam.stages.read import ShardSummary
from arkbeam.stages.spec import RunSpec
from arkbeam.store.run_files import read_rows_at, take_rows


@dataclass(frozen=True, slots=True)
class Manifests:
    """What publishing needs to know of the shards: names, first rows, and the one type of the kept columns."""

    uris: dict[int, str]
    labels: dict[int, str]
    first_rows: dict[int, int]
    kept: pa.StructType

    @classmethod
    def of(cls, summaries: Iterable[ShardSummary]) -> "Manifests":
        """Number the rows through each manifest's shards, which are numbered in order."""
        uris, labels, first_rows, next_row = {}, {}, {}, dict[str, int]()
        kept: dict[pa.DataType, None] = {}
        for shard in sorted(summaries, key=lambda summary: summary.number):
            uris[shard.number], labels[shard.number] = redact_uri(shard.manifest), shard.label
            first_rows[shard.number] = next_row.get(shard.manifest, 0)
            next_row[shard.manifest] = first_rows[shard.number] + shard.lines
            kept |= dict.fromkeys(shard.kept)
        return cls(uris, labels, first_rows, unify_kept(list(kept)))


def gather_rows(table: pa.Table, manifests: Manifests, spec: RunSpec, columns: Sequence[str]) -> pa.Table:
    """Read the staged rows that a table's shards and ordinals name, in its order, with manifest, row and id as published."""
    shards, ordinals = table["shard"].to_numpy(), table["ordinal"].to_numpy()
    order = np.lexsort([ordinals, shards])
    pieces = []
    for shard in np.unique(shards).tolist():
        for rows in read_rows_at(spec.store.uri, spec.run, shard, ordinals[order][shards[order] == shard], columns):
            pieces.append(name_rows(rows, shard, manifests, wants_kept="kept" in columns))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return take_rows(pa.concat_tables(pieces), back)


def name_rows(rows: pa.Table, shard: int, manifests: Manifests, *, wants_kept: bool = False) -> pa.Table:
    """Number a shard's rows from its manifest's first, name the manifest, and fill ids that the manifest does not have."""
    numbers = pc.add(rows["row"], pa.scalar(manifests.first_rows[shard], pa.uint64()))
    default = pc.binary_join_element_wise(manifests.labels[shard], numbers.cast(pa.string()), ":")
    named = rows.set_column(rows.column_names.index("row"), "row", numbers)
    named = named.set_column(rows.column_names.index("id"), "id", pc.coalesce(rows["id"], default))
    named = named.append_column("manifest", pa.array([manifests.uris[shard]] * rows.num_rows, pa.string()))
    if not wants_kept:
        return named
    kept = rows["kept"].combine_chunks() if "kept" in rows.column_names else pa.nulls(rows.num_rows, pa.struct([]))
    bare = named.drop_columns(["kept"]) if "kept" in rows.column_names else named
    return bare.append_column("kept", cast_kept(kept, manifests.kept))
