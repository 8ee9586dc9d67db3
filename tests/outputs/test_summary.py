"""The figures of a report, compared with plain computations."""

import re
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.outputs import summary
from arkbeam.outputs.advice import _OTHER, advise
from arkbeam.outputs.neighbours import Neighbours, find_neighbours, lay_out, to_units
from arkbeam.outputs.sampling import choose_files, spread
from arkbeam.stages.publish.earlier import PartFile
from hypothesis import given
from hypothesis import strategies as st

from tests.outputs.samples import RUN, failures_table, usage_table
from tests.test_layers import SOURCE

MINUTES = st.lists(st.tuples(st.integers(0, 4_000), st.floats(1, 60_000), st.integers(1, 5)), min_size=1, max_size=60)


@given(MINUTES)
def test_timeline_has_each_request_once(rows: list[tuple[int, float, int]]) -> None:
    """Replies, retries and the open time of requests add up to those of all attempts, however long the run was."""
    seconds, latencies, tries = zip(*rows, strict=True)
    table = usage_table(seconds, latencies, attempts=tries)
    line = summary.draw_timeline(table, RUN)
    assert line is not None
    assert len(line.edges_s) <= summary.BINS_MAX + 2
    assert sum(line.replies) == pytest.approx(len(rows))
    assert sum(line.retries) == pytest.approx(sum(tries) - len(rows))
    open_s = sum(
        mean * (end - start) for mean, start, end in zip(line.in_flight, line.edges_s, line.edges_s[1:], strict=False)
    )
    assert open_s <= sum(latencies) / 1000 * (1 + 1e-3) + 1e-6
    high = max(latencies)
    assert all(np.isnan(value) or value <= high * (1 + 1e-6) for value in line.p99_ms)


def test_timeline_of_a_known_run() -> None:
    """Ten requests of 2 s, made at seconds 10 to 19, are at most two at once; half the attempts count twice."""
    line = summary.draw_timeline(usage_table(range(10, 20), [2_000.0] * 10), RUN, share=0.5)
    assert line is not None
    assert sum(line.replies) == 20
    assert max(line.in_flight) == pytest.approx(4.0)
    assert [value for value in line.p50_ms if not np.isnan(value)] == [2_000.0] * 10


def test_only_the_attempts_of_one_run_are_timed() -> None:
    """Attempts of other runs and attempts without a time are left out; a run that sent nothing is replaced by the last that did."""
    other = usage_table([0, 5], [50.0, 70.0], run="20250101T000000-aaaaaaaa-00000000")
    lost = usage_table([None], [None], outcome=["lost"])
    table = pa.concat_tables([other, lost])
    assert summary.draw_timeline(table, RUN) is None
    assert summary.measure_latencies(table, RUN) == []
    run = summary.find_latest_run(table, RUN)
    assert run == "20250101T000000-aaaaaaaa-00000000"
    (latency,) = summary.measure_latencies(table, run)
    assert (latency.requests, latency.p50, latency.highest) == (2, 60.0, 70.0)


def test_latencies_are_also_told_by_kind() -> None:
    """If a run sent texts and media, each kind has its own percentiles."""
    table = usage_table([1, 2, 3], [100.0, 200.0, 900.0], image_tokens=[0, 0, 50])
    found = {one.kind: (one.requests, one.p50) for one in summary.measure_latencies(table, RUN)}
    assert found == {"all requests": (3, 200.0), "text only": (2, 150.0), "with image or video": (1, 900.0)}


@given(st.lists(st.sampled_from(["bad_json", "media_missing", "Other"]), max_size=40), st.integers(1, 5))
def test_failures_are_counted_by_code(codes: list[str], pieces: int) -> None:
    """Each code has its number of rows over all pieces, and an example that has this code."""
    table = failures_table(codes)
    size = -(-len(codes) // pieces) or 1
    found = summary.count_codes(table.slice(start, size) for start in range(0, len(codes), size))
    assert {one.code: one.rows for one in found} == Counter(codes)
    assert [one.rows for one in found] == sorted((one.rows for one in found), reverse=True)
    assert all(codes[int(one.message.split()[1])] == one.code for one in found)


def test_codes_and_messages_are_bounded() -> None:
    """Thousands of codes and huge messages give a short table."""
    codes = [f"code-{at}" for at in range(3_000)]
    found = summary.count_codes([failures_table(codes, message=["x" * 100_000] + ["y"] * 2_999)])
    assert len(found) == summary.CODES_MAX
    assert all(len(one.message) <= summary.MESSAGE_CHARS_MAX for one in found)


def test_every_code_of_this_package_has_advice() -> None:
    """No failure code of a row that is written in the source falls back to the general advice."""
    pattern = re.compile(r"(?:Failure|fail_row)\(\s*f?\"([a-z]\w+)\"")
    codes = {
        code
        for room in ("manifest", "media")
        for path in (SOURCE / room).rglob("*.py")
        for code in pattern.findall(path.read_text())
    }
    assert len(codes) > 30
    assert [code for code in sorted(codes) if advise(code) == _OTHER] == []


@given(st.integers(2, 80), st.integers(1, 20), st.integers(0, 5))
def test_neighbours_are_those_of_a_full_comparison(rows: int, count: int, seed: int) -> None:
    """The nearest rows are the best of all others by cosine, the best first."""
    vectors = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    units = to_units(vectors)
    near = find_neighbours(units, count)
    scores = units @ units.T
    np.fill_diagonal(scores, -np.inf)
    assert near.ids.shape == (rows, min(count, rows - 1))
    np.testing.assert_allclose(near.cosines, -np.sort(-scores, axis=1)[:, : near.ids.shape[1]], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, near.ids, 1), near.cosines, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_few_rows_have_a_place(rows: int) -> None:
    """A map of no or few rows has finite places between 0 and 1."""
    points = lay_out(to_units(np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32))).points
    assert points.shape == (rows, 2)
    assert ((points >= 0) & (points <= 1)).all()


