"""Requests that the contract does not allow: what the emulator answers, and how we reject them before sending.

    pytest -s tests/ark/test_refusals.py      prints the table

Most cases are whole request bodies, and a body is also a row of a manifest: both sides read the same bytes. If only one
side rejects it, the case says why; if we never send such a field, the test checks that.
"""

import base64
import io
import json
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from arkbeam.ark.client import read_api_key
from arkbeam.ark.models import ModelOptions, check_options, find_capabilities
from arkbeam.ark.tokens import estimate_request
from arkbeam.ark.wire import EMBEDDINGS_PATH, ModelSpec, encode_request, wire_options
from arkbeam.base.capabilities import exceeds_context
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Failure, Request, ServiceKind, VideoSampling
from arkbeam.emulator.contract import parse_request
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.replies import Rejected
from arkbeam.emulator.serve import start_emulator
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

V250328, V250615, V251215 = (f"doubao-embedding-vision-{version}" for version in ("250328", "250615", "251215"))
ENABLED, DISABLED = {"type": "enabled"}, {"type": "disabled"}
MISSING, INVALID, CONTEXT = "MissingParameter", "InvalidParameter", "OutofContextError"
UNSUPPORTED, NO_PICTURE = "InvalidParameter.UnsupportedParameter", "InvalidParameter.UnsupportedImageFormat"
BAD_URL, NO_URL, NOT_FOUND = (
    "InvalidImageURL.InvalidFormat",
    "InvalidImageURL.EmptyURL",
    "InvalidEndpointOrModel.NotFound",
)
KEY_ENV = "STAND_IN_KEY"
_SAID_CHARS_MAX = 90


def text(value: Any = "hello") -> dict[str, Any]:
    """A text item."""
    return {"type": "text", "text": value}


def image(url: Any = "https://example.com/a.jpg") -> dict[str, Any]:
    """An image item."""
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: Any = "https://example.com/a.mp4", **sampling: Any) -> dict[str, Any]:
    """A video item."""
    return {"type": "video_url", "video_url": {"url": url, **sampling}}


def uri(data: bytes, mime: str = "image/png") -> str:
    """Make a data URI as in the contract."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def picture(width: int = 32, height: int = 32, kind: str = "PNG") -> bytes:
    """Return the bytes of an image."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, kind)
    return buffer.getvalue()


def film(brand: bytes = b"isom") -> bytes:
    """Return a video file without frames; its header declares three seconds."""
    header = struct.pack(">I4sIIIII", 28, b"mvhd", 0, 0, 0, 1_000, 3_000)
    return struct.pack(">I4s4sI", 16, b"ftyp", brand, 0) + struct.pack(">I4s", 8 + len(header), b"moov") + header


Says = Callable[["Case", Path], str]


def read_rows(lines: list[bytes], model: ModelOptions, folder: Path) -> list[Request | Failure]:
    """Read lines of a manifest as a run with this model does; the order is lost."""
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    options = ManifestOptions(str(path))
    context = ReadContext(ServiceKind.STAND_IN, ModelSpec(model, find_capabilities(model)))
    outcomes: list[Request | Failure] = []
    for shard in cut_shards(list_manifests(options), 2**30):
        for chunk in read_shard(shard, options, context):
            outcomes += [request_from_json(staged).request for staged in chunk.staged["request"].to_pylist()]
            outcomes += [Failure(bad["code"], bad["message"]) for bad in chunk.unreadable.to_pylist()]
    assert len(outcomes) == len(lines)
    return outcomes


def read_row(line: bytes, model: ModelOptions, folder: Path) -> Request | Failure:
    """Read one line."""
    (outcome,) = read_rows([line], model, folder)
    return outcome


def row_of(case: "Case") -> bytes:
    """Return the body as a line of a manifest; a body that is not a JSON object is the line itself."""
    return b'{"body":' + case.body + b"}" if case.body.startswith(b"{") else case.body


def in_row(code: str) -> Says:
    """Make a check that the row becomes a failure row with this code."""

    def says(case: "Case", folder: Path) -> str:
        outcome = read_row(row_of(case), ModelOptions(case.model), folder)
        assert isinstance(outcome, Failure), f"{case.name}: the row is read as {outcome}"
        assert outcome.code == code, outcome
        return f"row: {outcome.code}: {outcome.message}"

    return says


