"""Kept columns in the names of folders, as Hive and Spark lay out partitions."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.hive import list_folder_values
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests

CONTEXT = ReadContext(ServiceKind.ARK, ModelSpec.of(ModelOptions("doubao-embedding-vision-251215", 1024)))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _kept(uri: str | Path, *keep: str) -> list[dict[str, Any]]:
    options = ManifestOptions(str(uri), ColumnMap(text=("text",)), keep)
    shards = cut_shards(list_manifests(options), 2**20)
    chunks = [chunk for shard in shards for chunk in read_shard(shard, options, CONTEXT)]
    return [row for chunk in chunks for row in chunk.staged["kept"].to_pylist()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_is_taken_from_the_folder(name: str, tmp_path: Path) -> None:
    """Its value is text, in every format, whether the file is named by a glob or fully."""
    for day in ("2024-01-01", "2024-01-02"):
        _write(tmp_path / f"day={day}/lang=zh/{name}", [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}])
    expected = [
        {"n": n, "day": day, "lang": "zh", "gone": None} for day in ("2024-01-01", "2024-01-02") for n in ("1", "2")
    ]
    assert _kept(tmp_path / f"**/{name}", "n", "day", "lang", "gone") == expected
    assert _kept(tmp_path / f"*/*/{name}", "n", "day", "lang", "gone") == expected
    assert _kept(tmp_path / f"day=2024-01-02/lang=zh/{name}", "n", "day", "lang", "gone") == expected[2:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_of_the_file_takes_precedence(name: str, tmp_path: Path) -> None:
    """What a run published from such a file before stays the same."""
    _write(tmp_path / f"day=1/{name}", [{"text": "a", "day": "2"}, {"text": "b", "day": ""}])
    assert _kept(tmp_path / f"*/{name}", "day") == [{"day": "2"}, {"day": ""}]


def test_each_row_of_jsonl_decides_for_itself(tmp_path: Path) -> None:
    """A row that has the column, even as null, has its own value; a row that lacks it has the folder's."""
    _write(tmp_path / "day=1/a.jsonl", [{"text": "a", "day": "2"}, {"text": "b", "day": None}, {"text": "c"}])
    assert _kept(tmp_path / "*/*.jsonl", "day") == [{"day": "2"}, {"day": None}, {"day": "1"}]


@pytest.mark.parametrize(
    ("folder", "value"),
    [
        ("day=2024-01-01%2010%3A00", "2024-01-01 10:00"),
        ("day=a%252Fb", "a%2Fb"),
        ("day=a=b", "a=b"),
        ("day=", ""),
        ("day=100%", "100%"),
        ("day=%FF", "%FF"),
        ("day=a+b", "a+b"),
        ("day=__HIVE_DEFAULT_PARTITION__", None),
        ("d%61y=1", "1"),
        ("day=1/day=2", "2"),
        ("_day=0/day=3", "3"),
    ],
)
def test_names_of_folders_are_decoded_as_hive_writes_them(folder: str, value: str | None) -> None:
    """`%XX` stands for a character that a name can't have, and a special name for null."""
    assert list_folder_values(f"/in/{folder}/a.jsonl", ("day",)) == {"day": value}
    assert list_folder_values(f"s3://b/{folder}/a.jsonl", ("day",)) == {"day": value}


def test_other_parts_of_a_path_give_no_columns() -> None:
    """Only folders do: neither the file's name, nor the query of a URL, nor a column that is not kept."""
    for uri in ("/in/day=1.jsonl", "https://h/a.jsonl?x=/day=1/b", "/in/DAY=1/a.jsonl", "/in/=1/a.jsonl"):
        assert list_folder_values(uri, ("day", "x")) == {}, uri


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_the_quoted_row_is_that_of_the_file(name: str, tmp_path: Path) -> None:
    """A failure row is found again by its quoted row, which must not depend on `manifest.keep`."""
    _write(tmp_path / f"day=1/{name}", [{"text": "a"}])
    options = ManifestOptions(f"{tmp_path}/*/{name}", ColumnMap(text=("text",)), ("day",))
    (shard,) = cut_shards(list_manifests(options), 2**20)
    (chunk,) = read_shard(shard, options, CONTEXT)
    assert "day" not in json.loads(chunk.staged["original"][0].as_py())
