"""Read folders of Parquet files with one reader, and compare every value with the expected ones.

This file runs in an environment that has only the reader: it imports nothing of arkbeam, and no reader before it is used.

    python read.py READER FOLDER EXPECTED.json [FOLDER EXPECTED.json ...]
    python read.py READER --time FOLDER

The first form prints a line of JSON for each folder: for `*` (all columns at once) and for each column alone `ok`, `ok,`
and a remark, or what is wrong. The second form prints the seconds that it takes to read every value of a folder.
"""

import base64
import datetime
import decimal
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Read = Callable[[str, Sequence[str] | None], Iterable[Row]]
Form = Callable[[Any], Any]
ALL = "*"
OK = "ok"
_CHARS_MAX = 240
_DAY_NS = 86_400 * 10**9


def plain(value: Any) -> Any:
    """Return a value as JSON has it, equal for all readers: instants in ns since 1970, decimals as text, bytes in base64."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | bytes | bytearray | decimal.Decimal):
        return _plain_scalar(value)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return _plain_time(value)
    if hasattr(value, "dtype"):  # of numpy
        return _plain_numpy(value)
    if hasattr(value, "asDict"):  # a row of Spark
        return plain(value.asDict())
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, Iterable) else str(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, decimal.Decimal):
        return {"decimal": format(value.normalize(decimal.Context(prec=80)), "f")}
    return {"bytes": base64.b64encode(value).decode()}


def _plain_time(value: Any) -> Any:
    if isinstance(value, datetime.timedelta):
        return {"duration": value // datetime.timedelta(microseconds=1) * 1000 + int(getattr(value, "nanoseconds", 0))}
    if isinstance(value, datetime.time):
        return {"time": value.replace(tzinfo=None).isoformat("microseconds")}
    if not isinstance(value, datetime.datetime):
        return {"ns": (value.toordinal() - datetime.date(1970, 1, 1).toordinal()) * _DAY_NS}
    utc = value.astimezone(datetime.timezone.utc) if value.tzinfo else value  # noqa: UP017 - Pythons before 3.11
    since = utc.replace(tzinfo=None, microsecond=0) - datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - it is UTC
    seconds = since.days * 86_400 + since.seconds
    return {"ns": seconds * 10**9 + utc.microsecond * 1000 + int(getattr(utc, "nanosecond", 0))}


def _plain_numpy(value: Any) -> Any:
    if value.ndim:
        return [plain(inner) for inner in value.tolist()]
    if value.dtype.kind == "M":
        return {"ns": int(value.astype("datetime64[ns]").astype("int64"))}
    if value.dtype.kind == "m":
        return {"duration": int(value.astype("timedelta64[ns]").astype("int64"))}
    return plain(value.item())


def read_duckdb(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with DuckDB."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    cursor = connection.execute(f"SELECT {_select(columns)} FROM '{folder}/*.parquet'")
    names = [one[0] for one in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def read_spark(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with Spark, in this process."""
    frame = _spark().read.parquet(folder)
    chosen = [f"`{name}`" for name in columns or ()] or ["*"]
    return [row.asDict() for row in frame.select(chosen).collect()]


def _spark() -> Any:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    return session


