"""Encode requests to JSON; decode replies to vectors and error bodies to code and message. Pure functions over bytes.

A reply that breaks the contract is never repaired by guessing: `UnusableReply` says which `Flaw` it has and keeps the
fields that could be read, because an unusable reply is billed like any other.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, assert_never

import orjson
import pybase64

from arkbeam.ark.models import ModelOptions, check_options, dimensions_published, dimensions_sent, dimensions_stored
from arkbeam.ark.vectors import Flaw, FlawError, decode_dense, decode_multi, decode_sparse
from arkbeam.base.capabilities import Capabilities, EncodingFormat, MultiEmbedding
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Inline, Modality, Part, Request, Usage
from arkbeam.base.redaction import redact
from arkbeam.base.replies import Reply, UsageFlaw

EMBEDDINGS_PATH = "/embeddings/multimodal"
"""Path of the API, relative to the base URL."""
STAND_IN_HEADER = "x-arkbeam-stand-in"
"""A server that sends this header, with any value, is a stand-in, not the real service: its vectors are never used as
real ones."""
REQUEST_BYTES_MAX = 64_000_000
"""Maximum size of a request body in bytes: 64 MB by the vendor's guide."""

# A multiple of 3, so that only the last block is padded; small enough for the processor's cache.
_BASE64_BLOCK_BYTES = 3 * 16 * 1024
_NOTHING_INLINED: Mapping[int, Inline] = MappingProxyType({})
_ID_CHARS_MAX = 256
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class WireOptions:
    """The fields that are equal in all requests of a run. `dimensions` None: the field is not sent."""

    model: str
    dimensions: int | None = None
    encoding_format: EncodingFormat = EncodingFormat.BASE64
    multi_embedding: MultiEmbedding = "off"


def wire_options(options: ModelOptions, caps: Capabilities) -> WireOptions:
    """Return the fields that every request of the configured model has.

    Check the options first (`models.check_options`).
    """
    return WireOptions(
        model=options.name,
        dimensions=dimensions_sent(options, caps),
        encoding_format=options.encoding_format or EncodingFormat.NULL,
        multi_embedding=options.multi_embedding or "off",
    )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a run asks of its model and what the model returns, the same for every request of the run."""

    options: ModelOptions
    """The `model:` section of the config."""
    capabilities: Capabilities
    """What the model can do. Rows that ask for more become failure rows."""
    wire: WireOptions = field(init=False)
    """The fields that are sent with every request; derived from the two above."""

    def __post_init__(self) -> None:
        """Derive the wire options."""
        object.__setattr__(self, "wire", wire_options(self.options, self.capabilities))

    @classmethod
    def of(cls, options: ModelOptions) -> "ModelSpec":
        """Check the `model:` section of a config. Raise ConfigError if the model does not support it."""
        return cls(options, check_options(options))

    @property
    def name(self) -> str:
        """The Model ID or Endpoint ID that requests name."""
        return self.options.name

    @property
    def asks_multi(self) -> bool:
        """True if requests ask for per-token vectors, in any encoding."""
        return self.options.asks_multi

    @property
    def dimensions_stored(self) -> int:
        """Length of the dense vectors as the service returns them and the store keeps them."""
        return dimensions_stored(self.options, self.capabilities)

    @property
    def dimensions_published(self) -> int:
        """Length of the dense vectors in the output: `dimensions_stored`, or less if they are cut when published."""
        return dimensions_published(self.options, self.capabilities)


def encode_multi(mode: MultiEmbedding) -> dict[str, str] | None:
    """Return the object for the field `multi_embedding`; None: the field is not sent."""
    match mode:
        case "off":
            return None
        case "plain":
            return {"type": "enabled"}
        case "zstd":
            return {"type": "enabled", "compression": "zstd"}
        case _:
            assert_never(mode)


class UnencodableRequest(ArkbeamError):
    """The request can't be sent. Its row is at fault, and nothing was paid."""


