"""Requests and replies are compared byte for byte: a test with mocks would pass even if a field had a wrong name."""

import base64
import binascii
import contextlib
import json
import math
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard
from arkbeam.ark import vectors, wire
from arkbeam.ark.models import ModelOptions, check_options
from arkbeam.ark.vectors import Flaw
from arkbeam.ark.wire import (
    REQUEST_BYTES_MAX,
    UnencodableRequest,
    UnusableReply,
    WireOptions,
    decode_reply,
    encode_request,
    wire_options,
)
from arkbeam.base.capabilities import EncodingFormat
from arkbeam.base.records import Inline, Modality, Part, Request, Usage, VideoSampling
from arkbeam.base.replies import UsageFlaw
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "https://ark-project.tos-cn-beijing.volces.com/images/view.jpeg"
USAGE = {
    "prompt_tokens": 528,
    "prompt_tokens_details": {"image_tokens": 497, "text_tokens": 31},
    "total_tokens": 528,
}
USAGE_READ = Usage(prompt_tokens=528, total_tokens=528, text_tokens=31, image_tokens=497)
REPLY_ID = "021743575029461acbe49a31755bec77b2f09448eb15fa9a88e47"
MODEL = "doubao-embedding-vision-250615"
NEWEST = "doubao-embedding-vision-251215"
SHORT = [0.5, -1.25, 3.0, -0.0625]
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
FLOAT16 = st.floats(width=16, allow_nan=False, allow_infinity=False)


def text(value: str) -> Part:
    """A text part."""
    return Part(Modality.TEXT, value)


def image(value: str) -> Part:
    """An image part."""
    return Part(Modality.IMAGE, value)


def video(value: str, sampling: VideoSampling | None = None) -> Part:
    """A video part."""
    return Part(Modality.VIDEO, value, sampling)


@given(st.text("ABQR09+/=\n*é", max_size=16) | st.binary().map(lambda data: base64.b64encode(data).decode() + "="))
def test_base64_is_decoded_as_the_standard_library_does(text: str) -> None:
    """The fast decoder accepts what `binascii` accepts in its strict mode, and gives the same bytes."""
    try:
        expected = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - of any kind: the caller maps it
            vectors._decode_base64(text)
    else:
        assert vectors._decode_base64(text) == expected


def golden(name: str) -> bytes:
    """Return the bytes of one golden file."""
    return (GOLDEN / f"{name}.json").read_bytes()


def to_base64(values: list[float]) -> str:
    """Encode a vector as the service does, without numpy."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def make_reply(embedding: Any = SHORT, **changes: Any) -> bytes:
    """Make a reply like the contract's with changed fields; sparse and multi embeddings go into `data`."""
    data = {"embedding": embedding, "object": "embedding"}
    for name in ("sparse_embedding", "multi_embedding"):
        if name in changes:
            data[name] = changes.pop(name)
    reply = {"created": 1743575029, "data": data, "id": REPLY_ID, "model": MODEL, "object": "list", "usage": USAGE}
    return json.dumps(reply | changes).encode()


