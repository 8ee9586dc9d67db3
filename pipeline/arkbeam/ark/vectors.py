"""Decode the vectors in a reply: JSON lists or base64 to checked numpy arrays. Each possible flaw has a code."""

import binascii
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import pybase64
import zstandard
from numpy.typing import NDArray

from arkbeam.base.redaction import redact
from arkbeam.base.replies import Sparse

MULTI_TOKENS_MAX = 131_072
"""Maximum number of per-token vectors that are decompressed from one reply: the longest context of any model."""

_UINT32_MAX = 2**32 - 1
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Flaw(StrEnum):
    """What is wrong with an unusable reply. The values are stable: failure rows and reports contain them."""

    NOT_JSON = "not_json"
    CUT_OFF = "cut_off"
    TOO_LARGE = "too_large"
    OTHER_OBJECT = "other_object"
    NO_DATA = "no_data"
    SEVERAL_VECTORS = "several_vectors"
    NO_EMBEDDING = "no_embedding"
    EMBEDDING_MALFORMED = "embedding_malformed"
    INVALID_BASE64 = "invalid_base64"
    WRONG_LENGTH = "wrong_length"
    NOT_FINITE = "not_finite"
    ZERO_VECTOR = "zero_vector"
    SPARSE_MISSING = "sparse_missing"
    SPARSE_MALFORMED = "sparse_malformed"
    SPARSE_INDEX_NEGATIVE = "sparse_index_negative"
    SPARSE_INDEX_TOO_LARGE = "sparse_index_too_large"
    SPARSE_INDEX_REPEATED = "sparse_index_repeated"
    SPARSE_VALUE_NOT_FINITE = "sparse_value_not_finite"
    SPARSE_VALUE_ZERO = "sparse_value_zero"
    MULTI_MISSING = "multi_missing"
    MULTI_MALFORMED = "multi_malformed"
    MULTI_TOO_LARGE = "multi_too_large"
    MULTI_WRONG_LENGTH = "multi_wrong_length"
    MULTI_NOT_FINITE = "multi_not_finite"


class FlawError(Exception):
    """A vector can't be used. `wire` turns this into an `UnusableReply` with the other fields of the reply."""

    def __init__(self, flaw: Flaw, message: str) -> None:
        """Set the flaw (for programs) and the message (for people)."""
        super().__init__(message)
        self.flaw = flaw


def decode_dense(embedding: object, dimensions: int) -> tuple[NDArray[np.float32], np.float32]:
    """Decode `data.embedding`, a list of numbers or base64, to `dimensions` float32 values and their Euclidean norm.

    The array is contiguous and little-endian; its values are bit for bit those of the reply. Raise FlawError.
    """
    if isinstance(embedding, str):
        dense = _dense_from_base64(embedding)
    elif isinstance(embedding, list):
        dense = _dense_from_list(embedding)
    elif embedding is None:
        raise FlawError(Flaw.NO_EMBEDDING, "the reply has no embedding")
    else:
        raise FlawError(
            Flaw.EMBEDDING_MALFORMED, f"the embedding is a JSON {type(embedding).__name__}, not a list or a string"
        )
    if len(dense) != dimensions:
        raise FlawError(Flaw.WRONG_LENGTH, f"the vector has {len(dense)} values instead of {dimensions}")
    # In float64, the squares of finite float32 values neither overflow nor underflow, so this sum detects all three
    # flaws: NaN, infinity and a zero vector.
    wide = dense.astype(np.float64)
    norm = math.sqrt(float(wide @ wide))
    if not norm <= _FLOAT32_MAX:
        raise FlawError(
            Flaw.NOT_FINITE, "the vector contains NaN, infinity or values so large that its norm is not a float32"
        )
    if norm == 0.0:
        raise FlawError(Flaw.ZERO_VECTOR, "all values of the vector are zero")
    return dense, np.float32(norm)


def _dense_from_base64(text: str) -> NDArray[np.float32]:
    try:
        raw = _decode_base64(text)
    except ValueError as error:
        raise FlawError(Flaw.INVALID_BASE64, f"the embedding is not valid base64: {redact(str(error), 200)}") from error
    if len(raw) % 4:
        raise FlawError(
            Flaw.WRONG_LENGTH, f"the embedding has {len(raw)} bytes, which is not a multiple of 4 (float32)"
        )
    return np.frombuffer(raw, dtype="<f4")


