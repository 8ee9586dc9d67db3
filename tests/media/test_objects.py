"""Media in S3: what both libraries report, which settings apply, and what a listing confirms."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from arkbeam.base.records import Failure, Inline, Modality
from arkbeam.media import MediaInfo, MediaOptions, inspect, inspect_many, load_medium
from arkbeam.media.access import Access
from arkbeam.media.cache import CachedMedia, media_table, merge
from arkbeam.media.files import read_for_sending, read_head, read_range, read_version
from arkbeam.media.s3 import WANTED_OF_PAGE_MIN, find_object, forget_stores, list_versions
from PIL import Image

from tests.s3 import BUCKET, S3

IMAGE = Modality.IMAGE
ODD_KEYS = [
    "a b/ü#%41+.png",
    "a%2Fb.png",
    "~x*'().png",
    "emoji😀.png",
    "x\\y.png",
    "q?id=1.png",
    "a|b^c.png",
    "a::b.png",
]
NOT_FOR_OBSTORE = ["a//b.png", "x/./y.png", "x/../y.png", "end/", "old.png?versionId=3"]


def picture(side: int = 20) -> bytes:
    """Return a small PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (side, 20)).save(stream, "PNG")
    return stream.getvalue()


class MemoryCache:
    """Cache entries, kept in this process."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Any] = {}

    def load(self) -> CachedMedia:
        """Return the entries so far."""
        return CachedMedia(media_table(self.entries))

    def add(self, entries: Any) -> None:
        """Add entries."""
        self.entries |= entries


@pytest.mark.parametrize("key", ODD_KEYS)
def test_both_libraries_tell_the_same_of_an_object(s3: S3, key: str, without_obstore: Callable[[], None]) -> None:
    """Bytes, size and version are equal whichever library is installed, so no image is embedded twice because of it."""
    uri, data = s3.put(key, picture()), picture()
    assert find_object(uri) is not None
    by_obstore = [read_head(uri, 10, MediaOptions()), read_for_sending(uri, 1_000_000, MediaOptions())]
    versions = {read_version(uri, MediaOptions())}
    without_obstore()
    assert find_object(uri) is None
    assert by_obstore == [read_head(uri, 10, MediaOptions()), read_for_sending(uri, 1_000_000, MediaOptions())]
    versions.add(read_version(uri, MediaOptions()))
    assert versions == {by_obstore[0].version}
    assert [found.head for found in by_obstore] == [data[:10], data]
    assert {found.size for found in by_obstore} == {len(data)}


def test_a_scheme_in_capitals_is_the_same_storage(s3: S3, without_obstore: Callable[[], None]) -> None:
    """`S3://` is read, versioned and signed as `s3://` is, whichever library is installed."""
    uri = s3.put("a::b.png", picture()).replace("s3://", "S3://")
    for _ in range(2):
        info = inspect(uri, IMAGE, MediaOptions())
        assert isinstance(info, MediaInfo)
        assert isinstance(load_medium(uri, IMAGE, info.version, MediaOptions()), Inline)
        signed = load_medium(uri, IMAGE, info.version, MediaOptions(access={"s3": Access.SIGN}))
        assert isinstance(signed, str)
        assert signed.partition("?")[0].endswith("/a%3A%3Ab.png")
        without_obstore()


@pytest.mark.parametrize("user", ["KEY:SECRET@", "KEY:SEC/RET@", "KEY%3ASECRET@", "SECRET@"])
@pytest.mark.parametrize("access", [Access.INLINE, Access.SIGN])
def test_credentials_in_a_uri_are_refused_before_any_call(
    user: str, access: Access, s3: S3, monkeypatch: pytest.MonkeyPatch, without_obstore: Callable[[], None]
) -> None:
    """The storage is not asked, and the message shows neither user nor password."""
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: pytest.fail("the storage was asked"))
    monkeypatch.setattr("arkbeam.media.files.find_object", lambda _: pytest.fail("the storage was asked"))
    options = MediaOptions(access={"s3": access})
    for scheme in ("s3", "S3", "s3a"):
        uri = f"{scheme}://{user}{BUCKET}/a.png"
        for outcome in (inspect(uri, IMAGE, options), load_medium(uri, IMAGE, "1", options)):
            assert isinstance(outcome, Failure)
            assert outcome.code == "media_bad_uri"
            assert not any(part in outcome.message for part in ("KEY", "SEC", "RET"))


@pytest.mark.parametrize("key", NOT_FOR_OBSTORE)
def test_a_key_that_obstore_would_take_for_another_is_left_to_fsspec(s3: S3, key: str) -> None:
    """Obstore strips slashes and rejects dot segments; such a key is left to fsspec, so it never reads another object."""
    assert find_object(s3.uri(key)) is None


def test_one_call_tells_everything(s3: S3, without_obstore: Callable[[], None]) -> None:
    """Ranges end at the end of the object, an empty object is not an error, and a missing one is `media_missing`."""
    uri = s3.put("a.bin", bytes(range(100)))
    empty = s3.put("empty.png", b"")
    for _ in range(2):
        assert read_range(uri, 90, 200, MediaOptions()) == bytes(range(90, 100))
        assert read_head(empty, 10, MediaOptions()).size == 0
        assert read_for_sending(empty, 10, MediaOptions()).head == b""
        missing = inspect(s3.uri("missing.png"), IMAGE, MediaOptions())
        assert isinstance(missing, Failure)
        assert missing.code == "media_missing"
        without_obstore()


def test_a_large_object_comes_whole(s3: S3) -> None:
    """An object longer than a block is read completely."""
    data = bytes(range(256)) * 20_000
    uri = s3.put("large.bin", data)
    assert read_for_sending(uri, len(data) + 1, MediaOptions()).head == data
    assert read_for_sending(uri, 3_000_000, MediaOptions()).head == data[:3_000_000]


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint_url": "{url}"},
        {"client_kwargs": {"endpoint_url": "{url}", "region_name": "eu-west-1"}},
        {"endpoint_url": "{url}", "key": "k", "secret": "s", "token": "t"},
        {"endpoint_url": "{url}", "anon": True},
        {"endpoint_url": "{url}", "config_kwargs": {"s3": {"addressing_style": "path"}, "max_pool_connections": 50}},
        {"endpoint_url": "{url}", "default_cache_type": "none", "requester_pays": True},
    ],
)
def test_settings_for_s3fs_hold(s3: S3, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's configuration for fsspec reaches the same server with obstore."""

    def fill(value: Any) -> Any:
        return (
            {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else s3.url if value == "{url}" else value
        )

    monkeypatch.setitem(fsspec.config.conf, "s3", fill(settings))
    forget_stores()
    uri = s3.put("a.png", picture())
    s3.client.put_object_acl(Bucket=BUCKET, Key="a.png", ACL="public-read")
    assert find_object(uri) is not None
    assert read_for_sending(uri, 1000, MediaOptions()).head == picture()


def test_the_endpoint_of_the_environment_holds(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL is used as botocore uses it."""
    monkeypatch.delitem(fsspec.config.conf, "s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    forget_stores()
    assert read_head(s3.put("a.png", picture()), 10, MediaOptions()).size == len(picture())


@pytest.mark.parametrize(
    "settings",
    [
        {"client_kwargs": {"verify": False}},
        {"config_kwargs": {"proxies": {"https": "http://proxy"}}},
        {"s3_additional_kwargs": {"SSECustomerKey": "x"}},
        {"version_aware": True},
    ],
)
def test_settings_that_are_not_understood_leave_the_bucket_to_fsspec(
    s3: S3, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that can't be translated is never ignored: s3fs reads the bucket."""
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3.url, **settings})
    forget_stores()
    assert find_object(s3.uri("a.png")) is None


