"""Write the parts of `failures/`: one row for each manifest row without a vector, with reason and original row."""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import pyarrow as pa

from arkbeam.base import schema
from arkbeam.stages.publish.earlier import Earlier, PartFile
from arkbeam.stages.publish.parts import Manifests, cut, gather_rows, name_rows, publish_part
from arkbeam.stages.spec import PART_ROWS, RunSpec
from arkbeam.store.run_files import read_tables, unreadable_folder

FOLDER = "failures"


def write_failures_part(
    part: int, failed: pa.Table, unreadable: Iterable[int], manifests: Manifests, spec: RunSpec, earlier: Earlier
) -> PartFile:
    """Write one part of `failures/`; if its bytes are those of an earlier part, keep that.

    Args:
        part: number of the part.
        failed: FAILED rows; their other columns are read from the staged rows.
        unreadable: shards whose unreadable rows belong to this part.
        manifests: the names of the manifests and the numbers of their rows.
        spec: the run.
        earlier: what the output holds.
    """
    failed = failed.take(pa.array(np.lexsort([failed.column(name).to_numpy() for name in ("ordinal", "shard")])))
    read = _unreadable_tables(sorted(unreadable), manifests, spec)
    tables = chain(read, (_failures_table(one, manifests, spec) for one in cut(failed, PART_ROWS)))
    return publish_part(FOLDER, part, tables, schema.FAILURES, spec, earlier)


def _unreadable_tables(shards: Iterable[int], manifests: Manifests, spec: RunSpec) -> Iterator[pa.Table]:
    for shard in shards:
        for table in read_tables(unreadable_folder(spec.run_files_uri, spec.run.name, shard)):
            yield name_rows(table, shard, manifests).select(schema.FAILURES.names).cast(schema.FAILURES)


def _failures_table(failed: pa.Table, manifests: Manifests, spec: RunSpec) -> pa.Table:
    rows = gather_rows(failed, manifests, spec, ["row", "id", "original"])
    columns = {name: rows[name] for name in rows.column_names} | {name: failed[name] for name in ("code", "message")}
    return pa.table([columns[name] for name in schema.FAILURES.names], schema=schema.FAILURES)
