"""Requests that the contract does not allow, with status and code, and requests that it allows."""

import base64
import dataclasses
import io
import struct
from typing import Any

import orjson
import pytest
from arkbeam.emulator import contract
from arkbeam.emulator.contract import NEWEST_MODEL, hash_meaning, parse_request
from arkbeam.emulator.media import IMAGE_BYTES_MAX
from arkbeam.emulator.parts import EmbeddingRequest, ImagePart, TextPart, TokenVectors, VideoPart
from arkbeam.emulator.replies import ERRORS, ErrorReply, Rejected
from PIL import Image

V251215 = "doubao-embedding-vision-251215"
V250615 = "doubao-embedding-vision-250615"
V250328 = "doubao-embedding-vision-250328"
ENABLED = {"type": "enabled"}
UNSUPPORTED = "InvalidParameter.UnsupportedParameter"
NOT_FOUND = "InvalidEndpointOrModel.NotFound"
NO_PICTURE = "InvalidParameter.UnsupportedImageFormat"
BAD_URL = "InvalidImageURL.InvalidFormat"


def make_image(size: tuple[int, int] = (32, 32), image_format: str = "PNG") -> bytes:
    """Return the bytes of an image."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(buffer, image_format)
    return buffer.getvalue()


def data_uri(data: bytes, mime: str = "image/png") -> str:
    """Make a data URI as in the contract."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def make_mp4(seconds: int = 3, brand: bytes = b"isom", version: int = 0) -> bytes:
    """Make a video file without frames: its type box and its movie header."""
    times = struct.pack(">QQIQ" if version else ">IIII", 0, 0, 1000, seconds * 1000)
    header = struct.pack(">I", 8 + 4 + len(times)) + b"mvhd" + bytes([version, 0, 0, 0]) + times
    return struct.pack(">I", 16) + b"ftyp" + brand + bytes(4) + struct.pack(">I", 8 + len(header)) + b"moov" + header


def text(value: Any = "hello") -> dict[str, Any]:
    """A text item."""
    return {"type": "text", "text": value}


def image(url: Any = "https://example.com/a.jpg") -> dict[str, Any]:
    """An image item."""
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: Any = "https://example.com/a.mp4", **sampling: Any) -> dict[str, Any]:
    """A video item."""
    return {"type": "video_url", "video_url": {"url": url, **sampling}}