@dataclass(eq=False)
class UnusableReply(ArkbeamError):
    """The reply is billed but has no usable vector. `id`, `model` and `usage` are set as far as they could be read."""

    flaw: Flaw
    message: str
    id: str | None = None
    model: str | None = None
    usage: Usage | None = None

    def __str__(self) -> str:
        """Show the message alone."""
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the fields: the default for exceptions uses positional arguments, and here there are none."""
        return type(self), (self.flaw, self.message, self.id, self.model, self.usage)


class ErrorBody(NamedTuple):
    """The contents of an error body.

    `code` is `http_<status>` if the body has none; `message` is redacted and bounded.
    """

    code: str
    message: str
    request_id: str | None


def encode_request(request: Request, options: WireOptions, inlined: Mapping[int, Inline] = _NOTHING_INLINED) -> bytes:
    """Encode one sample as a request body. Parts keep their order; fields that are not set are left out.

    `inlined` maps the position of a part to its bytes. They are written as base64 directly into the body, so that
    memory contains them only twice: as bytes and in the body.

    Raise UnencodableRequest if a string is not valid Unicode or the body is too large for the service.
    """
    body: dict[str, Any] = {"model": options.model, "input": [_encode_part(part) for part in request.parts]}
    if options.encoding_format is EncodingFormat.NULL:
        body["encoding_format"] = None
    elif options.encoding_format is not EncodingFormat.ABSENT:
        body["encoding_format"] = options.encoding_format.value
    if options.dimensions is not None:
        body["dimensions"] = options.dimensions
    if request.instructions is not None:
        body["instructions"] = request.instructions
    if request.sparse:
        body["sparse_embedding"] = {"type": "enabled"}
    multi = encode_multi(options.multi_embedding)
    if multi is not None:
        body["multi_embedding"] = multi
    try:
        encoded = _splice(body, request, inlined) if inlined else orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise UnencodableRequest(f"the request can't be encoded as JSON: {redact(str(error))}") from error
    _check_length(len(encoded))
    return encoded


def _check_length(length: int) -> None:
    if length > REQUEST_BYTES_MAX:
        raise UnencodableRequest(f"the request has {length} bytes; the service accepts at most {REQUEST_BYTES_MAX}")


def _splice(body: Mapping[str, Any], request: Request, inlined: Mapping[int, Inline]) -> bytes:
    """Encode a body with the inlined parts as base64 data URIs, in blocks and without a copy of the whole body."""
    before, after = {"model": body["model"]}, {name: body[name] for name in body if name not in ("model", "input")}
    _check_length(sum(4 * ((len(inline.data) + 2) // 3) for inline in inlined.values()))
    out = io.BytesIO()  # getvalue() does not copy the buffer
    out.write(orjson.dumps(before)[:-1] + b',"input":[')
    for position, part in enumerate(body["input"]):
        out.write(b"," if position else b"")
        inline = inlined.get(position)
        if inline is None:
            out.write(orjson.dumps(part))
        else:
            _write_inline(out, request.parts[position], inline)
    out.write(b"]" + (b"," + orjson.dumps(after)[1:] if after else b"}"))
    return out.getvalue()


def _write_inline(out: io.BytesIO, part: Part, inline: Inline) -> None:
    kind = f"{part.modality.value}_url"
    out.write(f'{{"type":"{kind}","{kind}":{{"url":"data:{inline.mime};base64,'.encode("ascii"))
    data = memoryview(inline.data)
    for start in range(0, len(data), _BASE64_BLOCK_BYTES):
        out.write(pybase64.b64encode(data[start : start + _BASE64_BLOCK_BYTES]))
    sampling = {} if part.sampling is None else part.sampling.set_fields()
    out.write(b'"' + (b"," + orjson.dumps(sampling)[1:-1] if sampling else b"") + b"}}")


def _encode_part(part: Part) -> dict[str, Any]:
    if part.modality is Modality.TEXT:
        return {"type": "text", "text": part.value}
    kind = f"{part.modality.value}_url"
    sampling = {} if part.sampling is None else part.sampling.set_fields()
    return {"type": kind, kind: {"url": part.value, **sampling}}


def decode_reply(body: bytes, *, dimensions: int, sparse: bool, multi: bool = False, stand_in: bool = False) -> Reply:
    """Decode the body of a successful reply. Raise UnusableReply.

    Args:
        body: JSON, decompressed.
        dimensions: Required length of the dense vector.
        sparse: True if the request asked for a sparse vector; if False, one in the reply is ignored.
        multi: The same for per-token vectors.
        stand_in: True if the server is a stand-in; copied to the reply.

    A vector is billed, so flaws in the other fields do not discard it: unknown fields are ignored; a missing `created`,
    `id` or `model` becomes None; missing counts of the usage become None, and so do all counts if they do not add up
    (`usage_flaw` says why). By the contract `object` is `list` and `data.object` is `embedding`. If they are missing or
    have a similar value, the reply is still used; a different kind of object (`error`, `chat.completion`) is the flaw
    `other_object`.
    """
    reply = _parse_reply(body)
    reply_id, model = _read_name(reply, "id"), _read_name(reply, "model")
    usage, usage_flaw = decode_usage(reply.get("usage"))
    try:
        data = _read_data(reply)
        dense, norm = decode_dense(data.get("embedding"), dimensions)
        sparse_vector = decode_sparse(data.get("sparse_embedding")) if sparse else None
        multi_vectors = decode_multi(data.get("multi_embedding"), dimensions) if multi else None
    except FlawError as flawed:
        raise UnusableReply(flawed.flaw, str(flawed), reply_id, model, usage) from flawed.__cause__
    created = reply.get("created")
    return Reply(
        id=reply_id,
        model=model,
        created=created if _is_count(created) else None,
        dense=dense,
        sparse=sparse_vector,
        norm=norm,
        usage=usage,
        usage_flaw=usage_flaw,
        stand_in=stand_in,
        multi=multi_vectors,
    )


def _parse_reply(body: bytes) -> dict[str, Any]:
    try:
        reply = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reply = _parse_leniently(body, error)
    if not isinstance(reply, dict):
        raise UnusableReply(Flaw.NOT_JSON, f"the reply is a JSON {type(reply).__name__}, not an object")
    return reply


def _parse_leniently(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """Parse NaN and Infinity too: they are not JSON, but some servers write them. The flaw is then reported as such."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise salvage(body, Flaw.NOT_JSON, f"the reply is not JSON ({redact(str(error), 200)})") from error