def test_an_overwrite_is_seen_at_once(s3: S3, without_obstore: Callable[[], None]) -> None:
    """Neither library returns a cached etag, and newer bytes are not taken for older ones."""
    for _ in range(2):
        uri = s3.put("a.png", picture())
        info = inspect(uri, IMAGE, MediaOptions())
        assert isinstance(info, MediaInfo)
        s3.put("a.png", picture(30))
        changed = load_medium(uri, IMAGE, info.version, MediaOptions())
        assert isinstance(changed, Failure)
        assert changed.code == "media_changed"
        without_obstore()


def test_listing_finds_versions_and_leaps_over_gaps(s3: S3) -> None:
    """Listed versions equal those of reading. Sparse and missing keys are left to single requests."""
    dense = [f"a/{number:04d}.png" for number in range(60)]
    sparse = [f"b/{number:04d}.png" for number in range(WANTED_OF_PAGE_MIN - 2)]
    for key in (*dense, *sparse):
        s3.put(key, key.encode())
    target = find_object(s3.uri("x"))
    assert target is not None
    wanted = sorted([*dense, "a/0000-missing.png"])
    found = list_versions(target.store, wanted)
    assert found == {key: read_version(s3.uri(key), MediaOptions()) for key in dense}
    assert list_versions(target.store, sparse) == {}


