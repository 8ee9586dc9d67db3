"""The request side of the contract: parse and check a request body; reject what the contract does not allow. Pure.

This is a second implementation of the contract page. It shares the table of models with the client (`ark.models`,
`base.capabilities`), but no code that reads or writes requests and replies. Where the page has no rule, the
vendor's guides and clients decide. Unknown fields are ignored.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from arkbeam.ark.models import VERSIONS, ModelOptions, find_capabilities
from arkbeam.base.capabilities import Capabilities
from arkbeam.base.errors import ConfigError
from arkbeam.emulator.media import read_image, read_video
from arkbeam.emulator.parts import EmbeddingRequest, ImagePart, Part, Sampling, TextPart, TokenVectors, VideoPart
from arkbeam.emulator.replies import reject

BODY_BYTES_MAX = 64_000_000
NEWEST_MODEL = f"doubao-embedding-vision-{list(VERSIONS)[-1]}"

_Json = dict[str, Any]

_SAMPLING_RANGES: dict[str, tuple[float, float]] = {
    "fps": (0.2, 5),
    "max_video_tokens": (10_240, 204_800),
    "min_frame_tokens": (16, 128),
    "max_frame_tokens": (128, 640),
    "min_frames": (5, 16),
}
"""Ranges of the sampling arguments of `video_url`, from version 251215 on, as the vendor's Go client checks them."""

_JSON_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}


def parse_request(body: bytes, endpoints: Mapping[str, str]) -> tuple[EmbeddingRequest, Capabilities]:
    """Parse and check a request body; return the request and the capabilities of its model. Raise Rejected."""
    if len(body) > BODY_BYTES_MAX:
        raise reject("InvalidParameter", "", f"the request body has more than {BODY_BYTES_MAX} bytes")
    try:
        fields_sent = orjson.loads(body)
    except ValueError as error:
        raise _unparsable() from error
    if not isinstance(fields_sent, dict):
        raise _unparsable()
    return read_fields({name: value for name, value in fields_sent.items() if value is not None}, endpoints)


def read_fields(sent: _Json, endpoints: Mapping[str, str]) -> tuple[EmbeddingRequest, Capabilities]:
    """Check the fields of a body; a field that is null counts as missing. Raise Rejected."""
    model = resolve_model(sent.get("model"), endpoints)
    caps = _capabilities(model)
    if "input" not in sent:
        raise reject("MissingParameter", "input")
    if not isinstance(sent["input"], list):
        raise _unparsable()
    dimensions = _read_dimensions(sent, caps)
    encoding_format = sent.get("encoding_format", "float")
    if encoding_format not in ("float", "base64"):
        raise reject("InvalidParameter", "encoding_format", "expected float, base64 or null")
    request = EmbeddingRequest(
        model=model,
        parts=(parts := _read_parts(sent["input"], caps)),
        dimensions=dimensions,
        encoding_format=encoding_format,
        instructions=_read_instructions(sent, caps),
        sparse=_read_sparse(sent, caps, parts),
        token_vectors=_read_token_vectors(sent, caps),
    )
    return request, caps


def _unparsable() -> Exception:
    return reject("InvalidParameter", "body", "we could not parse the JSON body of your request")


def resolve_model(name: object, endpoints: Mapping[str, str]) -> str:
    """Return the Model ID for a model name.

    The name may be a Model ID of a known version, a configured endpoint, or any other `ep-…`, which is the newest
    version. Raise Rejected for other names.
    """
    if name is None or name == "":
        raise reject("MissingParameter", "model")
    if not isinstance(name, str):
        raise reject("InvalidParameter", "model", f"expected a string, but got {_name_type(name)}")
    if name in endpoints:
        return endpoints[name]
    if name.startswith("ep-"):
        return NEWEST_MODEL
    if name.rpartition("-")[2] in VERSIONS:
        _capabilities(name)
        return name
    raise reject("InvalidEndpointOrModel.NotFound", "model", name)


@lru_cache(maxsize=256)
def _capabilities(model: str) -> Capabilities:
    try:
        return find_capabilities(ModelOptions(name=model))
    except ConfigError as error:
        raise reject("InvalidEndpointOrModel.NotFound", "model", model) from error


def _name_type(value: object) -> str:
    return _JSON_NAMES.get(type(value), "null")


def _read_dimensions(sent: _Json, caps: Capabilities) -> int:
    if "dimensions" not in sent:
        return caps.dimensions[0]
    if not caps.dimensions_field:
        raise reject("InvalidParameter.UnsupportedParameter", "dimensions", f"not with model version {caps.version}")
    dimensions = sent["dimensions"]
    if type(dimensions) is not int or dimensions not in caps.dimensions:
        raise reject("InvalidParameter", "dimensions", f"expected one of {sorted(caps.dimensions)}")
    return dimensions


def _read_instructions(sent: _Json, caps: Capabilities) -> str | None:
    if "instructions" not in sent:
        return None
    instructions = sent["instructions"]
    if not isinstance(instructions, str):
        raise reject("InvalidParameter", "instructions", f"expected a string, but got {_name_type(instructions)}")
    if not caps.instructions:
        raise reject("InvalidParameter.UnsupportedParameter", "instructions", f"not with model version {caps.version}")
    return instructions


