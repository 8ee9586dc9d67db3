"""Reading objects through obstore: one call brings bytes, whole size and etag of one and the same state.

Everything here may raise what obstore raises; a missing object is a FileNotFoundError.
"""

import io
import posixpath
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from arkbeam.media.found import Blocks, Found
from arkbeam.media.identity import storage_version
from arkbeam.media.s3 import Place, obstore

_BLOCK_BYTES = 1024 * 1024
_PAGE_KEYS = 1000  # what one call of S3 lists at most
# Of a page's keys so many must be wanted: a call that lists costs as much time as one for each of 32 threads together
# do, and twelve times the money.
WANTED_OF_PAGE_MIN = 32


def read_object(place: Place, start: int, end: int) -> Found:
    """Read bytes `start` to `end`, as far as there are so many."""
    opened = open_object(place, start, end)
    if opened.expected <= _BLOCK_BYTES:
        return Found(b"".join(opened.blocks), opened.size, opened.version)
    whole = io.BytesIO()  # gives its buffer away without a copy
    for block in opened.blocks:
        whole.write(block)
    return Found(whole.getvalue(), opened.size, opened.version)


def open_object(place: Place, start: int, end: int) -> Blocks:
    """Begin to read bytes `start` to `end`; size and version are there at once, the bytes come in blocks."""
    try:
        answer = obstore.get(place.store, place.key, options={"range": (start, end)})
    except obstore.exceptions.BaseError:
        size, version = head_object(place)  # a range of an empty object is an error
        if start < size:
            raise
        return Blocks(iter(()), 0, size, version)
    low, high = answer.range
    meta = answer.meta
    return Blocks(iter(answer.stream(min_chunk_size=_BLOCK_BYTES)), high - low, meta["size"], _version(meta))


def head_object(place: Place) -> tuple[int, str]:
    """Return size and version, without the bytes."""
    meta = obstore.head(place.store, place.key)
    return meta["size"], _version(meta)


def list_versions(store: Any, wanted: Sequence[str]) -> dict[str, str]:
    """Return the versions of those keys that listing finds cheaply; the others are to be asked for one by one.

    `wanted` is in order, without repeats. Pages are read from the first wanted key on, those between wanted keys are
    leapt over, and it ends at the first page that holds too few.
    """
    found: dict[str, str] = {}
    folder = posixpath.commonpath([wanted[0], wanted[-1]])
    start = 0
    while len(wanted) - start >= WANTED_OF_PAGE_MIN:
        page = _list_page(store, folder, wanted[start])
        end = bisect_right(wanted, max(page, default=""), start)
        hits = {key: page[key] for key in wanted[start:end] if key in page}
        found |= hits
        start = end
        if len(hits) < WANTED_OF_PAGE_MIN or len(page) < _PAGE_KEYS:
            break
    return found


def _list_page(store: Any, folder: str, first: str) -> Mapping[str, str]:
    """List up to a page of keys below a folder, from `first` on, with their versions, in one call."""
    before = first[:-1]  # listing begins behind it
    for page in obstore.list(store, folder or None, offset=before or None, chunk_size=_PAGE_KEYS):
        return {meta["path"]: _version(meta) for meta in page}
    return {}


def _version(meta: Mapping[str, Any]) -> str:
    """Return the etag, as s3fs tells it; where there is none, size and time of change."""
    tag = meta.get("e_tag")
    return storage_version(str(tag).strip('"')) if tag else f"{meta['size']}-{meta['last_modified']}"
