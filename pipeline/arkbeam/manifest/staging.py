"""Requests as they are stored between reading and sending: compact JSON without unset fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from arkbeam.base.records import Modality, Part, Request, VideoSampling
from arkbeam.media import Fit


@dataclass(frozen=True, slots=True)
class StagedRequest:
    """A request, with what was found out about the media of its parts when the row was read."""

    request: Request
    versions: tuple[str | None, ...]
    """Per part, the version of its medium that is part of the fingerprint; None: it has none."""
    fits: tuple[Fit | None, ...] = ()
    """Per part, the change that is made to its image before it is sent; empty: no image is changed."""
    wire_bytes: int = 0
    """Approximate bytes, as sent, of the media that are read or changed for this request; 0 if there are none."""
    work_bytes: int = 0
    """Approximate further bytes that memory holds while images are changed: their files and their pixels."""

    def fit_of(self, index: int) -> Fit | None:
        """Return the change that is made to a part; None: it is sent unchanged."""
        return self.fits[index] if self.fits else None


def list_changes(fits: Sequence[Fit | None]) -> list[str] | None:
    """Describe the changes to a request's parts for the output column `media_changes`; None if there are none."""
    return [f"parts[{index}]: {fit}" for index, fit in enumerate(fits) if fit is not None] or None


def text_to_json(text: str, instructions: str | None, sparse: bool) -> bytes:
    """Return the JSON of a request with a single text: the same as `request_to_json`, but faster."""
    if instructions is None and not sparse:
        return b'{"parts":[["text",%b]]}' % orjson.dumps(text)
    return _dump([("text", text)], instructions, sparse)


def request_to_json(staged: StagedRequest) -> bytes:
    """Return a staged request as JSON, the same bytes for the same request."""
    parts = [
        _part_to_list(part, version, staged.fit_of(index))
        for index, (part, version) in enumerate(zip(staged.request.parts, staged.versions, strict=True))
    ]
    counts = {"bytes": staged.wire_bytes, "work": staged.work_bytes}
    return _dump(parts, staged.request.instructions, staged.request.sparse, counts)


def _part_to_list(part: Part, version: str | None, fit: Fit | None) -> list[Any]:
    """Return [modality, value, version, sampling, fit] without the unset values at its end."""
    if fit is not None:
        further = () if (fit.recipe, fit.bits) == (1, 16) else (fit.recipe, fit.bits)
        return [part.modality.value, part.value, version, None, [*fit.size_px, fit.mime, fit.source, *further]]
    if part.sampling is not None:
        return [part.modality.value, part.value, version, part.sampling.set_fields()]
    return [part.modality.value, part.value] if version is None else [part.modality.value, part.value, version]


def _dump(
    parts: Sequence[Sequence[Any]], instructions: str | None, sparse: bool, counts: Mapping[str, int] = {}
) -> bytes:
    document: dict[str, Any] = {"parts": parts}
    if instructions is not None:
        document["instructions"] = instructions
    if sparse:
        document["sparse"] = True
    document.update((name, count) for name, count in counts.items() if count)
    return orjson.dumps(document)


def request_from_json(data: bytes) -> StagedRequest:
    """Return the staged request that `request_to_json` wrote."""
    document = orjson.loads(data)
    parts = tuple(_part_from_list(*part) for part in document["parts"])
    versions = tuple(part[2] if len(part) > 2 else None for part in document["parts"])
    request = Request(parts, document.get("instructions"), document.get("sparse", False))
    fits = tuple(_fit_from_list(*part[4]) if len(part) > 4 else None for part in document["parts"])
    counts = document.get("bytes", 0), document.get("work", 0)
    return StagedRequest(request, versions, fits if any(fits) else (), *counts)


def _fit_from_list(width: int, height: int, mime: str, source: str, recipe: int = 1, bits: int = 16) -> Fit:
    return Fit((width, height), mime, source, recipe, bits)


def _part_from_list(
    modality: str,
    value: str,
    _version: str | None = None,
    sampling: dict[str, Any] | None = None,
    _fit: list[Any] | None = None,
) -> Part:
    return Part(Modality(modality), value, None if sampling is None else VideoSampling(**sampling))
