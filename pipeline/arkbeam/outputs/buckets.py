"""Records with 64-bit keys in files on this machine, split by their keys: what does not fit into memory is compared by bucket.

A key is a hash: BLAKE2b of the bytes that it stands for. Two different values among a million have the same key with a
probability of about 3e-8.
"""

from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arkbeam.manifest.texts import text_array

Keys = npt.NDArray[np.uint64]
BUCKETS = 64
_KEY_BYTES = 8
_BUCKET_BITS = np.uint64(58)  # the 6 highest bits of a key name its bucket


def hash_texts(column: pa.ChunkedArray | pa.Array) -> Keys:
    """Return a key for the text of each value of a column of any type; nulls have the key 0."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty(0, np.uint64)
    texts = text_array(array).cast(pa.large_binary())
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    keys = hash_slices(texts.buffers()[2] or b"", ends)
    keys[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return keys


def hash_vectors(matrix: npt.NDArray[Any]) -> Keys:
    """Return a key for the bytes of each row of a matrix."""
    width = matrix.shape[1] * matrix.itemsize
    return hash_slices(np.ascontiguousarray(matrix), np.arange(len(matrix) + 1, dtype=np.int64) * width)


def hash_slices(data: Any, ends: npt.NDArray[np.int64]) -> Keys:
    """Return a key for each slice of a buffer's bytes; `ends` has the start of the first slice and the end of each."""
    view = memoryview(data)
    flat = view.cast("B") if view.nbytes else memoryview(b"")
    digests = (blake2b(flat[start:end], digest_size=_KEY_BYTES).digest() for start, end in pairwise(ends.tolist()))
    return np.frombuffer(bytearray(b"".join(digests)), np.uint64)


def mix(*keys: Keys) -> Keys:
    """Return one key for the keys of several columns of each row. Their order counts."""
    return hash_vectors(np.stack(keys, axis=1))


class Buckets:
    """Records of one structured type with a field `key`, appended to 64 files in a folder."""

    def __init__(self, folder: Path, name: str, kind: np.dtype[Any]) -> None:
        self._paths = [folder / f"{name}-{number:02d}" for number in range(BUCKETS)]
        self._kind = kind
        self.rows = 0

    def add(self, **columns: npt.ArrayLike) -> None:
        """Append records, given by their fields."""
        keys = np.asarray(columns["key"], np.uint64)
        records = np.empty(len(keys), self._kind)
        for name, values in columns.items():
            records[name] = values
        numbers = (keys >> _BUCKET_BITS).astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        edges = np.searchsorted(numbers[order], np.arange(BUCKETS + 1))
        for number, path in enumerate(self._paths):
            start, end = edges[number], edges[number + 1]
            if end > start:
                with path.open("ab") as file:
                    file.write(records[order[start:end]].tobytes())
        self.rows += len(keys)

    def read(self, number: int) -> npt.NDArray[Any]:
        """Return the records of one bucket, sorted by key; those with the same key in the order in which they were added."""
        path = self._paths[number]
        records = np.fromfile(path, self._kind) if path.exists() else np.empty(0, self._kind)
        return records[np.argsort(records["key"], kind="stable")]

    def read_all(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the records of each bucket."""
        for number in range(BUCKETS):
            yield self.read(number)


def repeats(keys: Keys) -> npt.NDArray[np.int64]:
    """Return for each of some sorted keys how many equal ones are before it."""
    numbers = np.arange(len(keys))
    starts = np.flatnonzero(np.concatenate([np.ones(1, np.bool_), keys[1:] != keys[:-1]])) if len(keys) else numbers
    return numbers - np.repeat(starts, np.diff(np.append(starts, len(keys))))
