"""Publish the parts of `embeddings/` and `multi/`: keep those whose inputs have not changed, write the others.

`embeddings/` has one row for each manifest row that has a vector. With `model.multi_embedding`, `multi/` has parts with
the per-token vectors of the same rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.parallel import IN_FLIGHT, in_parallel
from arkbeam.base.uris import reads_in_flight
from arkbeam.manifest.portable import to_portable
from arkbeam.stages.publish.digests import digest_part, digest_rows
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.layout import VECTOR_BYTES, vector_rows
from arkbeam.stages.publish.parts import Manifests, cut, gather_rows, publish_part
from arkbeam.stages.spec import PART_ROWS, RunSpec
from arkbeam.store.integrity import read_or_set_aside
from arkbeam.store.layout import is_gathered, run_of, segment_id
from arkbeam.store.multi import read_multi
from arkbeam.store.row_groups import read_group, split_groups
from arkbeam.store.run_files import take_rows
from arkbeam.store.segments import dense_values, read_columns

FOLDER = "embeddings"
MULTI_FOLDER = "multi"
MULTI_SLICE_ROWS = 256  # a row may hold thousands of vectors
GROUPS_IN_FLIGHT = 4  # row groups of gathered segments, each about 25 MB in memory
MULTI_IN_FLIGHT = 2  # a file of them may take 64 MB
_ADVICE = "remove the folder index/ of the store, which is only a cache, and run again"
_VECTOR_COLUMNS = [
    "fingerprint",
    "dense",
    "sparse",
    "norm",
    "model",
    "request_id",
    *(f.name for f in schema.USAGE_FIELDS),
]


def publish_parts(
    part: int, refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec, earlier: Earlier
) -> Iterator[PartFile]:
    """Publish one part of `embeddings/`, and of `multi/` if it is asked for, from its REFS.

    A part of the output whose inputs are the same is kept. If the vectors may be of several models, the inputs are not
    known, and each part is made; it has no digest. `segments` maps segment ids to URIs. Raise StoreError if the store
    can't be read, or if a ref and its row have different fingerprints.
    """
    inputs = [digest_rows(refs, manifests, spec), earlier.model] if earlier.model else []
    refs = sort_refs(refs)
    if spec.model.asks_multi:
        wanted = schema.MULTI_EMBEDDINGS
        tables = (
            table for one in cut(refs, MULTI_SLICE_ROWS) for table in _multi_tables(one, segments, manifests, spec)
        )
        digest = digest_part(MULTI_FOLDER, wanted, spec, inputs) if inputs else ""
        yield publish_part(MULTI_FOLDER, part, tables, wanted, spec, earlier, digest=digest)
    wanted = schema.embeddings_schema(manifests.published)
    tables = (
        table for one in cut(refs, PART_ROWS) for table in _embeddings_tables(one, segments, manifests, spec, wanted)
    )
    digest = digest_part(FOLDER, wanted, spec, inputs) if inputs else ""
    rows = vector_rows(spec.model.dimensions_published)
    yield publish_part(FOLDER, part, tables, wanted, spec, earlier, digest=digest, row_group_rows=rows)


def _multi_tables(
    refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec
) -> Iterator[pa.Table]:
    """Yield per-token vectors as float32, one table for each row group: float16 is a type that some readers lack."""

    def read(segment: int, positions: npt.NDArray[np.int64]) -> pa.Table:
        uri = find_segment(segments, segment)
        table = read_or_set_aside(spec.store.uri, uri, partial(read_multi, spec.store.uri, uri))
        return take_rows(table, positions)

    vectors = pa.concat_tables(in_parallel(lambda one: read(*one), split_segments(refs), MULTI_IN_FLIGHT))
    rows = gather_rows(refs, manifests, spec, ["row", "id", "fingerprint"])
    if not pc.all(pc.equal(rows["fingerprint"], vectors["fingerprint"])).as_py():
        raise StoreError("per-token vectors in the store do not match their segment: run again")
    values = pc.sum(pc.list_value_length(vectors["multi"])).as_py() or 0
    row_bytes = 4 * spec.model.dimensions_stored * values / refs.num_rows
    count = max(1, int(VECTOR_BYTES // max(1.0, row_bytes)))
    multi = schema.MULTI_EMBEDDINGS.field("multi").type
    for start in range(0, refs.num_rows, count):
        columns = {name: rows[name].slice(start, count) for name in ("id", "manifest", "row", "fingerprint")}
        columns["fingerprint"] = columns["fingerprint"].cast(schema.PUBLISHED_FINGERPRINT.type)
        columns["multi"] = vectors["multi"].slice(start, count).cast(multi)
        yield pa.table([columns[name] for name in schema.MULTI_EMBEDDINGS.names], schema=schema.MULTI_EMBEDDINGS)


def _embeddings_tables(
    refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec, wanted: pa.Schema
) -> Iterator[pa.Table]:
    """Read all rows of a slice at once, since they may be in any shard, but its vectors by row group, since they are large."""
    rows = gather_rows(refs, manifests, spec, ["row", "id", "fingerprint", "media_changes", "kept"])
    count = vector_rows(spec.model.dimensions_published)
    for start in range(0, refs.num_rows, count):
        vectors = _gather_vectors(refs.slice(start, count), segments, spec)
        yield _embeddings_table(rows.slice(start, count), vectors, manifests, wanted)


def _embeddings_table(rows: pa.Table, vectors: pa.Table, manifests: Manifests, wanted: pa.Schema) -> pa.Table:
    if not pc.all(pc.equal(rows["fingerprint"], vectors["fingerprint"])).as_py():
        raise StoreError(f"the rows of a segment do not have the fingerprints of its index: {_ADVICE}")
    columns = {name: vectors[name] for name in vectors.column_names} | {
        name: rows[name] for name in ("id", "manifest", "row", "media_changes")
    }
    columns |= {name: columns[name].cast(wanted.field(name).type) for name in ("dense", "sparse", "fingerprint")}
    kept = rows["kept"].combine_chunks().flatten() if manifests.published.names else []
    columns |= {
        field.name: to_portable(column, field.type) for field, column in zip(manifests.published, kept, strict=True)
    }
    return pa.table([columns[name] for name in wanted.names], schema=wanted)


def _gather_vectors(refs: pa.Table, segments: Mapping[int, str], spec: RunSpec) -> pa.Table:
    """Read the vectors of refs, which must be sorted by segment: each small segment, and each row group of a gathered one, once."""

    def read(piece: _Piece) -> pa.Table:
        whole = partial(read_columns, piece.uri, _VECTOR_COLUMNS)
        group = partial(read_group, piece.uri, piece.group or 0, _VECTOR_COLUMNS)
        vectors = read_or_set_aside(spec.store.uri, piece.uri, whole if piece.group is None else group)
        if piece.rows[-1] >= vectors.num_rows:
            raise _too_few_rows(piece.uri)
        return _cut(take_rows(vectors, piece.rows), spec.model.dimensions_published)

    pieces = [piece for segment, rows in split_segments(refs) for piece in _split_pieces(segment, rows, segments, spec)]
    has_groups = any(piece.group is not None for piece in pieces)
    in_flight = min(reads_in_flight(spec.store.uri), GROUPS_IN_FLIGHT if has_groups else IN_FLIGHT)
    return pa.concat_tables(in_parallel(read, pieces, in_flight))


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is read at once: a row group of a segment, or the whole of it. `rows`: the wanted positions in it."""

    uri: str
    group: int | None
    rows: npt.NDArray[np.int64]


