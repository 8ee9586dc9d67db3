"""Every error is classified: each row of the table, each status, each exception of the HTTP libraries."""

import asyncio
import inspect
import pickle
import ssl
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import httpx
import pytest
from arkbeam.ark.errors import (
    RULES,
    Verdict,
    advise,
    classify_exception,
    classify_status,
    error_from_status,
    error_from_unusable,
    parse_retry_after,
    read_retry_after,
)
from arkbeam.ark.vectors import Flaw
from arkbeam.ark.wire import UnusableReply
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Usage
from arkbeam.base.replies import Action, ApiError, Pressure
from hypothesis import given
from hypothesis import strategies as st

REJECT, STOP, RETRY = Verdict(Action.REJECT), Verdict(Action.STOP), Verdict(Action.RETRY)
RPM, TPM = Verdict(Action.RETRY, Pressure.RPM), Verdict(Action.RETRY, Pressure.TPM)
OVERLOAD = Verdict(Action.RETRY, Pressure.OVERLOAD)
IN_FLIGHT = Verdict(Action.RETRY, Pressure.IN_FLIGHT)
CAPPED = Verdict(Action.RETRY, attempts_max=3)
NOW_S = 1_700_000_000.0

# The vendor's codes by status and expected verdict, written out here and not derived from the table under test.
CODES: dict[Verdict, dict[int, str]] = {
    REJECT: {
        400: """
            MissingParameter MissingParameter.input InvalidParameter InvalidParameter.dimensions
            InvalidParameter.UnsupportedParameter InvalidParameter.UnsupportedImageFormat InvalidParameter.TosURLInvalid
            InvalidArgumentError.X InvalidImageURL.EmptyURL InvalidImageURL.InvalidFormat OutofContextError
            SensitiveContentDetected SensitiveContentDetected.SevereViolation SensitiveContentDetected.Violence
            InputTextSensitiveContentDetected InputImageSensitiveContentDetected.PolicyViolation
            InputVideoSensitiveContentDetected.PrivacyInformation InputTextRiskDetection InputImageRiskDetection
            SomethingNew
        """,
        413: "TooLarge",
        422: "",
        451: "",
    },
    STOP: {
        302: "",
        400: "InvalidEndpoint.ClosedEndpoint InvalidSubscription",
        401: "AuthenticationError InvalidAccountStatus SomethingNew",
        402: "",
        403: """
            AccountOverdueError OperationDenied.ServiceOverdue OperationDenied.ServiceNotOpen
            OperationDenied.PermissionDenied OperationDenied.New AccessDenied SomethingNew
        """,
        404: """
            InvalidEndpointOrModel.NotFound InvalidEndpointOrModel.ModelIDAccessDisabled ModelNotOpen UnsupportedModel
            NotFound.X SomethingNew
        """,
        405: "",
        407: "",
        429: "QuotaExceeded QuotaExceeded.AgentPlanQuotaExceeded SetLimitExceeded",
    },
    RPM: {
        429: """
            RateLimitExceeded.EndpointRPMExceeded ModelAccountRpmRateLimitExceeded APIAccountRpmRateLimitExceeded
            AccountRateLimitExceeded NewRpmLimit RateLimitExceeded
        """
    },
    TPM: {
        429: """
            RateLimitExceeded.EndpointTPMExceeded RateLimitExceeded.EndpointFlexTPMExceeded
            ModelAccountTpmRateLimitExceeded ModelAccountFlexTpmRateLimitExceeded NewTPMLimit
        """
    },
    IN_FLIGHT: {429: "InflightBatchsizeExceeded"},
    OVERLOAD: {429: "ServerOverloaded RequestBurstTooFast SomethingNew"},
    RETRY: {
        400: "ContentSecurityDetectionError",
        **dict.fromkeys([408, 409, 425, 502, 503, 504], ""),
        500: "InternalServiceError SomethingNew",
        599: "New",
    },
}
CASES = [
    (status, code, verdict)
    for verdict, by_status in CODES.items()
    for status, codes in by_status.items()
    for code in codes.split() or [f"http_{status}"]
]
FETCH_MESSAGES = [
    "Timeout while downloading url=https://x",
    "time-out while downloading",
    "Error while downloading: https://x",
    "error while connecting: https://x",
]


