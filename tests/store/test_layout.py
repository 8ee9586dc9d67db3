"""Names in a store: they sort by time and contain their run and output."""

from itertools import pairwise
from pathlib import Path

import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.store.layout import (
    StoreOptions,
    events_folder,
    journals_folder,
    list_parquet,
    new_run_name,
    new_segment_id,
    run_folder,
    run_of,
    runs_of_output,
    segment_id,
    segment_name,
    segments_folder,
    uri_key,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.floats(0, 4_000_000_000), st.integers(0, 2**64 - 1)), max_size=50))
def test_segment_ids_of_a_process_grow(calls: list[tuple[float, int]]) -> None:
    """Each id is above the one before, whatever the clock does, and fits into 64 bits."""
    ids = [0]
    for now_s, bits in calls:
        ids.append(new_segment_id(now_s, bits, ids[-1]))
    assert all(earlier < later < 2**64 for earlier, later in pairwise(ids))


@given(st.integers(0, 4_000_000_000_000), st.integers(1, 10**9), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_segment_ids_of_a_later_millisecond_are_larger(now_ms: int, later_ms: int, bits: int, more_bits: int) -> None:
    """Ids of different processes sort by their clocks, whatever the random bits."""
    assert new_segment_id(now_ms / 1000, bits, 0) < new_segment_id((now_ms + later_ms + 1) / 1000, more_bits, 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_segment_names_round_trip_and_sort(left: int, right: int) -> None:
    """A file name gives its id back, and names sort like ids."""
    assert segment_id(f"s3://bucket/segments/run/{segment_name(left)}") == left
    assert (segment_name(left) < segment_name(right)) == (left < right)


def test_a_run_is_found_by_its_output(tmp_path: Path) -> None:
    """The name of a run contains its start and the key of its output; runs of other outputs do not match."""
    ours, theirs = "s3://bucket/ours", "s3://bucket/theirs"
    key = uri_key(ours)
    names = [
        new_run_name(key, 1_743_575_029, "00112233aabb"),
        new_run_name(uri_key(ours + "/"), 1_743_575_030, key),
        new_run_name(uri_key(theirs), 1_743_575_031, key),
    ]
    assert names[0] == f"20250402T062349-{key}-00112233"
    for name in names:
        (tmp_path / name).mkdir()
    assert runs_of_output(str(tmp_path), key) == names[:2]
    assert runs_of_output(str(tmp_path), uri_key(theirs)) == names[2:]
    assert runs_of_output(str(tmp_path / "none"), key) == []


@pytest.mark.parametrize("folder", [segments_folder, events_folder, journals_folder, run_folder])
@pytest.mark.parametrize("store", ["/data/store", "/data/store/", "s3://bucket/store"])
def test_folders_lie_below_the_store(folder: object, store: str) -> None:
    """A run's folder lies in the folder of all runs, which lies in the store; a file's path gives its run."""
    assert callable(folder)
    everything, one = folder(store), folder(store, "run")
    assert everything.startswith(store.rstrip("/") + "/")
    assert one == f"{everything}/run"
    assert run_of(f"{one}/{segment_name(3)}") == "run"


def test_only_parquet_files_are_listed_oldest_first(tmp_path: Path) -> None:
    """Leftovers of a killed writer and other files are not segments."""
    for name in ("run-b/2.parquet", "run-a/3.parquet", "run-a/.3.parquet.00aa.tmp", "run-a/note.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_parquet(str(tmp_path)) == [f"{tmp_path}/run-a/3.parquet", f"{tmp_path}/run-b/2.parquet"]


@pytest.mark.parametrize("wrong", [{"flush_rows": 0}, {"flush_s": 0.0}, {"flush_s": float("nan")}])
def test_a_store_that_never_writes_is_refused(wrong: dict[str, float]) -> None:
    """The error names the keys."""
    with pytest.raises(ConfigError, match=r"store\.flush_rows"):
        StoreOptions("store", **wrong)  # type: ignore[arg-type]