REQUESTS = {
    "contract_example": (
        Request((text("天很蓝，海很深"), image(IMAGE))),
        WireOptions(MODEL, encoding_format=EncodingFormat.FLOAT),
    ),
    "text_default": (Request((text("hello"),)), WireOptions(MODEL)),
    "every_field": (
        Request(
            (
                text('quote " and\nnewline'),
                video("https://example.com/a.mp4?x=1&y=2"),
                image("data:image/png;base64,iVBORw0KGgo="),
                text(""),
            ),
            instructions="Target_modality: text.\nInstruction:Compress the text into one word.\nQuery:",
        ),
        WireOptions(NEWEST, dimensions=1024),
    ),
    "sparse": (Request((text("a"), text("b")), sparse=True), WireOptions(MODEL)),
    "format_null": (
        Request((image(IMAGE),)),
        WireOptions("ep-20250101000000-abcde", encoding_format=EncodingFormat.NULL),
    ),
    "format_absent": (
        Request((video("https://example.com/a.mov"),)),
        WireOptions(MODEL, dimensions=2048, encoding_format=EncodingFormat.ABSENT),
    ),
    "multi_plain": (Request((text("a"),)), WireOptions(NEWEST, multi_embedding="plain")),
    "multi_zstd": (Request((text("a"),), sparse=True), WireOptions(NEWEST, multi_embedding="zstd")),
    "video_sampling": (
        Request(
            (
                video("https://example.com/a.mp4", VideoSampling(0.5, 20_480, 64, 256, 8)),
                video("https://example.com/b.mp4", VideoSampling(min_frames=5)),
                video("https://example.com/c.mp4", VideoSampling()),
            )
        ),
        WireOptions(NEWEST),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_encoded_to_golden_bytes(name: str) -> None:
    """A request has exactly these bytes: fields, order of parts, text as UTF-8, and no field that is not set."""
    assert encode_request(*REQUESTS[name]) == golden(f"request_{name}")


def test_every_golden_body_is_used() -> None:
    """Every golden request file is tested."""
    assert {path.stem for path in GOLDEN.glob("request_*.json")} == {f"request_{name}" for name in REQUESTS}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ModelOptions(NEWEST), WireOptions(NEWEST)),
        (ModelOptions(NEWEST, dimensions=1024), WireOptions(NEWEST, 1024)),
        (
            ModelOptions("doubao-embedding-vision-250328", dimensions=1024),
            WireOptions("doubao-embedding-vision-250328"),
        ),
        (ModelOptions("ep-1", like="250615", dimensions=2048), WireOptions("ep-1", 2048)),
        (ModelOptions(NEWEST, encoding_format=None), WireOptions(NEWEST, encoding_format=EncodingFormat.NULL)),
        (
            ModelOptions(NEWEST, encoding_format=EncodingFormat.ABSENT, multi_embedding="zstd"),
            WireOptions(NEWEST, encoding_format=EncodingFormat.ABSENT, multi_embedding="zstd"),
        ),
    ],
)
def test_configured_model_decides_the_fields_of_every_request(options: ModelOptions, expected: WireOptions) -> None:
    """Model name, `dimensions` if the version accepts it, encoding and per-token vectors follow the config."""
    assert wire_options(options, check_options(options)) == expected


@given(st.lists(st.tuples(st.sampled_from(Modality), st.text(max_size=20)), max_size=8))
def test_parts_keep_order_and_value(parts: list[tuple[Modality, str]]) -> None:
    """In any mix, parts keep their order and values."""
    body = json.loads(encode_request(Request(tuple(Part(*part) for part in parts)), WireOptions("m")))
    got = [
        (Modality(kind), item["text"] if kind == "text" else item[item["type"]]["url"])
        for item in body["input"]
        for kind in [item["type"].removesuffix("_url")]
    ]
    assert got == parts


def test_text_that_is_no_unicode_is_refused_before_sending() -> None:
    """A lone surrogate can't be sent: the error is ours and can be printed."""
    with pytest.raises(wire.UnencodableRequest) as caught:
        encode_request(Request((text("a\ud800"),)), WireOptions("m"))
    str(caught.value).encode()


def test_request_above_the_services_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of exactly the limit is accepted; one byte more is rejected."""
    request, options = REQUESTS["text_default"]
    size = len(encode_request(request, options))
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", size)
    assert len(encode_request(request, options)) == size
    monkeypatch.setattr(wire, "REQUEST_BYTES_MAX", size - 1)
    with pytest.raises(wire.UnencodableRequest, match=str(size)):
        encode_request(request, options)


@pytest.mark.parametrize("name", ["reply_contract_example", "reply_contract_example_base64"])
def test_contract_example_is_decoded(name: str) -> None:
    """The contract page's reply, as numbers and as base64, gives the same vector and all documented fields."""
    reply = decode_reply(golden(name), dimensions=2048, sparse=False)
    expected = json.loads(golden("reply_contract_example"))["data"]["embedding"]
    assert reply.dense.tolist() == expected
    assert reply.dense.dtype == np.dtype("<f4")
    assert reply.dense.flags.c_contiguous
    assert (reply.id, reply.model, reply.created) == (REPLY_ID, MODEL, 1743575029)
    assert reply.usage == USAGE_READ
    assert reply.usage_flaw is None
    assert not reply.usage_missing
    assert reply.sparse is None
    assert reply.norm == np.float32(math.sqrt(math.fsum(value * value for value in expected)))