def in_config(**options: Any) -> Says:
    """Make a check that the config of such requests is rejected."""

    def says(case: "Case", _folder: Path) -> str:
        with pytest.raises(ArkbeamError) as caught:
            check_options(ModelOptions(**{"name": case.model, **options}))
        return f"config: {caught.value}"

    return says


def without_key(_case: "Case", _folder: Path) -> str:
    """Check that a run without an API key does not start."""
    with pytest.raises(ArkbeamError) as caught:
        read_api_key("ARK_API_KEY")
    return f"config: {caught.value}"


def never_sent(name: str, **options: Any) -> Says:
    """Make a check that the field is not sent."""

    def says(case: "Case", folder: Path) -> str:
        model = ModelOptions(**{"name": case.model, **options})
        outcome = read_row(row_of(case), model, folder)
        assert isinstance(outcome, Request), outcome
        sent = encode_request(outcome, wire_options(model, check_options(model)))
        assert name not in orjson.loads(sent)
        parse_request(sent, {})
        return f"sent without {name}"

    return says


def warned(case: "Case", folder: Path) -> str:
    """Check that the row is sent with a warning: its estimate is above the model's context."""
    outcome = read_row(row_of(case), ModelOptions(case.model), folder)
    assert isinstance(outcome, Request), outcome
    assert exceeds_context(estimate_request(outcome, {}), find_capabilities(ModelOptions(case.model)))
    return "warning: the estimate is above the model's context"


def nothing(case: "Case", folder: Path) -> str:
    """Check that the row is sent."""
    outcome = read_row(row_of(case), ModelOptions(case.model), folder)
    assert isinstance(outcome, Request), outcome
    return "-"


@dataclass(frozen=True)
class Case:
    """One request that the service rejects. `only_one_can_know`: why we do not reject it before sending, if so."""

    name: str
    fields: dict[str, Any] | bytes
    code: str
    ours: Says
    status: int = 400
    only_one_can_know: str = ""
    key: str = "right"
    model: str = field(init=False)
    body: bytes = field(init=False)

    def __post_init__(self) -> None:
        """Fill in missing fields: the newest model and a short text."""
        fields = self.fields if isinstance(self.fields, dict) else {}
        whole = {"model": V251215, "input": [text()], **fields}
        whole = {name: value for name, value in whole.items() if value is not ...}
        model = whole.get("model")
        object.__setattr__(self, "model", model if isinstance(model, str) else V251215)
        body = self.fields if isinstance(self.fields, bytes) else json.dumps(whole).encode()
        object.__setattr__(self, "body", body)


LARGE = uri(picture() + bytes(10 * 2**20))
LONG = "词" * 200_000
CLOSED = "http://127.0.0.1:1/nobody-listens.png"

