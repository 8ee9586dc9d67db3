"""`arkbeam diff` finds the rows that were added, are gone or have changed, by id."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import s3fs
from arkbeam.outputs.diff import COSINES_MAX, diff_outputs

from tests.outputs.conftest import change_part
from tests.outputs.samples import embeddings_table, failures_table, write_output
from tests.s3 import S3

EMBEDDINGS = "embeddings/part-00000"


def test_an_output_and_itself(finished: Path) -> None:
    """An output does not differ from itself."""
    found = diff_outputs(str(finished), str(finished))
    assert (found.is_empty, found.same, found.a, found.cosines) == (True, 24, found.b, None)


def test_each_change_is_named(finished: Path, output: Path) -> None:
    """A changed vector, sparse vector, kept value of any type, an added and a missing row are found, with their ids."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["dense"] = [-value for value in rows[3]["dense"]]
        rows[4]["title"] = "other"
        rows[5]["tags"] = ["other"]
        rows[6]["sparse"] = None
        rows[7]["price"], rows[7]["sparse"] = None, {"indices": [1], "values": [1.0]}
        rows[8]["id"] = "new"
        return pa.Table.from_pylist(rows, table.schema).take(pa.array(np.arange(24)[::-1]))

    change_part(output, EMBEDDINGS, change)
    found = diff_outputs(str(finished), str(output))
    assert (found.added.rows, found.added.examples, found.gone.rows, found.gone.examples) == (1, ["new"], 1, ["id-08"])
    assert (found.same, found.changed.rows) == (18, 5)
    assert found.changed.columns == {"dense": 1, "sparse": 2, "title": 1, "tags": 1, "price": 1}
    examples = {example["id"]: example for example in found.changed.examples}
    assert {name: example["changed"] for name, example in examples.items()} == {
        "id-03": ["dense"],
        "id-04": ["title"],
        "id-05": ["tags"],
        "id-06": ["sparse"],
        "id-07": ["sparse", "price"],
    }
    assert examples["id-03"]["cosine"] == pytest.approx(-1)
    assert found.cosines is not None
    assert (found.cosines.rows, found.cosines.of, found.cosines.mean) == (1, 1, pytest.approx(-1))


def test_random_outputs_against_a_dictionary(tmp_path: Path) -> None:
    """The counts for two large outputs of several parts, and the cosines, are those that a plain comparison gives."""
    random = np.random.default_rng(7)
    outputs = []
    for name, count in (("a", 1_500), ("b", 1_400)):
        numbers = random.permutation(2_000)[:count]
        vectors = np.stack([numbers + random.integers(0, 2, count), np.ones(count)], axis=1)
        words = [f"w{n % 3 + random.integers(2)}" for n in numbers]
        table = embeddings_table(vectors, id=[f"n{n}" for n in numbers], word=words)
        parts = [table.slice(0, 900), table.slice(900)]
        outputs.append((write_output(tmp_path / name, {"embeddings": parts}), table.to_pylist()))
    (a, rows_a), (b, rows_b) = outputs
    found = diff_outputs(a.uri, b.uri)
    before, after = ({row["id"]: row for row in rows} for rows in (rows_a, rows_b))
    both = before.keys() & after.keys()
    dense = {name for name in both if before[name]["dense"] != after[name]["dense"]}
    other = {name for name in both if before[name]["word"] != after[name]["word"]}
    assert (found.added.rows, found.gone.rows) == (len(after.keys() - both), len(before.keys() - both))
    assert (found.changed.columns, found.changed.rows) == (
        {"dense": len(dense), "word": len(other)},
        len(dense | other),
    )
    assert found.same == len(both - dense - other)
    assert set(found.added.examples) <= after.keys() - both
    for example in found.changed.examples:
        assert example["changed"] == [c for c, names in (("dense", dense), ("word", other)) if example["id"] in names]
    assert found.cosines is not None
    cosines = [
        np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in ((before[n]["dense"], after[n]["dense"]) for n in dense)
    ]
    assert len(dense) < COSINES_MAX
    assert found.cosines.rows == len(dense)
    assert found.cosines.mean == pytest.approx(np.mean(cosines))
    assert found.cosines.lowest == pytest.approx(min(cosines))


