"""Per-token vectors (`multi_embedding`)."""

import base64
from typing import Any

import numpy as np
import pytest
import zstandard
from arkbeam.emulator.parts import ImagePart, TextPart, VideoPart
from arkbeam.emulator.vectors import TOKENS_MAX, embed_tokens

Server = Any
PLAIN = {"type": "enabled"}
ZSTD = {"type": "enabled", "compression": "zstd"}


def unpack(packed: str, dimensions: int) -> Any:
    """Decode as the vendor's Go client does: base64, zstd, little-endian float16."""
    data = zstandard.ZstdDecompressor().decompress(base64.b64decode(packed, validate=True))
    return np.frombuffer(data, "<f2").reshape(-1, dimensions)


@pytest.mark.parametrize("dimensions", [1024, 2048])
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_both_ways_of_writing(server: Server, dimensions: int, encoding_format: str) -> None:
    """Numbers and zstd have the same vectors, with `dimensions` values each, for any encoding of the dense vector."""
    fields = {
        "dimensions": dimensions,
        "encoding_format": encoding_format,
        "input": [{"type": "text", "text": "a red 茶碗!"}],
    }
    plain, packed = (server.embed(**fields, multi_embedding=asked).json()["data"] for asked in (PLAIN, ZSTD))
    rows = np.array(plain["multi_embedding"])
    assert rows.shape == (5, dimensions)
    assert (rows == unpack(packed["multi_embedding"], dimensions)).all()
    assert plain["embedding"] == packed["embedding"]
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-3


def test_only_when_asked_for(server: Server) -> None:
    """Missing, null and disabled give no per-token vectors; the dense vector is always the same."""
    answers = [server.embed(**asked).json()["data"] for asked in ({}, {"multi_embedding": None})]
    answers.append(server.embed(multi_embedding={"type": "disabled", "compression": "zstd"}).json()["data"])
    assert [list(data) for data in answers] == [["embedding", "object"]] * 3
    asked = server.embed(multi_embedding=PLAIN, sparse_embedding=PLAIN).json()["data"]
    assert list(asked) == ["embedding", "object", "sparse_embedding", "multi_embedding"]
    assert all(data["embedding"] == asked["embedding"] for data in answers)


def test_equal_words_have_equal_rows() -> None:
    """A word has the same vector everywhere, and different words are nearly orthogonal."""
    rows = embed_tokens([TextPart("Tea bowl, tea")], 2048).astype(np.float64)
    assert len(rows) == 4
    assert rows[0].tolist() == rows[3].tolist()
    assert abs(rows[0] @ rows[1]) < 0.15


def test_rows_of_each_kind_of_part() -> None:
    """An image has a vector per tile, a URL those of its text, a video one per frame, in the order of the parts."""
    seen, unseen = ImagePart("data:", 32, 32, bytes(range(192))), ImagePart("https://a.b/c", 32, 32, None)
    counts = [len(embed_tokens([part], 1024)) for part in (TextPart("x"), seen, unseen, VideoPart("u", 20.0))]
    assert counts == [1, 64, 9, 20]
    together = embed_tokens([unseen, seen], 1024)
    assert (together[:9] == embed_tokens([unseen], 1024)).all()
    assert (together[9:] == embed_tokens([seen], 1024)).all()


def test_rows_are_bounded() -> None:
    """There is at least one vector and never more than the maximum."""
    assert len(embed_tokens([TextPart("  ")], 2048)) == 1
    assert len(embed_tokens([TextPart("a " * 100_000)], 1024)) == TOKENS_MAX


def test_they_are_paid_apart(server: Server) -> None:
    """A request with per-token vectors differs from the one without them; their encoding makes no difference."""
    for asked in (None, PLAIN, ZSTD):
        assert server.embed(multi_embedding=asked).status_code == 200
    assert (server.stats()["paid"], server.stats()["paid_distinct"]) == (3, 2)
