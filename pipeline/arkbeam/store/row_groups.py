"""Read single row groups of a large segment: its footer takes one call, and so does each row group.

Only checksums of the pages that are read are verified, not the hash of the file.
"""

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from arkbeam.base.files import read_range
from arkbeam.base.uris import storage_errors

_FOOTER_BYTES = 128 * 1024  # more than the footer of a segment of 128 MB has


def split_groups(uri: str, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield each row group that has any of the ascending `rows` of a segment, with their positions in it.

    Rows that the segment does not have are in no group. Raise StoreError if its footer can't be read.
    """
    metadata = _read_footer(uri)
    ends = np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
    numbers = np.searchsorted(ends, rows, "right")
    for group in np.unique(numbers[numbers < len(ends)]).tolist():
        start = int(ends[group - 1]) if group else 0
        yield group, rows[numbers == group] - start


def read_group(uri: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a row group. Raise StoreError if it is damaged or can't be read."""
    metadata = _read_footer(uri)
    start, end = _find_bytes(metadata.row_group(group))
    piece = _Piece(read_range(uri, start, end), start)
    with storage_errors("read", uri):
        reader = pq.ParquetFile(piece, metadata=metadata, page_checksum_verification=True)
        return reader.read_row_group(group, columns=list(columns), use_threads=False).replace_schema_metadata()


@lru_cache(maxsize=256)
def _read_footer(uri: str) -> pq.FileMetaData:
    """Read the footer of a file. It is kept, since the bytes of a segment never change."""
    tail = read_range(uri, -_FOOTER_BYTES)
    size = int.from_bytes(tail[-8:-4], "little") + 8
    if size > len(tail):
        tail = read_range(uri, -size)
    with storage_errors("read", uri):
        return pq.read_metadata(pa.BufferReader(tail))


def _find_bytes(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return where a row group starts and ends in its file."""
    columns = [group.column(number) for number in range(group.num_columns)]
    starts = [min(one.data_page_offset, one.dictionary_page_offset or one.data_page_offset) for one in columns]
    return min(starts), max(start + one.total_compressed_size for start, one in zip(starts, columns, strict=True))


class _Piece(io.RawIOBase):
    """A file of which only the bytes from `start` on are there."""

    def __init__(self, data: bytes, start: int) -> None:
        super().__init__()
        self._data, self._start, self._at = memoryview(data), start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._start + len(self._data)}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        begin = self._at - self._start
        if begin < 0:
            raise OSError(f"byte {self._at} is outside of the row group")
        found = bytes(self._data[begin:] if size is None or size < 0 else self._data[begin : begin + size])
        self._at += len(found)
        return found
