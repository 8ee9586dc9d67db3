"""Plan is compared with a simple reference implementation: dictionaries, one row at a time."""

import hashlib
import pickle
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.ark.models import VERSIONS
from arkbeam.base import schema
from arkbeam.quota.options import RateLimits
from arkbeam.stages.plan import (
    BUCKETS_MAX,
    NOT_BOUGHT,
    BucketPlan,
    PlanTotals,
    count_buckets,
    cut_blocks,
    deal_lane,
    estimate,
    plan_bucket,
    settle_bucket,
    split_buckets,
    split_by,
)
from hypothesis import given
from hypothesis import strategies as st


class Key(NamedTuple):
    """A row of KEYS."""

    fingerprint: bytes
    shard: int
    ordinal: int
    text: int
    image: int


class Held(NamedTuple):
    """A row of INDEX."""

    fingerprint: bytes
    segment: int
    row: int


class Rejection(NamedTuple):
    """A row of REJECTED."""

    fingerprint: bytes
    code: str
    message: str


def _name(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(4), digest_size=16).digest()


_FINGERPRINTS = st.integers(0, 11).map(_name)
_PLACES = st.tuples(st.integers(0, 3), st.integers(0, 30))
_KEYS = st.lists(
    st.builds(
        lambda name, place, text, image: Key(name, *place, text, image),  # type: ignore[call-arg]
        _FINGERPRINTS,
        _PLACES,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    ),
    unique_by=lambda key: (key.shard, key.ordinal),
    max_size=40,
)
_INDEX = st.lists(st.builds(Held, _FINGERPRINTS, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=10)
_REJECTED = st.lists(
    st.builds(Rejection, _FINGERPRINTS, st.sampled_from(["A", "B"]), st.sampled_from(["no", "nein"])), max_size=10
)


def _table(rows: Sequence[tuple[Any, ...]], wanted: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(wanted)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, wanted, strict=True)], wanted)


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _pieces(rows: Sequence[tuple[Any, ...]], wanted: pa.Schema, chance: random.Random) -> list[pa.Table]:
    """Distribute rows over tables in random order; some tables may be empty."""
    dealt: list[list[tuple[Any, ...]]] = [[] for _ in range(chance.randint(1, 4))]
    for row in chance.sample(list(rows), len(rows)):
        chance.choice(dealt).append(row)
    return [_table(part, wanted) for part in dealt]


def _plan(keys: list[Key], index: list[Held], rejected: list[Rejection], seed: int, *, retry: bool) -> BucketPlan:
    chance = random.Random(seed)
    tables = [
        _pieces(rows, wanted, chance)
        for rows, wanted in ((keys, schema.KEYS), (index, schema.INDEX), (rejected, schema.REJECTED))
    ]
    return plan_bucket(*tables, resend_rejected=retry)


def _cut_key(fingerprint: bytes) -> int:
    return int.from_bytes(fingerprint[8:])


@given(_KEYS, _INDEX, _REJECTED, st.booleans())
def test_plan_agrees_with_an_oracle(
    keys: list[Key], index: list[Held], rejected: list[Rejection], resend_rejected: bool
) -> None:
    """Every row is owned, waiting or rejected; of the waiting rows with the same fingerprint, the first is the buyer."""
    plan = _plan(keys, index, rejected, 1, retry=resend_rejected)
    owners = {held.fingerprint: held[1:] for held in sorted(index, key=lambda held: held[1:], reverse=True)}
    reasons = (
        {} if resend_rejected else {one.fingerprint: one[1:] for one in sorted(rejected, key=lambda r: r[1:])[::-1]}
    )
    in_order = sorted(keys, key=lambda key: (key.shard, key.ordinal))
    missing = [key for key in in_order if key.fingerprint not in owners]
    waiting = [key for key in missing if key.fingerprint not in reasons]
    buyers = list({key.fingerprint: key for key in reversed(waiting)}.values())

    assert _rows(plan.owned) == [
        (*owners[key.fingerprint], key.shard, key.ordinal, _cut_key(key.fingerprint))
        for key in in_order
        if key.fingerprint in owners
    ]
    assert _rows(plan.waiting) == [(key.fingerprint, key.shard, key.ordinal) for key in waiting]
    assert _rows(plan.rejected) == [
        (key.shard, key.ordinal, *reasons[key.fingerprint]) for key in missing if key.fingerprint in reasons
    ]
    assert _rows(plan.buyers) == sorted(buyers, key=lambda key: (key.shard, key.ordinal))
    assert plan.totals == PlanTotals(
        rows=len(keys),
        distinct=len({key.fingerprint for key in keys}),
        duplicates=len(keys) - len({key.fingerprint for key in keys}),
        owned=plan.owned.num_rows,
        rejected=plan.rejected.num_rows,
        to_buy=len(buyers),
        text_tokens=sum(key.text for key in buyers),
        image_tokens=sum(key.image for key in buyers),
    )


