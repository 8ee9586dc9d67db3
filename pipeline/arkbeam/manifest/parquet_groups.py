"""Row groups of a Parquet file as record batches of bounded size, without dictionaries.

In a small file a million rows may refer to one long text: through a dictionary, or through the shared prefixes of
DELTA_BYTE_ARRAY. A row group is read in one of two ways, which both bound the memory that this takes:

- **By dictionaries**: a text is in memory once, and is copied to the rows only after their size is known. Arrow collects
  all distinct texts of the group in one dictionary. It takes several times the size of the group, and gets slow in large
  groups.
- **In steps** of at most 8 rows: memory holds at most 8 times the longest value of each column, and a page of the file.
  A list counts as one value; Arrow does not read lists of more than 2 GB of texts.

Small groups are read by dictionaries, and large ones in steps. Arrow can't read DELTA_BYTE_ARRAY and
DELTA_LENGTH_BYTE_ARRAY as dictionaries. A group with these is read in steps from the row on at which Arrow says so. The
encodings are not looked up in the footer: if it is damaged, reading pyarrow's column metadata can crash the process.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from arkbeam.base.records import Failure
from arkbeam.manifest.batches import BATCH_BYTES_MAX, BATCH_ROWS_MAX, too_long
from arkbeam.manifest.int96 import join_int96
from arkbeam.manifest.options import MEBIBYTE, ManifestOptions

# A group that declares at most this many bytes is read by dictionaries.
_SMALL_GROUP_BYTES = 16 * MEBIBYTE
# Each read copies the dictionaries: it returns many rows, but of many columns fewer.
_READ_ROWS_MAX, _READ_CELLS_MAX = 32_768, 2**20
_STEP_ROWS = 8
# The buffers through which the columns of a large group are read: their total size, and the size of each.
_BUFFERS_BYTES = 64 * MEBIBYTE
_BUFFER_BYTES_MIN, _BUFFER_BYTES_MAX = 64 * 1024, 8 * MEBIBYTE
_NOT_IMPLEMENTED = "ot yet implemented"  # part of Arrow's message about an encoding that it can't read
_TEXT_TYPES = ("STRING", "ENUM", "JSON")  # Parquet's logical types of texts
# Types of dictionary values whose lengths Arrow can measure.
_BYTES_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_LIST_ARRAYS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.ListViewArray, pa.LargeListViewArray)
# The declared size of a row includes columns that are not read, so a batch of very wide rows has at least this many.
_BATCH_ROWS_MIN = 16


class ParquetGroups:
    """Reads `columns`, which are top-level columns, of a file's row groups. `media` may hold images or videos.

    If `columns` is empty, one column is read all the same: a damaged footer can declare any number of rows.
    """

    def __init__(self, file: pq.ParquetFile, stream: IO[bytes], columns: Sequence[str], media: Collection[str]) -> None:
        self._file = file
        self._stream = stream
        self._columns = list(columns) or file.schema_arrow.names[:1]
        wanted = set(self._columns)
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        leaves = [leaf for leaf in leaves if _is_within(leaf.path, wanted)]
        byte_arrays = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        self._byte_arrays = [leaf.path for leaf in byte_arrays]
        self._int96 = [
            name
            for name in columns
            if any(leaf.physical_type == "INT96" and _is_within(leaf.path, {name}) for leaf in leaves)
        ]
        self._has_lists = any(leaf.max_repetition_level > 0 for leaf in byte_arrays)
        self._read_rows_max = min(max(_READ_CELLS_MAX // max(len(leaves), 1), BATCH_ROWS_MAX), _READ_ROWS_MAX)
        self._fixed_bytes = sum(leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY")
        self.has_media = any(
            _is_within(leaf.path, media) and leaf.logical_type.type not in _TEXT_TYPES for leaf in byte_arrays
        )
        """True if a column of `media` holds bytes, and not only URIs."""
        self.rows = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        """Number of rows of each row group, as the footer declares it."""

    def read(self, index: int, options: ManifestOptions) -> Iterator[pa.RecordBatch | Failure]:
        """Yield the rows of a group in batches of at most 4,096 rows or about 8 MB; a row that is too large is a Failure.

        Raise what Arrow raises for damaged data. The number of rows is not compared with `rows`.
        """
        for batch in self._read_group(index):
            for start in range(0, batch.num_rows, BATCH_ROWS_MAX):
                for piece in _split_batch(batch.slice(start, BATCH_ROWS_MAX), options):
                    yield piece if isinstance(piece, Failure) else _decode_dictionaries(piece)

    def _read_group(self, index: int) -> Iterator[pa.RecordBatch]:
        group_bytes = self._file.metadata.row_group(index).total_byte_size
        rows_max = BATCH_BYTES_MAX // max(group_bytes // max(self.rows[index], 1), self._fixed_bytes, 1)
        large = bool(self._columns) and group_bytes > _SMALL_GROUP_BYTES
        done = 0
        # Lists of texts stay dictionaries in large groups too: those of a single row can refer to gigabytes.
        if not large or (self._has_lists and not self.has_media):
            file = self._open(large, self._byte_arrays)
            try:
                for batch in self._iterate(file, index, min(max(rows_max, _BATCH_ROWS_MIN), self._read_rows_max)):
                    yield batch
                    done += batch.num_rows
                return
            except (OSError, pa.ArrowNotImplementedError) as error:
                if _NOT_IMPLEMENTED not in str(error):
                    raise
        steps = self._iterate(self._open(large, []), index, min(max(rows_max, 1), _STEP_ROWS))
        yield from _join(steps, done)

    def _open(self, large: bool, dictionaries: Sequence[str]) -> pq.ParquetFile:
        """Open the file once more. Of a large group, only a part is in memory at a time."""
        buffer_bytes = min(max(_BUFFERS_BYTES // max(len(self._columns), 1), _BUFFER_BYTES_MIN), _BUFFER_BYTES_MAX)
        return pq.ParquetFile(
            self._stream,
            metadata=self._file.metadata,
            read_dictionary=list(dictionaries),
            page_checksum_verification=True,
            pre_buffer=not large,
            buffer_size=buffer_bytes if large else 0,
        )

    def _iterate(self, file: pq.ParquetFile, index: int, rows_max: int) -> Iterator[pa.RecordBatch]:
        batches = file.iter_batches(rows_max, row_groups=[index], columns=self._columns, use_threads=False)
        if self._int96:
            coarse = pq.ParquetFile(self._stream, metadata=self._file.metadata, coerce_int96_timestamp_unit="us")
            read = coarse.iter_batches(rows_max, row_groups=[index], columns=self._int96, use_threads=False)
            batches = _add_int96(batches, read)
        for batch in batches:
            batch.validate()
            yield batch


def _is_within(path: str, columns: Collection[str]) -> bool:
    """True if the path of a leaf is, or may be, within one of some top-level columns. Names of columns may have dots."""
    names = path.split(".")
    return any(".".join(names[:end]) in columns for end in range(1, len(names) + 1))


def _add_int96(batches: Iterable[pa.RecordBatch], coarse: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Join batches with their INT96 columns in microseconds, whose batches may be cut at other rows."""
    waiting: pa.RecordBatch | None = None
    for batch in batches:
        while (waiting is None or waiting.num_rows < batch.num_rows) and (more := next(coarse, None)) is not None:
            waiting = more if waiting is None else pa.concat_batches([waiting, more])
        if waiting is None or waiting.num_rows < batch.num_rows:
            return  # damaged: the caller counts the rows
        yield join_int96(batch, waiting.slice(0, batch.num_rows))
        waiting = waiting.slice(batch.num_rows)


