"""The emulator's vectors: deterministic, of unit length, exact in bfloat16, and similar for similar inputs.

Dense vectors are sums of *rows*. A row is 2,048 consecutive values of one fixed pseudo-random sequence; a hash selects
where it starts. A text adds one row for each word, word pair and character trigram (Chinese: characters and pairs), so
texts that share words have similar vectors. An image adds one row for each value of its 8 x 8 mean colours, multiplied
by the value. A video adds rows that a hash of its bytes selects. The URL of an image or video that is not downloaded
counts as text. The unit vectors of the parts are added up, with a small share for the instructions and a small share
that is different for each request, so that two different requests have the same vector only if their hashes collide.

Sums use integers that are small enough to be exact, so the result is the same on every machine and in every order of
addition.

Per-token vectors (`multi_embedding`): how the service splits its input into tokens is not published. Here a text has
one vector for each word, Chinese character and punctuation mark, always the same for the same word; an image has one
for each of its 8 x 8 tiles; a video has one for each frame; an image that was not downloaded has those of its URL. They
have unit length and are rounded to float16, the format of replies.
"""

import hashlib
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from arkbeam.base.records import Modality
from arkbeam.emulator.media import TILES_PER_SIDE, read_image, read_video
from arkbeam.emulator.parts import (
    ImagePart,
    Part,
    Sampling,
    TextPart,
    VideoPart,
    default_instructions,
    split_words,
    video_frames,
)

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
UInt32s = npt.NDArray[np.uint32]

WIDTH = 2_048
"""Length of a dense vector before it is cut. The withdrawn model version with longer vectors uses its own length."""

VOCABULARY = 131_072
"""Number of indices of sparse vectors."""

TOKENS_MAX = 256
"""Maximum number of per-token vectors of a request, so that a reply with numbers has about 10 MB at most."""

_SEED = 20_250_615
_ROWS_BITS = 16
_ROWS = 1 << _ROWS_BITS
_VALUE_BITS = 10
_FEATURES_MAX = 4_096
_FEATURES_AT_ONCE = 512
_WORD_WEIGHT = 3
_SCALE = float(1 << 20)
_INSTRUCTION_SHARE = 0.25
_SIGNATURE_SHARE = 0.1
_SIGNATURE_ROWS = 4
_CACHED_CHARS_MAX = 4_096
_TEXT_CHARS_MAX = 1_000_000  # the rest only changes the signature

_CJK_FIRST = 0x2E80
_WORD = re.compile(r"[^\W_\u2e80-\U0010ffff]+")
_CJK = re.compile(r"[^\W\u0000-\u2e7f]")
_CJK_FUNCTION_CHARACTERS = np.array([ord(c) for c in "的了是在和与有不这那也就都而及或一个上中下为以"], dtype=np.uint32)
_SHORT_WORD_CHARS = 3


def embed(parts: Iterable[tuple[str, str]], *, dimensions: int = WIDTH, instructions: str | None = None) -> Float32s:
    """Return the dense vector that the server returns for these (modality, value) pairs.

    The modality is `text`, `image` or `video`; the value is the text, the URL or the data URI. Raise Rejected for media
    that the contract does not allow.
    """
    return embed_parts([_read_part(Modality(kind), value) for kind, value in parts], dimensions, instructions)


def _read_part(kind: Modality, value: str) -> Part:
    match kind:
        case Modality.TEXT:
            return TextPart(value)
        case Modality.IMAGE:
            return read_image(value, "image")
        case Modality.VIDEO:
            return read_video(value, Sampling(), "video")


def embed_parts(parts: Sequence[Part], dimensions: int, instructions: str | None) -> Float32s:
    """Return the dense vector of a request: float32 of unit length, rounded to bfloat16.

    With 1,024 dimensions it is the first half of the vector with 2,048, normalised again.
    """
    width = max(WIDTH, dimensions)
    instructions = default_instructions(parts) if instructions is None else instructions
    total = _SIGNATURE_SHARE * _normalise(_sum_rows(_signature(parts, instructions), width))
    total += _INSTRUCTION_SHARE * _embed_instructions(instructions, width)
    for part in parts:
        total += _normalise(_embed_part(part, width))
    return round_to_bfloat16(_normalise(np.rint(total)[:dimensions], 1.0).astype(np.float32))


