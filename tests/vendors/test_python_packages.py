"""The vendor's two Python packages against the emulator and against the contract page's example.

`volcenginesdkarkruntime` is the older one (distribution volcengine-python-sdk), `arkruntime` the newer.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from arkbeam.ark.wire import decode_reply
from arkbeam.base.replies import Reply
from arkbeam.emulator.options import EmulatorOptions
from arkbeam.emulator.serve import start_emulator

pytestmark = pytest.mark.filterwarnings("ignore")  # the warnings of the packages are not ours

OLDER, NEWER = "volcenginesdkarkruntime", "arkruntime"
V251215 = "doubao-embedding-vision-251215"
TIMEOUT_S = 30.0

AskOurs = Callable[[dict[str, Any]], Reply]


def find(name: str) -> ModuleType:
    """Import a package of the vendor; skip if it is not installed."""
    module: ModuleType = pytest.importorskip(
        name, reason=f"the vendor's package {name} is not installed: pip install 'arkbeam[test]'"
    )
    return module


@pytest.fixture(params=[OLDER, NEWER])
def package(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the vendor's packages."""
    return find(request.param)


@pytest.fixture
def client(package: ModuleType, server_url: str) -> Iterator[Any]:
    """The client of the package, with the URL of the server and without retries."""
    with package.Ark(api_key="any", base_url=server_url, max_retries=0, timeout=TIMEOUT_S) as made:
        yield made


@pytest.fixture
def newer_client(server_url: str) -> Iterator[Any]:
    """The client of the newer package: only this one supports per-token vectors."""
    with find(NEWER).Ark(api_key="any", base_url=server_url, max_retries=0, timeout=TIMEOUT_S) as made:
        yield made


def dense_of(answer: Any) -> Any:
    """Return the dense vector of the package's reply: numbers, or base64 that it does not decode."""
    embedding = answer.data.embedding
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.array(embedding, np.float32)


def usage_of(answer: Any) -> tuple[int, ...]:
    """Return the four counts in the order of `Usage`. The older package does not declare usage and returns it unparsed."""
    usage = answer.usage if isinstance(answer.usage, dict) else answer.usage.model_dump()
    details = usage["prompt_tokens_details"]
    return usage["prompt_tokens"], usage["total_tokens"], details["text_tokens"], details["image_tokens"]


def usage_of_ours(reply: Reply) -> tuple[int | None, ...]:
    """Return the four counts of our own reply."""
    usage = reply.usage
    return usage.prompt_tokens, usage.total_tokens, usage.text_tokens, usage.image_tokens


def test_the_pages_example(client: Any, page_request: dict[str, Any], ask_with_ours: AskOurs) -> None:
    """The page's request, sent with the vendor's package, gets the same vector and usage as with our client."""
    answer = client.multimodal_embeddings.create(**page_request)
    ours = ask_with_ours(page_request)
    assert len(answer.data.embedding) == 2048
    assert (dense_of(answer) == ours.dense).all()
    assert usage_of(answer) == usage_of_ours(ours) == (528, 528, 31, 497)
    assert (answer.object, answer.data.object, answer.model) == ("list", "embedding", ours.model)


def test_the_pages_example_byte_for_byte(package: ModuleType, page_request: dict[str, Any], page_reply: bytes) -> None:
    """The package sends our golden request, except for additional nulls, and reads the page's reply as we do."""
    sent: list[httpx.Request] = []

    def answer_with_page(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, content=page_reply, headers={"content-type": "application/json"})

    http_client = httpx.Client(transport=httpx.MockTransport(answer_with_page))
    with package.Ark(api_key="any", http_client=http_client) as client:
        answer = client.multimodal_embeddings.create(**page_request)
    (request,) = sent
    body = json.loads(request.content)
    assert {name: value for name, value in body.items() if value is not None} == page_request
    assert str(request.url) == "https://ark.cn-beijing.volces.com/api/v3/embeddings/multimodal"
    assert request.headers["authorization"] == "Bearer any"
    ours = decode_reply(page_reply, dimensions=2048, sparse=False)
    assert (dense_of(answer) == ours.dense).all()
    assert usage_of(answer) == usage_of_ours(ours)
    assert (answer.id, answer.model, answer.created) == (ours.id, ours.model, ours.created)


