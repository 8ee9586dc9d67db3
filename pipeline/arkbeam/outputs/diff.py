"""Compare two outputs by id: which rows were added, are gone, or have another vector or other kept columns.

Each part is read once, and of the rows that are shown some row groups again. A row becomes a record of hashes of its
id, its vectors and its kept columns; records go to files on this machine and are joined by bucket (`outputs.buckets`), so
that memory does not grow with the outputs. Rows with the same id are matched in the order of their rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from arkbeam.base.errors import StoreError
from arkbeam.base.files import temporary_folder
from arkbeam.base.parallel import in_parallel
from arkbeam.base.redaction import redact
from arkbeam.outputs.buckets import BUCKETS, Buckets, Keys, hash_slices, hash_texts, mix, repeats
from arkbeam.outputs.published import (
    Published,
    dense_matrix,
    flat_values,
    gather_rows,
    kept_names,
    list_ends,
    open_in_place,
    open_output,
    open_part,
    read_batches,
)
from arkbeam.stages.publish import embeddings, failures
from arkbeam.stages.publish.earlier import PartFile

EXAMPLES_MAX = 10
COSINES_MAX = 4_096
"""Most changed vectors of which the cosine is computed: those with the lowest hashes of their ids in each bucket."""
_RANK = np.uint64(0x9E3779B97F4A7C15)  # times the number of equal ids before a row, so that their keys differ
_Records = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two outputs. `repeated_ids`: rows whose id an earlier row has."""

    uri: str
    model: str
    dimensions: int | None
    rows: int
    failed: int
    repeated_ids: int


@dataclass(slots=True)
class OneSided:
    """Rows that only one output has. `failed_in_other`: those of them that are failure rows of the other output."""

    rows: int = 0
    failed_in_other: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Changed:
    """Rows that both outputs have, with other values: how many in all, and in each column."""

    rows: int = 0
    columns: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Cosines:
    """Cosines between the two vectors of rows whose vectors differ. `of`: how many such rows there are."""

    rows: int
    of: int
    mean: float
    lowest: float
    p05: float
    median: float
    highest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How output `b` differs from output `a`."""

    a: Side
    b: Side
    same: int
    added: OneSided
    gone: OneSided
    changed: Changed
    columns_added: list[str]
    columns_gone: list[str]
    cosines: Cosines | None
    """None if no vector changed, or if the vectors of the outputs have different lengths."""

    @property
    def is_empty(self) -> bool:
        """True if every row is in both outputs and the same."""
        return not (self.added.rows or self.gone.rows or self.changed.rows or self.columns_added or self.columns_gone)


@dataclass(frozen=True, slots=True)
class _Read:
    """An output whose records are in buckets."""

    output: Published
    parts: list[PartFile]
    kept: list[str]
    """The kept columns that both outputs have: the order of the hashes in a record."""
    records: Buckets
    failed: Buckets
    dimensions: int | None

    def texts(self, records: Sequence[Any], column: str = "id") -> list[str]:
        """Read a column of some records' rows."""
        if not records:
            return []
        return [str(one) for one in self.gather(np.array(records), [column])[column].to_pylist()]

    def gather(self, records: _Records, columns: Sequence[str]) -> pa.Table:
        """Read columns of some records' rows."""
        return gather_rows(self.output, self.parts, records["part"], records["at"], columns)


def diff_outputs(a: str, b: str, note_progress: Callable[[int], None] | None = None) -> Difference:
    """Compare two complete outputs; `note_progress` is called with the number of parts that were read.

    Raise ConfigError if one of them is no complete output, StoreError if it can't be read.
    """
    sides = [open_output(uri) for uri in (a, b)]
    names = [_kept_of(side) for side in sides]
    common = [name for name in names[0] if name in names[1]]
    note = _counter(note_progress)
    with temporary_folder() as folder:
        read = [_read_output(side, common, folder / str(number), note) for number, side in enumerate(sides)]
        return _compare(read[0], read[1], names)


def _counter(note_progress: Callable[[int], None] | None) -> Callable[[], None]:
    count = 0

    def add() -> None:
        nonlocal count
        count += 1
        if note_progress is not None:
            note_progress(count)

    return add


def _kept_of(output: Published) -> list[str]:
    parts = output.parts(embeddings.FOLDER)
    if not parts:
        return []
    with open_in_place(output, parts[0]) as reader:
        return kept_names(reader.schema_arrow.names)


