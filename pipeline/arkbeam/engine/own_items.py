"""What this process has in its hands of a run: items in the engine, and where the vectors are that it has stored."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.schema import concat
from arkbeam.engine.items import Tracked


@dataclass(slots=True)
class OwnItems:
    """Finds an item by fingerprint, so that a repeated attempt at a block sends nothing again. Used by the engine's thread.

    An item is here from its submission until its vector is stored, or until it fails. The places of stored vectors stay
    until the process ends: 28 bytes each.
    """

    _open: dict[bytes, Tracked] = field(default_factory=dict)
    _stored: list[pa.Table] = field(default_factory=list)

    def add(self, tracked: Sequence[Tracked]) -> None:
        """Add items that are submitted."""
        for one in tracked:
            self._open[one.item.fingerprint] = one
            one.item.attempt.items += 1

    def remove(self, tracked: Tracked) -> None:
        """Remove an item that failed or is dropped."""
        if self._open.get(tracked.item.fingerprint) is tracked:
            del self._open[tracked.item.fingerprint]
            tracked.item.attempt.items -= 1

    def note_stored(self, tracked: Sequence[Tracked], index: pa.Table) -> None:
        """Replace items by the places of their vectors (INDEX)."""
        for one in tracked:
            self.remove(one)
        if index.num_rows:
            self._stored.append(index)

    def find(self, tracked: Sequence[Tracked]) -> list[Tracked | pa.Table | None]:
        """Return, for each item, the item with its fingerprint that the engine holds, or the INDEX row of its vector."""
        names = pa.array([one.item.fingerprint for one in tracked], schema.FINGERPRINT)
        stored = concat(self._stored, schema.INDEX)
        stored = stored.filter(pc.is_in(stored["fingerprint"], value_set=names))
        at = pc.index_in(names, value_set=stored["fingerprint"].combine_chunks()).to_pylist()
        return [
            self._open.get(one.item.fingerprint) or (None if row is None else stored.slice(row, 1))
            for one, row in zip(tracked, at, strict=True)
        ]
