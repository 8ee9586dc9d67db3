"""The texts and pictures of some rows of an output, read again from their manifests, so that people can look at them.

Only local manifests are read, and only local and inlined pictures are shown: making a report uses no network. A picture is
decoded and scaled by a worker process, as for a run (`arkbeam.decoding`).
"""

import base64
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from arkbeam.base.errors import ArkbeamError
from arkbeam.base.parallel import LOCAL_IN_FLIGHT, in_parallel
from arkbeam.base.records import Inline, Modality, Request
from arkbeam.base.redaction import redact
from arkbeam.decoding.workers import Interrupted
from arkbeam.manifest.again import read_rows_again
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.media import MediaInfo, MediaOptions, inspect, is_below, load_medium, local_path
from arkbeam.media.data_uri import is_data_uri
from arkbeam.media.options import FitOptions

_log = logging.getLogger(__name__)
TEXT_CHARS_MAX = 280
PICTURES_EACH_MAX = 2
MANIFEST_BYTES_MAX = 256 * 2**20
"""A larger manifest is not read again, except for Parquet, of which only some row groups are."""
_PIXELS = 96 * 96
_THUMBNAIL_BYTES_MAX = 48_000
SEARCHED_CHARS = 4_096
"""So much of a text is searched for secrets before it is cut: far more than is shown, and than a secret is long."""
_SLOW_MAX = 3  # pictures that take too long, after which no more are decoded
_SHOWN = ("image/jpeg", "image/png", "image/webp", "image/gif")
Place = tuple[str, int]
"""A manifest and the number of a row in it, as in `embeddings/`."""


@dataclass(frozen=True, slots=True)
class Original:
    """What a row holds: its texts in one line, its pictures as data URIs, and the number of media that are not shown."""

    text: str = ""
    pictures: tuple[str, ...] = ()
    others: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """How to read the manifests of an output again. `roots`: folders that may be read; None: wherever a manifest is."""

    options: ManifestOptions
    context: ReadContext
    roots: tuple[str, ...] | None = None


@dataclass(slots=True)
class _Thumbnails:
    """Makes thumbnails, each once; the local files must be below `roots`."""

    roots: tuple[str, ...]
    slow: int = 0
    made: dict[str, str | None] = field(default_factory=dict)

    def make(self, uri: str) -> str | None:
        """Return a picture as a small data URI; None if it can't be shown."""
        if uri not in self.made:
            self.made[uri] = self._make(uri) if self.slow < _SLOW_MAX else None
        return self.made[uri]

    def _make(self, uri: str) -> str | None:
        if local_path(uri) is None and not is_data_uri(uri):
            return None
        options = MediaOptions(
            allowed_roots=self.roots, look_s=1.0, fit=FitOptions(resize_max_pixels=_PIXELS, transcode=True)
        )
        look = inspect(uri, Modality.IMAGE, options)
        if isinstance(look, MediaInfo):
            loaded = load_medium(uri, Modality.IMAGE, look.version, options, look.fit)
            if isinstance(loaded, Inline) and loaded.mime in _SHOWN and len(loaded.data) <= _THUMBNAIL_BYTES_MAX:
                return f"data:{loaded.mime};base64,{base64.b64encode(loaded.data).decode()}"
        elif look.code == "media_too_slow":
            self.slow += 1
        return None


def read_originals(ids: Mapping[Place, str], source: Source | None, *, pictures: bool = True) -> dict[Place, Original]:
    """Read rows again, given their published ids by place. What can't be read is left out."""
    if source is None:
        return {}
    requests: dict[Place, Request] = {}
    for manifest in sorted({manifest for manifest, _ in ids}):
        rows = sorted(row for name, row in ids if name == manifest)
        if not _may_read(manifest, source.roots):
            continue
        try:
            for row, own_id, request in read_rows_again(manifest, rows, source.options, source.context):
                if own_id is None or own_id == ids[manifest, row]:  # otherwise the manifest has changed
                    requests[manifest, row] = request
        except ArkbeamError as error:
            _log.info("rows of %s are shown without their texts and pictures: %s", redact(manifest), error)
    return _show(requests, source, pictures=pictures)


def _show(requests: Mapping[Place, Request], source: Source, *, pictures: bool) -> dict[Place, Original]:
    roots = source.context.media.allowed_roots or tuple({os.path.dirname(manifest) for manifest, _ in requests})
    if source.roots is not None:
        roots = tuple(root for root in roots if is_below(root, source.roots))
    thumbnails = _Thumbnails(roots, slow=0 if pictures else _SLOW_MAX)
    try:
        for _ in in_parallel(thumbnails.make, _list_pictures(requests.values()), LOCAL_IN_FLIGHT):
            pass
    except Interrupted:  # the run is being stopped
        thumbnails.slow = _SLOW_MAX
    return {place: _describe(request, thumbnails) for place, request in requests.items()}


def _list_pictures(requests: Iterable[Request]) -> Sequence[str]:
    return list(dict.fromkeys(uri for request in requests for uri in _images(request)[:PICTURES_EACH_MAX]))


def _images(request: Request) -> list[str]:
    return [part.value for part in request.parts if part.modality is Modality.IMAGE]


def _describe(request: Request, thumbnails: _Thumbnails) -> Original:
    texts = " ".join(part.value for part in request.parts if part.modality is Modality.TEXT)
    shown = [made for uri in _images(request)[:PICTURES_EACH_MAX] if (made := thumbnails.make(uri)) is not None]
    media = sum(part.modality is not Modality.TEXT for part in request.parts)
    return Original(redact(texts[:SEARCHED_CHARS], TEXT_CHARS_MAX), tuple(shown), media - len(shown))


def _may_read(manifest: str, roots: Sequence[str] | None) -> bool:
    path = local_path(manifest)
    if path is None or "\0" in path or not os.path.isfile(path):
        return False
    if not path.endswith((".parquet", ".pq")) and os.path.getsize(path) > MANIFEST_BYTES_MAX:
        return False
    return roots is None or is_below(path, roots)
