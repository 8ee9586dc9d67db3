"""Responses, quotas, faults and counts of the emulator."""

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from arkbeam.base.errors import ConfigError
from arkbeam.emulator import app as app_module
from arkbeam.emulator.app import EMBEDDINGS_PATH
from arkbeam.emulator.options import EmulatorOptions, FaultShares, QuotaWindow
from arkbeam.emulator.vectors import embed

Server = Any
MakeServer = Callable[[EmulatorOptions], Server]
AUTHORIZED = {"Authorization": "Bearer k"}


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of an error, or of a success."""
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


PAGE_REQUEST: dict[str, Any] = {
    "model": "doubao-embedding-vision-250615",
    "encoding_format": "float",
    "input": [
        {"type": "text", "text": "天很蓝，海很深"},
        {"type": "image_url", "image_url": {"url": "https://ark-project.tos-cn-beijing.volces.com/images/view.jpeg"}},
    ],
}


def test_the_contracts_example(server: Server) -> None:
    """The contract page's request gets a reply with the shape, order and usage of the page's reply."""
    answer = server.embed(**PAGE_REQUEST)
    body = orjson.loads(answer.content)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(body) == ["created", "data", "id", "model", "object", "usage"]
    assert body["created"] == 1743575029
    assert re.fullmatch(r"021743575029461[0-9a-f]{38}", body["id"])
    assert (body["model"], body["object"]) == ("doubao-embedding-vision-250615-stand-in", "list")
    assert body["usage"] == {
        "prompt_tokens": 528,
        "prompt_tokens_details": {"image_tokens": 497, "text_tokens": 31},
        "total_tokens": 528,
    }
    assert list(body["data"]) == ["embedding", "object"]
    assert body["data"]["object"] == "embedding"
    parts = [("text", "天很蓝，海很深"), ("image", PAGE_REQUEST["input"][1]["image_url"]["url"])]
    assert body["data"]["embedding"] == embed(parts).astype(np.float64).tolist()


def test_golden_bytes(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply is fixed byte for byte; its base64 vector is fixed by its hash."""
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    answer = make_server(EmulatorOptions()).embed(encoding_format="base64", dimensions=1024)
    vector = answer.json()["data"]["embedding"]
    assert answer.content.replace(vector.encode(), b"VECTOR") == (
        b'{"created":1743575029,"data":{"embedding":"VECTOR","object":"embedding"},'
        b'"id":"021743575029461000102030405060708090a0b0c0d0e0f101112",'
        b'"model":"doubao-embedding-vision-251215-stand-in","object":"list",'
        b'"usage":{"prompt_tokens":20,"prompt_tokens_details":{"image_tokens":0,"text_tokens":20},"total_tokens":20}}'
    )
    assert hashlib.sha256(vector.encode()).hexdigest()[:16] == "e3cd86facbeff742"


def test_encodings_agree(server: Server) -> None:
    """Numbers and base64 of little-endian float32 have the same values; null means numbers."""
    floats, nulls, packed = (
        server.embed(encoding_format=encoding).json()["data"]["embedding"] for encoding in ("float", None, "base64")
    )
    assert len(packed) == 10_924
    decoded = np.frombuffer(base64.b64decode(packed), "<f4")
    assert floats == nulls == decoded.tolist()


def test_sparse(server: Server) -> None:
    """The reply has a sparse vector only if it was asked for."""
    data = server.embed(sparse_embedding={"type": "enabled"}).json()["data"]
    assert len(data["embedding"]) == 2048
    assert [sorted(entry) for entry in data["sparse_embedding"]] == [["index", "value"]]
    assert "sparse_embedding" not in server.embed(sparse_embedding={"type": "disabled"}).json()["data"]


TEXT = {"type": "text", "text": "茶"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}


