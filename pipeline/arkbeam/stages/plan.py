"""Plan: decide which rows have a vector in the store, which rows need one, and which rows' requests are sent.

Pure functions over Arrow tables. Rows are joined with the store by fingerprint, one bucket of fingerprints at a time.
The tables are sorted before they are searched, since `index_in` returns the first of several matches. So the same
tables in another order give the same plan.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.capabilities import Capabilities, cost_cny
from arkbeam.base.schema import concat
from arkbeam.quota.budget import NO_BUDGET, BudgetOptions
from arkbeam.quota.options import RateLimits

BUCKETS_MAX = 256
BUCKET_BYTES = 8 * 1024 * 1024  # of the manifests, which give about 1 MB of keys
NOT_BOUGHT = "not_bought"  # failure code


@dataclass(frozen=True, slots=True)
class Note:
    """What a user should know about the manifests. It is shown after a plan or a run, and is in `run.json`."""

    level: Literal["note", "warning"]
    code: str
    message: str
    """One sentence or two, in one line, without secrets."""
    details: dict[str, int | str] = field(default_factory=dict)
    """The numbers and names in the message."""


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """Counts of a plan."""

    rows: int = 0  # rows with a request: owned + rejected + those that wait for a vector
    unreadable: int = 0  # the other rows of the manifests
    distinct: int = 0  # fingerprints
    duplicates: int = 0  # rows with the fingerprint of an earlier row
    owned: int = 0  # rows whose vector is in the store
    rejected: int = 0  # rows whose request the service rejected permanently in an earlier run
    to_buy: int = 0  # distinct requests to send
    text_tokens: int = 0  # estimated tokens of the requests to send
    image_tokens: int = 0
    over_context: int = (
        0  # rows longer than the model's context, by estimate; they are sent, and the service may reject them
    )
    not_finite: int = 0  # kept values that are NaN or Infinity in JSON; they are published as null
    notes: tuple[Note, ...] = field(default=(), kw_only=True)

    def plus(self, other: "PlanTotals") -> "PlanTotals":
        """Return the sum of two plans' totals."""
        return PlanTotals(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def tokens(self) -> int:
        """Estimated tokens of the requests to send."""
        return self.text_tokens + self.image_tokens


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """The decisions for one bucket.

    `owned`: REFS of rows whose vector is in the store. `waiting`: fingerprint, shard and ordinal of rows that wait for
    a vector. `buyers`: KEYS of the waiting rows whose request is sent, one for each fingerprint. `rejected`: FAILED of
    rows whose request the service rejected permanently.
    """

    owned: pa.Table
    waiting: pa.Table
    buyers: pa.Table
    rejected: pa.Table
    totals: PlanTotals


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated cost and duration of a plan."""

    cost_cny: float
    minutes: float
    """Lower bound: the time that the quota needs."""
    binding: str
    """The limit that decides the duration: `rpm` or `tpm`."""
    covered: float | None = None
    """The share of the plan that the budget covers; None without a budget."""


def count_buckets(manifest_bytes: int) -> int:
    """Return the number of buckets, so that each bucket, and each element of the shuffle, stays small."""
    return max(1, min(BUCKETS_MAX, -(-manifest_bytes // BUCKET_BYTES)))


def split_buckets(table: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    """Split a table by the first two bytes of its fingerprints.

    Each piece is a copy made with `take`, because a slice would be pickled together with the whole table.
    """
    if table.num_rows == 0:
        return
    if buckets == 1:
        yield 0, table.take(pa.array(np.arange(table.num_rows))).combine_chunks()
        return
    numbers = _bucket_numbers(table.column("fingerprint"), buckets)
    yield from split_by(table, numbers)


def split_by(table: pa.Table, numbers: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """Split a table by one number per row. Return copies in the order of the numbers; rows keep their order."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    for value, positions in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
        yield value, table.take(pa.array(positions)).combine_chunks()


def plan_bucket(
    keys: Sequence[pa.Table], index: Sequence[pa.Table], rejected: Sequence[pa.Table], *, resend_rejected: bool = False
) -> BucketPlan:
    """Join one bucket's keys with the store's index and rejections.

    Args:
        keys: KEYS tables. The plan does not depend on their order.
        index: INDEX tables. A fingerprint may occur more than once.
        rejected: REJECTED tables. If the store holds both a vector and a rejection, the vector counts.
        resend_rejected: send requests again that were rejected permanently.
    """
    rows = _sorted(concat(keys, schema.KEYS), ("shard", "ordinal"))
    known = _sorted(concat(index, schema.INDEX), ("segment", "row"))
    at = pc.index_in(rows["fingerprint"], value_set=known["fingerprint"].combine_chunks())
    owned = _refs(rows, known, at)
    rest = rows.filter(pc.is_null(at))
    failed, waiting = _split_rejected(rest, concat([] if resend_rejected else rejected, schema.REJECTED))
    buyers = waiting.take(pa.array(first_positions(waiting["fingerprint"])))
    distinct = len(first_positions(rows["fingerprint"]))
    totals = PlanTotals(
        rows=rows.num_rows,
        distinct=distinct,
        duplicates=rows.num_rows - distinct,
        owned=owned.num_rows,
        rejected=failed.num_rows,
        to_buy=buyers.num_rows,
        text_tokens=pc.sum(buyers["text_tokens"]).as_py() or 0,
        image_tokens=pc.sum(buyers["image_tokens"]).as_py() or 0,
    )
    return BucketPlan(owned, waiting.select(["fingerprint", "shard", "ordinal"]), buyers, failed, totals)


def settle_bucket(
    waiting: Sequence[pa.Table], bought: Sequence[pa.Table], rejected: Sequence[pa.Table]
) -> tuple[pa.Table, pa.Table]:
    """Join waiting rows with the results of Embed: return REFS of rows with a vector and FAILED of the others.

    A row with neither a vector nor a rejection fails with `not_bought`: the run stopped before its request had a
    result.
    """
    rows = concat(waiting, _WAITING)
    known = _sorted(concat(bought, schema.INDEX), ("segment", "row"))
    at = pc.index_in(rows["fingerprint"], value_set=known["fingerprint"].combine_chunks())
    refs = _refs(rows, known, at)
    failed, missing = _split_rejected(rows.filter(pc.is_null(at)), concat(rejected, schema.REJECTED))
    return refs, pa.concat_tables([failed, _failed(missing, NOT_BOUGHT, "the run ended before this row was sent")])


def cut_blocks(buyers: pa.Table, rows_max: int) -> Iterator[pa.Table]:
    """Sort one shard's buyers in the order of the manifest and cut them into blocks of at most `rows_max` rows."""
    ordered = _sorted(buyers, ("ordinal",))
    for start in range(0, ordered.num_rows, rows_max):
        yield ordered.slice(start, rows_max)


def deal_lane(shard: int, block: int, lanes: int) -> int:
    """Return the lane of a block; neighbouring blocks go to different lanes."""
    return (shard + block) % lanes


def sum_totals(totals: Iterable[PlanTotals]) -> PlanTotals:
    """Add up the totals of buckets and shards; all zeros if there are none."""
    return functools.reduce(PlanTotals.plus, totals, PlanTotals())


def estimate(
    totals: PlanTotals,
    capabilities: Capabilities,
    limits: RateLimits,
    *,
    headroom: float,
    budget: BudgetOptions = NO_BUDGET,
) -> Estimate:
    """Estimate the cost and the duration of a plan at a quota, and which of the two limits decides the duration."""
    by_requests = totals.to_buy / (limits.rpm * headroom)
    by_tokens = totals.tokens / (limits.tpm * headroom)
    cost = cost_cny(totals.text_tokens, totals.image_tokens, capabilities)
    return Estimate(
        cost_cny=cost,
        minutes=max(by_requests, by_tokens),
        binding="rpm" if by_requests >= by_tokens else "tpm",
        covered=_cover(totals.tokens, cost, budget) if budget.is_set else None,
    )


def _cover(tokens: int, cost: float, budget: BudgetOptions) -> float:
    by_tokens = 1.0 if budget.tokens is None or tokens == 0 else budget.tokens / tokens
    by_cost = 1.0 if budget.cny is None or cost == 0 else budget.cny / cost
    return min(1.0, by_tokens, by_cost)


def first_positions(fingerprints: pa.ChunkedArray) -> np.ndarray:
    """Return the position of the first occurrence of each distinct fingerprint, in order."""
    codes = fingerprints.combine_chunks().dictionary_encode().indices.to_numpy()
    return np.sort(np.unique(codes, return_index=True)[1])


_WAITING = pa.schema([schema.KEYS.field(name) for name in ("fingerprint", "shard", "ordinal")])


def _bucket_numbers(fingerprints: pa.ChunkedArray, buckets: int) -> npt.NDArray[np.uint32]:
    first = _bytes_of(fingerprints)[:, :2]
    prefix = first[:, 0].astype(np.uint32) * 256 + first[:, 1]
    numbers: npt.NDArray[np.uint32] = prefix * np.uint32(buckets) >> np.uint32(16)
    return numbers


def _cut_keys(fingerprints: pa.ChunkedArray) -> pa.Array:
    return pa.array(_bytes_of(fingerprints).view(">u8")[:, 1].astype(np.uint64))


def _bytes_of(fingerprints: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """View fingerprints as a matrix of bytes."""
    array = fingerprints.combine_chunks()
    flat = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    matrix: npt.NDArray[np.uint8] = flat.reshape(-1, schema.FINGERPRINT_BYTES)[array.offset : array.offset + len(array)]
    return matrix


def _sorted(table: pa.Table, names: Sequence[str]) -> pa.Table:
    order = np.lexsort([table.column(name).to_numpy() for name in reversed(names)])
    return table.take(pa.array(order))


def _refs(rows: pa.Table, known: pa.Table, at: pa.ChunkedArray) -> pa.Table:
    have = pc.is_valid(at)
    rows, positions = rows.filter(have), pc.drop_null(at)
    places = [known["segment"].take(positions), known["row"].take(positions), rows["shard"], rows["ordinal"]]
    return pa.table([*places, _cut_keys(rows["fingerprint"])], schema=schema.REFS)


def _split_rejected(rows: pa.Table, rejected: pa.Table) -> tuple[pa.Table, pa.Table]:
    rejected = rejected.sort_by([("code", "ascending"), ("message", "ascending")])
    at = pc.index_in(rows["fingerprint"], value_set=rejected["fingerprint"].combine_chunks())
    have, positions = rows.filter(pc.is_valid(at)), pc.drop_null(at)
    columns = [have["shard"], have["ordinal"], rejected["code"].take(positions), rejected["message"].take(positions)]
    return pa.table(columns, schema=schema.FAILED), rows.filter(pc.is_null(at))


def _failed(rows: pa.Table, code: str, message: str) -> pa.Table:
    count = rows.num_rows
    columns = [rows["shard"], rows["ordinal"], pa.array([code] * count), pa.array([message] * count)]
    return pa.table(columns, schema=schema.FAILED)