def _read_output(output: Published, kept: list[str], folder: Path, note: Callable[[], None]) -> _Read:
    folder.mkdir()
    fields = [("key", np.uint64), ("row", np.uint64), ("part", np.uint32), ("at", np.uint32)]
    fields += [("dense", np.uint64), ("sparse", np.uint64)]
    kind = np.dtype([*fields, ("kept", np.uint64, (len(kept),))])
    records, failed = Buckets(folder, "rows", kind), Buckets(folder, "failed", np.dtype([("key", np.uint64)]))
    parts, dimensions = output.parts(embeddings.FOLDER), set[int]()
    for number, part in enumerate(in_parallel(partial(_read_part, output, kept), parts, output.in_flight)):
        for columns, lengths in part:
            records.add(part=number, **columns)
            dimensions |= lengths
        note()
    for file in output.parts(failures.FOLDER):
        with open_part(output, file) as reader:
            for _, table in read_batches(reader, ["id"]):
                failed.add(key=hash_texts(table["id"]))
        note()
    if len(dimensions) > 1:
        raise StoreError(f"{redact(output.uri)} has vectors of different lengths: see `arkbeam verify`")
    return _Read(output, parts, kept, records, failed, dimensions.pop() if dimensions else None)


def _read_part(output: Published, kept: list[str], file: PartFile) -> list[tuple[dict[str, Any], set[int]]]:
    """Return the fields of the records of a part, and the lengths of its vectors."""
    read = []
    with open_part(output, file) as reader:
        for start, table in read_batches(reader, ["id", "row", "dense", "sparse", *kept]):
            ends = list_ends(table["dense"])
            columns = {
                "key": hash_texts(table["id"]),
                "row": table["row"].to_numpy().astype(np.uint64),
                "at": np.arange(start, start + table.num_rows),
                "dense": hash_slices(flat_values(table["dense"]).astype(np.float32, copy=False), ends * 4),
                "sparse": _hash_sparse(table["sparse"]),
                "kept": np.stack([hash_texts(table[name]) for name in kept], axis=1) if kept else _no_columns(table),
            }
            read.append((columns, set(np.unique(np.diff(ends)).tolist())))
    return read


def _no_columns(table: pa.Table) -> npt.NDArray[np.uint64]:
    return np.empty((table.num_rows, 0), np.uint64)


def _hash_sparse(column: pa.ChunkedArray) -> Keys:
    sparse = column.combine_chunks()
    if sparse.null_count == len(sparse):
        return np.zeros(len(sparse), np.uint64)
    keys = []
    for name, kind in (("indices", np.int64), ("values", np.float32)):
        lists = pc.struct_field(sparse, name)
        keys.append(
            hash_slices(flat_values(lists).astype(kind, copy=False), list_ends(lists) * np.dtype(kind).itemsize)
        )
    both = mix(*keys)
    both[sparse.is_null().to_numpy(zero_copy_only=False)] = 0
    return both


@dataclass(slots=True)
class _Joined:
    """What the join of the buckets found: counts, and the records of examples and of changed vectors."""

    same: int = 0
    repeated: list[int] = field(default_factory=lambda: [0, 0])
    added: OneSided = field(default_factory=OneSided)
    gone: OneSided = field(default_factory=OneSided)
    added_records: list[Any] = field(default_factory=list)
    gone_records: list[Any] = field(default_factory=list)
    changed: Changed = field(default_factory=Changed)
    examples: list[tuple[Any, Any, list[str]]] = field(default_factory=list)
    vectors: list[tuple[_Records, _Records]] = field(default_factory=list)


def _compare(a: _Read, b: _Read, names: list[list[str]]) -> Difference:
    found = _Joined()
    for number in range(BUCKETS):
        _join(a, b, number, found)
    found.added.examples, found.gone.examples = b.texts(found.added_records), a.texts(found.gone_records)
    cosines, by_row = _cosines(a, b, found)
    ids = a.texts([one for one, _, _ in found.examples])
    for (one, _, columns), name in zip(found.examples, ids, strict=True):
        example: dict[str, Any] = {"id": name, "changed": columns}
        cosine = by_row.get((int(one["part"]), int(one["at"])))
        found.changed.examples.append(example if cosine is None else example | {"cosine": cosine})
    return Difference(
        a=_side(a, found.repeated[0]),
        b=_side(b, found.repeated[1]),
        same=found.same,
        added=found.added,
        gone=found.gone,
        changed=found.changed,
        columns_added=[name for name in names[1] if name not in names[0]],
        columns_gone=[name for name in names[0] if name not in names[1]],
        cosines=cosines,
    )


def _side(read: _Read, repeated: int) -> Side:
    model = ((read.output.note.get("config") or {}).get("model") or {}).get("name")
    return Side(read.output.uri, str(model), read.dimensions, read.records.rows, read.failed.rows, repeated)


def _join(a: _Read, b: _Read, number: int, found: _Joined) -> None:
    """Join one bucket of each output."""
    sides, keys = [], []
    for position, read in enumerate((a, b)):
        records = read.records.read(number)
        records = records[np.lexsort((records["row"], records["key"]))]
        ranks = repeats(records["key"])
        found.repeated[position] += int(np.count_nonzero(ranks))
        sides.append(records)
        keys.append(records["key"] + ranks.astype(np.uint64) * _RANK)
    _, in_a, in_b = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    _note_one_sided(found.gone, found.gone_records, np.delete(sides[0], in_a), b.failed.read(number))
    _note_one_sided(found.added, found.added_records, np.delete(sides[1], in_b), a.failed.read(number))
    _note_changed(sides[0][in_a], sides[1][in_b], a.kept, found)