def _decode_base64(text: str) -> bytes:
    """Decode base64 as `binascii` does, 20 times as fast. Raise ValueError."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return binascii.a2b_base64(text, strict_mode=True)  # accepts padding that is not needed: the reply is paid


def _dense_from_list(values: list[Any]) -> NDArray[np.float32]:
    if not _only_numbers(values):
        raise FlawError(Flaw.EMBEDDING_MALFORMED, "the embedding contains values that are not numbers")
    return _to_float32(values)


def _only_numbers(values: Sequence[Any]) -> bool:
    return {float, int}.issuperset(map(type, values))  # type(), not isinstance(): a JSON true is not a number


def _to_float32(values: Sequence[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # values beyond float32 become infinity, which is detected later
        try:
            return np.array(values, dtype=np.float64).astype("<f4")
        except OverflowError:
            return np.full(len(values), np.inf, dtype="<f4")


def decode_sparse(entries: object) -> Sparse:
    """Decode `data.sparse_embedding`, a list of {index, value} in any order.

    An empty list is a vector without active indices. Raise FlawError.
    """
    if entries is None:
        raise FlawError(Flaw.SPARSE_MISSING, "the request asked for a sparse vector; the reply has none")
    try:
        indices = [entry["index"] for entry in entries]  # type: ignore[attr-defined]
        values = [entry["value"] for entry in entries]  # type: ignore[attr-defined]
    except (TypeError, KeyError) as error:
        raise FlawError(Flaw.SPARSE_MALFORMED, "the sparse vector is not a list of {index, value}") from error
    if not ({int}.issuperset(map(type, indices)) and _only_numbers(values)):
        raise FlawError(
            Flaw.SPARSE_MALFORMED,
            "the sparse vector contains an index that is not an integer or a value that is not a number",
        )
    if not indices:
        return Sparse(np.empty(0, np.uint32), np.empty(0, "<f4"))
    if min(indices) < 0:
        raise FlawError(Flaw.SPARSE_INDEX_NEGATIVE, f"the sparse vector has the index {min(indices)}")
    if max(indices) > _UINT32_MAX:
        raise FlawError(Flaw.SPARSE_INDEX_TOO_LARGE, "the sparse vector has an index that does not fit into 32 bits")
    return _sort_sparse(np.array(indices, dtype=np.uint32), _to_float32(values))


def _sort_sparse(indices: NDArray[np.uint32], values: NDArray[np.float32]) -> Sparse:
    order = np.argsort(indices)
    indices, values = indices[order], values[order]
    repeated = indices[1:] == indices[:-1]
    if repeated.any():
        raise FlawError(Flaw.SPARSE_INDEX_REPEATED, f"the sparse vector has the index {indices[1:][repeated][0]} twice")
    if not np.isfinite(values).all():
        raise FlawError(Flaw.SPARSE_VALUE_NOT_FINITE, "the sparse vector contains NaN or infinity")
    if not values.all():
        raise FlawError(Flaw.SPARSE_VALUE_ZERO, "the sparse vector contains a zero, which the service never sends")
    return Sparse(indices, values)


def decode_multi(multi: object, dimensions: int) -> NDArray[np.float16]:
    """Decode `data.multi_embedding` to one float16 vector per token, [tokens, dimensions], with at least one token.

    The field is a list of lists of numbers, or base64 of a zstd frame of little-endian float16. Numbers are rounded to
    the nearest float16 value; numbers beyond 65,504 are flaws. Raise FlawError.
    """
    if multi is None:
        raise FlawError(Flaw.MULTI_MISSING, "the request asked for per-token vectors; the reply has none")
    if isinstance(multi, str):
        flat = _multi_from_zstd(multi, dimensions)
    elif isinstance(multi, list):
        flat = _multi_from_lists(multi, dimensions)
    else:
        raise FlawError(
            Flaw.MULTI_MALFORMED, f"the per-token vectors are a JSON {type(multi).__name__}, not a list or a string"
        )
    if not len(flat) or len(flat) % dimensions:
        raise FlawError(
            Flaw.MULTI_WRONG_LENGTH,
            f"the per-token vectors have {len(flat)} values, which is not a positive multiple of {dimensions}",
        )
    if not np.isfinite(flat).all():
        raise FlawError(Flaw.MULTI_NOT_FINITE, "the per-token vectors contain NaN, infinity or values beyond 65,504")
    return flat.reshape(-1, dimensions)


def _multi_from_zstd(text: str, dimensions: int) -> NDArray[np.float16]:
    bytes_max = MULTI_TOKENS_MAX * dimensions * 2
    try:
        packed = _decode_base64(text)
        declared = zstandard.get_frame_parameters(packed).content_size
        if declared != zstandard.CONTENTSIZE_UNKNOWN and declared > bytes_max:
            raise FlawError(
                Flaw.MULTI_TOO_LARGE, f"the per-token vectors decompress to {declared} bytes; the limit is {bytes_max}"
            )
        # In one call: a frame that is cut off or has trailing data raises an error, and the output stays within the
        # bound.
        raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=bytes_max, allow_extra_data=False)
    except (ValueError, zstandard.ZstdError) as error:
        message = f"the per-token vectors are not base64 of a zstd frame: {redact(str(error), 200)}"
        raise FlawError(Flaw.MULTI_MALFORMED, message) from error
    if len(raw) % 2:
        raise FlawError(
            Flaw.MULTI_WRONG_LENGTH,
            f"the per-token vectors have {len(raw)} bytes, which is not a multiple of 2 (float16)",
        )
    return np.frombuffer(raw, dtype="<f2")


def _multi_from_lists(rows: list[Any], dimensions: int) -> NDArray[np.float16]:
    for row in rows:
        if not isinstance(row, list) or not _only_numbers(row):
            raise FlawError(Flaw.MULTI_MALFORMED, "the per-token vectors are not a list of lists of numbers")
        if len(row) != dimensions:
            raise FlawError(
                Flaw.MULTI_WRONG_LENGTH, f"a per-token vector has {len(row)} values instead of {dimensions}"
            )
    with np.errstate(over="ignore"):  # values beyond float16 become infinity, which is detected later
        try:
            return np.array(rows, dtype=np.float64).astype("<f2").reshape(-1)
        except OverflowError:
            return np.full(len(rows) * dimensions, np.inf, dtype="<f2")
