"""Segments return vectors bit for bit as they were bought, or raise an error."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from arkbeam.base import schema
from arkbeam.base.errors import StoreError
from arkbeam.base.records import Usage
from arkbeam.base.replies import Sparse
from arkbeam.store.integrity import set_aside
from arkbeam.store.layout import segment_id
from arkbeam.store.segments import (
    Bought,
    dense_values,
    is_damaged,
    read_columns,
    read_index,
    segment_table,
    write_segment,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

RUN = "20250101T000000-0123abcd-89ef4567"
DIMENSIONS = 8
MakeBought = Callable[..., Bought]

_BITS = arrays(np.uint32, (3, DIMENSIONS), elements=st.integers(0, 2**32 - 1)).map(lambda bits: bits.view(np.float32))
_SPARSE = st.none() | st.dictionaries(
    st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4
).map(lambda entries: _sparse(sorted(entries.items())))


def _sparse(entries: Sequence[tuple[int, float]]) -> Sparse:
    indices, values = zip(*entries, strict=True) if entries else ((), ())
    return Sparse(np.array(indices, np.uint32), np.array(values, np.float32))


def _write(folder: Path, bought: Sequence[Bought], segment: int = 5) -> str:
    return write_segment(str(folder), RUN, segment, segment_table(bought, DIMENSIONS))


def _read(uri: str) -> Any:
    return read_columns(uri, schema.segment_schema(DIMENSIONS).names)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_BITS)
def test_dense_vectors_are_kept_bit_for_bit(tmp_path: Path, make_bought: MakeBought, vectors: Any) -> None:
    """Every pattern of 32 bits is read back: subnormals, both zeros, infinities, and any NaN."""
    uri = _write(tmp_path, [make_bought(number, dense=vector) for number, vector in enumerate(vectors)])
    back = dense_values(_read(uri)["dense"])
    assert np.array_equal(back.view(np.uint32), vectors.view(np.uint32))


def test_the_odd_floats_are_among_them(tmp_path: Path, make_bought: MakeBought) -> None:
    """Among others the smallest subnormal, -0.0 and the largest float."""
    odd = np.array([1e-45, -1e-45, -0.0, 0.0, 1.1754942e-38, 3.4028235e38, -1.0, 1 / 3], np.float32)
    back = dense_values(_read(_write(tmp_path, [make_bought(1, dense=odd)]))["dense"])[0]
    assert back.view(np.uint32).tolist() == odd.view(np.uint32).tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_SPARSE, min_size=1, max_size=6))
def test_sparse_vectors_are_null_or_empty_or_filled(
    tmp_path: Path, make_bought: MakeBought, sparse: list[Sparse | None]
) -> None:
    """Null means not requested, empty means no active entry; indices and values are read back bit for bit."""
    bought = [make_bought(number, sparse=one) for number, one in enumerate(sparse)]
    for row, one in zip(_read(_write(tmp_path, bought))["sparse"].to_pylist(), sparse, strict=True):
        if one is None:
            assert row is None
        else:
            assert row["indices"] == one.indices.tolist()
            assert np.array(row["values"], np.float32).tobytes() == one.values.tobytes()


def test_what_a_vector_cost_is_beside_it(tmp_path: Path, make_bought: MakeBought) -> None:
    """Ids, model, time, attempts and the four token counts are read back; what the service did not report is null."""
    uri = _write(
        tmp_path,
        [
            make_bought(1, usage=Usage(10, 11, 4, 6), attempts=3),
            make_bought(2, usage=Usage(), id=None, model=None, created=None),
        ],
    )
    full, empty = read_columns(uri, [name for name in schema.segment_schema(DIMENSIONS).names if name != "dense"])[
        :
    ].to_pylist()
    assert full["created"].timestamp() == 1_743_575_029
    assert {name: full[name] for name in full if name not in ("created", "sparse")} == {
        "fingerprint": (1).to_bytes(16),
        "norm": 1.5,
        "request_id": "request-1",
        "client_request_id": "client-1",
        "model": "doubao-embedding-vision-251215",
        "prompt_tokens": 10,
        "total_tokens": 11,
        "text_tokens": 4,
        "image_tokens": 6,
        "attempts": 3,
        "latency_ms": 12.5,
    }
    unsaid = ("request_id", "model", "created", "prompt_tokens", "total_tokens", "text_tokens", "image_tokens")
    assert [empty[name] for name in unsaid] == [None] * 7


def test_the_schema_is_the_declared_one(tmp_path: Path, make_bought: MakeBought) -> None:
    """Names, types and nullability in the file are those in `schema`; Parquet stores seconds as milliseconds."""
    found = pq.read_schema(_write(tmp_path, [make_bought(1)])).remove_metadata()
    declared = schema.segment_schema(DIMENSIONS)
    assert found.names == declared.names
    assert [found.field(name) for name in found.names if name != "created"] == [
        declared.field(name) for name in declared.names if name != "created"
    ]


def test_a_segment_is_one_row_group_with_compact_vectors(tmp_path: Path, make_bought: MakeBought) -> None:
    """Vectors use BYTE_STREAM_SPLIT without dictionary or statistics; all pages are compressed with zstd."""
    metadata = pq.read_metadata(_write(tmp_path, [make_bought(number) for number in range(300)]))
    assert metadata.num_row_groups == 1
    columns = {
        metadata.row_group(0).column(index).path_in_schema: metadata.row_group(0).column(index)
        for index in range(metadata.num_columns)
    }
    dense = columns["dense.list.element"]
    assert "BYTE_STREAM_SPLIT" in dense.encodings
    assert not dense.has_dictionary_page
    assert not dense.is_stats_set
    assert {column.compression for column in columns.values()} == {"ZSTD"}


def test_the_index_says_where_each_fingerprint_is(tmp_path: Path, make_bought: MakeBought) -> None:
    """One row per vector, in the order of the file, with the segment id from the file name."""
    uri = _write(tmp_path, [make_bought(number) for number in (9, 4, 4)], segment=2**63 + 17)
    index = read_index(uri)
    assert index.schema == schema.INDEX
    assert index.to_pydict() == {
        "fingerprint": [number.to_bytes(16) for number in (9, 4, 4)],
        "segment": [2**63 + 17] * 3,
        "row": [0, 1, 2],
    }
    assert segment_id(uri) == 2**63 + 17


def test_the_index_can_be_that_of_one_model(tmp_path: Path, make_bought: MakeBought) -> None:
    """Vectors of other models are left out, and rows keep their numbers; vectors without a model are included."""
    uri = _write(tmp_path, [make_bought(number, model=model) for number, model in enumerate(("a", "b", None, "a"))])
    assert read_index(uri, "a")["row"].to_pylist() == [0, 2, 3]


def test_no_flipped_bit_passes_for_what_was_written(tmp_path: Path, make_bought: MakeBought) -> None:
    """A flipped bit anywhere in a segment, in pages, page headers or footer, is an error on read."""
    bought = [make_bought(number, sparse=_sparse([(number, 0.5)])) for number in range(4)]
    uri = _write(tmp_path, bought)
    path, whole = Path(uri), Path(uri).read_bytes()
    for place in range(0, len(whole), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place // 2 % 8]) + whole[place + 1 :])
        with pytest.raises(StoreError):
            _read(uri)


def test_a_flipped_bit_in_a_page_is_an_error(tmp_path: Path, make_bought: MakeBought) -> None:
    """The checksum covers every byte of the vectors' page."""
    uri = _write(tmp_path, [make_bought(number) for number in range(64)])
    path, whole = Path(uri), Path(uri).read_bytes()
    metadata = pq.read_metadata(uri).row_group(0)
    column = next(
        metadata.column(index)
        for index in range(metadata.num_columns)
        if metadata.column(index).path_in_schema.startswith("dense")
    )
    end = column.data_page_offset + column.total_compressed_size
    for place in random.Random(1).sample(range(end - 1_000, end), 50):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"0000000000000005-\w{16}\.parquet"):
            read_columns(uri, ["dense"])