def test_vectors_that_have_no_direction_do_no_harm() -> None:
    """Zero, infinite and missing values become zero vectors, which are near nothing."""
    vectors = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 1], [1, 0.001]], np.float32)
    near = find_neighbours(to_units(vectors), 1)
    assert near.ids[0, 0] == 4
    assert np.isfinite(near.cosines).all()
    assert summary.vectors_not_finite(vectors) == 2


def test_map_puts_groups_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both methods place the rows of two groups apart, and the same rows always in the same places."""
    chance = np.random.default_rng(1)
    vectors = (
        np.repeat(np.eye(16, dtype=np.float32)[:2], 30, axis=0) + chance.normal(size=(60, 16)).astype(np.float32) * 0.05
    )
    for points_max in (1_000, 0):
        layout = lay_out(to_units(vectors), points_max)
        assert np.array_equal(layout.points, lay_out(to_units(vectors), points_max).points)
        centres = layout.points[:30].mean(axis=0), layout.points[30:].mean(axis=0)
        spread_max = max(layout.points[:30].std(), layout.points[30:].std())
        assert np.linalg.norm(centres[0] - centres[1]) > 2 * min(spread_max, 0.3)
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    assert lay_out(to_units(vectors)).method == "PCA, because openTSNE is not installed"


def test_near_duplicates_are_counted() -> None:
    """Rows at or above the threshold, and rows with equal vectors, are counted apart."""
    cosines = np.array([[1.0], [1.0], [0.99], [0.5]], np.float32)
    found = summary.describe_closeness(Neighbours(np.zeros((4, 1), np.int64), cosines))
    assert found is not None
    assert (found.rows, found.near, found.equal) == (4, 3, 2)


def test_sparse_use_of_known_rows() -> None:
    """Rows without a sparse vector do not count; a row without an active index does."""
    rows = [None, {"indices": [], "values": []}, {"indices": [3, 9], "values": [1, 1]}, {"indices": [9], "values": [1]}]
    found = summary.describe_sparse(pa.chunked_array([pa.array(rows, pa.struct([("indices", pa.list_(pa.int64()))]))]))
    assert found is not None
    assert (found.rows, found.empty, found.active_high, found.distinct) == (3, 1, 2, 2)
    assert found.commonest_share == pytest.approx(2 / 3)
    assert (
        summary.describe_sparse(
            pa.chunked_array([pa.array([None, None], pa.struct([("indices", pa.list_(pa.int64()))]))])
        )
        is None
    )


@given(st.integers(0, 3_000), st.integers(1, 200))
def test_positions_are_spread(count: int, wanted: int) -> None:
    """Positions are in range, in order and different, and there are as many as asked for."""
    found = spread(count, wanted)
    assert found == sorted(set(found))
    assert len(found) == min(count, wanted)
    assert all(0 <= at < count for at in found)


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=300))
def test_files_are_bounded(rows: list[int]) -> None:
    """All files of a small folder are read; of a large one, some, with at least one."""
    files = [PartFile(f"embeddings/part-{at}", count, count, "") for at, count in enumerate(rows)]
    chosen = choose_files(files, 100, 1_000_000)
    assert 1 <= len(chosen) <= 100
    if sum(rows) <= 1_000_000 and len(rows) <= 100:
        assert chosen == files


def test_examples_take_turns() -> None:
    """Rows with and without media alternate, no row twice, and all that there are if there are few."""
    near = Neighbours(np.zeros((20, 1), np.int64), np.zeros((20, 1), np.float32))
    media = np.arange(20) < 4
    chosen = summary.choose_examples(near, media, 10)
    assert len(set(chosen)) == len(chosen)
    assert [bool(media[at]) for at in chosen[:8]] == [True, False] * 4
    assert len(summary.choose_examples(near, np.ones(20, bool), 10)) == 10