def _split_pieces(
    segment: int, rows: npt.NDArray[np.int64], segments: Mapping[int, str], spec: RunSpec
) -> Iterator[_Piece]:
    uri = find_segment(segments, segment)
    if not is_gathered(run_of(uri)):
        yield _Piece(uri, None, rows)
        return
    groups = read_or_set_aside(spec.store.uri, uri, lambda: list(split_groups(uri, rows)))
    if sum(len(positions) for _, positions in groups) < len(rows):
        raise _too_few_rows(uri)
    for group, positions in groups:
        yield _Piece(uri, group, positions)


def _too_few_rows(uri: str) -> StoreError:
    return StoreError(f"segment {segment_id(uri):016x} has fewer rows than its index: {_ADVICE}")


def _cut(vectors: pa.Table, dimensions: int) -> pa.Table:
    """Cut dense vectors to their first values and normalise them (L2), as the vendor's guide says for 2,048-d models."""
    if dimensions == vectors.schema.field("dense").type.list_size:
        return vectors
    cut = dense_values(vectors["dense"])[:, :dimensions]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    unit = np.divide(cut, norms, where=norms > 0, out=np.zeros_like(cut))
    dense = pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), type=schema.dense_type(dimensions))
    lengths = pa.array(np.linalg.norm(unit, axis=1).astype(np.float32))
    vectors = vectors.set_column(vectors.column_names.index("dense"), "dense", dense)
    return vectors.set_column(vectors.column_names.index("norm"), "norm", lengths)


def sort_refs(refs: pa.Table) -> pa.Table:
    """Sort REFS in the order of publishing: by segment, so that each segment is read once."""
    names = ("segment", "segment_row", "shard", "ordinal")
    return refs.take(pa.array(np.lexsort([refs.column(name).to_numpy() for name in reversed(names)])))


def split_segments(refs: pa.Table) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield each segment of sorted REFS with the numbers of the rows to read from it."""
    numbers = refs["segment"].to_numpy()
    positions = refs["segment_row"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(numbers, prepend=~numbers[:1]))
    for rows, start in zip(np.split(positions, starts[1:]), starts, strict=True):
        yield int(numbers[start]), rows


def find_segment(segments: Mapping[int, str], segment: int) -> str:
    """Return a segment's URI. Raise StoreError if it is no longer in the store."""
    try:
        return segments[segment]
    except KeyError:
        raise StoreError(f"segment {segment:016x} was removed from the store after planning: run again") from None