@given(_KEYS, _INDEX, _REJECTED, st.integers(0, 2**32), st.booleans())
def test_plan_does_not_depend_on_the_order_of_its_input(
    keys: list[Key], index: list[Held], rejected: list[Rejection], seed: int, resend_rejected: bool
) -> None:
    """The same rows, in another order and split into other tables, give the same plan."""
    first = _plan(keys, index, rejected, 0, retry=resend_rejected)
    again = _plan(keys, index, rejected, seed, retry=resend_rejected)
    for name in ("owned", "waiting", "buyers", "rejected"):
        assert _rows(getattr(first, name)) == _rows(getattr(again, name))
    assert first.totals == again.totals


@given(_KEYS, _INDEX, _REJECTED, st.integers(0, 2**32))
def test_settling_agrees_with_an_oracle(
    keys: list[Key], bought: list[Held], rejected: list[Rejection], seed: int
) -> None:
    """Every waiting row gets the vector or the rejection of its fingerprint, or `not_bought`."""
    chance = random.Random(seed)
    waiting = [(key.fingerprint, key.shard, key.ordinal) for key in keys]
    refs, failed = settle_bucket(
        _pieces(waiting, pa.schema([schema.KEYS.field(index) for index in range(3)]), chance),
        _pieces(bought, schema.INDEX, chance),
        _pieces(rejected, schema.REJECTED, chance),
    )
    owners = {held.fingerprint: held[1:] for held in sorted(bought, key=lambda held: held[1:], reverse=True)}
    reasons = {one.fingerprint: one[1:] for one in sorted(rejected, key=lambda r: r[1:])[::-1]}
    assert refs.schema == schema.REFS
    assert failed.schema == schema.FAILED
    assert sorted(_rows(refs)) == sorted(
        (*owners[key.fingerprint], key.shard, key.ordinal, _cut_key(key.fingerprint))
        for key in keys
        if key.fingerprint in owners
    )
    unbought = (NOT_BOUGHT, "the run ended before this row was sent")
    assert sorted(_rows(failed)) == sorted(
        (key.shard, key.ordinal, *reasons.get(key.fingerprint, unbought))
        for key in keys
        if key.fingerprint not in owners
    )


def _many_keys(count: int, seed: int = 0) -> pa.Table:
    names = pa.py_buffer(np.random.default_rng(seed).bytes(16 * count))
    numbers = np.arange(count, dtype=np.uint32)
    column = pa.FixedSizeBinaryArray.from_buffers(schema.FINGERPRINT, count, [None, names])
    return pa.table([column, *[numbers] * 4], schema=schema.KEYS)


@given(st.integers(0, 300), st.integers(0, 50), st.integers(1, BUCKETS_MAX), st.integers(1, 3))
def test_buckets_hold_every_row_once(rows: int, start: int, buckets: int, chunks: int) -> None:
    """The pieces together are the table, each bucket occurs once, and a fingerprint is always in the same bucket."""
    table = pa.concat_tables([_many_keys(rows + start, seed % 2).slice(start) for seed in range(chunks)])
    pieces = list(split_buckets(table, buckets))
    numbers = [number for number, _ in pieces]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(range(buckets))
    assert all(piece.num_rows for _, piece in pieces)
    assert sorted(row for _, piece in pieces for row in _rows(piece)) == sorted(_rows(table))
    places = {(row[0], number) for number, piece in pieces for row in _rows(piece)}
    assert len(places) == len(set(table["fingerprint"].to_pylist()))
    for number, piece in pieces:
        assert list(split_buckets(piece, buckets)) == [(number, piece)]


@pytest.mark.parametrize("buckets", [1, 2, 7, BUCKETS_MAX])
def test_pieces_do_not_carry_their_parent(buckets: int) -> None:
    """A piece is pickled without the table that it was taken from, unlike a slice."""
    parent = _many_keys(100_000)
    for _, piece in split_buckets(parent.slice(50_000, 40), buckets):
        assert len(pickle.dumps(piece)) < 5_000


