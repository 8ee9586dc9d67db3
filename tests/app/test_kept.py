"""Kept columns from the manifest to the output: no value is rounded, wrapped, quoted or replaced."""

import uuid
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.report import plan_table, summary_table
from arkbeam.stages.plan import Estimate

_FAR = datetime(9999, 12, 31)  # noqa: DTZ001
_NS = 1_714_566_600_123_456_789


def _write(path: Path, **columns: Any) -> None:
    rows = len(next(iter(columns.values())))
    table = pa.table({"id": [f"{path.stem}{n}" for n in range(rows)], "text": [f"{path.stem} {n}" for n in range(rows)], **columns})  # fmt: skip
    pq.write_table(table, path)


def test_parquet_files_that_drift(place: Any) -> None:
    """Columns whose type differs between files are widened, or become the text of their values; other columns stay."""
    same = {"same": pa.array([[{"x": 1}], None], pa.list_view(pa.struct([("x", pa.int8())])))}
    _write(
        place.folder / "a.parquet",
        ts=pa.array([_NS, None], pa.timestamp("ns")),
        far=pa.array([_NS, None], pa.timestamp("ns")),
        day=pa.array([date(2024, 1, 1), None]),
        price=pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
        number=pa.array([2**53 + 1, 2]),
        key=pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), None], pa.binary(16))),
        only_a=pa.array([1, 2], pa.int16()),
        nulls=pa.array([None, None], pa.int64()),
        **same,
    )
    _write(
        place.folder / "b.parquet",
        ts=pa.array([5, None], pa.timestamp("us")),
        far=pa.array([_FAR, None], pa.timestamp("us")),
        day=pa.array(["2024-01-02", "soon"]),
        price=pa.array([Decimal("12.7500"), None], pa.decimal128(10, 4)),
        number=pa.array([0.5, None]),
        key=pa.array([str(uuid.UUID(int=1)), None]),
        nulls=pa.array(["x", None]),
        **same,
    )
    keep = ["ts", "far", "day", "price", "number", "key", "only_a", "nulls", "same"]
    place.run({"manifest.uris": [str(place.folder / "*.parquet")], "manifest.keep": keep})
    table = place.read("embeddings").sort_by("id")
    expected = {
        "ts": pa.array([_NS, None, 5_000, None], pa.timestamp("ns")),
        "far": pa.array(["2024-05-01T12:30:00.123456789", None, "9999-12-31T00:00:00", None], pa.large_string()),
        "day": pa.array(["2024-01-01", None, "2024-01-02", "soon"], pa.large_string()),
        "price": pa.array([Decimal("1.5000"), None, Decimal("12.7500"), None], pa.decimal128(10, 4)),
        "number": pa.array(["9007199254740993", "2", "0.5", None], pa.large_string()),
        "key": pa.array([str(uuid.UUID(int=0)), None, str(uuid.UUID(int=1)), None], pa.large_string()),
        "only_a": pa.array([1, 2, None, None], pa.int16()),
        "nulls": pa.array([None, None, "x", None]),
        "same": pa.array([[{"x": 1}], None] * 2, pa.list_(pa.struct([("x", pa.int8())]))),
    }
    for name, column in expected.items():
        assert table[name].combine_chunks().equals(column), name


def test_json_numbers_across_chunks(place: Any) -> None:
    """Row 4,099 has a float, and is in another chunk than the integers above 2^53: no digit changes. NaN is null, and counted."""
    rows = [f'{{"text": "w{n % 7}", "k": {2**53 + 1 + 2 * n}, "wei": {10**25 + n}, "nan": NaN}}' for n in range(4_099)]
    place.write_rows([*rows, '{"text": "w0", "k": 0.5, "wei": 7, "nan": 2.5}'])
    note = place.run({"manifest.keep": ["k", "wei", "nan"]})
    table = place.read("embeddings").sort_by("row")
    assert table["k"].to_pylist() == [*(str(2**53 + 1 + 2 * n) for n in range(4_099)), "0.5"]
    assert (
        table["wei"]
        .combine_chunks()
        .equals(pa.array([*(Decimal(10**25 + n) for n in range(4_099)), Decimal(7)], pa.decimal128(38, 0)))
    )
    assert table["nan"].to_pylist() == [*[None] * 4_099, 2.5]
    assert note["kept_not_finite"] == 4_099
    cells = [cell for column in summary_table(note).columns for cell in column.cells]
    assert any("4,099 values" in str(cell) and "NaN" in str(cell) for cell in cells)
    totals = place.plan({"manifest.keep": ["nan"]})
    assert totals.not_finite == 4_099
    assert any(
        "NaN" in str(cell) for column in plan_table(totals, Estimate(0, 0, "rpm")).columns for cell in column.cells
    )


def test_a_kept_column_is_in_the_schema_without_any_row(place: Any) -> None:
    """All rows fail: the column is there, as text."""
    place.write_rows([{"id": "a", "k": 1}])
    assert place.run({"manifest.keep": ["k"]})["published"] == 0
    assert place.read("embeddings").schema.field("k").type == pa.large_string()


@pytest.mark.parametrize("name", ["Model", "ROW"])
def test_a_name_that_differs_in_case_only_is_a_note(place: Any, name: str) -> None:
    """Such an output is valid, but Spark and DuckDB do not tell the columns apart: the user is told before the run."""
    place.write_rows([{"text": "a"}])
    assert any(repr(name) in note and "Spark" in note for note in place.prepare({"manifest.keep": [name]}).notes)
    assert any("'x'" in note for note in place.prepare({"manifest.keep": ["x", "X"]}).notes)
    assert not any("Spark" in note for note in place.prepare({"manifest.keep": ["models", "x"]}).notes)