@pytest.mark.parametrize(
    ("items", "modalities"),
    [
        ([TEXT], "text"),
        ([IMAGE], "image"),
        ([VIDEO], "video"),
        ([IMAGE, TEXT, TEXT], "text and image"),
        ([VIDEO, TEXT], "text and video"),
        ([VIDEO, IMAGE], "image and video"),
    ],
)
def test_default_instructions(server: Server, items: list[Any], modalities: str) -> None:
    """Without instructions the vendor's template is used; other instructions give another vector."""
    default = f"Instruction:Compress the {modalities} into one word.\nQuery:"
    absent, same, other = (
        server.embed(input=items, instructions=instructions).json() for instructions in (None, default, "Query:")
    )
    assert absent["data"]["embedding"] == same["data"]["embedding"] != other["data"]["embedding"]
    assert absent["usage"] == same["usage"]
    assert (
        other["usage"]["prompt_tokens_details"]["text_tokens"] < same["usage"]["prompt_tokens_details"]["text_tokens"]
    )


def test_headers(server: Server) -> None:
    """A response has its request id, the client's request id, and the stand-in header."""
    headers = {**AUTHORIZED, "X-Client-Request-Id": "mine-1"}
    body = {"model": "ep-1", "input": [{"type": "text", "text": "hello"}]}
    answer = server.request("POST", EMBEDDINGS_PATH, json=body, headers=headers)
    assert answer.headers["x-request-id"] == answer.json()["id"]
    assert answer.headers["x-client-request-id"] == "mine-1"
    rejected = server.request("POST", EMBEDDINGS_PATH, content=b"", headers=headers)
    assert rejected.headers["x-client-request-id"] == "mine-1"
    assert rejected.json()["error"]["message"].endswith(f"Request id: {rejected.headers['x-request-id']}")
    assert "x-client-request-id" not in server.embed().headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/emulator/stats", 200),
        ("GET", EMBEDDINGS_PATH, 405),
        ("POST", EMBEDDINGS_PATH, 401),
        ("POST", "/api/v3/embeddings", 404),
    ],
)
def test_every_answer_says_stand_in(server: Server, method: str, path: str, status: int) -> None:
    """Every response has the stand-in header, and errors have the documented body."""
    answer = server.request(method, path)
    assert (answer.status_code, answer.headers["x-arkbeam-stand-in"]) == (status, "1")
    if status >= 400:
        assert set(answer.json()["error"]) == {"code", "message", "param", "type"}


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer  ", "Basic abc", "abc"])
def test_keys_that_are_none(server: Server, authorization: str | None) -> None:
    """Without a bearer key the only answer is 401, even if the body is malformed."""
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = server.request("POST", EMBEDDINGS_PATH, content=b"?", headers=headers)
    assert code_of(answer) == (401, "AuthenticationError")