@pytest.mark.parametrize(("status", "code", "verdict"), CASES)
def test_code_has_its_verdict(status: int, code: str, verdict: Verdict) -> None:
    """Each documented code has the action of the vendor's list; a new code has the action of its status."""
    assert classify_status(status, code, "some words") == verdict


@pytest.mark.parametrize("message", FETCH_MESSAGES)
@pytest.mark.parametrize("code", ["InvalidParameter", "InvalidParameter.image_url"])
def test_failed_download_is_tried_again(code: str, message: str) -> None:
    """InvalidParameter with the message of a failed media download is retried a few times."""
    assert classify_status(400, code, message) == CAPPED


def test_every_row_of_the_table_decides_something() -> None:
    """Each row of the table decides at least one of the codes tested above: no earlier row hides it."""
    examples = [(status, code, "some words") for status, code, _ in CASES]
    examples += [(400, "InvalidParameter", message) for message in FETCH_MESSAGES]
    deciding = {next((i for i, rule in enumerate(RULES) if rule.matches(*example)), None) for example in examples}
    assert deciding >= set(range(len(RULES)))


@given(st.integers(100, 599), st.text(max_size=30), st.text(max_size=30))
def test_every_answer_has_a_verdict(status: int, code: str, message: str) -> None:
    """Any status, code and message has one of the three actions; only a 429 has a pressure."""
    verdict = classify_status(status, code, message)
    assert verdict.action in Action
    assert verdict.pressure is Pressure.NONE or status == 429


def test_every_stop_says_what_to_do() -> None:
    """Every rule that stops the run has its own advice."""
    stops = [rule for rule in RULES if rule.verdict.action is Action.STOP]
    assert stops
    for rule in stops:
        for code in rule.codes:
            error = ApiError(message="m", action=Action.STOP, code=code, status=rule.status)
            assert advise(error) != "see the service's documentation"


def test_answer_becomes_an_error_with_all_it_says() -> None:
    """The ApiError has code, ids, wait and bounds of the error reply."""
    body = b'{"error":{"code":"ModelAccountTpmRateLimitExceeded","message":"slow down. Request id: 0217-a"}}'
    error = error_from_status(429, body, httpx.Headers({"Retry-After": "7", "X-Request-Id": "other"}), NOW_S)
    assert (error.action, error.pressure, error.code) == (
        Action.RETRY,
        Pressure.TPM,
        "ModelAccountTpmRateLimitExceeded",
    )
    assert (error.status, error.request_id, error.retry_after_s, error.paid) == (429, "0217-a", 7.0, False)
    assert "slow down" in str(error)


def test_request_id_falls_back_to_the_header() -> None:
    """Without a request id in the body, the id in the header is used."""
    error = error_from_status(502, b"<html>", httpx.Headers({"x-request-id": "abc"}), NOW_S)
    assert (error.code, error.request_id, error.action) == ("http_502", "abc", Action.RETRY)


def test_redirect_names_the_address_to_use() -> None:
    """A redirect is not followed, since the key would go to another host: the run stops and the message has the URL."""
    headers = httpx.Headers({"location": "https://new/api?sig=s3cr3t"})
    error = error_from_status(308, b"", headers, NOW_S)
    assert error.action is Action.STOP
    assert "https://new/api" in str(error)
    assert "s3cr3t" not in str(error)


def test_unusable_reply_is_paid_and_capped() -> None:
    """An unusable 200 is paid and keeps the fields that could be read; `limits.retries_paid` bounds its retries."""
    unusable = UnusableReply(Flaw.ZERO_VECTOR, "zero", "id", "model", Usage(5, 5, 5, 0))
    error = error_from_unusable(unusable, 200, "header-id")
    assert (error.action, error.code, error.paid) == (Action.RETRY, "zero_vector", True)
    assert (error.request_id, error.model, error.usage) == ("id", "model", Usage(5, 5, 5, 0))


