"""The emulator's vectors: reproducible, of unit length, exact in bfloat16, and similar for similar inputs."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arkbeam.emulator.parts import TextPart
from arkbeam.emulator.vectors import VOCABULARY, embed, embed_parts, embed_sparse, round_to_bfloat16
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

TEXTS = st.text(max_size=80)


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine similarity."""
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def entropy_bits(vector: np.ndarray) -> float:
    """Entropy of the bfloat16 values of a vector."""
    counts = np.unique(vector.view(np.uint32) >> 16, return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


@given(text=TEXTS, dimensions=st.sampled_from([1024, 2048, 3072]), instructions=st.none() | TEXTS)
def test_any_text_has_a_good_vector(text: str, dimensions: int, instructions: str | None) -> None:
    """For any text, the vector has unit length up to rounding, is exact in bfloat16 and has few zeros."""
    vector = embed([("text", text)], dimensions=dimensions, instructions=instructions)
    assert vector.dtype == np.float32
    assert vector.shape == (dimensions,)
    assert not np.any(vector.view(np.uint32) & 0xFFFF)
    assert abs(np.linalg.norm(vector.astype(np.float64)) - 1) < 2e-3
    assert np.count_nonzero(vector) > 0.98 * dimensions


def test_vectors_are_the_same_everywhere() -> None:
    """A vector is fixed by the hash of its bytes, also in a process with another hash seed."""
    digest = hashlib.sha256(embed([("text", "天很蓝，海很深 hello")]).tobytes()).hexdigest()[:16]
    assert digest == "fbacfbb9274a3e2a"
    program = (
        "import hashlib; from arkbeam.emulator.vectors import embed;"
        "print(hashlib.sha256(embed([('text', '天很蓝，海很深 hello')]).tobytes()).hexdigest()[:16])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == digest


def test_1024_is_the_first_half_of_2048() -> None:
    """The short vector is the first half of the long one, normalised again, up to rounding."""
    long, short = embed([("text", "hello world")]), embed([("text", "hello world")], dimensions=1024)
    half = long[:1024] / np.linalg.norm(long[:1024])
    assert np.all(np.abs(half - short) <= 0.01 * np.abs(half))


@pytest.mark.parametrize("text", ["a", "hello", "天很蓝，海很深，今天我们去看海", "the quick brown fox " * 20])
def test_vectors_have_a_models_entropy(text: str) -> None:
    """The values compress about as well as normal noise in bfloat16: within half a bit."""
    noise = np.random.default_rng(1).standard_normal(2048).astype(np.float32) / np.float32(math.sqrt(2048))
    assert abs(entropy_bits(embed([("text", text)])) - entropy_bits(round_to_bfloat16(noise))) < 0.5


@pytest.mark.parametrize(
    ("query", "near", "far"),
    [
        (
            "a red apple on the table",
            "there is a red apple on a wooden table",
            "quarterly results of the steel company",
        ),
        ("how to learn the piano", "Learning piano: how to begin", "recipes for vegetable soup"),
        ("海边的日落很美", "日落时分的海边", "股票市场今天下跌"),
        ("小猫在沙发上睡觉", "一只小猫睡在沙发上", "新款手机的价格"),
    ],
)
def test_texts_that_share_words_are_near(query: str, near: str, far: str) -> None:
    """A text with the same words is clearly more similar than one without, in English and in Chinese."""
    vectors = [embed([("text", text)]) for text in (query, near, far)]
    assert cosine(vectors[0], vectors[1]) > cosine(vectors[0], vectors[2]) + 0.1


def test_images_of_like_colours_are_near(image_uri: Callable[..., str]) -> None:
    """A red image is more similar to another red one, of another size, than to a blue one."""
    red, other_red, blue = (
        embed([("image", uri)])
        for uri in (image_uri((250, 20, 20)), image_uri((210, 40, 50), (200, 90)), image_uri((20, 30, 240)))
    )
    assert cosine(red, other_red) > cosine(red, blue) + 0.3


def test_images_of_like_layout_are_near(image_uri: Callable[..., str]) -> None:
    """Among images with the same colours, those with the same layout are more similar."""

    def paint(box: tuple[int, int, int, int]) -> Callable[[Image.Image], None]:
        return lambda picture: picture.paste((255, 255, 0), box)

    left, same, right = (
        embed([("image", image_uri((0, 0, 80), (64, 64), paint(box)))])
        for box in ((0, 0, 32, 64), (0, 2, 31, 64), (32, 0, 64, 64))
    )
    assert cosine(left, same) > cosine(left, right) + 0.1


def test_parts_are_fused(image_uri: Callable[..., str]) -> None:
    """The vector of a text with an image is similar to both, and not to either part of another pair."""
    text, image = ("text", "a glass of tomato juice"), ("image", image_uri((220, 40, 30)))
    both = embed([text, image])
    other = embed([("text", "winter landscape"), ("image", image_uri((20, 40, 230)))])
    assert min(cosine(both, embed([text])), cosine(both, embed([image]))) > 0.5 > cosine(both, other)


VIDEO_A, VIDEO_B = (f"data:video/mp4;base64,AAAAEGZ0eXBpc29tAAAA{end}" for end in ("AA==", "AQ=="))


def test_different_requests_have_different_vectors(image_uri: Callable[..., str]) -> None:
    """Any difference, also in order or instructions, gives another vector."""
    image = image_uri()
    requests: list[tuple[list[tuple[str, str]], dict[str, Any]]] = [
        ([("text", "a b")], {}),
        ([("text", "b a")], {}),
        ([("text", "A b")], {}),
        ([("text", "!")], {}),
        ([("text", "?")], {}),
        ([("text", "a"), ("text", "b")], {}),
        ([("text", "b"), ("text", "a")], {}),
        ([("text", "a b")], {"instructions": ""}),
        ([("text", "a b")], {"instructions": "x"}),
        ([("image", image)], {}),
        ([("image", "https://example.com/1.png")], {}),
        ([("image", "https://example.com/2.png")], {}),
        ([("video", "https://example.com/1.png")], {}),
        ([("video", VIDEO_A)], {}),
        ([("video", VIDEO_B)], {}),
    ]
    assert len({embed(parts, **more).tobytes() for parts, more in requests}) == len(requests)


def test_long_texts() -> None:
    """A text of a million characters has a vector, and a difference at its end gives another vector."""
    text = " ".join(f"word{number}" for number in range(120_000))
    assert not np.array_equal(embed([("text", text)]), embed([("text", text + "!")]))


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100),
        min_size=1,
    )
)
def test_rounding_to_bfloat16(values: list[float]) -> None:
    """The result is a bfloat16 at most half a step away; a bfloat16 is unchanged."""
    exact = np.array(values, np.float32)
    rounded = round_to_bfloat16(exact)
    assert not np.any(rounded.view(np.uint32) & 0xFFFF)
    assert np.array_equal(round_to_bfloat16(rounded), rounded)
    below = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    above = ((exact.view(np.uint32) & 0xFFFF0000) + np.uint32(0x10000)).view(np.float32).astype(np.float64)
    nearest = np.minimum(np.abs(exact - below), np.abs(exact - above))
    assert np.array_equal(np.abs(exact - rounded.astype(np.float64)), nearest)