_NAME = re.compile(rb'"(id|model)"\s*:\s*"([\x20-\x21\x23-\x5b\x5d-\x7e]{1,256})"')
_USAGE = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{[^{}]*\}){0,2000}\})')


def salvage(body: bytes, flaw: Flaw, message: str) -> UnusableReply:
    """Make the exception for a damaged reply, with id, model and usage if each of them is complete in the text."""
    names = {key.decode(): value.decode() for key, value in _NAME.findall(body)}
    found = _USAGE.search(body)
    try:
        usage = decode_usage(orjson.loads(found[1]))[0] if found else None
    except orjson.JSONDecodeError:
        usage = None
    return UnusableReply(flaw, message, names.get("id"), names.get("model"), usage)


def _read_name(reply: dict[str, Any], key: str) -> str | None:
    value = reply.get(key)
    return value[:_ID_CHARS_MAX] if isinstance(value, str) and value else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _INT64_MAX


def _read_data(reply: dict[str, Any]) -> dict[str, Any]:
    """Return `data`: an object by the contract, a list of one object in older guides. Raise FlawError."""
    _check_object("object", reply.get("object"))
    data = reply.get("data")
    if isinstance(data, list):
        if len(data) > 1:
            raise FlawError(Flaw.SEVERAL_VECTORS, f"the reply contains {len(data)} vectors for one sample")
        data = data[0] if data else None
    if not isinstance(data, dict):
        raise FlawError(Flaw.NO_DATA, "the reply has no data")
    _check_object("data.object", data.get("object"))
    return data


def _check_object(where: str, value: object) -> None:
    """Raise FlawError if the reply is of another kind: its `object` contains neither `list` nor `embedding`."""
    if isinstance(value, str) and value and "list" not in value and "embedding" not in value:
        raise FlawError(Flaw.OTHER_OBJECT, f"the reply is not an embedding: its {where} is {redact(value, 100)!r}")


def decode_usage(usage: object) -> tuple[Usage, UsageFlaw | None]:
    """Read the token counts. A missing or malformed count becomes None, and the flaw is returned.

    If the counts do not add up, all of them become None, because it is unknown which one is wrong.
    """
    if not isinstance(usage, dict):
        return Usage(), UsageFlaw.MISSING if usage is None else UsageFlaw.MALFORMED
    details = usage.get("prompt_tokens_details")
    inner = details if isinstance(details, dict) else {}
    raw: list[Any] = [usage.get(key) for key in ("prompt_tokens", "total_tokens")]
    raw += [inner.get(key) for key in ("text_tokens", "image_tokens")]
    if all(map(_is_count, raw)):
        read = Usage(*raw)
        # There are no output tokens, so all three sums are equal.
        consistent = read.prompt_tokens == read.total_tokens == sum(raw[2:])
        return (read, None) if consistent else (Usage(), UsageFlaw.INCONSISTENT)
    malformed = not (details is None or isinstance(details, dict)) or not all(v is None or _is_count(v) for v in raw)
    counts = [value if _is_count(value) else None for value in raw]
    return Usage(*counts), UsageFlaw.MALFORMED if malformed else UsageFlaw.MISSING


_REQUEST_ID = re.compile(r"request[ _-]?id:?\s*([\w-]{1,128})", re.IGNORECASE)
_BODY_CHARS_MAX = 20_000


def decode_error(status: int, body: bytes) -> ErrorBody:
    """Read an error body: `{"error": {"code", "message", "param", "type"}}` by the contract, or anything else.

    Never raises.
    """
    text = body[:_BODY_CHARS_MAX].decode("utf-8", "replace")
    code, message = "", text
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, dict):
        error = parsed.get("error", parsed)
        if isinstance(error, dict):
            code = str(error.get("code") or "")
            message = str(error.get("message") or text)
        elif isinstance(error, str):
            message = error
    found = _REQUEST_ID.search(message)
    return ErrorBody(
        code=redact(code, 100) or f"http_{status}",
        message=redact(message) or f"HTTP {status} without a message",
        request_id=found[1] if found else None,
    )
