"""A session: the blocks of one bundle, their outcomes, and attempts that are repeated."""

from typing import Any

import pyarrow as pa
import pytest
from arkbeam.base import schema
from arkbeam.stages.embed import session
from arkbeam.stages.embed.session import _Gathered


def _index(rows: int) -> pa.Table:
    return (
        schema.INDEX.empty_table()
        if rows == 0
        else pa.table(
            [
                pa.array([bytes(16)] * rows, schema.FINGERPRINT),
                pa.array([1] * rows, pa.uint64()),
                pa.array(range(rows), pa.uint32()),
            ],
            schema=schema.INDEX,
        )
    )


def test_outcomes_are_few_and_large_but_not_late(make_place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are gathered until there are many, or until they are old; nothing is given out if there are none."""
    monkeypatch.setattr(session, "_EMIT_ROWS", 10)
    place = make_place("http://127.0.0.1:1/api/v3")
    place.write_texts(1)
    gathered = _Gathered(place.prepare().spec, emitted_s=100.0)
    assert not gathered.is_due(1_000.0)
    gathered.put([_index(9)], schema.REJECTED.empty_table())
    assert [gathered.is_due(now_s) for now_s in (101.0, 159.0, 160.0)] == [False, False, True]
    gathered.put([_index(1)], schema.REJECTED.empty_table())
    assert gathered.is_due(101.0)
    assert gathered.take(101.0).index.num_rows == 10
    assert not gathered.is_due(1_000.0)
