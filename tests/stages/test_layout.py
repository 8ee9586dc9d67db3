"""What is published can be read by common readers: encodings and types in the footers, and readers that read every value."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arkbeam.base.schema import Layout
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.stages.publish import embeddings
from arkbeam.stages.publish.layout import VECTOR_BYTES, vector_rows
from hypothesis import given
from hypothesis import strategies as st
from typer import BadParameter

from scripts.compatibility import outputs, read, readers
from scripts.compatibility.__main__ import main
from scripts.compatibility.report import Notes, make_table
from tests.places import Place, run_emulator
from tests.warm import WarmProcess

PORTABLE_ENCODINGS = {"PLAIN", "RLE", "RLE_DICTIONARY", "PLAIN_DICTIONARY", "BIT_PACKED"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Iterator[dict[Layout, Path]]:
    """An output with every kind of column, in each layout."""
    folder = tmp_path_factory.mktemp("layouts")
    with run_emulator(warm, EmulatorOptions()) as emulator:
        yield {layout: outputs.make_output(folder, emulator.url, layout) for layout in Layout}


def files_of(output: Path) -> list[Path]:
    """Return the published files, at least one of each folder."""
    files = {name: sorted((output / name).glob("*.parquet")) for name in outputs.FOLDERS}
    assert all(files.values())
    return [path for found in files.values() for path in found]


def chunks_of(path: Path) -> Iterator[Any]:
    """Yield the metadata of each column chunk of a file."""
    footer = pq.read_metadata(path)
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            yield footer.row_group(group).column(index)


@pytest.mark.parametrize("layout", Layout)
def test_no_published_column_has_a_type_that_readers_lack(made: dict[Layout, Path], layout: Layout) -> None:
    """No column of any file is unsigned, a float16, a UUID or fixed-size bytes; no list has a fixed size for Arrow's readers."""
    for path in files_of(made[layout]):
        for column in map(pq.ParquetFile(path).schema.column, range(pq.read_metadata(path).num_columns)):
            logical = json.loads(column.logical_type.to_json())
            assert logical.get("isSigned", True), column.path
            assert logical["Type"] not in ("Float16", "UUID"), column.path
            assert logical["Type"] == "Decimal" or column.physical_type != "FIXED_LEN_BYTE_ARRAY", column.path
        assert "fixed_size" not in str(pq.read_schema(path))


@pytest.mark.parametrize("layout", Layout)
def test_each_column_has_a_page_index(made: dict[Layout, Path], layout: Layout) -> None:
    """Each column chunk of each file has an offset index, with which a reader finds the page of one row."""
    for path in files_of(made[layout]):
        assert all(chunk.has_offset_index for chunk in chunks_of(path))


def test_the_default_layout_has_only_encodings_that_every_reader_has(made: dict[Layout, Path]) -> None:
    """In `portable`, no file has BYTE_STREAM_SPLIT or a DELTA encoding; all pages are compressed with zstd."""
    for path in files_of(made[Layout.PORTABLE]):
        for chunk in chunks_of(path):
            assert set(chunk.encodings) <= PORTABLE_ENCODINGS, chunk.path_in_schema
            assert chunk.compression == "ZSTD"


def test_layouts_differ_in_nothing_but_encodings(made: dict[Layout, Path]) -> None:
    """`compact` has BYTE_STREAM_SPLIT for all vectors, and the same columns, types and values as `portable`."""
    split = {
        chunk.path_in_schema.partition(".")[0]
        for path in files_of(made[Layout.COMPACT])
        for chunk in chunks_of(path)
        if "BYTE_STREAM_SPLIT" in chunk.encodings
    }
    assert split == {"dense", "sparse", "multi"}
    for name in ("embeddings", "multi", "failures"):
        portable, compact = (pq.read_table(made[layout] / name).sort_by("id") for layout in Layout)
        assert compact.schema.equals(portable.schema, check_metadata=True)
        differ = [column for column in portable.column_names if not portable[column].equals(compact[column])]
        assert set(differ) <= {"request_id"}  # each layout was bought for itself


@pytest.mark.parametrize("reader", ["duckdb", "polars"])
@pytest.mark.parametrize("folder", outputs.FOLDERS)
def test_readers_read_every_value(made: dict[Layout, Path], tmp_path: Path, reader: str, folder: str) -> None:
    """`SELECT *` and each column alone give the values that pyarrow reads. `scripts/compat` does this with more readers."""
    outputs.write_expected(made[Layout.PORTABLE] / folder, tmp_path / "expected.json")
    expected = json.loads((tmp_path / "expected.json").read_text("utf-8"))
    found = read.compare(reader, str(made[Layout.PORTABLE] / folder), expected)
    assert len(found) == len(expected) + 1
    assert {name: outcome for name, outcome in found.items() if outcome != read.OK} == {}