def _join(steps: Iterable[pa.RecordBatch], skip: int) -> Iterator[pa.RecordBatch]:
    """Join small batches to batches of about 4,096 rows or 8 MB, without the first `skip` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for step in steps:
        full = rows >= BATCH_ROWS_MAX or size >= BATCH_BYTES_MAX
        if waiting and (full or step.schema != waiting[0].schema):
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting, rows, size = [], 0, 0
        known = min(skip, step.num_rows)
        skip -= known
        waiting.append(step.slice(known) if known else step)
        rows, size = rows + step.num_rows - known, size + step.nbytes
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _split_batch(batch: pa.RecordBatch, options: ManifestOptions) -> Iterator[pa.RecordBatch | Failure]:
    """Halve a batch until each piece is small enough; a single row above the limit becomes a failure.

    A batch is larger than its row group declares if it has dictionaries or long texts.
    """
    size = sum(map(_plain_bytes, batch.columns))
    if size <= 2 * BATCH_BYTES_MAX:
        yield batch
    elif batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from _split_batch(batch.slice(0, half), options)
        yield from _split_batch(batch.slice(half), options)
    elif size <= options.line_bytes_max + BATCH_BYTES_MAX:
        yield batch
    else:
        yield too_long(size, options)


def _plain_bytes(array: "pa.Array[Any]") -> int:
    """Return the bytes that an array takes once its dictionaries are decoded."""
    if isinstance(array, pa.DictionaryArray):
        if array.type.value_type not in _BYTES_TYPES:
            return int(array.nbytes)
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return 8 * len(array) + int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if isinstance(array, pa.MapArray):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return 8 * len(array) + sum(_plain_bytes(one.slice(start, end - start)) for one in (array.keys, array.items))
    if isinstance(array, _LIST_ARRAYS):
        return 8 * len(array) + _plain_bytes(array.flatten())
    if isinstance(array, pa.StructArray):
        return sum(map(_plain_bytes, array.flatten()))
    return int(array.nbytes)


def _decode_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    if not batch.num_columns:
        return batch
    columns = [column.cast(_plain_type(column.type)) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type with dictionaries replaced by the types of their values, except in list views: Arrow can't cast them."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        children = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([child.with_type(_plain_type(child.type)) for child in children])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_plain_type(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
    return kind