def round_to_bfloat16(values: Float32s) -> Float32s:
    """Round float32 values to the nearest bfloat16, ties to even; the result is float32. The values must be finite."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _normalise(values: npt.NDArray[Any], length: float = _SCALE) -> Float64s:
    """Scale a vector to this length; a zero vector stays zero. If the length is not 1, round the values to integers."""
    exact = values.astype(np.float64)
    norm = math.sqrt(float(np.dot(exact, exact)))  # a sum of integers below 2^53
    if norm == 0.0:
        return exact
    scaled = exact * (length / norm)
    return scaled if length == 1.0 else np.rint(scaled)


@lru_cache(maxsize=4)
def _rows(width: int) -> Float32s:
    """Return all rows as a view of one sequence of integers in ±512. numpy guarantees PCG64's raw stream."""
    count = _ROWS + width
    raw = np.random.PCG64(_SEED).random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
    values = (raw >> (16 - _VALUE_BITS)).astype(np.float32) - np.float32((1 << (_VALUE_BITS - 1)) - 1)
    return np.lib.stride_tricks.sliding_window_view(values, width)


def _sum_rows(indices: UInt32s, width: int) -> Float32s:
    if len(indices) <= _FEATURES_AT_ONCE:
        summed: Float32s = np.add.reduce(_rows(width)[indices], axis=0)
        return summed
    total = np.zeros(width, np.float32)
    for start in range(0, len(indices), _FEATURES_AT_ONCE):
        total += np.add.reduce(_rows(width)[indices[start : start + _FEATURES_AT_ONCE]], axis=0)
    return total


def _embed_part(part: Part, width: int) -> npt.NDArray[Any]:
    match part:
        case TextPart():
            return _embed_text(part.text, width)
        case ImagePart():
            return _embed_text(part.url, width) if part.tiles is None else _embed_tiles(part.tiles, width)
        case VideoPart():
            if part.digest is None:
                return _embed_text(part.url, width)
            return _sum_rows(_digest_rows(part.digest, 32), width)


@lru_cache(maxsize=256)
def _embed_instructions_cached(instructions: str, width: int) -> Float64s:
    return _normalise(_embed_text(instructions, width))


def _embed_instructions(instructions: str, width: int) -> Float64s:
    if len(instructions) > _CACHED_CHARS_MAX:
        return _normalise(_embed_text(instructions, width))
    return _embed_instructions_cached(instructions, width)


def _embed_text(text: str, width: int) -> Float32s:
    heavy, light = hash_features(text[:_TEXT_CHARS_MAX].lower())
    return _WORD_WEIGHT * _sum_rows(heavy, width) + _sum_rows(light, width)


