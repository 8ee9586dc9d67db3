"""Classify failed calls: which action follows (`base.replies.Action`) and what a person can do about a stop.

The table `RULES` classifies error replies by (status, code, message); `classify_exception` classifies exceptions. The
table is the vendor's list of error codes. The vendor's advice: use status and code, not the message, and expect new
codes. There is one exception, `_FETCH_FAILED`.
"""

import asyncio
import math
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase

import aiohttp
import httpx

from arkbeam.ark.wire import UnusableReply, decode_error
from arkbeam.base.redaction import redact
from arkbeam.base.replies import Action, ApiError, Pressure

RETRY_AFTER_S_MAX = 60.0
"""A longer Retry-After is cut to this: quotas are counted per minute."""
TRIES_FETCH_MAX = 3
"""The most tries of an item that may end because the service could not download its media: the URL itself may be wrong."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about one kind of failure. `attempts_max`: see `ApiError`."""

    action: Action
    pressure: Pressure = Pressure.NONE
    attempts_max: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table. `codes` are shell patterns; `message` None matches every message."""

    status: int
    codes: tuple[str, ...]
    verdict: Verdict
    message: re.Pattern[str] | None = None

    def matches(self, status: int, code: str, message: str) -> bool:
        """Return True if this row classifies the error."""
        if status != self.status or not any(fnmatchcase(code, pattern) for pattern in self.codes):
            return False
        return self.message is None or self.message.search(message) is not None


_RETRY = Verdict(Action.RETRY)
_REJECT = Verdict(Action.REJECT)
_STOP = Verdict(Action.STOP)
_RPM = Verdict(Action.RETRY, Pressure.RPM)
_TPM = Verdict(Action.RETRY, Pressure.TPM)
_IN_FLIGHT = Verdict(Action.RETRY, Pressure.IN_FLIGHT)
_OVERLOAD = Verdict(Action.RETRY, Pressure.OVERLOAD)
_RETRY_FETCH = Verdict(Action.RETRY, attempts_max=TRIES_FETCH_MAX)

# The service downloads media itself and reports a network fault with the code for an invalid request.
_FETCH_FAILED = re.compile(r"time-?out while downloading|error while (?:downloading|connecting)", re.IGNORECASE)

RULES: tuple[Rule, ...] = (
    Rule(400, ("InvalidParameter", "InvalidParameter.*"), _RETRY_FETCH, _FETCH_FAILED),
    Rule(400, ("MissingParameter", "MissingParameter.*", "InvalidParameter", "InvalidParameter.*"), _REJECT),
    Rule(400, ("InvalidArgumentError", "InvalidArgumentError.*", "InvalidImageURL", "InvalidImageURL.*"), _REJECT),
    Rule(400, ("OutofContextError",), _REJECT),
    Rule(400, ("SensitiveContentDetected", "SensitiveContentDetected.*"), _REJECT),
    Rule(400, ("Input*SensitiveContentDetected", "Input*SensitiveContentDetected.*", "Input*RiskDetection"), _REJECT),
    Rule(400, ("ContentSecurityDetectionError",), _RETRY),
    Rule(400, ("InvalidEndpoint.ClosedEndpoint", "InvalidSubscription"), _STOP),
    Rule(401, ("AuthenticationError", "InvalidAccountStatus"), _STOP),
    Rule(403, ("AccountOverdueError", "OperationDenied", "OperationDenied.*", "AccessDenied"), _STOP),
    Rule(404, ("InvalidEndpointOrModel", "InvalidEndpointOrModel.*", "ModelNotOpen", "UnsupportedModel"), _STOP),
    Rule(404, ("NotFound", "NotFound.*"), _STOP),
    Rule(429, ("QuotaExceeded", "QuotaExceeded.*", "SetLimitExceeded", "SetLimitExceeded.*"), _STOP),
    Rule(429, ("RateLimitExceeded.EndpointRPMExceeded", "*RpmRateLimitExceeded", "AccountRateLimitExceeded"), _RPM),
    Rule(429, ("RateLimitExceeded.Endpoint*TPMExceeded", "*TpmRateLimitExceeded"), _TPM),
    Rule(429, ("InflightBatchsizeExceeded", "InflightBatchsizeExceeded.*"), _IN_FLIGHT),
    Rule(429, ("ServerOverloaded", "RequestBurstTooFast"), _OVERLOAD),
)
"""The table. The first matching row decides; other codes are classified by their status."""

_STATUS_RETRIED = frozenset({408, 409, 425})
# With these no row can work: key, payment, permission, address, method or proxy is wrong.
_STATUS_STOPPING = frozenset({401, 402, 403, 404, 405, 407, 410})


def classify_status(status: int, code: str, message: str) -> Verdict:
    """Classify an error reply by the table, or by its status if no row matches."""
    for rule in RULES:
        if rule.matches(status, code, message):
            return rule.verdict
    if status == 429:
        return _classify_unknown_refusal(code)
    if status in _STATUS_RETRIED or status >= 500:
        return _RETRY
    if status in _STATUS_STOPPING or status < 400:  # redirects are not followed: the base URL is wrong
        return _STOP
    return _REJECT


def _classify_unknown_refusal(code: str) -> Verdict:
    """Guess the limit from an unknown 429 code. A code without a hint counts as an overload."""
    upper = code.upper()
    if "TPM" in upper:
        return _TPM
    return _RPM if "RPM" in upper or "RATELIMIT" in upper else _OVERLOAD


# What a person can do about a stop: the first pattern that matches "<status> <code>".
_ADVICE = (
    ("401 *", "check the API key in the environment variable that api.api_key_env names"),
    ("403 *Overdue*", "pay the overdue balance of the account, then run the same command again"),
    ("403 *", "give the account of the API key access to the model in the Ark console"),
    ("404 *", "check model.name, and activate the model for the account in the Ark console"),
    (
        "429 *",
        "raise the quota of the account in the Ark console or wait until it resets, then run the same command again",
    ),
    ("400 *", "check model.name and the endpoint in the Ark console"),
    ("3?? *", "set api.base_url to the URL that the service redirects to"),
    ("4?? *", "check api.base_url and that the account is active and paid"),
    ("None tls_certificate", "check api.base_url and the CA certificates of this machine"),
    ("None *", "check api.base_url"),
)


def advise(error: ApiError) -> str:
    """Return what a person can do about an error that stops the run."""
    name = f"{error.status} {error.code}"
    return next(
        (advice for pattern, advice in _ADVICE if fnmatchcase(name, pattern)), "see the service's documentation"
    )


def error_from_status(status: int, body: bytes, headers: Mapping[str, str], now_s: float) -> ApiError:
    """Make the ApiError for an error reply. `headers` must ignore case; `now_s` is in seconds since 1970."""
    code, message, request_id = decode_error(status, body)
    verdict = classify_status(status, code, message)
    if 300 <= status < 400:
        message = redact(f"the service redirects to {headers.get('location')}: set api.base_url to the final URL")
    return ApiError(
        message=message,
        action=verdict.action,
        code=code,
        pressure=verdict.pressure,
        status=status,
        request_id=request_id or headers.get("x-request-id"),
        retry_after_s=read_retry_after(headers, now_s),
        attempts_max=verdict.attempts_max,
    )


def error_from_unusable(error: UnusableReply, status: int, request_id: str | None) -> ApiError:
    """Make the ApiError for a successful reply without a usable vector.

    It is paid; `limits.retries_paid` bounds its retries.
    """
    return ApiError(
        message=error.message,
        action=Action.RETRY,
        code=error.flaw.value,
        status=status,
        request_id=error.id or request_id,
        paid=True,
        usage=error.usage,
        model=error.model,
    )


# The first match decides. The exceptions of aiohttp come first: httpx-aiohttp 0.2.0 maps both a refused and a reset
# connection to httpx.ConnectTimeout, and only the exception's cause says what happened.
_BY_EXCEPTION: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, Verdict], ...] = (
    ((aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError), "tls_certificate", _STOP),
    ((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects), "bad_address", _STOP),
    ((aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout, httpx.PoolTimeout), "connect_timeout", _RETRY),
    ((aiohttp.ServerTimeoutError, asyncio.TimeoutError), "timeout", _RETRY),
    ((aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError), "proxy_failed", _RETRY),
    (aiohttp.ClientConnectorError, "connect_failed", _RETRY),
    ((aiohttp.ClientConnectionError, aiohttp.ClientPayloadError), "connection_lost", _RETRY),
    (aiohttp.ClientError, "bad_answer", _RETRY),
    ((httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects), "bad_address", _STOP),
    (httpx.LocalProtocolError, "bad_request", _STOP),
    (httpx.TimeoutException, "timeout", _RETRY),
    (httpx.ProxyError, "proxy_failed", _RETRY),
    (httpx.ConnectError, "connect_failed", _RETRY),
    (httpx.TransportError, "connection_lost", _RETRY),
    (httpx.HTTPError, "bad_answer", _RETRY),
    ((OSError, EOFError), "connection_lost", _RETRY),
)


def classify_exception(exc: Exception) -> ApiError:
    """Make the ApiError for an exception of any library.

    Network faults are retried. A wrong address or certificate stops the run, and so does every unknown exception, which
    is a defect of this program. Usage: `raise classify_exception(exc) from exc`.
    """
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, httpx.HTTPStatusError):
        status = exc.response.status_code
        verdict = classify_status(status, "", "")
        return _error_from_exception(exc, f"http_{status}", verdict, status)
    for cause in _innermost_first(exc):
        for kinds, code, verdict in _BY_EXCEPTION:
            if isinstance(cause, kinds):
                return _error_from_exception(cause, code, verdict)
    return _error_from_exception(exc, "client_fault", _STOP)


def _innermost_first(exc: BaseException) -> Iterator[BaseException]:
    """Yield the aiohttp exception that caused an httpx exception, if there is one, then the exception itself."""
    if isinstance(exc, httpx.HTTPError) and isinstance(exc.__cause__, aiohttp.ClientError):
        yield exc.__cause__
    yield exc


def _error_from_exception(exc: BaseException, code: str, verdict: Verdict, status: int | None = None) -> ApiError:
    text = str(exc)
    name = type(exc).__name__
    return ApiError(
        message=redact(f"{name}: {text}" if text else name),
        action=verdict.action,
        code=code,
        pressure=verdict.pressure,
        status=status,
        attempts_max=verdict.attempts_max,
    )


def read_retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Return the seconds that the server asks to wait (`retry-after-ms`, else `retry-after`), or None."""
    ms = _parse_number(headers.get("retry-after-ms"))
    if ms is not None:
        return _clamp_wait(ms / 1000)
    return parse_retry_after(headers.get("retry-after"), now_s)


def parse_retry_after(value: str | None, now_s: float) -> float | None:
    """Parse a Retry-After header (seconds or an HTTP date).

    Return seconds from now, clamped to 0..60; None if malformed.
    """
    if value is None or len(value) > 100:
        return None
    seconds = _parse_number(value)
    if seconds is not None:
        return _clamp_wait(seconds)
    try:
        return _clamp_wait(parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return None


def _parse_number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _clamp_wait(seconds: float) -> float:
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)
