"""One vector a token (`multi_embedding`), as this stand-in makes them.

How the service cuts its input into tokens is not published. Here a text has a row for each word, Chinese character and
sign, the same row wherever it stands; a picture one for each of its 8 x 8 tiles; a video one for each frame; a picture
that was not seen those of its URL. Rows are of unit length, then rounded to float16, which is what goes on the wire.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from arkbeam.emulator.parts import ImagePart, Part, TextPart, VideoPart
from arkbeam.emulator.usage import split_words, video_frames
from arkbeam.emulator.vectors import draw_row

TOKENS_MAX = 256
"""Rows at most, so that an answer in numbers stays near 10 MB."""


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