def parse(fields: Any) -> EmbeddingRequest:
    """Parse a body with these fields; model and input have defaults."""
    body = {"model": V251215, "input": [text()], **fields} if isinstance(fields, dict) else fields
    return parse_request(orjson.dumps(body), {"ep-old": V250328})[0]


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "MissingParameter", "model"),
    ({"model": ""}, "MissingParameter", "model"),
    ({"model": 7}, "InvalidParameter", "model"),
    ({"model": "gpt-4"}, NOT_FOUND, "model"),
    ({"model": "doubao-embedding-vision"}, NOT_FOUND, "model"),
    ({"model": "doubao-embedding-vision-991231"}, NOT_FOUND, "model"),
    ({"model": "other-251215"}, NOT_FOUND, "model"),
    ({"input": None}, "MissingParameter", "input"),
    ({"input": "hello"}, "InvalidParameter", "body"),
    ({"input": text()}, "InvalidParameter", "body"),
    ({"input": []}, "InvalidParameter", "input"),
    ({"input": ["hello"]}, "InvalidParameter", "input[0]"),
    ({"input": [text(), {"text": "no type"}]}, "MissingParameter", "input[1].type"),
    ({"input": [{"type": "audio", "audio": "x"}]}, "InvalidParameter", "input[0].type"),
    ({"input": [{"type": ["text"], "text": "x"}]}, "InvalidParameter", "input[0].type"),
    ({"input": [{"type": "text"}]}, "MissingParameter", "input[0].text"),
    ({"input": [text(5)]}, "InvalidParameter", "input[0].text"),
    ({"input": [text("")]}, "InvalidParameter", "input[0].text"),
    ({"input": [{"type": "image_url"}]}, "MissingParameter", "input[0].image_url"),
    ({"input": [{"type": "image_url", "image_url": "https://a.b/c.jpg"}]}, "InvalidParameter", "input[0].image_url"),
    ({"input": [{"type": "image_url", "image_url": {}}]}, "MissingParameter", "input[0].image_url.url"),
    ({"input": [image("")]}, "InvalidImageURL.EmptyURL", "input[0].image_url.url"),
    ({"input": [image(3)]}, "InvalidParameter", "input[0].image_url.url"),
    ({"input": [image("s3://bucket/a.jpg")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image("/tmp/a.jpg")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image(), "image/PNG"))]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image()).replace(";base64", ""))]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_mp4(), "video/mp4"))]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image("data:image/png;base64,@@@@")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image("data:image/png;base64,图")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image("data:image/png;base64,iVBORw0")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image()) + "\n")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image()).replace(",", ",@"))]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image("data:image/png;base64,")]}, BAD_URL, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image(), "image/jpeg"))]}, NO_PICTURE, "input[0].image_url.url"),
    ({"input": [image(data_uri(b"no picture at all"))]}, NO_PICTURE, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image()[:60]))]}, NO_PICTURE, "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image((14, 100))))]}, "InvalidParameter", "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image((6000, 6000))))]}, "InvalidParameter", "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image((10_000, 9_500))))]}, "InvalidParameter", "input[0].image_url.url"),
    ({"input": [image(data_uri(make_image() + bytes(IMAGE_BYTES_MAX)))]}, "InvalidParameter", "input[0].image_url.url"),
    ({"input": [video("")]}, "InvalidParameter", "input[0].video_url.url"),
    ({"input": [video(data_uri(make_image()))]}, "InvalidParameter", "input[0].video_url.url"),
    ({"input": [video(data_uri(make_mp4(), "video/avi"))]}, "InvalidParameter", "input[0].video_url.url"),
    ({"input": [video(data_uri(make_image(), "video/mp4"))]}, "InvalidParameter", "input[0].video_url.url"),
    ({"input": [video(fps=0.1)]}, "InvalidParameter", "input[0].video_url.fps"),
    ({"input": [video(fps=True)]}, "InvalidParameter", "input[0].video_url.fps"),
    ({"input": [video(fps=5.1)]}, "InvalidParameter", "input[0].video_url.fps"),
    ({"input": [video(fps="1")]}, "InvalidParameter", "input[0].video_url.fps"),
    ({"input": [video(max_video_tokens=10_239)]}, "InvalidParameter", "input[0].video_url.max_video_tokens"),
    ({"input": [video(max_video_tokens=204_801)]}, "InvalidParameter", "input[0].video_url.max_video_tokens"),
    ({"input": [video(min_frame_tokens=15)]}, "InvalidParameter", "input[0].video_url.min_frame_tokens"),
    ({"input": [video(min_frame_tokens=129)]}, "InvalidParameter", "input[0].video_url.min_frame_tokens"),
    ({"input": [video(max_frame_tokens=127)]}, "InvalidParameter", "input[0].video_url.max_frame_tokens"),
    ({"input": [video(max_frame_tokens=641)]}, "InvalidParameter", "input[0].video_url.max_frame_tokens"),
    ({"input": [video(min_frames=4)]}, "InvalidParameter", "input[0].video_url.min_frames"),
    ({"input": [video(min_frames=17)]}, "InvalidParameter", "input[0].video_url.min_frames"),
    ({"input": [video(min_frames=5.5)]}, "InvalidParameter", "input[0].video_url.min_frames"),
    ({"model": V250615, "input": [video(fps=1)]}, UNSUPPORTED, "input[0].video_url.fps"),
    ({"model": V250328, "input": [video()]}, "InvalidParameter", "input[0]"),
    ({"model": V250328, "input": [text(), text()]}, "InvalidParameter", "input"),
    ({"model": V250328, "input": [image(), text(), image()]}, "InvalidParameter", "input"),
    ({"dimensions": 512}, "InvalidParameter", "dimensions"),
    ({"dimensions": 1024.0}, "InvalidParameter", "dimensions"),
    ({"dimensions": "1024"}, "InvalidParameter", "dimensions"),
    ({"dimensions": True}, "InvalidParameter", "dimensions"),
    ({"model": V250328, "dimensions": 2048}, UNSUPPORTED, "dimensions"),
    ({"model": "ep-old", "dimensions": 2048}, UNSUPPORTED, "dimensions"),
    ({"encoding_format": "hex"}, "InvalidParameter", "encoding_format"),
    ({"encoding_format": ["base64"]}, "InvalidParameter", "encoding_format"),
    ({"instructions": ["a"]}, "InvalidParameter", "instructions"),
    ({"model": V250615, "instructions": "a"}, UNSUPPORTED, "instructions"),
    ({"sparse_embedding": "enabled"}, "InvalidParameter", "sparse_embedding"),
    ({"sparse_embedding": {}}, "MissingParameter", "sparse_embedding.type"),
    ({"sparse_embedding": {"type": "on"}}, "InvalidParameter", "sparse_embedding.type"),
    ({"sparse_embedding": ENABLED, "input": [text(), image()]}, "InvalidParameter", "sparse_embedding"),
    ({"model": V250328, "sparse_embedding": ENABLED}, UNSUPPORTED, "sparse_embedding"),
    ({"sparse_embedding": {"type": None}}, "MissingParameter", "sparse_embedding.type"),
    ({"sparse_embedding": {"type": "disabled"}, "input": [image()]}, "InvalidParameter", "sparse_embedding"),
    ({"multi_embedding": {}}, "MissingParameter", "multi_embedding.type"),
    ({"multi_embedding": "enabled"}, "InvalidParameter", "multi_embedding"),
    ({"multi_embedding": {"type": "on"}}, "InvalidParameter", "multi_embedding.type"),
    ({"multi_embedding": {**ENABLED, "compression": "gzip"}}, "InvalidParameter", "multi_embedding.compression"),
    ({"multi_embedding": {**ENABLED, "compression": "blosc2"}}, UNSUPPORTED, "multi_embedding.compression"),
    ({"model": V250615, "multi_embedding": ENABLED}, UNSUPPORTED, "multi_embedding"),
    ({"model": V250328, "multi_embedding": {"type": "disabled"}}, UNSUPPORTED, "multi_embedding"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_fields_that_the_contract_refuses(fields: dict[str, Any], code: str, param: str) -> None:
    """Each broken rule has its own code, and the error has the field at fault."""
    with pytest.raises(Rejected) as caught:
        parse(fields)
    assert (caught.value.reply.code, caught.value.reply.param) == (code, param)
    assert caught.value.reply.status == (404 if code == NOT_FOUND else 400)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"model": NaN}', b'{"a":"\\ud800"}'])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    """A body that is not a JSON object in valid UTF-8 gets the documented message."""
    with pytest.raises(Rejected) as caught:
        parse_request(body, {})
    answer = orjson.loads(caught.value.reply.to_bytes("021"))
    assert "we could not parse the JSON body of your request" in answer["error"]["message"]