def test_nulls_of_the_older_package(page_request: dict[str, Any], server_url: str, ask_with_ours: AskOurs) -> None:
    """The older package sends null for fields that are not set, and the server treats them as missing."""
    sent: list[bytes] = []
    hooks = {"request": [lambda request: sent.append(request.read())]}
    with (
        httpx.Client(event_hooks=hooks) as http_client,
        find(OLDER).Ark(api_key="any", base_url=server_url, http_client=http_client) as client,
    ):
        answer = client.multimodal_embeddings.create(**page_request)
    nulls = {name for name, value in json.loads(sent[0]).items() if value is None}
    assert nulls == {"dimensions", "instructions", "sparse_embedding"}
    assert (dense_of(answer) == ask_with_ours(page_request).dense).all()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_every_field(client: Any, encoding_format: str, ask_with_ours: AskOurs) -> None:
    """Dimensions, instructions, a sparse vector and both encodings give the same results as with our client."""
    body = {
        "model": V251215,
        "input": [{"type": "text", "text": "a red tea bowl, 红色茶碗"}, {"type": "text", "text": "tea"}],
        "dimensions": 1024,
        "instructions": "Instruction:Compress the text into one word.\nQuery:",
        "sparse_embedding": {"type": "enabled"},
    }
    answer = client.multimodal_embeddings.create(**body, encoding_format=encoding_format)
    ours = ask_with_ours(body)
    assert isinstance(answer.data.embedding, str) == (encoding_format == "base64")
    assert (dense_of(answer) == ours.dense).all()
    assert len(ours.dense) == 1024
    assert ours.sparse is not None
    entries = sorted((entry.index, entry.value) for entry in answer.data.sparse_embedding)
    assert entries == list(zip(ours.sparse.indices.tolist(), ours.sparse.values.tolist(), strict=True))
    assert usage_of(answer) == usage_of_ours(ours)


def test_a_video(client: Any) -> None:
    """Video sampling is accepted: two frames per second have more tokens than the default of one."""
    video = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4", "fps": 2.0}}
    fast = client.multimodal_embeddings.create(model=V251215, input=[video])
    slow = client.multimodal_embeddings.create(
        model=V251215, input=[{**video, "video_url": {"url": "https://a.b/c.mp4"}}]
    )
    assert usage_of(fast)[3] > usage_of(slow)[3] == 10_240


def test_vectors_of_tokens(newer_client: Any, ask_with_ours: AskOurs) -> None:
    """The newer package reads per-token vectors, sent as numbers, as our client does."""
    body = {"model": V251215, "input": [{"type": "text", "text": "two words"}], "multi_embedding": {"type": "enabled"}}
    answer = newer_client.multimodal_embeddings.create(**body)
    ours = ask_with_ours(body)
    assert ours.multi is not None
    assert np.array(answer.data.multi_embedding, np.float16).tolist() == ours.multi.tolist()
    assert ours.multi.shape == (2, 2048)


def test_the_client_that_waits_for_many(package: ModuleType, server_url: str, page_request: dict[str, Any]) -> None:
    """The package's asynchronous client gets the same replies as the synchronous one, many at a time."""

    async def ask_often() -> list[Any]:
        async with package.AsyncArk(api_key="any", base_url=server_url, max_retries=0) as client:
            return await asyncio.gather(*(client.multimodal_embeddings.create(**page_request) for _ in range(20)))

    answers = asyncio.run(ask_often())
    assert len({answer.id for answer in answers}) == 20
    assert len({dense_of(answer).tobytes() for answer in answers}) == 1


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"dimensions": 512}, 400, "InvalidParameter"),
        ({"instructions": "a"}, 400, "InvalidParameter.UnsupportedParameter"),
        ({"sparse_embedding": {"type": "enabled"}}, 400, "InvalidParameter"),
        ({"input": []}, 400, "InvalidParameter"),
        ({"model": "gpt-4"}, 404, "InvalidEndpointOrModel.NotFound"),
    ],
)
def test_refusals(client: Any, page_request: dict[str, Any], change: dict[str, Any], status: int, code: str) -> None:
    """The package understands the server's errors: status, code and parameter are those that were sent."""
    with pytest.raises(Exception, match="Request id: 02") as caught:
        client.multimodal_embeddings.create(**{**page_request, **change})
    error: Any = caught.value
    assert (error.status_code, error.code, error.type) == (status, code, "NotFound" if status == 404 else "BadRequest")
    assert error.param == next(iter(change))


def test_a_wrong_key_and_a_full_quota(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a wrong key and an exceeded quota the package raises its own exceptions."""
    monkeypatch.setenv("EMULATOR_KEY", "right")
    body = {"model": V251215, "input": [{"type": "text", "text": "hello"}]}
    errors = []
    with start_emulator(EmulatorOptions(api_key_env="EMULATOR_KEY", rpm=1)) as url:
        with package.Ark(api_key="right", base_url=url, max_retries=0) as client:
            client.multimodal_embeddings.create(**body)
        for key in ("wrong", "right"):
            with package.Ark(api_key=key, base_url=url, max_retries=0) as client:
                with pytest.raises(Exception, match="Request id: 02") as caught:
                    client.multimodal_embeddings.create(**body)
                error: Any = caught.value
                errors.append((type(error).__name__, error.code))
    assert errors == [
        ("ArkAuthenticationError", "AuthenticationError"),
        ("ArkRateLimitError", "ModelAccountRpmRateLimitExceeded"),
    ]