def read_polars(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with Polars."""
    import polars

    rows: Sequence[Row] = polars.read_parquet(
        f"{folder}/*.parquet", columns=list(columns) if columns else None
    ).to_dicts()
    return rows


def read_pandas(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with pandas and pyarrow."""
    import pandas

    return _records(pandas.read_parquet(folder, engine="pyarrow", columns=columns))


def read_fastparquet(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with pandas and fastparquet, which has a column for each field of a struct."""
    import fastparquet
    import pandas

    for path in sorted(Path(folder).glob("*.parquet")):
        chosen = columns
        if columns:
            found = [str(name) for name in fastparquet.ParquetFile(str(path)).columns]
            chosen = [name for name in found if name in columns or name.partition(".")[0] in columns]
        for row in _records(pandas.read_parquet(path, engine="fastparquet", columns=chosen)):
            yield _join_fields(row)


def _join_fields(row: Row) -> Row:
    joined: dict[str, Any] = {}
    for name, value in row.items():
        *parents, leaf = name.split(".")
        inside = joined
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[leaf] = value
    return joined


def _records(frame: Any) -> Iterable[Row]:
    """Yield the rows of a DataFrame of pandas, in which NaN and NaT stand for null in many columns."""
    import pandas

    for row in frame.to_dict("records"):
        yield {name: None if pandas.api.types.is_scalar(one) and pandas.isna(one) else one for name, one in row.items()}


def read_datasets(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with Hugging Face datasets."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        wanted = {"columns": list(columns)} if columns else {}
        files = sorted(map(str, Path(folder).glob("*.parquet")))
        return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache, **wanted))


def read_datafusion(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with DataFusion."""
    from datafusion import SessionContext

    context = SessionContext()
    context.register_parquet("files", folder)
    rows: list[Row] = context.sql(f"SELECT {_select(columns)} FROM files").to_pylist()
    return rows


def read_daft(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with Daft."""
    import daft

    frame = daft.read_parquet(f"{folder}/*.parquet")
    rows: list[Row] = (frame.select(*columns) if columns else frame).to_pylist()
    return rows


def read_clickhouse(folder: str, columns: Sequence[str] | None) -> Iterable[Row]:
    """Read with ClickHouse."""
    import chdb

    chosen = _select(columns).replace('"', "`")
    query = (
        f"SELECT {chosen} FROM file('{folder}/*.parquet', Parquet) SETTINGS output_format_arrow_string_as_string = 0"
    )
    rows: list[Row] = chdb.query(query, "ArrowTable").to_pylist()
    return rows


def _select(columns: Sequence[str] | None) -> str:
    return ", ".join(f'"{name}"' for name in columns) if columns else "*"


READERS: dict[str, Read] = {
    "duckdb": read_duckdb,
    "spark": read_spark,
    "polars": read_polars,
    "pandas": read_pandas,
    "fastparquet": read_fastparquet,
    "datasets": read_datasets,
    "datafusion": read_datafusion,
    "daft": read_daft,
    "clickhouse": read_clickhouse,
}


def as_bytes(value: Any) -> Any:
    """Return a value with its texts as bytes: ClickHouse has one type for both."""
    if isinstance(value, str):
        return plain(value.encode())
    if isinstance(value, dict) and value.keys() & {"bytes", "ns", "decimal", "duration", "time"}:
        return value
    if isinstance(value, dict):
        return {key: as_bytes(inner) for key, inner in value.items()}
    return [as_bytes(inner) for inner in value] if isinstance(value, list) else value


def without_empty(value: Any) -> Any:
    """Return a value with empty lists, and structs that have only such, as null."""
    if isinstance(value, dict):
        inner = {key: without_empty(one) for key, one in value.items()}
        return inner if any(one is not None for one in inner.values()) else None
    return [without_empty(one) for one in value] or None if isinstance(value, list) else value


def without_hollow(value: Any) -> Any:
    """Return a value with lists and structs that have only nulls, or nothing, as null."""
    if isinstance(value, dict):
        inner = {key: without_hollow(one) for key, one in value.items()}
        return inner if any(one is not None for one in inner.values()) else None
    return value if not isinstance(value, list) or any(one is not None for one in value) else None


def with_floats(value: Any) -> Any:
    """Return a decimal or a boolean as a float."""
    if isinstance(value, bool):
        return float(value)
    return float(value["decimal"]) if isinstance(value, dict) and "decimal" in value else value


def as_map(value: Any) -> Any:
    """Return a map as a dict: some readers return pairs, or structs of `key` and `value`."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in value):
        return dict(value)
    if all(isinstance(one, dict) and one.keys() == {"key", "value"} for one in value):
        return {one["key"]: one["value"] for one in value}
    return value


def as_integer(value: Any) -> Any:
    """Return a duration as an integer in microseconds."""
    return value["duration"] // 1000 if isinstance(value, dict) and "duration" in value else value


def in_microseconds(value: Any) -> Any:
    """Return an instant without its nanoseconds, which Python's datetime can't hold."""
    return {"ns": value["ns"] // 1000 * 1000} if isinstance(value, dict) and "ns" in value else value


# What the types of a reader make of all values, and what they make of some, with a remark for the table.
ALWAYS: dict[str, Form] = {"clickhouse": as_bytes}
REMARKS: dict[str, list[tuple[str, Form]]] = {
    "clickhouse": [("null lists and structs as empty ones", lambda value: without_empty(as_bytes(value)))],
    "fastparquet": [
        ("structs as a column for each field, without a difference between null and empty lists", without_hollow),
        ("decimals, and booleans with nulls, as floats", with_floats),
    ],
}
REMARKS_OF_ALL: list[tuple[str, Form]] = [
    ("durations as integers", as_integer),
    ("Python's datetime has no nanoseconds", in_microseconds),
]


def compare(reader: str, folder: str, expected: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Read a folder as a whole and each column alone; return `ok`, with or without a remark, or what is wrong."""
    results = {ALL: _compare_columns(reader, folder, None, expected)}
    for name in expected:
        results[name] = _compare_columns(reader, folder, [name], {name: expected[name]})
    return results


def _compare_columns(
    reader: str, folder: str, columns: Sequence[str] | None, expected: Mapping[str, Sequence[Any]]
) -> str:
    try:
        rows = [plain(row) for row in READERS[reader](folder, columns)]
    except BaseException as error:  # noqa: BLE001 - the error is the result; readers in Rust panic with a BaseException
        return describe(error)
    outcomes = {name: compare_values(reader, rows, name, values) for name, values in expected.items()}
    wrong = {name: outcome for name, outcome in outcomes.items() if not outcome.startswith(OK)}
    if columns is None:
        return f"wrong in {', '.join(wrong)}"[:_CHARS_MAX] if wrong else OK
    return next(iter(outcomes.values()))


def compare_values(reader: str, rows: Sequence[Row], name: str, expected: Sequence[Any]) -> str:
    """Compare the values of a column with the expected ones, in any order."""
    if len(rows) != len(expected):
        return f"{len(rows)} rows instead of {len(expected)}"
    if any(name not in row for row in rows):
        return f"no column {name}"
    got = [row[name] for row in rows]
    first = difference(got, expected, ALWAYS.get(reader, as_map))
    if first is None:
        return OK
    for remark, form in (*REMARKS.get(reader, []), *REMARKS_OF_ALL):
        if difference(got, expected, form) is None:
            return f"{OK}, {remark}"
    return "{} instead of {}".format(*map(shorten, first))


def difference(got: Iterable[Any], expected: Iterable[Any], form: Form) -> tuple[Any, Any] | None:
    """Return the first value that differs, and the expected one; None if all are equal."""
    ours, theirs = (sorted(map(form, values), key=_order) for values in (got, expected))
    return next((pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]), None)


def _order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def shorten(value: Any) -> str:
    """Return the beginning of a value's JSON."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def describe(error: BaseException) -> str:
    """Return an error in one line: of an error of Java, the innermost cause."""
    text = str(error).rpartition("Caused by: ")[2].partition("\n\tat ")[0]
    without_paths = re.sub(r"\S*/\S+/\S*", "…", " ".join(text.split()))
    return f"{type(error).__name__}: {without_paths}"[:_CHARS_MAX]


def time_duckdb(folder: str) -> float:
    """Return the seconds in which DuckDB adds up all values of `dense`."""
    import duckdb

    start_s = time.perf_counter()
    duckdb.connect().execute(f"SELECT count(id), sum(norm), sum(list_sum(dense)) FROM '{folder}/*.parquet'").fetchall()
    return time.perf_counter() - start_s


def time_polars(folder: str) -> float:
    """Return the seconds in which Polars reads all columns into memory."""
    import polars

    start_s = time.perf_counter()
    polars.read_parquet(f"{folder}/*.parquet")
    return time.perf_counter() - start_s


TIMES: dict[str, Callable[[str], float]] = {"duckdb": time_duckdb, "polars": time_polars}


def main() -> None:
    """Compare folders, or time the reading of one."""
    reader, *arguments = sys.argv[1:]
    os.environ["TZ"] = "UTC"
    time.tzset()
    if arguments[0] == "--time":
        print(TIMES[reader](arguments[1]))
        return
    for folder, expected in zip(arguments[::2], arguments[1::2], strict=True):
        print(json.dumps(compare(reader, folder, json.loads(Path(expected).read_text("utf-8")))), flush=True)


if __name__ == "__main__":
    main()
