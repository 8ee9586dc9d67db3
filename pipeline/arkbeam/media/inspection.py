"""Inspect media before anything is paid for: check that they exist, and check their format and size.

For a medium that an earlier run inspected, only the version is requested, alone or with others in a listing; the cache
entry is used if the version is the same. Of other media, the first bytes are read.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from arkbeam.base.bad_rows import fail_row
from arkbeam.base.errors import ArkbeamError
from arkbeam.base.records import Failure, Modality
from arkbeam.decoding.workers import Interrupted, is_stopped
from arkbeam.media.access import Access, check_passed, check_signed, find_access
from arkbeam.media.cache import Entry, MediaCache, key_of, rules_of
from arkbeam.media.checks import MediaInfo, examine, readable_bytes_max
from arkbeam.media.data_uri import decode_data_uri, is_data_uri
from arkbeam.media.files import guard, read_head, read_range, read_version
from arkbeam.media.identity import content_version, digest_of, storage_part
from arkbeam.media.kinds import detect_kind
from arkbeam.media.memory import reading
from arkbeam.media.options import MediaOptions
from arkbeam.media.s3 import WANTED_OF_PAGE_MIN, S3Object, find_object, list_versions
from arkbeam.media.uris import check_scheme, is_web, local_path

Wanted = tuple[str, Modality]
Look = MediaInfo | Failure


def inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo | Failure:
    """Inspect one medium: check the text of a URL that is sent unchanged, and the first bytes of other media.

    `uri` must be absolute (see `make_absolute`).

    Codes of failures: `media_bad_uri`, `media_bad_data_uri`, `media_mime` (the declared type is not that of the bytes),
    `media_forbidden`, `media_missing`, `media_not_a_file`, `media_unreadable`, `media_changed`, `media_empty`,
    `media_not_image`, `media_not_video`, `media_encrypted`, `media_damaged` (its header can't be read),
    `media_too_slow` (looking at it), `media_unfit` (it can't be changed to what is right), `media_truncated`,
    `media_too_large` (bytes), `media_body_too_large` (bytes as base64), `media_too_small` (a side),
    `media_too_many_pixels`, `media_extension` (the service would take it for another format), and those of
    `media.http`.
    """
    return guard(uri, partial(_inspect, uri, modality, options))


def _inspect(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo:
    if is_data_uri(uri):
        return _inspect_data_uri(uri, modality, options)
    access = find_access(uri, modality, options.access)
    if access is Access.PASS:
        check_passed(uri, modality, options.url_chars_max, options.allowed_hosts)
        return MediaInfo()
    whole_max = max(readable_bytes_max(modality, options), options.header_bytes)
    medium = read_head(uri, options.header_bytes, options, whole_max)
    inlined = access is Access.INLINE
    info = examine(medium.head, medium.size, modality, options, partial(_read_part, uri, options), inlined=inlined)
    if info is None:
        # The size may come after the first bytes (TIFF, JPEG with long metadata): read the whole image.
        with reading.take(2 * medium.size):  # a worker process may hold it as well
            medium = read_head(uri, readable_bytes_max(modality, options), options, whole_max)
            read = partial(_read_part, uri, options)
            info = examine(medium.head, medium.size, modality, options, read, inlined=inlined)
    if info is None:
        fail_row("media_damaged", "the header can't be read")
    if access is Access.SIGN:
        check_signed(uri, modality, info.mime or "")
    return replace(info, version=medium.version)


def _read_part(uri: str, options: MediaOptions, start: int, end: int) -> bytes:
    return read_range(uri, start, end, options)


def _inspect_data_uri(uri: str, modality: Modality, options: MediaOptions) -> MediaInfo:
    mime, data = decode_data_uri(uri)
    info = examine(data, len(data), modality, options, lambda start, end: data[start:end])
    if info is None:
        fail_row("media_damaged", "the header can't be read")
    kind = detect_kind(data)
    if kind is not None and mime not in (kind.mime, *kind.also_named):
        fail_row("media_mime", f"the data URI declares {mime}, but the bytes are {kind.mime}")
    if options.identity == "content":  # the same identity as a file with these bytes
        info = replace(info, version=content_version(digest_of(data), ""))
    if info.fit is not None:
        return info
    if len(uri) > options.body_bytes_max:
        fail_row(
            "media_body_too_large",
            f"the data URI has {len(uri)} bytes; a request may have at most {options.body_bytes_max}",
        )
    return replace(info, mime=mime, wire_bytes=len(uri))


def inspect_many(
    wanted: Collection[Wanted],
    options: MediaOptions,
    cache: MediaCache | None = None,
) -> dict[Wanted, Look]:
    """Inspect many media, `options.threads` at the same time; URLs that are sent unchanged need no thread.

    If `cache` has an entry for a medium, only the medium's version is read. New results are added to `cache`. Raise
    ArkbeamError after `decoding.workers.stop`.
    """
    looks: dict[Wanted, Look] = {}
    stored: list[Wanted] = []
    for uri, modality in wanted:
        if find_access(uri, modality, options.access) is Access.PASS:
            looks[uri, modality] = inspect(uri, modality, options)
        else:
            stored.append((uri, modality))
    if not stored:
        return looks
    rules = rules_of(options)
    keys = {one: key_of(*one, rules) for one in stored}
    with ThreadPoolExecutor(min(options.threads, len(stored))) as pool:
        try:
            if cache is not None:
                looks.update(_confirm(stored, cache.load().find(list(keys.values())), options, pool))
            new = _spread([one for one in stored if one not in looks])
            looks.update(
                zip(new, pool.map(lambda one: _inspect_unless_stopped(one[0], one[1], options), new), strict=True)
            )
        except Interrupted:
            pool.shutdown(wait=False, cancel_futures=True)
            raise ArkbeamError("interrupted while media were looked at") from None
    if cache is not None:
        found = ((keys[one], looks[one]) for one in new)
        cache.add(
            {
                key: (storage_part(look.version), look)
                for key, look in found
                if isinstance(look, MediaInfo) and look.version is not None
            }
        )
    return looks


def _spread(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Order media so that the hosts take turns: few requests run at one host at the same time (`media.http.per_host`)."""
    seen: Counter[str] = Counter()
    ranked = []
    for one in wanted:
        host = one[0].split("/", 3)[2] if is_web(one[0]) else ""
        ranked.append((seen[host] if host else 0, one))
        seen[host] += 1
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def _inspect_unless_stopped(uri: str, modality: Modality, options: MediaOptions) -> Look:
    if is_stopped():
        raise Interrupted
    return inspect(uri, modality, options)


def _confirm(
    stored: Sequence[Wanted], entries: Sequence[Entry | None], options: MediaOptions, pool: ThreadPoolExecutor
) -> dict[Wanted, MediaInfo]:
    """Return the cached results of those media whose storage still reports the cached version."""
    known = {one: entry for one, entry in zip(stored, entries, strict=True) if entry is not None}
    if not known:
        return {}
    uris = list(dict.fromkeys(uri for uri, _ in known))
    versions = _list_buckets(uris, options, pool)
    rest = [uri for uri in uris if uri not in versions]
    reported = pool.map(lambda uri: guard(uri, partial(read_version, uri, options)), rest)
    versions.update((uri, version) for uri, version in zip(rest, reported, strict=True) if isinstance(version, str))
    return {one: info for one, (version, info) in known.items() if versions.get(one[0]) == version}


def _list_buckets(uris: Sequence[str], options: MediaOptions, pool: ThreadPoolExecutor) -> dict[str, str]:
    """Return the versions of those S3 objects for which a listing is cheaper than one request each."""
    buckets: dict[str, dict[str, str]] = defaultdict(dict)
    stores = {}
    for uri in uris:
        target = guard(uri, partial(_find_object, uri, options))
        if isinstance(target, S3Object):
            buckets[target.bucket][target.key] = uri
            stores[target.bucket] = target.store
    worth = [bucket for bucket, keys in buckets.items() if len(keys) >= WANTED_OF_PAGE_MIN]
    listings = pool.map(
        lambda bucket: guard(bucket, partial(list_versions, stores[bucket], sorted(buckets[bucket]))), worth
    )
    versions: dict[str, str] = {}
    for bucket, listing in zip(worth, listings, strict=True):
        if isinstance(listing, Mapping):  # otherwise listing failed, and its objects are requested one by one
            versions.update((buckets[bucket][key], version) for key, version in listing.items())
    return versions


def _find_object(uri: str, options: MediaOptions) -> S3Object | None:
    if local_path(uri) is not None or is_web(uri):
        return None
    check_scheme(uri, options.schemes)
    return find_object(uri)
