"""The survey of all shards: which manifests stop a run before it buys anything, and what the user is told of the others."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.app.config import parse_config
from arkbeam.app.prepare import prepare_job
from arkbeam.base.errors import ConfigError, ManifestError
from arkbeam.stages.plan import PlanTotals
from arkbeam.stages.read import ShardSummary, stage_shard
from arkbeam.stages.survey import survey_shards

Rows = Any  # JSON objects, the text of a file, or an Arrow table


def _write(path: Path, rows: Rows) -> None:
    if isinstance(rows, pa.Table):
        pq.write_table(rows, path, row_group_size=2)
    else:
        text = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
        path.write_text(text, "utf-8")


def _read(folder: Path, files: Mapping[str, Rows], limits: Mapping[str, Any], **manifest: Any) -> Any:
    """Write manifests and stage all of their shards; return the summaries and the spec."""
    for name, rows in files.items():
        _write(folder / name, rows)
    raw = {
        "manifest": {"uris": [str(folder / name) for name in files], **manifest},
        "model": {"name": "doubao-embedding-vision-251215", "dimensions": 1024},
        "api": {"base_url": "emulator"},
        "limits": limits,
        "store": {"uri": str(folder / "store")},
        "output": {"uri": str(folder / "out")},
    }
    job = prepare_job(parse_config(raw), base_url="http://127.0.0.1:1/api/v3")
    staged = [one for shard in job.shards for one in stage_shard(shard, job.spec)]
    return [one for one in staged if isinstance(one, ShardSummary)], job.spec


def _survey(folder: Path, files: Mapping[str, Rows], limits: Mapping[str, Any] = {}, **manifest: Any) -> PlanTotals:
    summaries, spec = _read(folder, files, limits, **manifest)
    return survey_shards(reversed(summaries), spec)


SKUS: Rows = [{"sku": "a", "title": "hello", "photo": "x.png"}, {"sku": "b", "title": "bye", "photo": "y.png"}]
TABLE = pa.table({"ID": ["1", "2"], "TEXT": ["one", "two"], "URL": ["x.png", None]})


@pytest.mark.parametrize(
    ("files", "columns", "keep", "says"),
    [
        (
            {"typo_image.jsonl": SKUS},
            {"id": "skuu", "text": "title", "image": "photos"},
            ["titel"],
            (
                "no manifest has the columns 'skuu' (manifest.columns.id, did you mean 'sku'?), 'photos'"
                " (manifest.columns.image, did you mean 'photo'?), 'titel' (manifest.keep, did you mean 'title'?);"
                " columns found: 'sku', 'title', 'photo'."
            ),
        ),
        (
            {"typo_parquet_case.parquet": TABLE},
            {"id": "id", "text": "TEXT", "image": "url"},
            ["Url"],
            (
                "'id' (manifest.columns.id, did you mean 'ID'?), 'url' (manifest.columns.image, did you mean 'URL'?), 'Url'"
                " (manifest.keep, did you mean 'URL'?); columns found: 'ID', 'TEXT', 'URL'."
            ),
        ),
        ({"typo_text_only.jsonl": SKUS}, {"id": "sku", "text": "titel"}, [], "no manifest has the column 'titel'"),
        ({"a.csv": "text\nx\n", "b.csv": "Image,text\n,y\n"}, {"text": "text", "image": "image"}, [], "mean 'Image'?"),
        (
            {"a.tsv": "text\tprice\nx\t1\n"},
            {"text": ["text", "body"]},
            [],
            "the column 'body' (manifest.columns.text);",
        ),
        ({"a.tsv": "text\tprice\nx\t1\n"}, {}, ["Price"], "did you mean 'price'?"),
        ({"a.jsonl": SKUS}, {"text": "title", "video": "clip"}, [], "'clip' (manifest.columns.video)"),
        ({"a.jsonl": SKUS}, {"input": "inputs"}, [], "'inputs' (manifest.columns.input)"),
        ({"a.jsonl": [{"text": "x"}]}, {"instructions": "how"}, [], "'how' (manifest.columns.instructions)"),
        ({"a.jsonl": [{"text": "x"}]}, {"sparse": "s"}, [], "'s' (manifest.columns.sparse)"),
        ({"a.jsonl": [{"text": "x"}]}, {"video_sampling": "fps"}, [], "'fps' (manifest.columns.video_sampling)"),
        (
            {"a.csv": "titel\nx\n", "b.jsonl": SKUS},
            {"text": "text"},
            [],
            "columns found: 'titel', 'sku', 'title', 'photo'",
        ),
        ({"none_sent.jsonl": '{"sku": 1}\n{broken\n'}, {"text": "title"}, [], "columns found: 'sku'"),
    ],
)
def test_a_column_that_no_manifest_has(
    files: Mapping[str, Rows], columns: Any, keep: list[str], says: str, tmp_path: Path
) -> None:
    """The error names the key and the column, the nearest name and the columns found."""
    with pytest.raises(ConfigError) as caught:
        _survey(tmp_path, files, columns=columns, keep=keep)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("files", "columns"),
    [
        ({"one row in many.jsonl": [{"text": "x"}] * 9_000 + [{"text": "x", "image": None}]}, {}),
        ({"null.jsonl": [{"text": "x", "image": None}]}, {}),
        ({"blank.csv": "text,image\nx,\n"}, {}),
        ({"null.parquet": pa.table({"text": ["x"], "image": pa.array([None], pa.null())})}, {}),
        ({"header only.csv": "text,image\n", "rows.csv": "text,image\nx,y.png\n"}, {}),
        ({"blank.jsonl": "\n \n", "rows.csv": "text,image\nx,y.png\n"}, {}),
        ({"broken.jsonl": "{\n[]\n"}, {}),
        ({"unset.jsonl": [{"text": "x", "image": ""}]}, {"instructions": ""}),
    ],
)
def test_a_column_without_values_exists(files: Mapping[str, Rows], columns: Any, tmp_path: Path) -> None:
    """A column exists if a header, a schema or one row has it. Manifests that show no column stop nothing."""
    assert _survey(tmp_path, files, columns={"text": "text", "image": "image", **columns}).notes == ()


def test_all_shards_of_a_manifest_count(tmp_path: Path) -> None:
    """A manifest has a column if one of its shards has it; no note is made."""
    rows = [{"text": f"text {number}"} for number in range(50)] + [{"text": "x", "price": 1}]
    files: Mapping[str, Rows] = {"a.jsonl": rows, "b.parquet": pa.table({"text": list("abcde"), "price": [1] * 5})}
    summaries, spec = _read(tmp_path, files, {}, keep=["price"], shard_bytes_max=200)
    assert len(summaries) > 6
    assert survey_shards(summaries, spec).notes == ()


def test_a_column_that_some_manifests_lack_is_a_note(tmp_path: Path) -> None:
    """The note has the numbers of manifests and of rows; rows without a column in a manifest that has it count as well."""
    files: Mapping[str, Rows] = {
        "a.jsonl": [{"text": "x", "price": 1}, {"text": "y"}],
        "b.csv": "text\nx\ny\nz\n",
        "c.parquet": pa.table({"text": ["x", "y"]}),
        "d.jsonl": "\n",
    }
    (note,) = _survey(tmp_path, files, keep=["price"]).notes
    assert (note.level, note.code) == ("note", "column_lacking")
    assert note.details == {"column": "price", "manifests_without": 2, "manifests": 3, "rows_without": 6, "rows": 7}
    assert note.message == (
        f"2 of 3 manifests do not have the column 'price' (manifest.keep), such as {tmp_path}/b.csv; 6 of 7 rows are"
        " without it"
    )


def test_notes_on_columns_are_bounded(tmp_path: Path) -> None:
    """However many columns a manifest lacks, there are at most 21 notes."""
    keep = [f"c{number}" for number in range(400)]
    files: Mapping[str, Rows] = {"a.csv": "text\nx\n", "b.jsonl": [{"text": "x", **dict.fromkeys(keep, 1)}]}
    notes = _survey(tmp_path, files, keep=keep).notes
    assert len(notes) == 21
    assert (notes[-1].code, notes[-1].details) == ("columns_lacking", {"columns": 380})


def test_no_column_with_content(tmp_path: Path) -> None:
    """If nothing is mapped and the manifests have none of the default columns, a warning lists the columns found."""
    (note,) = _survey(tmp_path, {"a.jsonl": SKUS, "b.csv": "name\nx\n"}).notes
    assert (note.level, note.code) == ("warning", "no_input_column")
    assert "columns found: 'sku', 'title', 'photo', 'name'. Map the columns with" in note.message
    for rows in ([{"sku": 1, "text": ""}], [{"sku": 1}, {"text": "x"}], [{"image": "missing.png"}]):
        assert _survey(tmp_path, {"a.jsonl": rows}).notes == ()


@pytest.mark.parametrize("columns", [{"text": "text"}, {"id": "id", "text": "text", "image": "image"}])
def test_json_rows_without_content(columns: dict[str, str], tmp_path: Path) -> None:
    """Writers of JSON leave out nulls: if no row gives a request, a column with its default name may be absent."""
    (note,) = _survey(tmp_path, {"a.jsonl": [{"id": "a", "k": 1}]}, columns=columns, keep=["k"]).notes
    assert (note.level, note.code) == ("warning", "no_input_column")
    assert "'text'; columns found: 'id', 'k'." in note.message
    cases: list[tuple[Rows, dict[str, Any]]] = [
        ([{"id": "a", "k": 1}], {"keep": ["price"]}),
        ([{"id": "a", "k": 1}], {"columns": {"text": "caption"}}),
        ([{"id": "a", "k": 1, "Text": "x"}], {}),
        (
            [{"id": "a", "k": 1, "clip": "data:video/mp4;base64,AAAA"}, {"k": 1}],
            {"columns": {**columns, "video": "clips"}},
        ),
        ("id,k\na,1\n", {}),
    ]
    for rows, further in cases:
        name = "a.csv" if isinstance(rows, str) else "a.jsonl"
        with pytest.raises(ConfigError, match="no manifest has the column"):
            _survey(tmp_path, {name: rows}, **{"columns": columns, "keep": ["k"], **further})


EMPTY: Mapping[str, Mapping[str, Rows]] = {
    "no bytes": {"a.jsonl": "", "a.csv": ""},
    "blank lines": {"a.jsonl": "\n  \n\n", "a.csv": "\n\n"},
    "header only": {"a.csv": "id,text\n", "a.tsv": "id\ttext\n\n"},
    "no rows": {"a.parquet": TABLE.slice(0, 0), "a.jsonl": "\ufeff"},
}


@pytest.mark.parametrize("kind", EMPTY)
def test_manifests_without_rows(kind: str, tmp_path: Path) -> None:
    """Manifests without rows stop the run, unless `limits.rows_min` is 0. Any other file with a row is enough."""
    with pytest.raises(
        ManifestError, match=r"0 rows in all, fewer than limits\.rows_min \(1\): .*set limits\.rows_min"
    ):
        _survey(tmp_path, EMPTY[kind])
    assert _survey(tmp_path, EMPTY[kind], {"rows_min": 0}) == PlanTotals()
    assert _survey(tmp_path, {**EMPTY[kind], "b.jsonl": [{"text": "x"}]}) == PlanTotals()


def test_rows_min_counts_unreadable_rows(tmp_path: Path) -> None:
    """`limits.rows_min` may be any number. Rows of all manifests count, read or not; blank lines do not."""
    files: Mapping[str, Rows] = {"a.jsonl": '{"text": "x"}\n\n{broken\n', "b.csv": "text\nx\n"}
    assert _survey(tmp_path, files, {"rows_min": 3}).unreadable == 1
    with pytest.raises(ManifestError, match="3 rows in all"):
        _survey(tmp_path, files, {"rows_min": 4})


@pytest.mark.parametrize(("before", "warns"), [(None, False), (0, False), (2, False), (4, False), (5, True)])
def test_manifests_that_shrank(before: int | None, warns: bool, tmp_path: Path) -> None:
    """Fewer than half of the rows of the output's last run are a warning with both numbers."""
    summaries, spec = _read(tmp_path, {"a.jsonl": '{"text": "x"}\n{broken\n'}, {})
    notes = survey_shards(summaries, replace(spec, rows_before=before)).notes
    assert [(note.level, note.code, note.details) for note in notes] == (
        [("warning", "rows_shrank", {"rows": 2, "rows_before": 5})] if warns else []
    )