CASES = (
    # The request as a whole
    Case("no JSON", b"{", INVALID, in_row("bad_json")),
    Case("a JSON list", b"[]", INVALID, in_row("not_an_object")),
    Case("text that is no UTF-8", b'{"input":[{"type":"text","text":"\xff"}]}', INVALID, in_row("bad_text")),
    Case("a lone surrogate", b'{"input":[{"type":"text","text":"\\ud800"}]}', INVALID, in_row("bad_text")),
    Case("no key", {}, "AuthenticationError", without_key, status=401, key=""),
    # model
    Case("another model", {"model": "gpt-4"}, NOT_FOUND, in_config(), status=404),
    Case("a name without its date", {"model": "doubao-embedding-vision"}, NOT_FOUND, in_config(), status=404),
    Case("a date that is none", {"model": "doubao-embedding-vision-259999"}, NOT_FOUND, in_config(), status=404),
    Case(
        "a version not known",
        {"model": "doubao-embedding-vision-261231"},
        NOT_FOUND,
        nothing,
        status=404,
        only_one_can_know="we use a version newer than our table with a warning; only the service knows its versions",
    ),
    # input
    Case("no input", {"input": ...}, MISSING, in_row("bad_field")),
    Case("input is a text", {"input": "hello"}, INVALID, in_row("bad_field")),
    Case("an empty input", {"input": []}, INVALID, in_row("no_input")),
    Case("an item that is a text", {"input": ["hello"]}, INVALID, in_row("bad_part")),
    Case("an item without type", {"input": [{"text": "hello"}]}, MISSING, in_row("bad_part")),
    Case(
        "an item of sound", {"input": [{"type": "audio_url", "audio_url": {"url": "x"}}]}, INVALID, in_row("bad_part")
    ),
    Case("a text item without text", {"input": [{"type": "text"}]}, MISSING, in_row("bad_part")),
    Case("a text that is a number", {"input": [text(5)]}, INVALID, in_row("bad_part")),
    Case("an empty text", {"input": [text("")]}, INVALID, in_row("bad_part")),
    Case(
        "a text beyond the context",
        {"input": [text(LONG)]},
        CONTEXT,
        warned,
        only_one_can_know="no tokenizer is published, so an estimate only warns and nothing is cut; the row then fails",
    ),
    Case("two texts for 250328", {"model": V250328, "input": [text(), text()]}, INVALID, in_row("too_many_parts")),
    Case("two images for 250328", {"model": V250328, "input": [image(), image()]}, INVALID, in_row("too_many_parts")),
    Case("a video for 250328", {"model": V250328, "input": [video()]}, INVALID, in_row("video_unsupported")),
    # Media
    Case("image_url is a text", {"input": [{**image(), "image_url": "https://a.b/c"}]}, INVALID, in_row("bad_part")),
    Case("an image without url", {"input": [{**image(), "image_url": {}}]}, MISSING, in_row("bad_part")),
    Case("an empty URL", {"input": [image("")]}, NO_URL, in_row("bad_part")),
    Case("a URL of ftp", {"input": [image("ftp://a.b/c.png")]}, BAD_URL, in_row("media_forbidden")),
    Case("a URL without host", {"input": [image("https:///c.png")]}, BAD_URL, in_row("media_bad_uri")),
    Case("a path outside", {"input": [image("/etc/hostname")]}, BAD_URL, in_row("media_forbidden")),
    Case(
        "a format in capitals", {"input": [image(uri(picture(), "image/PNG"))]}, BAD_URL, in_row("media_bad_data_uri")
    ),
    Case("no base64 said", {"input": [image("data:image/png,iVBORw0")]}, BAD_URL, in_row("media_bad_data_uri")),
    Case("base64 cut off", {"input": [image(uri(picture())[:-3])]}, BAD_URL, in_row("media_bad_data_uri")),
    Case("no bytes", {"input": [image("data:image/png;base64,")]}, BAD_URL, in_row("media_empty")),
    Case("a PNG said to be JPEG", {"input": [image(uri(picture(), "image/jpeg"))]}, NO_PICTURE, in_row("media_mime")),
    Case("bytes of no picture", {"input": [image(uri(b"no picture"))]}, NO_PICTURE, in_row("media_not_image")),
    Case("a picture 14 px high", {"input": [image(uri(picture(100, 14)))]}, INVALID, in_row("media_too_small")),
    Case("36 megapixels", {"input": [image(uri(picture(6_000, 6_000)))]}, INVALID, in_row("media_too_many_pixels")),
    Case("a picture of 10 MiB", {"input": [image(LARGE)]}, INVALID, in_row("media_too_large")),
    Case("a video as an image", {"input": [image(uri(film(), "video/mp4"))]}, BAD_URL, in_row("media_not_image")),
    Case("an image as a video", {"input": [video(uri(picture()))]}, INVALID, in_row("media_not_video")),
    Case("an mp4 said to be avi", {"input": [video(uri(film(), "video/avi"))]}, INVALID, in_row("media_mime")),
    Case(
        "a video format in capitals",
        {"input": [video(uri(film(), "video/MP4"))]},
        INVALID,
        in_row("media_bad_data_uri"),
    ),
    Case(
        "a URL that can't be fetched",
        {"input": [image(CLOSED)]},
        INVALID,
        nothing,
        only_one_can_know="the service downloads URLs; we can't know which of them it can reach",
    ),
    # Video sampling
    Case("fps 0.1", {"input": [video(fps=0.1)]}, INVALID, in_row("bad_part")),
    Case("fps is a text", {"input": [video(fps="1")]}, INVALID, in_row("bad_part")),
    Case("max_video_tokens 10,239", {"input": [video(max_video_tokens=10_239)]}, INVALID, in_row("bad_part")),
    Case("min_frame_tokens 129", {"input": [video(min_frame_tokens=129)]}, INVALID, in_row("bad_part")),
    Case("max_frame_tokens 641", {"input": [video(max_frame_tokens=641)]}, INVALID, in_row("bad_part")),
    Case("min_frames 5.5", {"input": [video(min_frames=5.5)]}, INVALID, in_row("bad_part")),
    Case("fps for 250615", {"model": V250615, "input": [video(fps=1)]}, UNSUPPORTED, in_row("sampling_unsupported")),
    # dimensions, encoding_format
    Case("dimensions 512", {"dimensions": 512}, INVALID, in_config(dimensions=512)),
    Case("dimensions is a text", {"dimensions": "1024"}, INVALID, in_row("bad_field")),
    Case(
        "dimensions for 250328",
        {"model": V250328, "dimensions": 1024},
        UNSUPPORTED,
        in_row("bad_field"),
    ),
    Case(
        "dimensions for 250328, by config",
        {"model": V250328, "dimensions": 2048},
        UNSUPPORTED,
        never_sent("dimensions", dimensions=2048),
        only_one_can_know="the field is not sent: 250328 always returns 2,048",
    ),
    Case("encoding_format hex", {"encoding_format": "hex"}, INVALID, in_row("bad_field")),
    # instructions
    Case("instructions is a list", {"instructions": ["a"]}, INVALID, in_row("bad_field")),
    Case(
        "instructions for 250615",
        {"model": V250615, "instructions": "a"},
        UNSUPPORTED,
        in_row("instructions_unsupported"),
    ),
    Case(
        "instructions for 250615, by config",
        {"model": V250615, "instructions": "a"},
        UNSUPPORTED,
        in_config(instructions="a"),
    ),
    # sparse_embedding
    Case("sparse_embedding is a text", {"sparse_embedding": "enabled"}, INVALID, in_row("bad_field")),
    Case("sparse_embedding without type", {"sparse_embedding": {}}, MISSING, in_row("bad_field")),
    Case("sparse_embedding of type on", {"sparse_embedding": {"type": "on"}}, INVALID, in_row("bad_field")),
    Case(
        "sparse with an image",
        {"sparse_embedding": ENABLED, "input": [text(), image()]},
        INVALID,
        in_row("sparse_needs_text_only"),
    ),
    Case(
        "sparse off with an image",
        {"sparse_embedding": DISABLED, "input": [image()]},
        INVALID,
        never_sent("sparse_embedding"),
        only_one_can_know="if the row does not ask for it, the field is not sent",
    ),
    Case("sparse for 250328", {"model": V250328, "sparse_embedding": ENABLED}, UNSUPPORTED, in_config(sparse=True)),
    # multi_embedding
    Case("multi_embedding without type", {"multi_embedding": {}}, MISSING, in_row("bad_field")),
    Case(
        "multi_embedding by gzip",
        {"multi_embedding": {**ENABLED, "compression": "gzip"}},
        INVALID,
        in_row("bad_field"),
    ),
    Case(
        "multi_embedding for 250615",
        {"model": V250615, "multi_embedding": ENABLED},
        UNSUPPORTED,
        in_config(multi_embedding="plain"),
    ),
)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    """An emulator in another process that accepts only one key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, "right")
        with start_emulator(EmulatorOptions(api_key_env=KEY_ENV)) as url, httpx.Client(base_url=url) as client:
            yield client


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str, str]]]:
    """The rows of the table; it is printed after all cases."""
    rows: list[tuple[str, str, str, str]] = []
    yield rows
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    sys.stdout.write(f"\n{len(rows)} requests that the contract does not allow\n")
    for row in [("request", "the server answers", "we say before", ""), *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        sys.stdout.write("  ".join([*cells, row[3]]).rstrip() + "\n")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_refuse(
    case: Case, server: httpx.Client, table: list[tuple[str, str, str, str]], tmp_path: Path
) -> None:
    """The emulator answers with the documented status and code; we reject the row or the config before sending, or the case says why not."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {case.key}"} if case.key else {})
    answer = server.post(EMBEDDINGS_PATH, content=case.body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (case.status, case.code), error
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"].endswith(f" Request id: {answer.headers['x-request-id']}")
    said = case.ours(case, tmp_path)
    we_reject = said.startswith(("row: ", "config: "))
    assert we_reject != bool(case.only_one_can_know), "set only_one_can_know exactly if we do not reject the request"
    said = said.replace(str(tmp_path), "…")
    said = said if len(said) <= _SAID_CHARS_MAX else said[: _SAID_CHARS_MAX - 1] + "…"
    table.append((case.name, f"{answer.status_code} {error['code']}", said, case.only_one_can_know))


def test_there_are_enough_cases() -> None:
    """There are many cases with unique names, and only a few that we do not reject."""
    assert len(CASES) >= 30
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(bool(case.only_one_can_know) for case in CASES) <= 6


def some(*good: Any, bad: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    """Choose mostly good values: otherwise a request with several fields would almost never be valid."""
    return st.sampled_from([*good * (1 + 10 * len(bad) // len(good)), *bad])


TEXTS = some("hello", "天很蓝", "a\nb", bad=("", " ", 5, None, "\ud800"))
IMAGES = some(
    "https://example.com/a.jpg",
    *(
        uri(picture(kind=kind.upper()), f"image/{kind}")
        for kind in ("png", "jpeg", "gif", "webp", "bmp", "tiff", "ico")
    ),
    uri(picture(15, 15)),
    bad=(
        "",
        "ftp://a.b/c",
        "https://",
        "http://a b/c",
        uri(picture(14, 99)),
        uri(picture(), "image/gif"),
        uri(film()),
        7,
    ),
)
VIDEOS = some(
    "https://example.com/a.mp4",
    uri(film(), "video/mp4"),
    uri(film(b"qt  "), "video/quicktime"),
    bad=("", uri(film(), "video/quicktime"), uri(picture(), "video/mp4"), "data:video/mp4;base64,", None),
)
ONE_BAD_ARGUMENT = [
    {name: value}
    for name, values in {
        "fps": (0, 0.1, 5.1, True, "1"),
        "max_video_tokens": (10_239, 204_801, 1e5),
        "min_frame_tokens": (15, 129),
        "max_frame_tokens": (127, 641),
        "min_frames": (4, 17, 5.5),
    }.items()
    for value in values
]
GOOD_ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "fps": st.sampled_from([0.2, 1, 5.0, None]),
        "max_video_tokens": st.sampled_from([10_240, 204_800]),
        "min_frame_tokens": st.sampled_from([16, 128]),
        "max_frame_tokens": st.sampled_from([128, 640]),
        "min_frames": st.sampled_from([5, 16]),
    },
)
SAMPLINGS = st.just({}) | GOOD_ARGUMENTS | st.sampled_from(ONE_BAD_ARGUMENT)
ITEMS = st.one_of(
    st.builds(text, TEXTS),
    st.builds(image, IMAGES),
    st.builds(lambda url, sampling: video(url, **sampling), VIDEOS, SAMPLINGS),
    some(text(), bad=(None, "hello", {}, {"type": "text"}, {"type": "audio"}, {**text(), "more": 1})),
)
SWITCHES = some(ENABLED, DISABLED, None, bad=({}, {"type": "on"}, "enabled", {**ENABLED, "compression": "zstd"}))
BODIES = st.fixed_dictionaries(
    {"input": st.lists(ITEMS, min_size=1, max_size=4)},
    optional={
        "dimensions": some(None, bad=(1024, 2048, 512, "1024")),
        "encoding_format": some("base64", None, bad=("hex", "float")),
        "instructions": some("Query:", "", None, bad=(5, "\ud800")),
        "sparse_embedding": SWITCHES,
        "multi_embedding": some(DISABLED, None, bad=(ENABLED, {}, {"type": "on"})),
    },
)
ASKED_OF_MODEL = st.fixed_dictionaries(
    {},
    optional={
        "dimensions": some(None, 1024, 2048, bad=(512,)),
        "sparse": some(False, False, bad=(True,)),
        "instructions": some(None, bad=("Query:",)),
        "multi_embedding": some("off", bad=("plain", "zstd")),
        "video": some(None, None, VideoSampling(fps=0.2), bad=(VideoSampling(fps=9.0),)),
    },
)


@pytest.mark.parametrize("name", [V250328, V250615, V251215])
@given(bodies=st.lists(BODIES, min_size=10, max_size=10), asked=ASKED_OF_MODEL)
@settings(max_examples=250, suppress_health_check=list(HealthCheck))
def test_what_we_send_is_not_refused(
    name: str, bodies: list[dict[str, Any]], asked: dict[str, Any], tmp_path: Path
) -> None:
    """For any config and row: a request that passes our checks keeps to the contract."""
    model = ModelOptions(name, **asked)
    try:
        caps = check_options(model)
    except ArkbeamError:
        return
    lines = [json.dumps({"body": body}).encode() for body in bodies]
    for outcome in read_rows(lines, model, tmp_path):
        if isinstance(outcome, Failure):
            continue
        sent = encode_request(outcome, wire_options(model, caps))
        try:
            parse_request(sent, {})
        except Rejected as rejected:
            pytest.fail(f"{sent[:500]!r} is rejected: {rejected.reply}")
