"""The parts of `multi/`: the vectors of tokens of the rows in the part of `embeddings/` with the same number."""

from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.stages.publish.embeddings import find_segment, sort_refs, split_segments
from arkbeam.stages.publish.parts import PartFile, write_part
from arkbeam.stages.publish.rows import Manifests, gather_rows
from arkbeam.stages.spec import RunSpec
from arkbeam.store.integrity import read_or_set_aside
from arkbeam.store.multi import read_multi
from arkbeam.store.run_files import take_rows

FOLDER = "multi"
SLICE_ROWS = 256  # a row may hold thousands of vectors


def write_multi_part(
    part: int, refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec
) -> PartFile:
    """Write one part of `multi/` from the REFS of the part.

    Raises: StoreError when the store can't be read or holds another fingerprint than the row has.
    """
    wanted = schema.multi_embeddings_schema(spec.dimensions)
    refs = sort_refs(refs)
    slices = (refs.slice(start, SLICE_ROWS) for start in range(0, refs.num_rows, SLICE_ROWS))
    return write_part(FOLDER, part, (_table(one, segments, manifests, spec, wanted) for one in slices), wanted, spec)


def _table(
    refs: pa.Table, segments: Mapping[int, str], manifests: Manifests, spec: RunSpec, wanted: pa.Schema
) -> pa.Table:
    pieces = []
    for segment, positions in split_segments(refs):
        uri = find_segment(segments, segment)
        table = read_or_set_aside(spec.store.uri, uri, partial(read_multi, spec.store.uri, uri))
        pieces.append(take_rows(table, positions))
    vectors = pa.concat_tables(pieces)
    rows = gather_rows(refs, manifests, spec, ["row", "id", "fingerprint"])
    if not pc.all(pc.equal(rows["fingerprint"], vectors["fingerprint"])).as_py():
        raise StoreError("vectors of tokens in the store do not belong to their segment: run again")
    columns = {name: rows[name] for name in ("id", "manifest", "row", "fingerprint")} | {"multi": vectors["multi"]}
    return pa.table([columns[name] for name in wanted.names], schema=wanted)