def test_a_key_of_its_own(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a configured key accepts only that key, and does not start if the variable is not set."""
    options = EmulatorOptions(api_key_env="STAND_IN_KEY")
    with pytest.raises(ConfigError, match="STAND_IN_KEY"):
        make_server(options)
    monkeypatch.setenv("STAND_IN_KEY", "right")
    server = make_server(options)
    assert server.embed(key="right").status_code == 200
    assert code_of(server.embed(key="wrong")) == (401, "AuthenticationError")


def test_a_body_that_is_too_large(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body above the limit is rejected by its declared length, or by its actual length if none is declared."""
    monkeypatch.setattr("arkbeam.emulator.asgi.BODY_BYTES_MAX", 1_000)

    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 500

    for content in (b"x" * 1_001, chunks()):
        answer = server.request("POST", EMBEDDINGS_PATH, content=content, headers=AUTHORIZED)
        assert code_of(answer) == (400, "InvalidParameter")
        assert "more than 1000 bytes" in answer.json()["error"]["message"]


def test_text_beyond_the_context(server: Server) -> None:
    """A text with more tokens than the context is rejected, never cut."""
    at_limit = "a " * (131_072 - 19)
    answer = server.embed(input=[{"type": "text", "text": at_limit}])
    assert answer.json()["usage"]["total_tokens"] == 131_072
    answer = server.embed(input=[{"type": "text", "text": at_limit + "a"}])
    assert code_of(answer) == (400, "OutofContextError")
    short = {"type": "text", "text": "a " * 8_192}
    assert code_of(server.embed(model="doubao-embedding-vision-250328", input=[short])) == (400, "OutofContextError")


def test_media_are_worked_on_off_the_loop(server: Server, image_uri: Callable[..., str]) -> None:
    """A large body, which is processed in a thread, gets the same reply as a small one."""
    padding = {"type": "text", "text": "word " * 30_000}
    image = {"type": "image_url", "image_url": {"url": image_uri(size=(280, 280))}}
    small, large = server.embed(input=[image]), server.embed(input=[image, padding])
    assert small.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 100
    assert large.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 100
    assert server.stats()["paid"] == 2


def test_many_small_items(server: Server) -> None:
    """A request with many items gets one vector."""
    answer = server.embed(input=[{"type": "text", "text": str(number)} for number in range(2_000)])
    assert len(answer.json()["data"]["embedding"]) == 2_048
    assert answer.json()["usage"]["total_tokens"] == 2_019


def test_a_defect_of_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A defect of the emulator can be told from an injected fault, and its traceback is written to stderr."""
    monkeypatch.setattr(app_module, "embed_parts", lambda *_: 1 / 0)
    server.raise_exceptions = False
    answer = server.embed()
    assert code_of(answer) == (500, "InternalServiceError")
    assert "defect of the stand-in: ZeroDivisionError" in answer.json()["error"]["message"]
    assert answer.headers["x-arkbeam-stand-in"] == "1"
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_poison(make_server: MakeServer) -> None:
    """Only a text with the configured substring is rejected as sensitive."""
    server = make_server(EmulatorOptions(poison="bad"))
    answer = server.embed(input=[{"type": "text", "text": "a bad word"}])
    assert code_of(answer) == (400, "SensitiveContentDetected")
    assert server.embed().status_code == 200


@pytest.mark.parametrize(
    ("code", "status"), [("AccountOverdueError", 403), ("QuotaExceeded", 429), ("AuthenticationError", 401)]
)
def test_stop_after(make_server: MakeServer, code: str, status: int) -> None:
    """Exactly this many requests are billed; each later one gets the stop code."""
    server = make_server(EmulatorOptions(stop_after=2, stop_code=code))
    answers = [code_of(server.embed()) for _ in range(4)]
    assert answers == [(200, ""), (200, ""), (status, code), (status, code)]
    assert (server.stats()["paid"], server.stats()["refused"]) == (2, 2)


def test_requests_per_minute(make_server: MakeServer) -> None:
    """A request above the limit gets the RPM code; one more fits when the first has left the window."""
    server = make_server(EmulatorOptions(rpm=2, refusals_count=False, retry_after=True))
    answers = []
    for second in (0, 10, 30, 59, 60):
        server.now_s = 1_743_575_000.0 + second
        answers.append(server.embed())
    refused = (429, "ModelAccountRpmRateLimitExceeded")
    assert [code_of(answer) for answer in answers] == [(200, ""), (200, ""), refused, refused, (200, "")]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, None, "30", "1", None]


def test_tokens_per_minute(make_server: MakeServer) -> None:
    """Three requests of 20 tokens exceed 50 tokens per minute."""
    server = make_server(EmulatorOptions(tpm=50))
    answers = [server.embed() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert code_of(answers[2]) == (429, "ModelAccountTpmRateLimitExceeded")
    assert "retry-after" not in answers[2].headers


@pytest.mark.parametrize(("refusals_count", "answered"), [(True, 429), (False, 200)])
@pytest.mark.parametrize("kind", ["refused", "rejected"])
def test_refusals_that_count(make_server: MakeServer, kind: str, refusals_count: bool, answered: int) -> None:
    """Whether refused and rejected requests count against the minute depends on the option."""
    server = make_server(EmulatorOptions(rpm=1, refusals_count=refusals_count))
    if kind == "refused":
        assert server.embed().status_code == 200
        server.now_s += 50
        assert server.embed().status_code == 429
        server.now_s += 10
    else:
        assert server.embed(input=[]).status_code == 400
    assert server.embed().status_code == answered


def test_calendar_minutes(make_server: MakeServer) -> None:
    """With calendar minutes the whole quota is available again at :00."""
    server = make_server(EmulatorOptions(rpm=1, window=QuotaWindow.CALENDAR))
    server.now_s = 1_743_575_039.0 // 60 * 60 + 59
    assert [server.embed().status_code for _ in range(2)] == [200, 429]
    server.now_s += 1
    assert server.embed().status_code == 200


@pytest.mark.parametrize(
    ("share", "status", "code", "retry_after"),
    [
        ("rate_429", 429, "ModelAccountRpmRateLimitExceeded", None),
        ("rate_429_retry_after", 429, "ModelAccountRpmRateLimitExceeded", "7"),
        ("overload_429", 429, "ServerOverloaded", None),
        ("error_500", 500, "InternalServiceError", None),
    ],
)
def test_faults_that_answer_an_error(
    make_server: MakeServer, share: str, status: int, code: str, retry_after: str | None
) -> None:
    """These faults have the documented status and code, and are not billed."""
    server = make_server(EmulatorOptions(faults=FaultShares(**{share: 1.0}), retry_after_s=7))
    answer = server.embed()
    assert code_of(answer) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    stats = server.stats()
    assert (stats["faulted"], stats["paid"], stats["tokens"]["total"]) == (1, 0, 0)


@pytest.mark.parametrize("share", ["broken_json", "wrong_length", "nan"])
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_answers_of_no_use_are_billed(make_server: MakeServer, share: str, encoding_format: str) -> None:
    """An unusable 200 is billed."""
    server = make_server(EmulatorOptions(faults=FaultShares(**{share: 1.0})))
    answer = server.embed(encoding_format=encoding_format)
    assert answer.status_code == 200
    if share == "broken_json":
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(answer.content)
    else:
        vector = answer.json()["data"]["embedding"]
        values = (
            np.frombuffer(base64.b64decode(vector), "<f4") if encoding_format == "base64" else np.array(vector, float)
        )
        assert (len(values), bool(np.isnan(values).any())) == (
            (2047, False) if share == "wrong_length" else (2048, True)
        )
    stats = server.stats()
    assert (stats["faulted"], stats["paid"], stats["tokens"]["total"]) == (1, 1, 20)


def test_faults_are_seeded(make_server: MakeServer) -> None:
    """The same seed gives the same faults; another seed gives others; the share is about right."""

    def statuses(seed: int) -> list[int]:
        server = make_server(EmulatorOptions(seed=seed, faults=FaultShares(error_500=0.3)))
        return [server.embed().status_code for _ in range(60)]

    first = statuses(1)
    assert first == statuses(1) != statuses(2)
    assert 8 <= first.count(500) <= 28


def test_unpaid_faults_use_no_tokens_of_the_minute(make_server: MakeServer) -> None:
    """A fault that is not billed does not count against the tokens per minute."""
    server = make_server(EmulatorOptions(tpm=20, faults=FaultShares(error_500=1.0)))
    assert [server.embed().status_code for _ in range(3)] == [500, 500, 500]


def test_counts(make_server: MakeServer) -> None:
    """Each request is counted once by its outcome, and duplicate billed requests can be counted."""
    server = make_server(EmulatorOptions(rpm=4))
    for fields in ({}, {"encoding_format": "base64"}, {"dimensions": 1024}, {"input": []}, {}, {}):
        server.embed(**fields)
    server.request("POST", EMBEDDINGS_PATH)
    stats = server.stats()
    expected = {"received": 7, "paid": 3, "paid_distinct": 2, "refused": 2, "rejected": 2, "faulted": 0}
    assert {name: stats[name] for name in expected} == expected
    assert stats["tokens"] == {"prompt": 60, "total": 60, "text": 60, "image": 0}
    assert (stats["in_flight"], stats["in_flight_max"]) == (0, 1)
    assert stats["first_paid_s"] == stats["last_paid_s"] == server.now_s
    assert stats["requests_by_second"] == [
        {"second": 1743575029, "received": 7, "paid": 3, "refused": 2, "tokens": 60},
    ]


def test_what_is_remembered_by_second_is_bounded(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts per second are kept only for the last seconds."""
    monkeypatch.setattr("arkbeam.emulator.ledger.SECONDS_KEPT", 3)
    server = make_server(EmulatorOptions())
    for _ in range(5):
        server.now_s += 1
        server.embed()
    assert [second["second"] for second in server.stats()["requests_by_second"]] == [1743575032, 1743575033, 1743575034]
