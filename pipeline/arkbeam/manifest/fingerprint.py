"""The identity of a request: requests with the same fingerprint share one vector, which is bought once.

    fingerprint = BLAKE2b-128( "arkbeam" version  field field … )
    field       = tag (1 byte)  length (8 bytes, little endian)  bytes

Fields have a fixed order and unset fields are absent, so the encoding can be decoded in only one way: two requests have
the same encoding exactly if they are the same as sent. A new field takes a new tag and so leaves existing fingerprints
unchanged. Not part of the fingerprint: the service's address, the encoding of the reply, and signatures in URLs.
"""

import re
from collections.abc import Collection, Sequence
from hashlib import blake2b

from arkbeam.base.records import Modality, Request, ServiceKind, VideoSampling
from arkbeam.base.schema import FINGERPRINT_BYTES
from arkbeam.base.signing import ALONE, COMBINED
from arkbeam.media import content_of

_MAGIC = b"arkbeam\x01"
_SERVICE, _MODEL, _DIMENSIONS, _MULTI, _INSTRUCTIONS, _SPARSE = b"K", b"M", b"D", b"E", b"P", b"S"
_VERSION, _CONTENT, _SAMPLING, _FIT = b"v", b"c", b"s", b"f"
_TAGS = {Modality.TEXT: b"T", Modality.IMAGE: b"I", Modality.VIDEO: b"V"}

_SIGNING = frozenset(name for scheme in ALONE if not scheme.any_case for name in scheme.parameters)
_SIGNING_ANY_CASE = frozenset(name for scheme in ALONE if scheme.any_case for name in scheme.parameters)
_SIGNING_TOGETHER = frozenset(name for scheme in COMBINED for name in scheme.needs)
_HAS_QUERY = re.compile(r"https?://[^#]*\?", re.IGNORECASE)


class Fingerprinter:
    """Computes the fingerprints of one run. The fields that all requests share are hashed once.

    `multi` is True if per-token vectors are requested; their encoding makes no difference. `ignored` are the names of
    query parameters of URLs that do not change what the URL points at (`media.url_ignore_params`).
    """

    def __init__(
        self,
        service: ServiceKind,
        model: str,
        dimensions: int | None,
        multi: bool = False,
        ignored: Collection[str] = (),
    ) -> None:
        self._ignored = ignored
        start = blake2b(_MAGIC, digest_size=FINGERPRINT_BYTES)
        start.update(_field(_SERVICE, service.value.encode()))
        start.update(_field(_MODEL, model.encode()))
        if dimensions is not None:
            start.update(_field(_DIMENSIONS, str(dimensions).encode()))
        if multi:
            start.update(_field(_MULTI, b""))
        self._start = start
        # Hash state after the fields of the last text request: most rows of a run repeat the same instructions.
        self._last_instructions: str | None = None
        self._last_sparse = False
        self._last = start

    def of_text(self, text: str, instructions: str | None, sparse: bool) -> bytes:
        """Return the fingerprint of a request with a single text: the same as `of_request`, but faster."""
        if instructions is not self._last_instructions or sparse is not self._last_sparse:
            self._last = self._begin(instructions, sparse)
            self._last_instructions, self._last_sparse = instructions, sparse
        data = text.encode()
        state = self._last.copy()
        state.update(b"T" + len(data).to_bytes(8, "little") + data)
        return state.digest()

    def of_request(self, request: Request, versions: Sequence[str | None], fits: Sequence[str | None] = ()) -> bytes:
        """Return the 16 bytes that identify a request.

        `versions` has one entry per part. `fits` has one entry per part or is empty: the change that is made to an
        image before it is sent, or None if it is sent unchanged. Raise UnicodeEncodeError if a text holds a lone
        surrogate.
        """
        state = self._begin(request.instructions, request.sparse)
        for part, version, fit in zip(request.parts, versions, fits or (None,) * len(versions), strict=True):
            content = content_of(version)
            if content is not None:  # the hash of the content replaces the name; no part has an empty name
                state.update(_field(_TAGS[part.modality], b"") + _field(_CONTENT, content))
            else:
                value = part.value if part.modality is Modality.TEXT else strip_signature(part.value, self._ignored)
                state.update(_field(_TAGS[part.modality], value.encode()))
                if version is not None:
                    state.update(_field(_VERSION, version.encode()))
            if part.sampling is not None:
                state.update(_field(_SAMPLING, _write_sampling(part.sampling)))
            if fit is not None:
                state.update(_field(_FIT, fit.encode()))
        return state.digest()

    def _begin(self, instructions: str | None, sparse: bool) -> blake2b:
        state = self._start.copy()
        if instructions is not None:
            state.update(_field(_INSTRUCTIONS, instructions.encode()))
        if sparse:
            state.update(_field(_SPARSE, b""))
        return state


def strip_signature(uri: str, ignored: Collection[str] = ()) -> str:
    """Return a URL without its known signature parameters; the rest, with its order and encoding, stays unchanged.

    `ignored` are names of further parameters to leave out.
    """
    if not _HAS_QUERY.match(uri):
        return uri
    address, hash_, fragment = uri.partition("#")
    address, _, query = address.partition("?")
    parameters = query.split("&")
    names = [parameter.partition("=")[0] for parameter in parameters]
    dropped = _SIGNING.union(ignored)
    if not _SIGNING_TOGETHER.isdisjoint(names):
        values: dict[str, str] = {}
        for name, parameter in zip(names, parameters, strict=True):
            values[name] = "" if name in values else parameter[len(name) + 1 :]  # a doubled name matches no pattern
        dropped = dropped.union(*(scheme.parameters for scheme in COMBINED if scheme.applies_to(values)))
    kept = [
        parameter
        for name, parameter in zip(names, parameters, strict=True)
        if name not in dropped and name.lower() not in _SIGNING_ANY_CASE
    ]
    if len(kept) == len(parameters):
        return uri
    return address + ("?" + "&".join(kept) if kept else "") + hash_ + fragment


def _write_sampling(sampling: VideoSampling) -> bytes:
    """Write the set arguments only, so that a new argument changes no existing fingerprint; each number has one form."""
    arguments = sampling.set_fields().items()
    return ",".join(f"{name}={float(value)!r}" for name, value in arguments).encode()


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + len(data).to_bytes(8, "little") + data