def test_a_body_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of exactly the limit is read; one byte more is rejected."""
    body = orjson.dumps({"model": V251215, "input": [text()]})
    monkeypatch.setattr(contract, "BODY_BYTES_MAX", len(body))
    parse_request(body, {})
    with pytest.raises(Rejected, match="bytes"):
        parse_request(body + b" ", {})


def test_defaults() -> None:
    """A field that is missing or null has the contract's default."""
    nulls = dict.fromkeys(("dimensions", "encoding_format", "instructions", "sparse_embedding", "multi_embedding"))
    expected = EmbeddingRequest(V251215, (TextPart("hello"),), 2048, "float", None, False, None)
    assert parse({}) == parse(nulls) == expected


def test_everything_at_once() -> None:
    """All fields are read, several texts can have a sparse vector, and unknown fields are ignored."""
    fields = {"dimensions": 1024, "encoding_format": "base64", "instructions": "", "sparse_embedding": ENABLED, "x": 1}
    fields["multi_embedding"] = {**ENABLED, "compression": "zstd"}
    request = parse({**fields, "input": [text("a"), {**text("b"), "more": 2}]})
    assert request == EmbeddingRequest(
        V251215, (TextPart("a"), TextPart("b")), 1024, "base64", "", True, TokenVectors.ZSTD
    )