def hash_features(text: str) -> tuple[UInt32s, UInt32s]:
    """Hash a lower-case text to row numbers: those with more weight (long words, Chinese pairs), and the others."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    words = _WORD.findall(text)
    hashes = np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint32, len(words))
    long = np.fromiter((len(word) > _SHORT_WORD_CHARS for word in words), np.bool_, len(words))
    heavy = [hashes[long]]
    light = [hashes, _mix(hashes[:-1], hashes[1:]), _mix(codes[:-2], codes[1:-1], codes[2:])]
    cjk = codes >= _CJK_FIRST
    if cjk.any():
        light[2] = light[2][~cjk[1:-1]]
        pairs = cjk[:-1] & cjk[1:]
        plain = ~np.isin(codes, _CJK_FUNCTION_CHARACTERS)
        heavy.append(_mix(codes[:-1], codes[1:])[pairs & plain[:-1] & plain[1:]])
        light.append(codes[cjk])
    return _to_rows(np.concatenate(heavy)), _to_rows(np.concatenate(light))


def _mix(*columns: UInt32s) -> UInt32s:
    mixed = columns[0] * np.uint32(0x9E3779B1)
    for column in columns[1:]:
        mixed = (mixed ^ column) * np.uint32(0x85EBCA77)
        mixed ^= mixed >> np.uint32(15)
    return mixed


def _to_rows(hashes: UInt32s) -> UInt32s:
    """Map hashes to row numbers. If there are too many, remove duplicates and keep an even selection."""
    if len(hashes) > _FEATURES_MAX:
        hashes = np.unique(hashes)
        hashes = hashes[:: -(-len(hashes) // _FEATURES_MAX)]
    return (hashes * np.uint32(0xC2B2AE3D)) >> np.uint32(32 - _ROWS_BITS)


def _embed_tiles(tiles: bytes, width: int) -> Float64s:
    """Sum a row for each value of each tile (layout) and, with equal weight, three rows for the mean colour."""
    colours = np.frombuffer(tiles, np.uint8).reshape(-1, 3).astype(np.int32) - 128
    rows = _tile_rows(width)
    layout = _normalise((colours.ravel() @ rows[3:]).astype(np.float64))
    return layout + _normalise((colours.sum(axis=0) @ rows[:3]).astype(np.float64))


@lru_cache(maxsize=4)
def _tile_rows(width: int) -> npt.NDArray[np.int32]:
    count = 3 * (TILES_PER_SIDE * TILES_PER_SIDE + 1)
    return _rows(width)[_digest_rows(b"tiles", count)].astype(np.int32)


def draw_row(name: bytes) -> Float32s:
    """Return the row of a name with at least 2 bytes: `WIDTH` integers, always the same for the same name."""
    row: Float32s = _rows(WIDTH)[int.from_bytes(name[:2], "little")]
    return row


def _digest_rows(data: bytes, count: int) -> UInt32s:
    return np.frombuffer(hashlib.shake_128(data).digest(2 * count), "<u2").astype(np.uint32)


def _signature(parts: Sequence[Part], instructions: str) -> UInt32s:
    values = "\0".join([instructions, *(part.text if isinstance(part, TextPart) else part.url for part in parts)])
    digest = hashlib.blake2b(values.encode("utf-8", "surrogatepass"), digest_size=2 * _SIGNATURE_ROWS).digest()
    return np.frombuffer(digest, "<u2").astype(np.uint32)


def embed_sparse(parts: Sequence[Part]) -> list[dict[str, int | float]]:
    """Return the sparse vector of texts: one {index, value} per different word or Chinese character, in hash order.

    Values are positive and exact in float16; they grow with the logarithm of the count.
    """
    counts: dict[int, int] = {}
    for part in parts:
        if isinstance(part, TextPart):
            text = part.text.lower()
            for token in (*_WORD.findall(text), *_CJK.findall(text)):
                index = zlib.crc32(token.encode("utf-8", "surrogatepass")) % VOCABULARY
                counts[index] = counts.get(index, 0) + 1
    scattered = sorted(counts, key=lambda index: index * 0x9E3779B1 & 0xFFFFFFFF)
    values = np.log1p([float(counts[index]) for index in scattered]).astype(np.float16).astype(np.float64)
    return [{"index": index, "value": value} for index, value in zip(scattered, values.tolist(), strict=True)]


def embed_tokens(parts: Sequence[Part], dimensions: int) -> npt.NDArray[np.float16]:
    """Return the per-token vectors of a request: [tokens, dimensions], with at least one token."""
    names = list(islice(chain.from_iterable(_name_tokens(part) for part in parts), TOKENS_MAX)) or [b""]
    rows = np.stack([draw_row(hashlib.blake2b(name, digest_size=8).digest()) for name in names])
    exact = rows[:, :dimensions].astype(np.float64)
    lengths: npt.NDArray[np.float64] = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    return (exact / lengths).astype(np.float16)


def _name_tokens(part: Part) -> Iterator[bytes]:
    """Yield the name of each token; tokens with the same name have the same vector."""
    match part:
        case TextPart():
            yield from _name_words(part.text)
        case ImagePart(tiles=None):
            yield from _name_words(part.url)
        case ImagePart(tiles=bytes(tiles)):
            for at in range(0, len(tiles), 3):
                yield b"tile" + bytes([at // 3]) + tiles[at : at + 3]
        case VideoPart():
            for frame in range(video_frames(part)):
                yield b"frame%d " % frame + (part.digest or part.url.encode())


def _name_words(text: str) -> Iterator[bytes]:
    for word in split_words(text.lower()):
        yield word.encode("utf-8", "surrogatepass")
