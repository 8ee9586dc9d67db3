"""Bought vectors for the store tests, generated from a seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arkbeam.base.records import Usage
from arkbeam.base.replies import Reply, Sparse
from arkbeam.store.segments import Attempt, Bought

DIMENSIONS = 8


@pytest.fixture
def make_bought() -> Callable[..., Bought]:
    """Return a function that builds one result; fields that are not given are derived from its number."""

    def make(number: int, *, dense: Any = None, sparse: Sparse | None = None, **fields: Any) -> Bought:
        values = np.random.default_rng(number).standard_normal(DIMENSIONS) if dense is None else dense
        attempt = Attempt(
            fields.get("fingerprint", number.to_bytes(16)),
            fields.get("client_request_id", f"client-{number}"),
            fields.get("attempts", 1),
            12.5,
        )
        reply = Reply(
            id=fields.get("id", f"request-{number}"),
            model=fields.get("model", "doubao-embedding-vision-251215"),
            created=fields.get("created", 1_743_575_029),
            dense=np.asarray(values, np.float32),
            sparse=sparse,
            norm=np.float32(number + 0.5),
            usage=fields.get("usage", Usage(7, 7, 7, 0)),
            usage_flaw=None,
            stand_in=True,
        )
        return Bought(attempt, reply)

    return make