def test_data_may_be_a_list_of_one() -> None:
    """The older form, a list with one vector, is accepted."""
    assert decode_reply(golden("reply_one_item_list"), dimensions=4, sparse=False).dense.tolist() == SHORT


def test_sparse_entries_are_sorted() -> None:
    """Entries may have any order; the result is sorted by index, and integers are valid values."""
    sparse = decode_reply(golden("reply_sparse"), dimensions=4, sparse=True).sparse
    assert sparse is not None
    assert (sparse.indices.dtype, sparse.values.dtype) == (np.uint32, np.float32)
    assert sparse.indices.tolist() == [7, 1024, 95188]
    assert sparse.values.tolist() == [-0.5, 1.0, 0.0234375]


def test_empty_sparse_is_no_missing_one() -> None:
    """An empty list is a sparse vector without active indices, not a missing one."""
    sparse = decode_reply(golden("reply_sparse_empty"), dimensions=4, sparse=True).sparse
    assert sparse is not None
    assert (len(sparse.indices), len(sparse.values)) == (0, 0)


def test_sparse_that_was_not_asked_for_is_left_out() -> None:
    """A sparse vector that was not asked for is ignored, even if it is malformed."""
    assert decode_reply(golden("reply_sparse"), dimensions=4, sparse=False).sparse is None
    assert decode_reply(make_reply(sparse_embedding="?"), dimensions=4, sparse=False).sparse is None


def test_unknown_fields_are_ignored() -> None:
    """Fields of a later version of the service change nothing."""
    reply = decode_reply(golden("reply_unknown_fields"), dimensions=4, sparse=False)
    assert (reply.dense.tolist(), reply.usage, reply.usage_flaw) == (SHORT, USAGE_READ, None)


def test_stand_in_is_passed_on() -> None:
    """A reply says whether a stand-in made it."""
    assert decode_reply(make_reply(), dimensions=4, sparse=False, stand_in=True).stand_in
    assert not decode_reply(make_reply(), dimensions=4, sparse=False).stand_in


def test_missing_usage_keeps_the_vector() -> None:
    """Without usage the vector is kept and the usage is None with a flaw; `created` may be missing as well."""
    reply = decode_reply(golden("reply_usage_absent"), dimensions=4, sparse=False)
    assert (reply.dense.tolist(), reply.usage, reply.usage_flaw) == (SHORT, Usage(), UsageFlaw.MISSING)
    assert reply.usage_missing


@pytest.mark.parametrize(
    ("usage", "read", "flaw"),
    [
        (None, Usage(), UsageFlaw.MISSING),
        ({}, Usage(), UsageFlaw.MISSING),
        ("528", Usage(), UsageFlaw.MALFORMED),
        ([USAGE], Usage(), UsageFlaw.MALFORMED),
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 5), UsageFlaw.MISSING),
        ({"prompt_tokens": 5, "total_tokens": 5, "prompt_tokens_details": 5}, Usage(5, 5), UsageFlaw.MALFORMED),
        (USAGE | {"prompt_tokens": "528"}, Usage(None, 528, 31, 497), UsageFlaw.MALFORMED),
        (USAGE | {"prompt_tokens": 528.0}, Usage(None, 528, 31, 497), UsageFlaw.MALFORMED),
        (USAGE | {"total_tokens": -1}, Usage(528, None, 31, 497), UsageFlaw.MALFORMED),
        (USAGE | {"total_tokens": True}, Usage(528, None, 31, 497), UsageFlaw.MALFORMED),
        (USAGE | {"total_tokens": 2**63}, Usage(528, None, 31, 497), UsageFlaw.MALFORMED),
        (USAGE | {"total_tokens": 529}, Usage(), UsageFlaw.INCONSISTENT),
        (USAGE | {"prompt_tokens": 529, "total_tokens": 529}, Usage(), UsageFlaw.INCONSISTENT),
    ],
)
def test_bad_usage_is_flagged(usage: Any, read: Usage, flaw: UsageFlaw) -> None:
    """Readable counts of a malformed usage are kept; counts that do not add up become None; the vector is kept."""
    reply = decode_reply(make_reply(usage=usage), dimensions=4, sparse=False)
    assert (reply.usage, reply.usage_flaw) == (read, flaw)
    assert reply.usage_missing
    assert reply.dense.tolist() == SHORT


