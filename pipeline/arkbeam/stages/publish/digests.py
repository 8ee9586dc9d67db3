"""Digests of the inputs of a part: two parts with the same digest have the same rows and values, in the same encoding.

A vector is identified by its fingerprint and the resolved model. So a part stays when its vectors move to another segment,
or when one of them is bought again.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa

from arkbeam.stages.publish.parts import Manifests, gather_rows
from arkbeam.stages.spec import PART_ROWS, RunSpec

FORMAT = 1
"""Raise it whenever the same inputs give other published values."""
_COLUMNS = ["row", "id", "fingerprint", "media_changes", "kept"]


def digest_rows(refs: pa.Table, manifests: Manifests, spec: RunSpec) -> str:
    """Hash the staged values of REFS that are published, in the order of the manifests. Read `PART_ROWS` rows at a time."""
    order = np.lexsort([refs["ordinal"].to_numpy(), refs["shard"].to_numpy()])
    sink = _Sink()
    for start in range(0, len(order), PART_ROWS):
        rows = gather_rows(refs.take(pa.array(order[start : start + PART_ROWS])), manifests, spec, _COLUMNS)
        sink.add(rows)
    return sink.hash.hexdigest()


def digest_part(folder: str, wanted: pa.Schema, spec: RunSpec, inputs: Iterable[Any]) -> str:
    """Hash the inputs of a part, and how it is encoded. `inputs` are values that JSON has."""
    kind = [FORMAT, folder, spec.layout.value, spec.model.dimensions_published]
    encoded = orjson.dumps([*kind, hashlib.sha256(wanted.serialize()).hexdigest(), *inputs])
    return hashlib.sha256(encoded).hexdigest()


class _Sink:
    """Hashes tables as Arrow's IPC format has them: types, lengths, and the values of each column."""

    closed = False

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def add(self, table: pa.Table) -> None:
        """Hash a table as one batch, however it is cut into chunks."""
        with pa.ipc.new_stream(pa.PythonFile(cast(Any, self), "w"), table.schema) as writer:
            writer.write_table(table.combine_chunks())

    def write(self, data: Any) -> int:
        """Called by Arrow."""
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        """Called by Arrow."""