def test_a_cut_file_is_an_error(tmp_path: Path, make_bought: MakeBought) -> None:
    """A segment that is cut off anywhere is an error."""
    uri = _write(tmp_path, [make_bought(number) for number in range(3)])
    whole = Path(uri).read_bytes()
    for length in range(0, len(whole), 97):
        Path(uri).write_bytes(whole[:length])
        with pytest.raises(StoreError):
            read_index(uri)
        assert is_damaged(uri, ["fingerprint"])


def test_a_column_that_is_not_there_is_an_error(tmp_path: Path, make_bought: MakeBought) -> None:
    """A damaged footer can lose a column's name; the table is not returned without it."""
    uri = _write(tmp_path, [make_bought(1)])
    with pytest.raises(StoreError, match=r"0000000000000005-\w{16}\.parquet.*no column"):
        read_columns(uri, ["fingerprint", "colour"])


def test_damage_is_told_from_a_storage_that_fails(tmp_path: Path, make_bought: MakeBought) -> None:
    """An undamaged file is not reported as damaged; if its bytes can't be read, that is an error."""
    uri = _write(tmp_path, [make_bought(1)])
    assert not is_damaged(uri, ["fingerprint", "dense"])
    with pytest.raises(StoreError):
        is_damaged(uri + ".gone", ["fingerprint"])


def test_a_damaged_segment_is_set_aside_not_lost(tmp_path: Path, make_bought: MakeBought) -> None:
    """The segment is moved to `damaged/` under its run and name, with all of its bytes."""
    uri = _write(tmp_path, [make_bought(1)])
    whole = Path(uri).read_bytes()
    aside = set_aside(str(tmp_path), uri)
    assert not Path(uri).exists()
    assert aside == str(tmp_path / "damaged" / RUN / Path(uri).name)
    assert Path(aside).read_bytes() == whole


def test_segments_can_lie_in_memory(make_bought: MakeBought) -> None:
    """Any fsspec scheme works."""
    uri = write_segment("memory://segments-test/store", RUN, 1, segment_table([make_bought(3)], DIMENSIONS))
    assert read_index(uri)["fingerprint"].to_pylist() == [(3).to_bytes(16)]