@pytest.mark.parametrize("value", ["list", "embedding", "embeddings", "multimodal_embedding", "", None, 5, ["list"]])
def test_other_words_for_an_embedding_keep_the_vector(value: Any) -> None:
    """If `object` or `data.object` is missing or has a similar value, the paid vector is kept."""
    for body in (
        make_reply(object=value),
        make_reply(data={"embedding": SHORT, "object": value}),
        make_reply(data=[{"embedding": SHORT, "object": value}]),
    ):
        assert decode_reply(body, dimensions=4, sparse=False).dense.tolist() == SHORT


def test_missing_words_keep_the_vector() -> None:
    """A reply with only a vector is enough."""
    reply = decode_reply(json.dumps({"data": {"embedding": SHORT}}).encode(), dimensions=4, sparse=False)
    assert reply.dense.tolist() == SHORT
    assert (reply.id, reply.model, reply.created, reply.usage_flaw) == (None, None, None, UsageFlaw.MISSING)


def pack(values: list[list[float]] | bytes, **options: Any) -> str:
    """Compress per-token vectors as the service does, without the decoder's functions."""
    raw = values if isinstance(values, bytes) else b"".join(struct.pack(f"<{len(row)}e", *row) for row in values)
    return base64.b64encode(zstandard.ZstdCompressor(**options).compress(raw)).decode()


TOKENS = [[0.5, -1.25, 3.0, -0.0625], [1.0, 0.0, -2.0, 65504.0], [6e-8, 0.25, 1.0, 2.0]]


@pytest.mark.parametrize("name", ["reply_multi_plain", "reply_multi_zstd"])
def test_vectors_of_tokens_are_decoded(name: str) -> None:
    """Numbers and base64 of zstd of float16 give the same three per-token vectors of four values."""
    multi = decode_reply(golden(name), dimensions=4, sparse=False, multi=True).multi
    assert multi is not None
    assert (multi.dtype, multi.shape) == (np.dtype("<f2"), (3, 4))
    assert multi.flags.c_contiguous
    assert multi.tolist() == np.array(TOKENS, dtype="<f2").tolist()


def test_numbers_beyond_float16_are_rounded_to_the_nearest() -> None:
    """Numbers are rounded to float16, half to even: 11 bits of precision."""
    values = [0.1, 2049.0, 2051.0, 1e-9]
    multi = decode_reply(make_reply(multi_embedding=[values]), dimensions=4, sparse=False, multi=True).multi
    assert multi is not None
    assert multi.tolist() == [[0.0999755859375, 2048.0, 2052.0, 0.0]]


def test_vectors_of_tokens_that_were_not_asked_for_are_left_out() -> None:
    """Per-token vectors that were not asked for are ignored, even if they are malformed."""
    assert decode_reply(golden("reply_multi_zstd"), dimensions=4, sparse=False).multi is None
    assert decode_reply(make_reply(multi_embedding="?"), dimensions=4, sparse=False).multi is None


