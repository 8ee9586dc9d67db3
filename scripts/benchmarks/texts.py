"""Manifests of distinct texts, the same in every run of the bench."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from random import Random

import orjson

_VOCABULARY = """
    amber basket candle ceramic copper cotton curved dark dish drawing early engraved fabric figure folded garden glass
    green handle harbour indigo ivory lacquer lamp linen map marble mirror mountain narrow old painted paper pattern
    plate portrait printed river round sculpture shallow silk silver small stone teapot tile vase white wooden woven
    青花 茶壶 山水 木刻 丝绸 瓷器 灯笼 屏风 玉石 书法
"""
_WORDS = _VOCABULARY.split()


def make_texts(count: int, *, seed: int = 0, words: int = 12) -> Iterator[str]:
    """Yield texts of `words` words (12 are about 75 characters). Each ends with its own number, so that all differ."""
    random = Random(seed)
    for number in range(count):
        yield f"{' '.join(random.choices(_WORDS, k=words))} {seed}-{number}"


def make_mixed_texts(count: int, *, seed: int = 0) -> Iterator[str]:
    """Yield texts of 2 to 120 words, long and short ones in random order."""
    random = Random(seed)
    for number in range(count):
        yield f"{' '.join(random.choices(_WORDS, k=random.randint(2, 120)))} {number}"


def make_spread_texts(count: int, *, seed: int = 0) -> Iterator[str]:
    """Yield texts of 4 to 1,600 words, evenly distributed on a logarithmic scale."""
    random = Random(seed)
    for number in range(count):
        yield f"{' '.join(random.choices(_WORDS, k=round(4 * 400 ** random.random())))} {number}"


def row_id(number: int) -> str:
    """Return the id of a manifest's row."""
    return f"row-{number:08d}"


def row_number(name: str) -> int:
    """Return the number of the row with an id."""
    return int(name.removeprefix("row-"))


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write a manifest with one text in each row."""
    write_rows(path, ({"id": row_id(number), "text": text} for number, text in enumerate(texts)))


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSONL manifest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