def _read_switch(sent: _Json, name: str, caps: Capabilities, supported: bool) -> _Json | None:
    """Read a field `{"type": "enabled" | "disabled"}`; None if it is missing. `supported`: the model version has it."""
    if name not in sent:
        return None
    asked = sent[name]
    if not isinstance(asked, dict):
        raise reject("InvalidParameter", name, f"expected an object, but got {_name_type(asked)}")
    if asked.get("type") is None:
        raise reject("MissingParameter", f"{name}.type")
    if asked["type"] not in ("enabled", "disabled"):
        raise reject("InvalidParameter", f"{name}.type", "expected enabled or disabled")
    if not supported:
        raise reject("InvalidParameter.UnsupportedParameter", name, f"not with model version {caps.version}")
    return asked


def _read_token_vectors(sent: _Json, caps: Capabilities) -> TokenVectors | None:
    asked = _read_switch(sent, "multi_embedding", caps, caps.multi_embedding)
    if asked is None:
        return None
    compression = asked.get("compression")
    if compression == "blosc2":
        raise reject(
            "InvalidParameter.UnsupportedParameter",
            "multi_embedding.compression",
            "this stand-in does not support blosc2",
        )
    if compression not in (None, "zstd"):
        raise reject("InvalidParameter", "multi_embedding.compression", "expected zstd or blosc2")
    if asked["type"] == "disabled":
        return None
    return TokenVectors.PLAIN if compression is None else TokenVectors.ZSTD


def _read_sparse(sent: _Json, caps: Capabilities, parts: tuple[Part, ...]) -> bool:
    """Read `sparse_embedding`. It is allowed only in text-only requests, even with type `disabled`."""
    asked = _read_switch(sent, "sparse_embedding", caps, caps.sparse)
    if asked is None:
        return False
    if not all(isinstance(part, TextPart) for part in parts):
        raise reject("InvalidParameter", "sparse_embedding", "only for text-only input")
    return bool(asked["type"] == "enabled")


def _read_parts(items: list[Any], caps: Capabilities) -> tuple[Part, ...]:
    if not items:
        raise reject("InvalidParameter", "input", "expected at least one item")
    kinds = [item.get("type") if isinstance(item, dict) else None for item in items]
    if not caps.mixed and (kinds.count("text") > 1 or kinds.count("image_url") > 1):
        raise reject(
            "InvalidParameter", "input", f"model version {caps.version} accepts at most one text and one image"
        )
    return tuple(_read_part(item, f"input[{index}]", caps) for index, item in enumerate(items))


def _read_part(item: object, param: str, caps: Capabilities) -> Part:
    if not isinstance(item, dict):
        raise reject("InvalidParameter", param, f"expected an object, but got {_name_type(item)}")
    kind = item.get("type")
    if kind is None:
        raise reject("MissingParameter", f"{param}.type")
    if kind == "text":
        return _read_text(_require(item, "text", param), f"{param}.text")
    if kind == "image_url":
        url = _require_url(item, "image_url", param)
        return read_image(url, f"{param}.image_url.url")
    if kind == "video_url":
        if not caps.video:
            raise reject("InvalidParameter", param, f"model version {caps.version} does not accept videos")
        url = _require_url(item, "video_url", param)
        return read_video(url, _read_sampling(item["video_url"], f"{param}.video_url", caps), f"{param}.video_url.url")
    raise reject("InvalidParameter", f"{param}.type", "expected text, image_url or video_url")


def _read_text(text: object, param: str) -> TextPart:
    if not isinstance(text, str):
        raise reject("InvalidParameter", param, f"expected a string, but got {_name_type(text)}")
    if not text:
        raise reject("InvalidParameter", param, "expected a non-empty text")
    return TextPart(text)


def _require(item: _Json, name: str, param: str) -> Any:
    if item.get(name) is None:
        raise reject("MissingParameter", f"{param}.{name}")
    return item[name]


def _require_url(item: _Json, name: str, param: str) -> Any:
    medium = _require(item, name, param)
    if not isinstance(medium, dict):
        raise reject("InvalidParameter", f"{param}.{name}", f"expected an object, but got {_name_type(medium)}")
    return _require(medium, "url", f"{param}.{name}")


def _read_sampling(medium: _Json, param: str, caps: Capabilities) -> Sampling:
    asked = {name: medium[name] for name in _SAMPLING_RANGES if medium.get(name) is not None}
    for name, value in asked.items():
        if not caps.video_sampling:
            raise reject("InvalidParameter.UnsupportedParameter", f"{param}.{name}", f"not with {caps.version}")
        low, high = _SAMPLING_RANGES[name]
        fits = type(value) is int or (type(value) is float and name == "fps")
        if not fits or not low <= value <= high:
            raise reject("InvalidParameter", f"{param}.{name}", f"expected a number from {low} to {high}")
    return Sampling(**asked)


def hash_meaning(request: EmbeddingRequest) -> bytes:
    """Return an 8-byte hash of the meaning of a request.

    Requests that ask for the same vectors have the same hash, also with another JSON spelling or encoding format.
    """
    parts: list[object] = []
    for part in request.parts:
        match part:
            case TextPart():
                parts.append(["text", part.text])
            case ImagePart():
                parts.append(["image", part.url])
            case VideoPart():
                parts.append(["video", part.url, part.sampling])
    meaning: list[object] = [request.model, parts, request.dimensions, request.instructions, request.sparse]
    meaning.append(request.token_vectors is not None)
    return hashlib.blake2b(orjson.dumps(meaning), digest_size=8).digest()