@pytest.mark.parametrize(("says_size", "flaw"), [(True, Flaw.MULTI_TOO_LARGE), (False, Flaw.MULTI_MALFORMED)])
def test_expansion_is_bounded(says_size: bool, flaw: Flaw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of exactly the limit are decompressed; one token more is rejected, with or without a declared size."""
    monkeypatch.setattr(vectors, "MULTI_TOKENS_MAX", 100)
    at_bound, above = (
        make_reply(multi_embedding=pack([SHORT] * tokens, write_content_size=says_size)) for tokens in (100, 101)
    )
    multi = decode_reply(at_bound, dimensions=4, sparse=False, multi=True).multi
    assert multi is not None
    assert multi.tolist() == [SHORT] * 100
    with pytest.raises(UnusableReply) as caught:
        decode_reply(above, dimensions=4, sparse=False, multi=True)
    assert caught.value.flaw is flaw


@pytest.mark.parametrize("value", [None, 5, "", ["a"]])
def test_unreadable_names_are_null(value: Any) -> None:
    """An id, model or time of a wrong type becomes None; the vector is kept."""
    reply = decode_reply(make_reply(id=value, model=value, created="now"), dimensions=4, sparse=False)
    assert (reply.id, reply.model, reply.created) == (None, None, None)


PACKED = pack(TOKENS)
# Only the header of a frame: single segment, eight bytes of content size.
LYING = base64.b64encode(zstandard.FRAME_HEADER + b"\xe0" + (2**60).to_bytes(8, "little")).decode()
ENTRIES = [{"index": 3, "value": 0.5}, {"index": 1, "value": 2.0}]
FLAWS: list[tuple[Flaw, dict[str, Any]]] = [
    (Flaw.OTHER_OBJECT, {"object": "error"}),
    (Flaw.OTHER_OBJECT, {"object": "chat.completion"}),
    (Flaw.OTHER_OBJECT, {"data": {"embedding": SHORT, "object": "error"}}),
    (Flaw.OTHER_OBJECT, {"data": [{"embedding": SHORT, "object": "image"}]}),
    (Flaw.NO_DATA, {"data": None}),
    (Flaw.NO_DATA, {"data": []}),
    (Flaw.NO_DATA, {"data": [None]}),
    (Flaw.NO_DATA, {"data": "vector"}),
    (Flaw.SEVERAL_VECTORS, {"data": [{"embedding": SHORT}, {"embedding": SHORT}]}),
    (Flaw.NO_EMBEDDING, {"data": {}}),
    (Flaw.NO_EMBEDDING, {"embedding": None}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": 5}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": {"0": 0.5}}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": [0.5, None, 1.0, 1.0]}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": [0.5, "0.5", 1.0, 1.0]}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": [0.5, True, 1.0, 1.0]}),
    (Flaw.EMBEDDING_MALFORMED, {"embedding": [SHORT]}),
    (Flaw.INVALID_BASE64, {"embedding": to_base64(SHORT)[:-1]}),
    (Flaw.INVALID_BASE64, {"embedding": "*" + to_base64(SHORT)[1:]}),
    (Flaw.INVALID_BASE64, {"embedding": to_base64(SHORT)[:8] + "\n" + to_base64(SHORT)[8:]}),
    (Flaw.INVALID_BASE64, {"embedding": "天" + to_base64(SHORT)[1:]}),
    (Flaw.WRONG_LENGTH, {"embedding": []}),
    (Flaw.WRONG_LENGTH, {"embedding": ""}),
    (Flaw.WRONG_LENGTH, {"embedding": SHORT[:3]}),
    (Flaw.WRONG_LENGTH, {"embedding": [*SHORT, 1.0]}),
    (Flaw.WRONG_LENGTH, {"embedding": to_base64(SHORT[:3])}),
    (Flaw.WRONG_LENGTH, {"embedding": base64.b64encode(b"123456789").decode()}),
    (Flaw.NOT_FINITE, {"embedding": [0.5, math.nan, 1.0, 1.0]}),
    (Flaw.NOT_FINITE, {"embedding": [0.5, math.inf, 1.0, 1.0]}),
    (Flaw.NOT_FINITE, {"embedding": [0.5, -math.inf, 1.0, 1.0]}),
    (Flaw.NOT_FINITE, {"embedding": [0.5, 1e39, 1.0, 1.0]}),
    (Flaw.NOT_FINITE, {"embedding": [0.5, 10**400, 1.0, 1.0]}),
    (Flaw.NOT_FINITE, {"embedding": to_base64([0.5, math.nan, 1.0, 1.0])}),
    (Flaw.NOT_FINITE, {"embedding": to_base64([0.5, -math.inf, 1.0, 1.0])}),
    (Flaw.ZERO_VECTOR, {"embedding": [0.0, -0.0, 0, 0.0]}),
    (Flaw.ZERO_VECTOR, {"embedding": to_base64([0.0] * 4)}),
    (Flaw.SPARSE_MISSING, {}),
    (Flaw.SPARSE_MISSING, {"sparse_embedding": None}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": {"index": 3, "value": 0.5}}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": 5}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [[3, 0.5]]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"index": 3}]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"value": 3}]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"index": 3.0, "value": 0.5}]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"index": True, "value": 0.5}]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"index": 3, "value": None}]}),
    (Flaw.SPARSE_MALFORMED, {"sparse_embedding": [{"index": 3, "value": "0.5"}]}),
    (Flaw.SPARSE_INDEX_NEGATIVE, {"sparse_embedding": [*ENTRIES, {"index": -1, "value": 0.5}]}),
    (Flaw.SPARSE_INDEX_TOO_LARGE, {"sparse_embedding": [*ENTRIES, {"index": 2**32, "value": 0.5}]}),
    (Flaw.SPARSE_INDEX_TOO_LARGE, {"sparse_embedding": [*ENTRIES, {"index": 2**64 - 1, "value": 0.5}]}),
    (Flaw.SPARSE_INDEX_REPEATED, {"sparse_embedding": [*ENTRIES, {"index": 3, "value": 0.25}]}),
    (Flaw.SPARSE_VALUE_NOT_FINITE, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": math.nan}]}),
    (Flaw.SPARSE_VALUE_NOT_FINITE, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": 1e39}]}),
    (Flaw.SPARSE_VALUE_ZERO, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": 0.0}]}),
    (Flaw.SPARSE_VALUE_ZERO, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": 0}]}),
    (Flaw.SPARSE_VALUE_ZERO, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": -0.0}]}),
    (Flaw.SPARSE_VALUE_ZERO, {"sparse_embedding": [*ENTRIES, {"index": 4, "value": 1e-60}]}),
    (Flaw.MULTI_MISSING, {}),
    (Flaw.MULTI_MISSING, {"multi_embedding": None}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": 5}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": {"0": SHORT}}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": SHORT}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": [SHORT, None]}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": [[0.5, True, 1.0, 1.0]]}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": [[0.5, "1", 1.0, 1.0]]}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": [[SHORT]]}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": "*"}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": ""}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": base64.b64encode(b"no frame at all").decode()}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": PACKED[: len(PACKED) // 8 * 4]}),
    (Flaw.MULTI_MALFORMED, {"multi_embedding": base64.b64encode(base64.b64decode(PACKED) + b"more").decode()}),
    (Flaw.MULTI_TOO_LARGE, {"multi_embedding": LYING}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": []}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": [[]]}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": [SHORT, SHORT[:3]]}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": [[*SHORT, 1.0]]}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": pack(b"")}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": pack(b"odd")}),
    (Flaw.MULTI_WRONG_LENGTH, {"multi_embedding": pack([SHORT, SHORT[:3]])}),
    (Flaw.MULTI_NOT_FINITE, {"multi_embedding": [[0.5, math.nan, 1.0, 1.0]]}),
    (Flaw.MULTI_NOT_FINITE, {"multi_embedding": [[0.5, 65520.0, 1.0, 1.0]]}),
    (Flaw.MULTI_NOT_FINITE, {"multi_embedding": [[0.5, 10**400, 1.0, 1.0]]}),
    (Flaw.MULTI_NOT_FINITE, {"multi_embedding": pack([SHORT, [0.5, -math.inf, 1.0, 1.0]])}),
    (Flaw.MULTI_NOT_FINITE, {"multi_embedding": pack([[0.5, math.nan, 1.0, 1.0]])}),
]


@pytest.mark.parametrize(("flaw", "changes"), FLAWS)
def test_flaw_is_named(flaw: Flaw, changes: dict[str, Any]) -> None:
    """Each kind of unusable reply has its own code, and id, model and usage are kept."""
    asked = {"sparse": flaw.startswith("sparse"), "multi": flaw.startswith("multi")}
    with pytest.raises(UnusableReply) as caught:
        decode_reply(make_reply(**changes), dimensions=4, **asked)
    error = caught.value
    assert (error.flaw, error.id, error.model, error.usage) == (flaw, REPLY_ID, MODEL, USAGE_READ)
    assert 0 < len(str(error)) <= 500


def test_every_flaw_of_a_vector_is_tested() -> None:
    """Every flaw is tested here, except those of whole bodies, which have their own tests."""
    assert {flaw for flaw, _ in FLAWS} | {Flaw.NOT_JSON, Flaw.CUT_OFF, Flaw.TOO_LARGE} == set(Flaw)


def test_largest_sparse_index_is_taken() -> None:
    """The largest 32-bit index is accepted."""
    body = make_reply(sparse_embedding=[{"index": 2**32 - 1, "value": 0.5}, {"index": 0, "value": 0.5}])
    sparse = decode_reply(body, dimensions=4, sparse=True).sparse
    assert sparse is not None
    assert sparse.indices.tolist() == [0, 2**32 - 1]


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"5", b'"text"', b"<html>busy</html>", b"\xff\xfe", b"[" * 100_000]
)
def test_body_that_is_no_object_is_named(body: bytes) -> None:
    """A body that is not a JSON object has the flaw `not_json` and no usage."""
    with pytest.raises(UnusableReply) as caught:
        decode_reply(body, dimensions=4, sparse=False)
    assert (caught.value.flaw, caught.value.usage) == (Flaw.NOT_JSON, None)


def test_cut_off_json_keeps_what_stands_whole() -> None:
    """In a body that is cut off, id, model and usage are read only if they are complete."""
    body = golden("reply_contract_example_base64").rstrip()
    assert not body.endswith(b"\n")
    for cut, expected in (
        (len(body) - 1, (REPLY_ID, MODEL, USAGE_READ)),
        (body.index(b'"total_tokens"') + 18, (REPLY_ID, MODEL, None)),
        (body.index(b'"model"') + 12, (REPLY_ID, None, None)),
        (100, (None, None, None)),
    ):
        with pytest.raises(UnusableReply) as caught:
            decode_reply(body[:cut], dimensions=2048, sparse=False)
        error = caught.value
        assert (error.flaw, (error.id, error.model, error.usage)) == (Flaw.NOT_JSON, expected)


def test_unusable_reply_survives_pickling() -> None:
    """All fields are the same after pickling."""
    error = UnusableReply(Flaw.ZERO_VECTOR, "zero", "id", "model", USAGE_READ)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.flaw, str(copy), copy.id, copy.model, copy.usage) == (error.flaw, "zero", "id", "model", USAGE_READ)


@given(hnp.arrays(np.dtype("<f4"), st.integers(1, 64), elements=FLOAT32))
def test_both_encodings_give_the_bits_that_were_sent(sent: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """A finite vector is bit for bit the same from base64 and from numbers, or has the flaw zero or too large."""
    bodies = (
        make_reply(base64.b64encode(sent.tobytes()).decode()),
        make_reply([float(value) for value in sent]),
    )
    length = math.hypot(*(float(value) for value in sent))
    for body in bodies:
        if 0 < length <= float(np.finfo(np.float32).max) * 0.999:
            reply = decode_reply(body, dimensions=len(sent), sparse=False)
            assert reply.dense.tobytes() == sent.tobytes()
            assert float(reply.norm) == pytest.approx(length, rel=1e-6, abs=1e-44)
        elif length == 0:
            with pytest.raises(UnusableReply, match="zero"):
                decode_reply(body, dimensions=len(sent), sparse=False)


@given(st.dictionaries(st.integers(0, 2**32 - 1), FLOAT32.filter(bool), max_size=30), st.randoms())
def test_sparse_order_does_not_matter(vector: dict[int, float], random: Any) -> None:
    """Entries in any order give the same sorted vector."""
    entries = [{"index": index, "value": value} for index, value in vector.items()]
    random.shuffle(entries)
    sparse = decode_reply(make_reply(sparse_embedding=entries), dimensions=4, sparse=True).sparse
    assert sparse is not None
    assert list(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True)) == sorted(vector.items())


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_body_is_decoded_or_named(body: bytes) -> None:
    """Any body raises no other exception than UnusableReply."""
    with pytest.raises(UnusableReply):
        decode_reply(body, dimensions=4, sparse=True, multi=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["embedding", "index", "value", "a"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["id", "model", "created", "data", "usage", "object"]), JSON), JSON, JSON, JSON)
def test_any_object_is_decoded_or_named(fields: dict[str, Any], embedding: Any, sparse: Any, multi: Any) -> None:
    """Fields of any type give a reply or UnusableReply."""
    whole = {"embedding": embedding, "sparse_embedding": sparse, "multi_embedding": multi}
    for data in (whole, {"embedding": SHORT[:2], "sparse_embedding": [], "multi_embedding": multi}):
        with contextlib.suppress(UnusableReply):
            decode_reply(json.dumps({"data": data} | fields).encode(), dimensions=2, sparse=True, multi=True)


@given(hnp.arrays(np.dtype("<f2"), st.tuples(st.integers(1, 9), st.just(3)), elements=FLOAT16), st.booleans())
def test_vectors_of_tokens_come_through_bit_for_bit(
    sent: np.ndarray[Any, np.dtype[np.float16]], compressed: bool
) -> None:
    """Finite float16 values are bit for bit the same from zstd and from numbers."""
    coded = pack(sent.tobytes()) if compressed else [[float(value) for value in row] for row in sent]
    body = make_reply([1.0, 1.0, 1.0], multi_embedding=coded)
    multi = decode_reply(body, dimensions=3, sparse=False, multi=True).multi
    assert multi is not None
    assert multi.tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            (
                b'{"error":{"code":"InvalidParameter","message":"`input[0]` is not valid: expected a string, but '
                b'got x. Request id: 021743abc-1","param":"input[0]","type":"BadRequest"}}'
            ),
            ("InvalidParameter", "expected a string, but got x. Request id: 021743abc-1", "021743abc-1"),
        ),
        (b'{"error":{"code":"A.B","message":"","param":"","type":""}}', ("A.B", '{"error":', None)),
        (b'{"error":"overloaded"}', ("http_418", "overloaded", None)),
        (b'{"code":"X","message":"top"}', ("X", "top", None)),
        (b'{"error":null}', ("http_418", '{"error":null}', None)),
        (b"[1]", ("http_418", "[1]", None)),
        (b"<html>\r\n<h1>Bad gateway</h1></html>", ("http_418", "<html> <h1>Bad gateway</h1></html>", None)),
        (b"", ("http_418", "HTTP 418 without a message", None)),
        (b"\xff\xfe", ("http_418", "\N{REPLACEMENT CHARACTER}", None)),
        (b'{"error":{"code":5,"message":["a"]}}', ("5", "['a']", None)),
    ],
)
def test_error_body_is_read_whatever_it_is(body: bytes, expected: tuple[str, str, str | None]) -> None:
    """Code, message and request id come from the documented form; any other body gives its status and text."""
    code, message, request_id = wire.decode_error(418, body)
    assert (code, request_id) == (expected[0], expected[2])
    assert expected[1] in message


def test_error_is_bounded_and_redacted() -> None:
    """Code and message are cut to a bounded length, and secrets are masked."""
    message = "Timeout while downloading url=https://b.tos.com/k?X-Tos-Signature=s3cr3t " + "x " * 10**6
    body = orjson.dumps({"error": {"code": "c" * 5000, "message": message}})
    code, kept, _ = wire.decode_error(400, body)
    assert len(code) == 100
    assert len(kept) == 500
    assert "s3cr3t" not in kept
    assert "s3cr3t" not in wire.decode_error(400, message.encode()).message


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 3 * 256 * 1024, 3 * 256 * 1024 + 1, 2_000_000])
def test_inlined_bytes_are_the_data_uri_they_stand_for(size: int) -> None:
    """A body with inlined bytes is equal to the body with the same data URI as a part."""
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    sampling = VideoSampling(fps=1.5, min_frames=7)
    parts = (Part(Modality.TEXT, 'x"url":"y'), Part(Modality.IMAGE, "s3://a"), Part(Modality.VIDEO, "s3://b", sampling))
    whole = replace(parts[1], value=uri), replace(parts[2], value=uri.replace("image/png", "video/mp4"))
    inlined = {1: Inline("image/png", data), 2: Inline("video/mp4", data)}
    options = [WireOptions("m"), WireOptions("m", 1024), WireOptions("m", None, EncodingFormat.ABSENT)]
    for option in options:
        for instructions in (None, "do"):
            expected = encode_request(Request((parts[0], *whole), instructions), option)
            assert encode_request(Request(parts, instructions), option, inlined) == expected


def test_inlined_bytes_that_are_too_many_are_refused_before_they_are_encoded() -> None:
    """The size limit applies to all inlined parts together."""
    data = bytes(REQUEST_BYTES_MAX // 8 * 3 + 3)
    parts = (Part(Modality.VIDEO, "s3://a"), Part(Modality.VIDEO, "s3://b"))
    with pytest.raises(UnencodableRequest, match="64000000"):
        encode_request(Request(parts), WireOptions("m"), dict.fromkeys((0, 1), Inline("video/mp4", data)))
