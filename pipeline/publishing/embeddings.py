"""The parts of `embeddings/`: one row for each manifest row that has a vector."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import StoreError
from pipeline.publishing.parts import PartFile, write_part
from pipeline.publishing.rows import Manifests, gather_rows
from pipeline.spec import PART_ROWS, RunSpec
from pipeline.store.run_files import take_rows
from pipeline.store.segments import read_columns

FOLDER = "embeddings"
_VECTOR_COLUMNS = [
    "fingerprint",
    "dense",
    "sparse",
    "norm",
    "model",
    "request_id",
    *(f.name for f in schema.USAGE_FIELDS),
]


def write_embeddings_part(
    part: int, refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec
) -> PartFile:
    """Write one part of `embeddings/` from its REFS; `segments` tells each segment's URI.

    Raises: StoreError when the store can't be read or holds another fingerprint than the row has.
    """
    wanted = schema.embeddings_schema(spec.dimensions, manifests.kept)
    names = ("segment", "segment_row", "shard", "ordinal")
    refs = refs.take(pa.array(np.lexsort([refs.column(name).to_numpy() for name in reversed(names)])))
    slices = (refs.slice(start, PART_ROWS) for start in range(0, refs.num_rows, PART_ROWS))
    tables = (_embeddings_table(one, segments, manifests, spec, wanted) for one in slices)
    return write_part(FOLDER, part, tables, wanted, spec)


def _embeddings_table(
    refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec, wanted: pa.Schema
) -> pa.Table:
    vectors = _gather_vectors(refs, segments)
    rows = gather_rows(refs, manifests, spec, ["row", "id", "fingerprint", "kept"])
    if not pc.all(pc.equal(rows["fingerprint"], vectors["fingerprint"])).as_py():
        raise StoreError("a segment of the store does not hold the fingerprints that its index named: run again")
    columns = {name: vectors[name] for name in vectors.column_names} | {
        name: rows[name] for name in ("id", "manifest", "row")
    }
    kept = (
        dict(zip(manifests.kept.names, rows["kept"].combine_chunks().flatten(), strict=True))
        if manifests.kept.names
        else {}
    )
    return pa.table([(columns | kept)[name] for name in wanted.names], schema=wanted)


def _gather_vectors(refs: pa.Table, segments: Mapping[int, str]) -> pa.Table:
    """Read the vectors of refs that are sorted by segment, each segment once."""
    numbers = refs["segment"].to_numpy()
    positions = refs["segment_row"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=~numbers[:1]))
    pieces = []
    for rows, start in zip(np.split(positions, starts[1:]), starts, strict=True):
        pieces.append(take_rows(read_columns(_find_segment(segments, int(numbers[start])), _VECTOR_COLUMNS), rows))
    return pa.concat_tables(pieces)


def _find_segment(segments: Mapping[int, str], segment: int) -> str:
    try:
        return segments[segment]
    except KeyError:
        raise StoreError(f"segment {segment:016x} has gone from the store since it was planned: run again") from None
