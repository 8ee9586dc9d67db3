"""`arkbeam verify` finds each kind of damage, and nothing in an output that is as it was published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from arkbeam.outputs import verify
from arkbeam.outputs.buckets import Buckets, repeats
from arkbeam.outputs.verify import verify_output

from tests.outputs.conftest import change_part, find_part
from tests.s3 import S3

EMBEDDINGS = "embeddings/part-00000"
FAILURES = "failures/part-00000"
OLD = Path(__file__).parent.parent / "data" / "version-0.1.0" / "out"


def set_column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    """Return a change of the values of one column."""

    def act(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        return table.set_column(
            table.column_names.index(name), field, pa.array(change(table[name].to_pylist()), field.type)
        )

    return act


def put(position: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    """Return a change of one value of a list."""
    return lambda values: [*values[:position], value, *values[position + 1 :]]


def put_in(position: int, change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    """Return a change of one value of a list by a function."""
    return lambda values: put(position, change(values[position]))(values)


def turned(sparse: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a sparse vector with its entries in the wrong order."""
    return {name: values[::-1] for name, values in sparse.items()}


def longer(sparse: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return a sparse vector with an index too many."""
    return {**sparse, "indices": [*sparse["indices"], 2**32 - 1]}


def test_sound_outputs(finished: Path) -> None:
    """An output as it was published has no fault, nor has one of version 0.1.0, whose types were others."""
    for folder, rows in ((finished, 24), (OLD, 11)):
        report = verify_output(str(folder))
        assert (report.counts, report.is_sound, report.published) == ({}, True, rows)


@pytest.mark.parametrize(
    ("path", "change", "code", "words"),
    [
        (EMBEDDINGS, set_column("dense", put_in(3, lambda v: [float("nan"), *v[1:]])), "not_finite", "row 3 (id 'id-03')"),
        (EMBEDDINGS, set_column("dense", put_in(3, lambda v: v[1:])), "dimensions", "row 3"),
        (EMBEDDINGS, set_column("norm", put(4, 1.01)), "norm", "row 4"),
        (EMBEDDINGS, set_column("sparse", put_in(5, turned)), "sparse_order", "row 5"),
        (EMBEDDINGS, set_column("sparse", put_in(5, longer)), "sparse_length", "row 5"),
        (EMBEDDINGS, set_column("fingerprint", put(1, b"short")), "fingerprint", "row 1"),
        (EMBEDDINGS, set_column("row", put(1, 0)), "row_repeated", "id 'id-00', row 0 of"),
        (EMBEDDINGS, set_column("id", put(1, "id-00")), "id_repeated", "id 'id-00'"),
        (FAILURES, set_column("id", put(0, "id-00")), "id_repeated", "id 'id-00'"),
        (EMBEDDINGS, lambda table: table.slice(1), "count", "published is 24, but the files have 23 rows"),
        (EMBEDDINGS, lambda table: table.drop_columns(["sparse"]), "schema", "no column sparse"),
        (EMBEDDINGS, lambda table: table.set_column(0, "id", pa.array(range(24))), "schema", "column id has the type int64"),
    ],
)  # fmt: skip
def test_wrong_values(output: Path, path: str, change: Any, code: str, words: str) -> None:
    """A wrong value in a file whose hash is right is found, with the row's id."""
    change_part(output, path, change)
    report = verify_output(str(output))
    assert report.counts == {code: 1}
    assert words in report.faults[0].message
    assert report.faults[0].where.startswith((EMBEDDINGS, "run.json"))


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def note_with(**changes: Any) -> Callable[[Path], None]:
    """Return a change of keys of run.json."""

    def act(output: Path) -> None:
        path = output / "run.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return act


@pytest.mark.parametrize(
    ("damage", "counts"),
    [
        (lambda output: flip(find_part(output, EMBEDDINGS)), {"hash": 1}),
        (lambda output: find_part(output, EMBEDDINGS).write_bytes(b""), {"hash": 1}),
        (lambda output: find_part(output, FAILURES).unlink(), {"missing": 1}),
        (
            lambda output: shutil.copy(find_part(output, EMBEDDINGS), output / "embeddings" / "more.parquet"),
            {"stray": 1},
        ),
        (lambda output: (output / "_SUCCESS").unlink(), {"incomplete": 1}),
        (lambda output: (output / "run.json").write_bytes(b"{"), {"run_note": 1}),
        (note_with(files=[{"path": "../x", "rows": 1, "bytes": 1, "sha256": "0" * 64}]), {"run_note": 1}),
        (note_with(failed=2), {"count": 2}),
        (note_with(all_runs={"requests_paid": 3}), {"count": 1}),
    ],
)
def test_damaged_files(output: Path, damage: Callable[[Path], Any], counts: dict[str, int]) -> None:
    """Changed, missing and stray files, a missing _SUCCESS and counts that do not add up are found."""
    damage(output)
    assert verify_output(str(output)).counts == counts


def test_repeated_ids_of_the_manifest_can_be_allowed(output: Path) -> None:
    """With `repeated_ids_ok`, two rows with one id are no fault."""
    change_part(output, EMBEDDINGS, set_column("id", put(1, "id-00")))
    assert verify_output(str(output), repeated_ids_ok=True).is_sound


def test_only_the_first_faults_are_kept(output: Path) -> None:
    """A report has at most ten faults, and counts the others."""
    change_part(output, EMBEDDINGS, set_column("id", lambda ids: [f"id-{n // 2}" for n in range(len(ids))]))
    report = verify_output(str(output))
    assert report.counts == {"id_repeated": 12}
    assert len(report.faults) == verify.FAULTS_MAX == 10


def test_keys_of_many_rows_are_compared_by_bucket(tmp_path: Path) -> None:
    """Each of the keys that two records have is found once, whatever bucket it is in."""
    kind = np.dtype([("key", np.uint64), ("at", np.uint32)])
    keys = np.random.default_rng(0).integers(0, 2**64, 1_000, np.uint64)
    buckets = Buckets(tmp_path, "keys", kind)
    for part in (keys, keys[:100]):
        buckets.add(key=part, at=np.arange(len(part)))
    found = [records["key"][repeats(records["key"]) == 1] for records in buckets.read_all()]
    assert sorted(np.concatenate(found).tolist()) == sorted(keys[:100].tolist())


def test_command(output: Path, call: Callable[..., Any], tmp_path: Path) -> None:
    """The command exits with 0, with 1 and the faults if there are any, and with 2 without an output."""
    ended = call("verify", str(output))
    assert (ended.code, ended.out.startswith("no fault: 4 files")) == (0, True)
    change_part(output, EMBEDDINGS, set_column("id", put(1, "\x1b[31m")))
    flip(find_part(output, FAILURES))
    ended = call("verify", str(output))
    assert (ended.code, "hash failures/" in ended.out, "\x1b" in ended.out) == (1, True, False)
    ended = call("verify", str(output), "--json")
    assert json.loads(ended.out)["counts"] == {"hash": 1}
    assert call("verify", str(tmp_path / "nowhere")).code == 2


def test_an_output_on_s3(finished: Path, s3: S3) -> None:
    """An output in a bucket is checked in the same way."""
    for path in finished.rglob("*"):
        if path.is_file():
            s3.put(f"out/{path.relative_to(finished)}", path.read_bytes())
    assert verify_output(s3.uri("out")).is_sound
    part = find_part(finished, EMBEDDINGS)
    s3.put(f"out/{part.relative_to(finished)}", part.read_bytes() + b" ")
    assert verify_output(s3.uri("out")).counts == {"hash": 1}
