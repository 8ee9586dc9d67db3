"""Looking at many media: those that an earlier run knows cost a share of a listing, the others a read of their header.

What is known is used only for the version that the storage tells now.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from arkbeam.base.records import Failure, Modality
from arkbeam.media.access import Access
from arkbeam.media.cache import Entry, MediaMemory, key_of, rules_of
from arkbeam.media.checks import MediaInfo
from arkbeam.media.files import read_version
from arkbeam.media.identity import storage_part
from arkbeam.media.inspection import inspect
from arkbeam.media.objects import WANTED_OF_PAGE_MIN, list_versions
from arkbeam.media.options import MediaOptions
from arkbeam.media.policy import route
from arkbeam.media.refusal import guard
from arkbeam.media.s3 import Place, find_place
from arkbeam.media.uris import check_scheme, is_web, local_path

Wanted = tuple[str, Modality]
Look = MediaInfo | Failure


def inspect_many(
    wanted: Collection[Wanted],
    options: MediaOptions,
    memory: MediaMemory | None = None,
) -> dict[Wanted, Look]:
    """Look at many media, `options.threads` at a time; what needs no storage is done in place.

    Of a medium that `memory` knows only the version is asked for; it is told what is new.
    """
    looks: dict[Wanted, Look] = {}
    stored: list[Wanted] = []
    for uri, modality in wanted:
        if route(uri, modality, options) is Access.PASS:
            looks[uri, modality] = inspect(uri, modality, options)
        else:
            stored.append((uri, modality))
    if not stored:
        return looks
    rules = rules_of(options)
    keys = {one: key_of(*one, rules) for one in stored}
    with ThreadPoolExecutor(min(options.threads, len(stored))) as pool:
        if memory is not None:
            looks.update(_confirm(stored, memory.known().find(list(keys.values())), options, pool))
        new = [one for one in stored if one not in looks]
        looks.update(zip(new, pool.map(lambda one: inspect(one[0], one[1], options), new), strict=True))
    if memory is not None:
        found = ((keys[one], looks[one]) for one in new)
        memory.learn(
            {
                key: (storage_part(look.version), look)
                for key, look in found
                if isinstance(look, MediaInfo) and look.version is not None
            }
        )
    return looks


def _confirm(
    stored: Sequence[Wanted], entries: Sequence[Entry | None], options: MediaOptions, pool: ThreadPoolExecutor
) -> dict[Wanted, MediaInfo]:
    """Return what is known of the media that their storage tells to be the same as then."""
    known = {one: entry for one, entry in zip(stored, entries, strict=True) if entry is not None}
    if not known:
        return {}
    uris = list(dict.fromkeys(uri for uri, _ in known))
    versions = _list_buckets(uris, options, pool)
    rest = [uri for uri in uris if uri not in versions]
    told = pool.map(lambda uri: guard(uri, partial(read_version, uri, options)), rest)
    versions.update((uri, version) for uri, version in zip(rest, told, strict=True) if isinstance(version, str))
    return {one: info for one, (version, info) in known.items() if versions.get(one[0]) == version}


def _list_buckets(uris: Sequence[str], options: MediaOptions, pool: ThreadPoolExecutor) -> dict[str, str]:
    """Return the versions that listings tell at less cost than asking for each."""
    buckets: dict[str, dict[str, str]] = defaultdict(dict)
    stores = {}
    for uri in uris:
        place = guard(uri, partial(_find_place, uri, options))
        if isinstance(place, Place):
            buckets[place.bucket][place.key] = uri
            stores[place.bucket] = place.store
    worth = [bucket for bucket, keys in buckets.items() if len(keys) >= WANTED_OF_PAGE_MIN]
    listings = pool.map(
        lambda bucket: guard(bucket, partial(list_versions, stores[bucket], sorted(buckets[bucket]))), worth
    )
    versions: dict[str, str] = {}
    for bucket, listing in zip(worth, listings, strict=True):
        if isinstance(listing, Mapping):  # one that may not be listed is asked for object by object
            versions.update((buckets[bucket][key], version) for key, version in listing.items())
    return versions


def _find_place(uri: str, options: MediaOptions) -> Place | None:
    if local_path(uri) is not None or is_web(uri):
        return None
    check_scheme(uri, options)
    return find_place(uri)