def test_repeated_ids_are_matched_in_order(tmp_path: Path) -> None:
    """Rows with the same id are matched in the order of their rows, wherever they are in the files."""
    vectors = np.eye(3)
    table = embeddings_table(vectors, id=["x", "x", "y"])
    a = write_output(tmp_path / "a", {"embeddings": [table]})
    turned = write_output(tmp_path / "b", {"embeddings": [table.take(pa.array([1, 2, 0]))]})
    found = diff_outputs(a.uri, turned.uri)
    assert (found.is_empty, found.a.repeated_ids, found.b.repeated_ids) == (True, 1, 1)
    one = embeddings_table(np.array([[1.0, 0, 0], [0, 0, 1]]), id=["x", "y"])
    found = diff_outputs(a.uri, write_output(tmp_path / "c", {"embeddings": [one]}).uri)
    assert (found.gone.rows, found.gone.examples, found.changed.rows) == (1, ["x"], 0)


def test_failures_columns_and_dimensions(tmp_path: Path) -> None:
    """Rows that failed in the other output are counted; columns of one output are named; other lengths have no cosine."""
    two = embeddings_table(np.eye(2), id=["x", "y"], old=[1, 2], same=[None, None])
    one = embeddings_table(np.eye(1, 3), id=["x"], new=["1"], same=[None])
    a = write_output(tmp_path / "a", {"embeddings": [two]})
    b = write_output(tmp_path / "b", {"embeddings": [one], "failures": [failures_table(["c"], id=["y"])]})
    found = diff_outputs(a.uri, b.uri)
    assert (found.gone.rows, found.gone.failed_in_other, found.changed.columns) == (1, 1, {"dense": 1})
    assert (found.columns_added, found.columns_gone, found.cosines) == (["new"], ["old"], None)
    assert (found.a.dimensions, found.b.dimensions) == (2, 3)


def test_an_output_without_rows(tmp_path: Path, finished: Path) -> None:
    """An output without any vector can be compared."""
    found = diff_outputs(write_output(tmp_path / "a", {}).uri, str(finished))
    assert (found.added.rows, found.gone.rows, found.same) == (24, 0, 0)


def test_an_output_on_s3(finished: Path, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of an output in a bucket is copied once; of the rows that are named, only what is shown is read."""
    for path in finished.rglob("*"):
        if path.is_file():
            s3.put(f"out/{path.relative_to(finished)}", path.read_bytes())
    copied: list[str] = []
    get_file = s3fs.S3FileSystem._get_file

    async def count(self: s3fs.S3FileSystem, path: str, *args: Any, **options: Any) -> None:
        copied.append(path)
        await get_file(self, path, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_get_file", count)
    other = write_output(tmp_path / "other", {"embeddings": [embeddings_table(-np.ones((1, 1024)), id=["id-03"])]})
    found = diff_outputs(s3.uri("out"), other.uri)
    assert [example["id"] for example in found.changed.examples] == ["id-03"]
    assert (found.gone.rows, len(found.gone.examples), found.cosines is None) == (23, 10, False)
    assert len(copied) == 2


def test_command(finished: Path, output: Path, call: Callable[..., Any]) -> None:
    """The command prints the counts and the ids, or all of it as JSON."""

    def change(table: pa.Table) -> pa.Table:
        return table.set_column(0, table.schema.field(0), pc.replace_substring(table["id"], "id-03", "\x1b[31m"))

    change_part(output, EMBEDDINGS, change)
    ended = call("diff", str(finished), str(output))
    assert ended.code == 0
    assert "gone: 1 rows: 'id-03'" in ended.out
    assert "\x1b" not in ended.out
    document = json.loads(call("diff", str(finished), str(output), "--json").out)
    assert (document["same"], document["added"]["rows"], document["empty"]) == (23, 1, False)
    assert call("diff", str(finished), str(output.parent)).code == 2