def test_parts_keep_their_order() -> None:
    """Parts keep their order in any mix."""
    request = parse({"input": [video(), text(), image(), text("b")]})
    assert [type(part) for part in request.parts] == [VideoPart, TextPart, ImagePart, TextPart]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        (V250615, V250615),
        ("skylark-embedding-vision-250615", "skylark-embedding-vision-250615"),
        ("ep-20250615-abc", NEWEST_MODEL),
        ("ep-old", V250328),
    ],
)
def test_names_of_models(name: str, model: str) -> None:
    """A known Model ID, a configured endpoint, and any other endpoint, which is the newest version."""
    assert parse({"model": name}).model == model


@pytest.mark.parametrize(
    ("image_format", "mime"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tiff")],
)
def test_inlined_images(image_format: str, mime: str) -> None:
    """An image in a data URI has its real size and its mean colours."""
    uri = data_uri(make_image((40, 30), image_format), f"image/{mime}")
    (part,) = parse({"input": [image(uri)]}).parts
    assert isinstance(part, ImagePart)
    assert (part.width, part.height) == (40, 30)
    assert part.tiles is not None
    assert abs(part.tiles[1] - 200) <= 3


def test_the_smallest_and_the_largest_image() -> None:
    """An image is accepted if both sides are above 14 px and it has fewer than 36,000,000 pixels."""
    for size in ((15, 15), (6000, 5999)):
        (part,) = parse({"input": [image(data_uri(make_image(size)))]}).parts
        assert isinstance(part, ImagePart)
        assert (part.width, part.height) == size


def test_inlined_videos() -> None:
    """A video in a data URI has the duration of its header and the requested sampling."""
    (part,) = parse({"input": [video(data_uri(make_mp4(5), "video/mp4"), fps=0.5)]}).parts
    assert isinstance(part, VideoPart)
    assert (part.duration_s, part.sampling.fps) == (5.0, 0.5)


@pytest.mark.parametrize("end", [0, 1])
def test_sampling_at_its_bounds(end: int) -> None:
    """The ends of the range of every sampling argument are accepted, and null means missing."""
    asked = {name: bounds[end] for name, bounds in contract._SAMPLING_RANGES.items()}
    (part,) = parse({"input": [video(**asked)]}).parts
    assert isinstance(part, VideoPart)
    assert dataclasses.asdict(part.sampling) == asked
    (part,) = parse({"model": V250615, "input": [video(**dict.fromkeys(asked))]}).parts
    assert part == VideoPart("https://example.com/a.mp4")


def test_what_means_the_same_is_paid_once() -> None:
    """The hash ignores the encoding format and whether defaults are written out, and nothing else."""
    same = [{}, {"dimensions": 2048}, {"encoding_format": "base64"}, {"sparse_embedding": {"type": "disabled"}}]
    assert len({hash_meaning(parse(fields)) for fields in same}) == 1
    other: list[dict[str, Any]] = [
        {},
        {"dimensions": 1024},
        {"model": V250615},
        {"instructions": ""},
        {"sparse_embedding": ENABLED},
        {"multi_embedding": ENABLED},
        {"input": [text("hell"), text("o")]},
        {"input": [text("https://example.com/a.jpg")]},
        {"input": [image()]},
        {"input": [video()]},
        {"input": [video(fps=2)]},
        {"input": [text(), image()]},
        {"input": [image(), text()]},
    ]
    assert len({hash_meaning(parse(fields)) for fields in other}) == len(other)


@pytest.mark.parametrize("code", ERRORS)
def test_error_bodies(code: str) -> None:
    """Every error has the four documented fields, and its message ends with the request id."""
    body = orjson.loads(ErrorReply(code, "input[0]", "expected {a} string").to_bytes("0217435"))
    assert list(body) == ["error"]
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["code"] == code
    assert error["param"] == "input[0]"
    assert error["type"]
    assert error["message"].endswith(" Request id: 0217435")


def test_details_of_errors_are_bounded() -> None:
    """A very long name from the client is cut in the message."""
    with pytest.raises(Rejected) as caught:
        parse({"model": "x" * 100_000})
    assert len(caught.value.reply.to_bytes("021")) < 1_000