def test_api_error_survives_pickling() -> None:
    """Type and all fields are the same after pickling."""
    error = ApiError(
        "words",
        Action.RETRY,
        "code",
        pressure=Pressure.TPM,
        status=429,
        request_id="r",
        retry_after_s=1.5,
        paid=True,
        usage=Usage(1, 2, 3, 4),
        model="m",
        attempts_max=3,
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is ApiError
    assert isinstance(copy, ArkbeamError)
    assert vars(copy) == vars(error)
    assert str(copy) == "words"


REQUEST = httpx.Request("POST", "https://h/")


def make_httpx_exception(kind: type[Exception]) -> Exception:
    """Make an instance of an httpx exception class."""
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError("words", request=REQUEST, response=httpx.Response(503, request=REQUEST))
    needed = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return kind(*["words" for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD])


HTTPX_EXCEPTIONS = sorted(
    (kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    key=lambda kind: kind.__name__,
)
# No retry helps with these: the address or our use of the library is wrong. All others are temporary faults.
STOPPING = {
    httpx.CookieConflict,
    httpx.InvalidURL,
    httpx.LocalProtocolError,
    httpx.RequestNotRead,
    httpx.ResponseNotRead,
    httpx.StreamClosed,
    httpx.StreamConsumed,
    httpx.StreamError,
    httpx.TooManyRedirects,
    httpx.UnsupportedProtocol,
}


def test_reflection_finds_the_exceptions() -> None:
    """The list of exception classes is complete."""
    assert {httpx.HTTPError, httpx.ReadTimeout, httpx.StreamClosed, httpx.InvalidURL} <= set(HTTPX_EXCEPTIONS)
    assert set(HTTPX_EXCEPTIONS) >= STOPPING


@pytest.mark.parametrize("kind", HTTPX_EXCEPTIONS)
def test_every_httpx_exception_has_a_verdict(kind: type[Exception]) -> None:
    """Each exception class of httpx is retried or stops the run; none rejects a row, and none is paid."""
    error = classify_exception(make_httpx_exception(kind))
    assert error.action is (Action.STOP if kind in STOPPING else Action.RETRY)
    assert not error.paid
    assert error.code
    assert pickle.loads(pickle.dumps(error)).code == error.code


def make_aiohttp_exception(kind: type[Exception]) -> Exception:
    """Make an instance of an aiohttp exception class, with simple objects as constructor arguments."""
    url = "https://h/"
    key: Any = SimpleNamespace(host="h", port=443, ssl=True, is_ssl=True)
    if issubclass(kind, aiohttp.ClientConnectorCertificateError):
        return kind(key, ssl.SSLCertVerificationError("bad certificate"))
    if issubclass(kind, aiohttp.client_exceptions.UnixClientConnectorError):
        return kind("path", key, OSError(111, "refused"))
    if issubclass(kind, aiohttp.ClientConnectorError):
        return kind(key, OSError(111, "refused"))
    if issubclass(kind, aiohttp.ClientResponseError):
        return kind(cast(Any, SimpleNamespace(real_url=url)), ())
    if kind is aiohttp.ServerFingerprintMismatch:
        return kind(b"a", b"b", "h", 443)
    return kind(url)


AIOHTTP_EXCEPTIONS = sorted(
    (
        kind
        for kind in vars(aiohttp.client_exceptions).values()
        if isinstance(kind, type) and issubclass(kind, aiohttp.ClientError)
    ),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", AIOHTTP_EXCEPTIONS)
@pytest.mark.parametrize("mapped", [False, True], ids=["leaked", "mapped"])
def test_every_aiohttp_exception_has_a_verdict(kind: type[Exception], mapped: bool) -> None:
    """An aiohttp exception has the same action, whether the transport maps it to an httpx exception or not."""
    exc = make_aiohttp_exception(kind)
    if mapped:
        outer = httpx.ConnectTimeout("words")
        outer.__cause__ = exc
        exc = outer
    error = classify_exception(exc)
    stops = issubclass(
        kind,
        aiohttp.InvalidURL
        | aiohttp.NonHttpUrlClientError
        | aiohttp.TooManyRedirects
        | aiohttp.ClientConnectorCertificateError,
    )
    assert error.action is (Action.STOP if stops else Action.RETRY)


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (aiohttp.ServerDisconnectedError(), "connection_lost"),
        (aiohttp.ClientOSError(104, "reset"), "connection_lost"),
        (aiohttp.SocketTimeoutError(), "timeout"),
        (aiohttp.ConnectionTimeoutError(), "connect_timeout"),
    ],
)
def test_cause_tells_what_really_happened(cause: Exception, code: str) -> None:
    """The transport maps a reset to ConnectTimeout; the code comes from the cause."""
    exc = httpx.ConnectTimeout("words")
    exc.__cause__ = cause
    assert classify_exception(exc).code == code


@pytest.mark.parametrize(
    ("exc", "code", "action"),
    [
        (TimeoutError(), "timeout", Action.RETRY),
        (ConnectionResetError(), "connection_lost", Action.RETRY),
        (OSError(5, "io"), "connection_lost", Action.RETRY),
        (asyncio.IncompleteReadError(b"", 5), "connection_lost", Action.RETRY),
        (RuntimeError("Session is closed"), "client_fault", Action.STOP),
        (ValueError(), "client_fault", Action.STOP),
    ],
)
def test_other_exceptions(exc: Exception, code: str, action: Action) -> None:
    """Operating system errors are retried; an unknown exception is a defect of this program and stops the run."""
    error = classify_exception(exc)
    assert (error.code, error.action) == (code, action)
    assert type(exc).__name__ in str(error)


def test_status_error_goes_by_its_status() -> None:
    """An HTTPStatusError is classified like a reply with that status."""
    exc = httpx.HTTPStatusError("words", request=REQUEST, response=httpx.Response(401, request=REQUEST))
    error = classify_exception(exc)
    assert (error.action, error.status) == (Action.STOP, 401)


def test_classified_error_is_left_alone() -> None:
    """An ApiError is returned unchanged."""
    error = ApiError("words", Action.REJECT, "code")
    assert classify_exception(error) is error


def test_exception_message_is_redacted_and_bounded() -> None:
    """The message of a library may contain a URL with credentials or be very long."""
    error = classify_exception(httpx.ConnectError("https://user:s3cr3t@host/ " + "x" * 9999))
    assert "s3cr3t" not in str(error)
    assert len(str(error)) == 500


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("-5", 0.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 7 ", 7.0),
        ("60", 60.0),
        ("61", 60.0),
        ("inf", 60.0),
        ("9" * 101, None),
        (formatdate(NOW_S + 20, usegmt=True), 20.0),
        (formatdate(NOW_S + 3600, usegmt=True), 60.0),
        (formatdate(NOW_S - 20, usegmt=True), 0.0),
        ("Tue, 99 Nov 2023 22:13:20 GMT", None),
        ("Tue, 14 Nov 99999 22:13:20 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, expected: float | None) -> None:
    """Both forms are read and clamped to a minute; a malformed value is ignored."""
    assert parse_retry_after(value, NOW_S) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "3", "Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": "3", "Retry-After-Ms": "x"}, 3.0),
        ({"Retry-After-Ms": "1e9"}, 60.0),
    ],
)
def test_milliseconds_win(headers: dict[str, str], expected: float | None) -> None:
    """`retry-after-ms` is used if both headers are there, since it is more exact."""
    assert read_retry_after(httpx.Headers(headers), NOW_S) == expected


@given(st.text(max_size=120), st.floats(0, 4e9))
def test_any_retry_after_is_bounded(value: str, now_s: float) -> None:
    """No header raises an exception or gives a wait above one minute."""
    wait_s: Any = parse_retry_after(value, now_s)
    assert wait_s is None or 0 <= wait_s <= 60
