"""Encode the bodies of responses: the errors and the result of the contract.

Status, code and body of errors follow the vendor's error table; messages follow the published samples. The result body
has the keys of the contract page's example, in the same order.
"""

import base64
import os
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from arkbeam.base.records import Usage
from arkbeam.emulator.parts import TokenVectors

Float32s = npt.NDArray[np.float32]

STAND_IN_SUFFIX = "-stand-in"
"""Suffix of `model` in every reply, so that a made-up vector is never taken for a real one."""

ERRORS: dict[str, tuple[int, str]] = {
    "InvalidParameter": (400, "The parameter `{param}` specified in the request are not valid: {detail}."),
    "InvalidParameter.UnsupportedParameter": (400, "The parameter `{param}` is not supported: {detail}."),
    "InvalidParameter.UnsupportedImageFormat": (400, "The image of `{param}` can't be read: {detail}."),
    "InvalidImageURL.EmptyURL": (400, "The request failed because the image URL of `{param}` is empty."),
    "InvalidImageURL.InvalidFormat": (400, "The image URL of `{param}` has an invalid format: {detail}."),
    "MissingParameter": (400, "The request failed because it is missing `{param}` parameter."),
    "OutofContextError": (400, "Total tokens of image and text exceed max message tokens: {detail}."),
    "SensitiveContentDetected": (400, "The request failed because the input text may contain sensitive information."),
    "AuthenticationError": (401, "The API key or AK/SK in the request is missing or invalid."),
    "InvalidAccountStatus": (401, "The account associated with the API key is not in a valid state."),
    "AccountOverdueError": (403, "The request failed because your account has an overdue balance."),
    "OperationDenied.ServiceOverdue": (403, "The operation is denied because your account has an overdue balance."),
    "OperationDenied.ServiceNotOpen": (403, "The operation is denied because the model service is not open."),
    "AccessDenied": (403, "The request failed because you do not have access to the requested resource."),
    "InvalidEndpointOrModel.NotFound": (
        404,
        "The model or endpoint {detail} does not exist or you do not have access to it.",
    ),
    "ModelNotOpen": (404, "Your account has not activated the model."),
    "NotFound": (404, "The requested path does not exist: {detail}."),
    "MethodNotAllowed": (405, "The method is not allowed on this path."),
    "ModelAccountRpmRateLimitExceeded": (429, "The account exceeded its RPM limit of the model. Try again later."),
    "ModelAccountTpmRateLimitExceeded": (429, "The account exceeded its TPM limit of the model. Try again later."),
    "ServerOverloaded": (429, "The service is currently overloaded. Try again later."),
    "QuotaExceeded": (429, "Your account has exhausted its free quota of the model."),
    "SetLimitExceeded": (429, "Your account has reached the set inference limit of the model."),
    "InternalServiceError": (500, "The service encountered an unexpected internal error.{detail}"),
}
"""Code → status and message template with `{param}` and `{detail}`."""

_TYPES = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed"}
_TYPES |= {429: "TooManyRequests", 500: "InternalServerError"}

_DETAIL_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error response. `code` is a key of `ERRORS`; `param` is the field at fault, or empty."""

    code: str
    param: str = ""
    detail: str = ""
    retry_after_s: int | None = None
    message: str | None = None
    """The whole message, used instead of the template of the code."""

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return ERRORS[self.code][0]

    def to_bytes(self, request_id: str) -> bytes:
        """Return the documented error body; its message ends with the request id."""
        status, wording = ERRORS[self.code]
        message = wording.format(param=self.param, detail=self.detail[:_DETAIL_CHARS_MAX])
        if self.message is not None:
            message = self.message[:_DETAIL_CHARS_MAX]
        error = {
            "code": self.code,
            "message": f"{message} Request id: {request_id}",
            "param": self.param,
            "type": _TYPES[status],
        }
        return orjson.dumps({"error": error})


class Rejected(Exception):
    """The contract does not allow the request. The server sends `reply`."""

    def __init__(self, reply: ErrorReply) -> None:
        """Set the response."""
        super().__init__(reply)
        self.reply = reply


def reject(code: str, param: str = "", detail: str = "") -> Rejected:
    """Return the exception to raise for a request that the contract does not allow."""
    return Rejected(ErrorReply(code, param, detail))


def make_request_id(created_ms: int) -> str:
    """Return a new request id in the contract's format: `02`, 13 digits of milliseconds, 38 hex digits."""
    return f"02{created_ms:013d}{os.urandom(19).hex()}"


def encode_vector(vector: Float32s, encoding_format: str) -> str | npt.NDArray[np.float64]:
    """Encode a vector in the requested format: base64 of little-endian float32, or numbers.

    Numbers are float64, so that JSON shows the exact value, as in the contract's example. JSON has no NaN: it becomes
    null in a list of numbers and stays NaN in base64.
    """
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
    return vector.astype(np.float64)


def encode_token_vectors(vectors: npt.NDArray[np.float16], encoding: TokenVectors) -> str | npt.NDArray[np.float64]:
    """Encode per-token vectors as requested: lists of numbers, or base64 of zstd of little-endian float16."""
    match encoding:
        case TokenVectors.PLAIN:
            return vectors.astype(np.float64)
        case TokenVectors.ZSTD:
            packed = zstandard.ZstdCompressor().compress(vectors.astype("<f2", copy=False).tobytes())
            return base64.b64encode(packed).decode("ascii")
        case _:
            assert_never(encoding)


def encode_result(
    *,
    request_id: str,
    created_s: int,
    model: str,
    embedding: str | npt.NDArray[np.float64],
    sparse: list[dict[str, Any]] | None,
    usage: Usage,
    token_vectors: str | npt.NDArray[np.float64] | None = None,
) -> bytes:
    """Encode the result body of the contract. If `sparse` or `token_vectors` is None, its field is left out."""
    data: dict[str, Any] = {"embedding": embedding, "object": "embedding"}
    if sparse is not None:
        data["sparse_embedding"] = sparse
    if token_vectors is not None:
        data["multi_embedding"] = token_vectors
    body = {
        "created": created_s,
        "data": data,
        "id": request_id,
        "model": model + STAND_IN_SUFFIX,
        "object": "list",
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "prompt_tokens_details": {"image_tokens": usage.image_tokens, "text_tokens": usage.text_tokens},
            "total_tokens": usage.total_tokens,
        },
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