def test_kept_columns_have_the_values_of_the_manifest(made: dict[Layout, Path]) -> None:
    """Each kept column has the values of the manifest, whatever type it is published in."""
    output = made[Layout.PORTABLE]
    table = pq.read_table(output / "embeddings").sort_by("id")
    places = [int(name.removeprefix("row ")) for name in table["id"].to_pylist()]
    assert sorted(places) == list(range(6))
    for name, column in outputs.kept_columns().items():
        values = column.take(pa.array(places)).to_pylist()
        if name in ("uuid", "decimal_50"):
            values = [None if value is None else str(value) for value in values]
        published = table[name].to_pylist()
        if name == "timestamp_of_pandas":
            published, values = table[name].cast(pa.int64()).to_pylist(), column.take(pa.array(places)).cast(pa.int64())
            values = [None if value is None else value // 1000 for value in values.to_pylist()]
        assert published == values, name


def test_a_wrong_reader_is_told(made: dict[Layout, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that fails, loses a row, or changes a value gets a `no` with the reason in the table."""
    rows = [{"x": 1}, {"x": None}]
    expected = {"x": [None, 1]}
    reads: dict[str, Any] = {
        "right": rows,
        "short": rows[:1],
        "wrong": [{"x": 1}, {"x": 2}],
        "other": [{"y": 1}, {"y": 2}],
    }

    def fake(name: str) -> Any:
        return reads[name]

    for name in [*reads, "broken"]:
        monkeypatch.setitem(read.READERS, name, lambda folder, _: fake(folder))
    outcomes = {name: read.compare(name, name, expected) for name in [*reads, "broken"]}
    table = make_table("column", outcomes, Notes())
    assert table.splitlines()[-1] == "| x | ok | no (3) | no (4) | no (5) | no (2) |"
    assert outcomes["short"]["x"] == "1 rows instead of 2"
    assert outcomes["broken"]["*"] == "KeyError: 'broken'"


def test_a_folder_without_an_output_is_told(tmp_path: Path) -> None:
    """`scripts/compat --output` of another folder is an error, not an empty table; nothing is installed for it."""
    (tmp_path / "embeddings").mkdir()
    with pytest.raises(BadParameter, match="no Parquet files in embeddings, multi, failures, usage"):
        main(output=tmp_path)


def test_a_reader_that_fails_to_start_is_told(tmp_path: Path) -> None:
    """A reader whose process ends with an error, or not in time, is one kind of error, with a reason."""
    lines = {"import sys; sys.exit('no memory')": "no memory\n", "import time; time.sleep(9)": "it took more than 1 s"}
    for line, reason in lines.items():
        with pytest.raises(CalledProcessError) as caught:
            readers._call([sys.executable, "-c", line], 1)
        assert caught.value.stderr == reason


@given(st.integers(64, 4096))
def test_row_groups_hold_about_16_mib_of_vectors(dimensions: int) -> None:
    """A row group has as many rows as 16 MiB hold, at least 256 and at most 16,384."""
    rows = vector_rows(dimensions)
    assert 256 <= rows <= 16_384
    assert rows == 16_384 or 0.9 * VECTOR_BYTES < rows * dimensions * 4 <= VECTOR_BYTES
    assert (vector_rows(1024), vector_rows(2048)) == (4096, 2048)


def test_a_part_has_row_groups_of_that_size(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are cut into row groups by the bytes of their vectors; the rows stay the same."""
    place.write_texts(40)
    settings = {"model.multi_embedding": "zstd", "model.instructions": "x"}
    place.run(settings)
    whole = [place.read(name).sort_by("id") for name in ("embeddings", "multi")]
    monkeypatch.setattr(embeddings, "vector_rows", lambda _: 16)
    monkeypatch.setattr(embeddings, "VECTOR_BYTES", 4096 * 8)  # the tokens of two rows
    (place.output / "run.json").unlink()  # so that no part is kept
    place.run(settings)
    dense, multi = (pq.read_metadata(next((place.output / name).glob("*"))) for name in ("embeddings", "multi"))
    assert [dense.row_group(group).num_rows for group in range(dense.num_row_groups)] == [16, 16, 8]
    assert 10 < multi.num_row_groups < multi.num_rows == 40
    for table in whole:
        again = place.read("multi" if "multi" in table.column_names else "embeddings").sort_by("id")
        assert again.equals(table)


def test_a_layout_is_chosen_and_told(place: Place) -> None:
    """Without a layout in the config, it is `portable`. `run.json` names it.

    A kept column called `multi` is published in each layout, although `compact` encodes the vectors of that name.
    """
    place.write_rows([{"text": "a", "multi": [["x"], []]}])
    assert place.prepare().spec.layout == Layout.PORTABLE
    for layout in Layout:
        note = place.run({"output.layout": layout.value, "manifest.keep": ["multi"]})
        assert note["layout"] == layout.value
        assert place.read("embeddings")["multi"].to_pylist() == [[["x"], []]]