def test_buckets_are_of_about_one_size() -> None:
    """For any number of buckets, none has more than 1.5 times its share."""
    for buckets in (1, 3, 100, BUCKETS_MAX):
        sizes = [piece.num_rows for _, piece in split_buckets(_many_keys(100_000), buckets)]
        assert len(sizes) == buckets
        assert max(sizes) < 1.5 * 100_000 / buckets


def test_number_of_buckets_is_bounded() -> None:
    """An empty manifest has one bucket, a huge one BUCKETS_MAX."""
    mebibyte = 2**20
    assert [count_buckets(size) for size in (0, 1, 8 * mebibyte, 8 * mebibyte + 1, 2**50)] == [1, 1, 1, 2, BUCKETS_MAX]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=50))
def test_splitting_keeps_the_order_of_rows(numbers: list[int]) -> None:
    """Rows with the same number stay in their order."""
    table = _many_keys(len(numbers))
    pieces = dict(split_by(table, np.array(numbers)))
    assert list(pieces) == sorted(set(numbers))
    for value, piece in pieces.items():
        assert piece["ordinal"].to_pylist() == [place for place, number in enumerate(numbers) if number == value]


@given(st.permutations(range(25)), st.integers(1, 30))
def test_blocks_are_in_the_order_of_the_manifest(ordinals: list[int], rows_max: int) -> None:
    """The blocks together are the shard's buyers sorted by ordinal; all but the last are full."""
    buyers = _table([Key(_name(ordinal), 4, ordinal, 1, 0) for ordinal in ordinals], schema.KEYS)
    blocks = list(cut_blocks(buyers, rows_max))
    assert [number for block in blocks for number in block["ordinal"].to_pylist()] == list(range(25))
    assert [block.num_rows for block in blocks[:-1]] == [rows_max] * (len(blocks) - 1)
    assert 0 < blocks[-1].num_rows <= rows_max


def _neighbours(lanes: int) -> Iterator[tuple[int, int]]:
    for shard in range(5):
        for block in range(5):
            yield deal_lane(shard, block, lanes), deal_lane(shard, block + 1, lanes)
            yield deal_lane(shard, block, lanes), deal_lane(shard + 1, block, lanes)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_lanes_are_dealt_evenly(lanes: int) -> None:
    """Neighbouring blocks go to different lanes, and every lane gets work."""
    pairs = list(_neighbours(lanes))
    assert {lane for pair in pairs for lane in pair} == set(range(lanes))
    assert lanes == 1 or all(left != right for left, right in pairs)


def test_estimate_names_the_limit_that_binds() -> None:
    """The time follows from the binding limit and `headroom`; the cost from the text and image tokens."""
    caps = VERSIONS["251215"]
    short = estimate(PlanTotals(to_buy=1_000, text_tokens=20_000), caps, RateLimits(100, 10_000), headroom=0.5)
    assert (short.binding, short.minutes) == ("rpm", pytest.approx(20))
    assert short.cost_cny == pytest.approx(20_000 / 1e6 * caps.price_text_cny_per_million)
    large = estimate(
        PlanTotals(to_buy=10, text_tokens=500, image_tokens=13_000), caps, RateLimits(100, 10_000), headroom=0.5
    )
    assert (large.binding, large.minutes) == ("tpm", pytest.approx(2.7))
    money = 500 / 1e6 * caps.price_text_cny_per_million + 13_000 / 1e6 * caps.price_image_cny_per_million
    assert large.cost_cny == pytest.approx(money)


def test_nothing_to_buy_costs_nothing() -> None:
    """If all vectors are owned, the estimate is no cost and no time."""
    nothing = estimate(PlanTotals(rows=5, owned=5), VERSIONS["251215"], RateLimits(1, 1), headroom=1.0)
    assert (nothing.cost_cny, nothing.minutes) == (0, 0)


@given(st.lists(st.lists(st.integers(0, 10**9), min_size=9, max_size=9), min_size=2, max_size=4))
def test_totals_of_buckets_add_up(numbers: list[list[int]]) -> None:
    """The sum of plans has the sum of each count."""
    total = PlanTotals()
    for fields in numbers:
        total = total.plus(PlanTotals(*fields))
    assert total == PlanTotals(*map(sum, zip(*numbers, strict=True)))
    assert total.tokens == total.text_tokens + total.image_tokens
