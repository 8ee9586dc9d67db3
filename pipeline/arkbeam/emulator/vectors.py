"""Vectors that stand in for the model's: deterministic, dense, of unit length, exact in bfloat16, and not meaningless.

Everything is a sum of *rows*: 2,048 neighbouring values of one fixed pseudo-random sequence, chosen by a hash. A text
adds a row for each of its words, word pairs and character n-grams (Chinese: characters and pairs), so texts that share
words are near each other. An image adds a row for each of its 8 x 8 mean colours, times the colour; a video rows by the
hash of its bytes. Behind a URL that is not on this machine nothing is seen, so the URL counts as text. The parts' unit
vectors are added up, with a little of the instruction and a little that differs for every other request, so that two
different requests never share a vector unless their hashes collide.

One vector per token (`multi_embedding`): how the service cuts its input into tokens is not published. Here a text has a
vector for each word, Chinese character and sign, the same one wherever it stands; a picture one for each of its 8 x 8 tiles; a
video one for each frame; a picture that was not seen those of its URL. They are of unit length, then rounded to float16, which
is what goes on the wire.

Sums are of whole numbers small enough to be exact: the result is the same on every machine, in whatever order it adds.
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
"""Length of a vector before it is cut; the retired model with longer ones has its own."""

VOCABULARY = 131_072
"""Columns of a sparse vector."""

TOKENS_MAX = 256
"""Rows at most, so that an answer in numbers stays near 10 MB."""

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
_TEXT_CHARS_MAX = 1_000_000  # what follows shows in the signature alone

_CJK_FIRST = 0x2E80
_WORD = re.compile(r"[^\W_\u2e80-\U0010ffff]+")
_CJK = re.compile(r"[^\W\u0000-\u2e7f]")
_CJK_FUNCTION_CHARACTERS = np.array([ord(c) for c in "的了是在和与有不这那也就都而及或一个上中下为以"], dtype=np.uint32)
_SHORT_WORD_CHARS = 3


def embed(parts: Iterable[tuple[str, str]], *, dimensions: int = WIDTH, instructions: str | None = None) -> Float32s:
    """Make the dense vector that the server makes of these (modality, value) pairs.

    The modality is `text`, `image` or `video`; the value is the text, the URL or the data URI. Raises `Refused` for
    media that the contract refuses.
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
    """Make the dense vector of a request: float32 of unit length, then rounded to what bfloat16 can hold.

    1,024 dimensions are the first half of 2,048, normalised again.
    """
    width = max(WIDTH, dimensions)
    instructions = default_instructions(parts) if instructions is None else instructions
    total = _SIGNATURE_SHARE * _normalise(_sum_rows(_signature(parts, instructions), width))
    total += _INSTRUCTION_SHARE * _embed_instructions(instructions, width)
    for part in parts:
        total += _normalise(_embed_part(part, width))
    return round_to_bfloat16(_normalise(np.rint(total)[:dimensions], 1.0).astype(np.float32))


def round_to_bfloat16(values: Float32s) -> Float32s:
    """Round float32 to the nearest bfloat16, ties to even, and keep it as float32. Finite values only."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _normalise(values: npt.NDArray[Any], length: float = _SCALE) -> Float64s:
    """Scale to a length; zeros stay. Whole numbers come out whole again when the length is the scale."""
    exact = values.astype(np.float64)
    norm = math.sqrt(float(np.dot(exact, exact)))  # a sum of whole numbers below 2^53
    if norm == 0.0:
        return exact
    scaled = exact * (length / norm)
    return scaled if length == 1.0 else np.rint(scaled)


@lru_cache(maxsize=4)
def _rows(width: int) -> Float32s:
    """All rows as a view of one sequence of whole numbers in ±512. PCG64's raw stream is fixed by numpy's promise."""
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
    """Hash a lower-case text to row numbers: those that carry its meaning (words, Chinese pairs), and the others."""
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
    """Spread hashes over the rows; of too many, keep those of different features, evenly."""
    if len(hashes) > _FEATURES_MAX:
        hashes = np.unique(hashes)
        hashes = hashes[:: -(-len(hashes) // _FEATURES_MAX)]
    return (hashes * np.uint32(0xC2B2AE3D)) >> np.uint32(32 - _ROWS_BITS)


def _embed_tiles(tiles: bytes, width: int) -> Float64s:
    """Layout: a row for each value of each tile; colour: three rows for the mean, which count for as much."""
    colours = np.frombuffer(tiles, np.uint8).reshape(-1, 3).astype(np.int32) - 128
    rows = _tile_rows(width)
    layout = _normalise((colours.ravel() @ rows[3:]).astype(np.float64))
    return layout + _normalise((colours.sum(axis=0) @ rows[:3]).astype(np.float64))


@lru_cache(maxsize=4)
def _tile_rows(width: int) -> npt.NDArray[np.int32]:
    count = 3 * (TILES_PER_SIDE * TILES_PER_SIDE + 1)
    return _rows(width)[_digest_rows(b"tiles", count)].astype(np.int32)


def draw_row(name: bytes) -> Float32s:
    """Draw the row that a name of at least 2 bytes stands for: `WIDTH` whole numbers, the same for ever."""
    row: Float32s = _rows(WIDTH)[int.from_bytes(name[:2], "little")]
    return row


def _digest_rows(data: bytes, count: int) -> UInt32s:
    return np.frombuffer(hashlib.shake_128(data).digest(2 * count), "<u2").astype(np.uint32)


def _signature(parts: Sequence[Part], instructions: str) -> UInt32s:
    values = "\0".join([instructions, *(part.text if isinstance(part, TextPart) else part.url for part in parts)])
    digest = hashlib.blake2b(values.encode("utf-8", "surrogatepass"), digest_size=2 * _SIGNATURE_ROWS).digest()
    return np.frombuffer(digest, "<u2").astype(np.uint32)


def embed_sparse(parts: Sequence[Part]) -> list[dict[str, int | float]]:
    """Make the sparse vector of texts: an {index, value} for each different word or Chinese character, in hash order.

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
    """Make the token vectors of a request: [tokens, dimensions], at least one row."""
    names = list(islice(chain.from_iterable(_name_tokens(part) for part in parts), TOKENS_MAX)) or [b""]
    rows = np.stack([draw_row(hashlib.blake2b(name, digest_size=8).digest()) for name in names])
    exact = rows[:, :dimensions].astype(np.float64)
    lengths: npt.NDArray[np.float64] = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    return (exact / lengths).astype(np.float16)


def _name_tokens(part: Part) -> Iterator[bytes]:
    """Give each token its name: tokens of one name share a vector."""
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
