"""INT96, the type in which Spark and Hive wrote timestamps: any year, with nanoseconds."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from arkbeam.base.records import Failure
from arkbeam.manifest.int96 import join_int96
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.parquet_groups import ParquetGroups

YEAR_9999_S = 253_402_300_799  # its last second
YEAR_1_S = -62_135_596_800  # its first second


def _read(table: pa.Table) -> pa.RecordBatch:
    """Write the timestamps as INT96, and read them as a manifest is read."""
    stream = io.BytesIO()
    pq.write_table(table, stream, use_deprecated_int96_timestamps=True, store_schema=False)
    (batch,) = ParquetGroups(pq.ParquetFile(stream), stream, table.column_names, ()).read(0, ManifestOptions(()))
    assert not isinstance(batch, Failure)
    return batch


def _stamps(unit: str, values: Sequence[int | None]) -> pa.Array:
    return pa.array(values, pa.timestamp(unit))


def test_years_that_nanoseconds_can_hold_stay_nanoseconds() -> None:
    """The type and every digit stay as Arrow reads them."""
    stamps = _stamps("ns", [1_714_566_600_123_456_789, -1, None])
    assert _read(pa.table({"t": stamps}))["t"].equals(stamps)


def test_other_years_do_not_wrap() -> None:
    """Years 1 and 9999 are right, as microseconds; other columns are not touched."""
    stamps = _stamps("us", [YEAR_9999_S * 10**6, YEAR_1_S * 10**6, None, 5])
    batch = _read(pa.table({"n": [1, 2, 3, 4], "t": stamps, "l": pa.array([[1], [], None, [2]])}))
    assert batch["t"].equals(stamps)
    assert (batch.schema.names, batch["n"].to_pylist()) == (["n", "t", "l"], [1, 2, 3, 4])


def test_timestamps_in_lists_and_structs_do_not_wrap() -> None:
    """Nested timestamps are read in the same way."""
    far, near = _stamps("us", [YEAR_9999_S * 10**6]), _stamps("ns", [1])
    batch = _read(
        pa.table(
            {
                "far": pa.array([far.to_pylist()], pa.list_(pa.timestamp("us"))),
                "near": pa.StructArray.from_arrays([near], names=["t"]),
            }
        )
    )
    assert batch["far"].flatten().equals(far)
    assert batch["near"].field(0).equals(near)


def test_digits_that_no_unit_holds_for_all_values_become_text() -> None:
    """A year after 2262 beside a value with nanoseconds: both are published in full, as text."""
    fine = _stamps("ns", [1_714_566_600_123_456_789, None])
    coarse = _stamps("us", [1_714_566_600_123_456, None])
    batch = pa.RecordBatch.from_arrays([fine], names=["t"])
    assert join_int96(batch, pa.RecordBatch.from_arrays([coarse], names=["t"]))["t"].equals(fine)
    wrapped = (YEAR_9999_S * 10**9 + 7) % 2**64 - 2**64 * ((YEAR_9999_S * 10**9 + 7) % 2**64 >= 2**63)
    fine = _stamps("ns", [1_714_566_600_123_456_789, None, wrapped])
    coarse = _stamps("us", [1_714_566_600_123_456, None, YEAR_9999_S * 10**6])
    batch = pa.RecordBatch.from_arrays([fine], names=["t"])
    texts = join_int96(batch, pa.RecordBatch.from_arrays([coarse], names=["t"]))["t"]
    assert texts.to_pylist() == ["2024-05-01T12:30:00.123456789", None, "9999-12-31T23:59:59.000000007"]