def test_known_media_are_confirmed_and_not_read_for_sending(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second inspection reads versions only, plus the overwritten image and the new one."""
    uris = [s3.put(f"p/{number:03d}.png", picture(20 + number)) for number in range(WANTED_OF_PAGE_MIN + 8)]
    wanted, cache = [(uri, IMAGE) for uri in uris], MemoryCache()
    first = inspect_many(wanted, MediaOptions(), cache)
    assert first == inspect_many(wanted, MediaOptions())
    s3.put("p/003.png", picture(99))
    wanted.append((s3.put("p/new.png", picture()), IMAGE))
    looked: list[str] = []

    def look(uri: str, *rest: Any) -> Any:
        looked.append(uri)
        return inspect(uri, *rest)

    monkeypatch.setattr("arkbeam.media.inspection.inspect", look)
    second = inspect_many(wanted, MediaOptions(), cache)
    assert sorted(looked) == sorted([uris[3], s3.uri("p/new.png")])
    changed = second.pop(wanted[3])
    assert isinstance(changed, MediaInfo)
    assert changed.size_px == (99, 20)
    second.pop(wanted[-1])
    assert second == {one: look for one, look in first.items() if one != wanted[3]}


def test_what_is_known_holds_for_the_same_rules_alone(s3: S3, tmp_path: Path) -> None:
    """An image accepted under one limit is inspected again under another; local files are confirmed too."""
    local = tmp_path / "a.png"
    local.write_bytes(picture(40))
    options = MediaOptions(allowed_roots=(str(tmp_path),))
    wanted, cache = [(s3.put("a.png", picture(40)), IMAGE), (str(local), IMAGE)], MemoryCache()
    first = inspect_many(wanted, options, cache)
    assert inspect_many(wanted, options, cache) == first
    strict = MediaOptions(allowed_roots=(str(tmp_path),), side_px_min=30)
    assert all(isinstance(look, Failure) for look in inspect_many(wanted, strict, cache).values())
    forbidden = inspect_many(wanted, MediaOptions(schemes=()), cache)
    assert {look.code for look in forbidden.values() if isinstance(look, Failure)} == {"media_forbidden"}
    assert len(forbidden) == len(wanted)


def test_without_a_right_to_list_each_object_is_asked_for(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that fails costs time, but no row fails."""

    def deny(*_: object) -> None:
        raise PermissionError("AccessDenied")

    wanted = [(s3.put(f"p/{number}.png", picture()), IMAGE) for number in range(WANTED_OF_PAGE_MIN)]
    cache = MemoryCache()
    first = inspect_many(wanted, MediaOptions(), cache)
    monkeypatch.setattr("arkbeam.media.inspection.list_versions", deny)
    monkeypatch.setattr("arkbeam.media.inspection.inspect", deny)
    assert inspect_many(wanted, MediaOptions(), cache) == first


def test_the_newest_entry_of_a_key_counts() -> None:
    """Files are merged with the newest first; lookup returns the first entry, and None for unknown keys."""
    keys = [bytes([number]) * 16 for number in range(3)]
    old, new = MediaInfo("v1", "image/png", (20, 20), 1), MediaInfo("v2", "image/png", (30, 20), 2)
    tables = [media_table({keys[0]: ("v2", new)}), media_table({keys[0]: ("v1", old), keys[1]: ("v1", old)})]
    for table in (merge(tables), merge([merge(tables), tables[1]])):
        assert CachedMedia(table).find(keys) == [("v2", new), ("v1", old), None]


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
def test_bytes_make_the_identity_where_that_is_asked_for(
    s3: S3, modality: Modality, tmp_path: Path, without_obstore: Callable[[], None]
) -> None:
    """The version contains a hash of all bytes, whatever the storage and the library; the sender checks it."""
    film = (
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\0\0\0\x08moov"
        + (5_000_000).to_bytes(4, "big")
        + b"mdat"
        + bytes(4_999_992)
    )
    data = picture() if modality is IMAGE else film
    local = tmp_path / "a"
    local.write_bytes(data)
    fsspec.filesystem("memory").pipe_file("/identity/a", data)
    options = MediaOptions(allowed_roots=(str(tmp_path),), identity="content")
    uris = [s3.put("a", data), s3.put("b", data), str(local), "memory://identity/a"]
    infos = [inspect(uri, modality, options) for uri in uris]
    without_obstore()
    infos.append(inspect(uris[0], modality, options))
    hashes = {info.version.split(":")[1] for info in infos if isinstance(info, MediaInfo) and info.version}
    assert len(hashes) == 1
    version = infos[2].version if isinstance(infos[2], MediaInfo) else None
    local.touch()
    assert isinstance(load_medium(str(local), modality, version, options), Inline), "another time, the same bytes"
    local.write_bytes(data[:-1] + b"x")
    changed = load_medium(str(local), modality, version, options)
    assert isinstance(changed, Failure)
    assert changed.code == "media_changed"


def test_buckets_are_those_of_the_scheme(s3: S3) -> None:
    """Other schemes and a bucket without a key are not read with obstore."""
    assert find_object(f"s3a://{BUCKET}/a.png") is not None
    assert [find_object(uri) for uri in (f"gs://{BUCKET}/a.png", f"s3://{BUCKET}", "s3:///a.png", "a.png")] == [
        None
    ] * 4