def _note_one_sided(one: OneSided, examples: list[Any], records: _Records, failed: _Records) -> None:
    one.rows += len(records)
    one.failed_in_other += int(np.isin(records["key"], failed["key"]).sum())
    examples += list(records[: EXAMPLES_MAX - len(examples)])


def _note_changed(a: _Records, b: _Records, kept: list[str], found: _Joined) -> None:
    """Count the changes of matched records, and keep some of them."""
    differs = {name: a[name] != b[name] for name in ("dense", "sparse")}
    differs |= {name: a["kept"][:, column] != b["kept"][:, column] for column, name in enumerate(kept)}
    any_differs = np.logical_or.reduce(list(differs.values()))
    rows = np.flatnonzero(any_differs)
    found.same += len(a) - len(rows)
    found.changed.rows += len(rows)
    for name, mask in differs.items():
        if mask.any():
            found.changed.columns[name] = found.changed.columns.get(name, 0) + int(mask.sum())
    for row in rows[: EXAMPLES_MAX - len(found.examples)].tolist():
        found.examples.append((a[row], b[row], [name for name, mask in differs.items() if mask[row]]))
    vectors = np.flatnonzero(differs["dense"])[: COSINES_MAX // BUCKETS]
    if len(vectors):
        found.vectors.append((a[vectors], b[vectors]))


def _cosines(a: _Read, b: _Read, found: _Joined) -> tuple[Cosines | None, dict[tuple[int, int], float]]:
    """Return a summary of the cosines of a sample of the changed vectors, and that of each by part and row of `a`."""
    width = a.dimensions
    if not found.vectors or width is None or width != b.dimensions:
        return None, {}
    records = [np.concatenate([pair[side] for pair in found.vectors]) for side in (0, 1)]
    dense = [
        dense_matrix(read.gather(chosen, ["dense"])["dense"], width)
        for read, chosen in zip((a, b), records, strict=True)
    ]
    dots, squares = _dot(dense[0], dense[1]), _dot(dense[0], dense[0]) * _dot(dense[1], dense[1])
    values = np.divide(dots, np.sqrt(squares), out=np.zeros_like(dots), where=squares > 0)
    p05, median = np.quantile(values, [0.05, 0.5]).tolist()
    summary = Cosines(
        len(values),
        found.changed.columns["dense"],
        float(values.mean()),
        float(values.min()),
        p05,
        median,
        float(values.max()),
    )
    places = zip(records[0]["part"].tolist(), records[0]["at"].tolist(), strict=True)
    return summary, dict(zip(places, values.tolist(), strict=True))


def _dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    product: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return product


def describe(difference: Difference) -> Iterator[str]:
    """Describe a difference in lines for people."""
    for name, side in (("a", difference.a), ("b", difference.b)):
        length = "" if side.dimensions is None else f" × {side.dimensions:,}"
        repeated = f", {side.repeated_ids:,} of them with the id of an earlier row" if side.repeated_ids else ""
        yield f"{name}: {redact(side.uri)}: {side.rows:,} rows{length} of {side.model}{repeated}, {side.failed:,} failed"
    yield f"same: {difference.same:,} rows"
    for name, one, other in (("added", difference.added, "a"), ("gone", difference.gone, "b")):
        failed = f", {one.failed_in_other:,} of them failed in {other}" if one.failed_in_other else ""
        examples = f": {', '.join(map(repr, one.examples))}" if one.examples else ""
        yield f"{name}: {one.rows:,} rows{failed}{examples}{', …' if one.rows > len(one.examples) else ''}"
    changed = difference.changed
    counts = ", ".join(f"{name} {count:,}" for name, count in changed.columns.items())
    yield f"changed: {changed.rows:,} rows{f' ({counts})' if counts else ''}"
    for example in changed.examples:
        cosine = f", cosine {example['cosine']:.4f}" if "cosine" in example else ""
        yield f"  {example['id']!r}: {', '.join(example['changed'])}{cosine}"
    for words, names in (("added", difference.columns_added), ("gone", difference.columns_gone)):
        if names:
            yield f"kept columns {words}: {', '.join(names)}"
    if difference.cosines is not None:
        yield _describe_cosines(difference.cosines)
    elif changed.columns.get("dense"):
        lengths = f"{difference.a.dimensions} and {difference.b.dimensions}"
        yield f"cosine of changed vectors: none, because they have different lengths ({lengths})"


def _describe_cosines(cosines: Cosines) -> str:
    sample = f"{cosines.rows:,} of {cosines.of:,}" if cosines.rows < cosines.of else f"{cosines.of:,}"
    spread = f"mean {cosines.mean:.4f}, lowest {cosines.lowest:.4f}, 5 % below {cosines.p05:.4f}"
    return f"cosine of {sample} changed vectors: {spread}, median {cosines.median:.4f}, highest {cosines.highest:.4f}"
