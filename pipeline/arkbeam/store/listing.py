"""List the files that an index covers: segments, each with its per-token vectors, and event files."""

from dataclasses import replace
from functools import partial

from arkbeam.base.files import Listed, list_versions
from arkbeam.base.parallel import in_parallel
from arkbeam.store.layout import SUFFIX, events_folder, multi_folder, run_of, segment_id, segments_folder


def list_sources(store_uri: str, run: str = "") -> dict[str, Listed]:
    """List the segments and event files of a run, or of all runs, by their names in an index.

    The version of a segment includes that of its per-token vectors. Raise StoreError.
    """
    folders = [folder(store_uri, run) for folder in (segments_folder, events_folder, multi_folder)]
    segments, events, multi = in_parallel(partial(list_versions, suffix=SUFFIX), folders)
    vectors = {(run_of(one.uri), segment_id(one.uri)): one.version for one in multi}
    if vectors:
        segments = [_with_vectors(one, vectors.get((run_of(one.uri), segment_id(one.uri)))) for one in segments]
    return {source_name(one.uri): one for one in (*segments, *events)}


def has_multi(segment: Listed) -> bool:
    """True if a listed segment has per-token vectors."""
    return " " in segment.version


def source_name(uri: str) -> str:
    """Return the name of a segment or an event file in an index: `segments/<run>/<file>` or `events/<run>/<file>`."""
    return "/".join(uri.rsplit("/", 3)[1:])


def is_event_file(name: str) -> bool:
    """True for the name of an event file, False for that of a segment."""
    return name.startswith("events/")


def _with_vectors(segment: Listed, version: str | None) -> Listed:
    return segment if version is None else replace(segment, version=f"{segment.version} {version}")
