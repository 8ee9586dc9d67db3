"""Requests as they are kept between reading and sending: compact JSON, in which unset fields are absent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.records import Modality, Part, Request, VideoSampling


@dataclass(frozen=True, slots=True)
class StagedRequest:
    """A request with, for each part, the version of the medium that its fingerprint was made of."""

    request: Request
    versions: tuple[str | None, ...]


def text_to_json(text: str, instructions: str | None, sparse: bool) -> bytes:
    """Return the JSON of a request that is one text: what `request_to_json` gives, sooner."""
    return _dump([("text", text)], instructions, sparse)


def request_to_json(staged: StagedRequest) -> bytes:
    """Return a staged request as JSON, the same bytes for the same request."""
    parts = [_part_to_list(part, version) for part, version in zip(staged.request.parts, staged.versions, strict=True)]
    return _dump(parts, staged.request.instructions, staged.request.sparse)


def _part_to_list(part: Part, version: str | None) -> list[Any]:
    """Modality and value; then the version and the sampling, where there is one of them or one behind it."""
    if part.sampling is not None:
        return [part.modality.value, part.value, version, part.sampling.set_fields()]
    return [part.modality.value, part.value] if version is None else [part.modality.value, part.value, version]


def _dump(parts: Sequence[Sequence[Any]], instructions: str | None, sparse: bool) -> bytes:
    document: dict[str, Any] = {"parts": parts}
    if instructions is not None:
        document["instructions"] = instructions
    if sparse:
        document["sparse"] = True
    return orjson.dumps(document)


def request_from_json(data: bytes) -> StagedRequest:
    """Return the staged request that `request_to_json` wrote."""
    document = orjson.loads(data)
    parts = tuple(_part_from_list(*part) for part in document["parts"])
    versions = tuple(part[2] if len(part) > 2 else None for part in document["parts"])
    request = Request(parts, document.get("instructions"), document.get("sparse", False))
    return StagedRequest(request, versions)


def _part_from_list(
    modality: str, value: str, _version: str | None = None, sampling: dict[str, Any] | None = None
) -> Part:
    return Part(Modality(modality), value, None if sampling is None else VideoSampling(**sampling))
