"""The checks of one part of an output: its bytes, its schema, and its values, a table at a time."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base import schema
from arkbeam.base.redaction import redact
from arkbeam.outputs.published import dense_matrix, flat_values, list_ends
from arkbeam.stages.publish import embeddings, failures, usage

NORM_TOLERANCE = 1e-5
"""Most relative difference of the column `norm` from the length of the vector."""
_INDEX_MAX = 2**32 - 1
_WANTED = {
    embeddings.FOLDER: schema.embeddings_schema(pa.struct([])),
    embeddings.MULTI_FOLDER: schema.MULTI_EMBEDDINGS,
    failures.FOLDER: schema.FAILURES,
    usage.FOLDER: schema.USAGE,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: a stable code, the file, and a sentence for people."""

    code: str
    where: str
    message: str


def hash_file(path: Path) -> tuple[int, str]:
    """Return the size and the SHA-256 of a local file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def check_schema(folder: str, found: pa.Schema) -> Iterator[str]:
    """Say what the schema of a part lacks. Types of earlier versions are accepted: unsigned integers, fixed-size lists."""
    wanted = _WANTED[folder]
    missing = [name for name in wanted.names if name not in found.names]
    if missing:
        yield f"it has no column {', '.join(missing)}"
    for field in wanted:
        if field.name in found.names and not _is_like(found.field(field.name).type, field.type):
            yield f"column {field.name} has the type {found.field(field.name).type} instead of {field.type}"
    others = [name for name in found.names if name not in wanted.names]
    if others and folder != embeddings.FOLDER:
        yield f"it has the unknown columns {redact(', '.join(others), 200)}"


def _is_like(found: pa.DataType, wanted: pa.DataType) -> bool:
    """True if two types are the same apart from the width of integers, units of time, fixed lengths, and names of list items."""
    for test in (pa.types.is_integer, pa.types.is_timestamp, _is_text, _is_bytes):
        if test(wanted):
            return bool(test(found))
    if _is_list(wanted):
        return _is_list(found) and _is_like(found.value_type, wanted.value_type)
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and all(
            found.get_field_index(field.name) >= 0 and _is_like(found.field(field.name).type, field.type)
            for field in wanted
        )
    return bool(found == wanted)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def check_rows(folder: str, path: str, start: int, table: pa.Table, note: Mapping[str, Any]) -> Iterator[Fault]:
    """Check the values of some rows of a part; `start` is the number of the first. Yield at most one fault of a code."""
    for code, wrong, words in _flaws(folder, table, _read_dimensions(note)):
        rows = np.flatnonzero(wrong)
        if len(rows):
            name = redact(str(table["id"][int(rows[0])].as_py()), 100) if "id" in table.column_names else ""
            first = f"row {start + int(rows[0])}" + (f" (id {name!r})" if name else "")
            yield Fault(
                code, path, f"{first} {words}" + (f"; so do {len(rows) - 1:,} rows near it" if len(rows) > 1 else "")
            )


_Flaw = tuple[str, npt.NDArray[np.bool_], str]


def _flaws(folder: str, table: pa.Table, dimensions: int | None) -> Iterator[_Flaw]:
    for field in _WANTED[folder]:
        if not field.nullable and table[field.name].null_count:
            yield "null", _nulls(table[field.name]), f"has a null in the column {field.name}"
    if "fingerprint" in _WANTED[folder].names:
        lengths = pc.binary_length(table["fingerprint"]).fill_null(0).to_numpy(zero_copy_only=False)
        yield (
            "fingerprint",
            lengths != schema.FINGERPRINT_BYTES,
            f"has a fingerprint of other than {schema.FINGERPRINT_BYTES} bytes",
        )
    if folder == embeddings.FOLDER:
        yield from _dense_flaws(table, dimensions)
        yield from _sparse_flaws(table["sparse"])
    if folder == embeddings.MULTI_FOLDER:
        yield from _multi_flaws(table["multi"], dimensions)


def _dense_flaws(table: pa.Table, dimensions: int | None) -> Iterator[_Flaw]:
    lengths = np.diff(list_ends(table["dense"]))
    width = int(lengths[0]) if dimensions is None and len(lengths) else dimensions or 0
    other = lengths != width
    yield "dimensions", other, f"has a dense vector of other than {width} values"
    if other.any() or not width:
        return
    dense = dense_matrix(table["dense"], width)
    lengths = np.sqrt(np.einsum("ij,ij->i", dense, dense, dtype=np.float64))  # finite if all values are
    broken = ~np.isfinite(lengths)
    yield "not_finite", broken, "has NaN or infinity in its dense vector"
    norms = table["norm"].to_numpy().astype(np.float64)
    off = ~(np.abs(norms - lengths) <= NORM_TOLERANCE * np.maximum(lengths, 1e-30)) & ~broken
    yield "norm", off, "has a norm that is not the length of its dense vector"


def _sparse_flaws(column: pa.ChunkedArray) -> Iterator[_Flaw]:
    sparse = column.combine_chunks()
    if not len(sparse):
        return
    indices, values = (pc.struct_field(sparse, name) for name in ("indices", "values"))
    ends, value_ends = list_ends(indices), list_ends(values)
    uneven = np.diff(ends) != np.diff(value_ends)
    yield "sparse_length", uneven, "has other numbers of indices and of values in its sparse vector"
    if uneven.any():
        return
    flat, numbers = flat_values(indices).astype(np.int64), flat_values(values)
    rows = np.repeat(np.arange(len(sparse)), np.diff(ends))
    falls = np.flatnonzero((np.diff(flat) <= 0) & (np.diff(rows) == 0))
    yield "sparse_order", _rows(rows[falls], len(sparse)), "has sparse indices that do not increase"
    outside = np.flatnonzero((flat < 0) | (flat > _INDEX_MAX))
    yield "sparse_range", _rows(rows[outside], len(sparse)), "has a sparse index that does not fit into 32 bits"
    yield "not_finite", _rows(rows[~np.isfinite(numbers)], len(sparse)), "has NaN or infinity in its sparse vector"


def _multi_flaws(column: pa.ChunkedArray, dimensions: int | None) -> Iterator[_Flaw]:
    array = column.combine_chunks()
    ends, vectors = list_ends(array), array.flatten()
    rows = np.repeat(np.arange(len(array)), np.diff(ends))
    vector_ends = list_ends(vectors)
    width = int(vector_ends[1]) if len(vectors) else 0
    yield (
        "dimensions",
        _rows(rows[np.diff(vector_ends) != width], len(array)),
        "has per-token vectors of different lengths",
    )
    broken = ~np.isfinite(flat_values(vectors))
    of_value = np.repeat(rows, np.diff(vector_ends))
    yield "not_finite", _rows(of_value[broken], len(array)), "has NaN or infinity in its per-token vectors"


def _rows(numbers: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(count, np.bool_)
    mask[numbers] = True
    return mask


def _nulls(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = column.is_null().to_numpy()
    return mask


def _read_dimensions(note: Mapping[str, Any]) -> int | None:
    """Return `model.dimensions` of the output's config; None if it is not set, and the model's default applies."""
    model = (note.get("config") or {}).get("model") or {}
    dimensions = model.get("dimensions")
    return dimensions if type(dimensions) is int else None