def test_rounding_ties_go_to_even() -> None:
    """Exactly half a step is rounded to the neighbour whose last bit is 0."""
    step = 2.0**-7
    ties = np.array([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2], np.float32)
    assert round_to_bfloat16(ties).tolist() == [1.0, 1 + 2 * step, -1.0]


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_sparse_vectors(texts: list[str]) -> None:
    """Indices are distinct and below the maximum; values are positive and exact in float16."""
    entries = embed_sparse([TextPart(text) for text in texts])
    indices = [entry["index"] for entry in entries]
    assert len(set(indices)) == len(indices)
    assert all(0 <= index < VOCABULARY for index in indices)
    assert all(entry["value"] > 0 and float(np.float16(entry["value"])) == entry["value"] for entry in entries)


def test_sparse_vectors_are_unsorted_and_count() -> None:
    """Indices are not sorted, which the contract allows, and a repeated word has a larger value."""
    entries = embed_sparse([TextPart("one two three four five six seven eight"), TextPart("eight 海 海")])
    indices = [entry["index"] for entry in entries]
    assert indices != sorted(indices)
    assert len(entries) == 9
    assert sorted({entry["value"] for entry in entries}) == [np.float16(np.log1p(1)), np.float16(np.log1p(2))]


def test_sparse_does_not_change_dense() -> None:
    """A vector does not depend on earlier calls or on cached instructions."""
    before = embed_parts([TextPart("hello")], 2048, None)
    embed_sparse([TextPart("hello")])
    embed([("text", "hello")], instructions="other")
    assert np.array_equal(before, embed_parts([TextPart("hello")], 2048, None))
