"""Read S3 objects with obstore, if it is installed: one request returns bytes, size and etag of one state.

A request takes a twentieth of the CPU time that it takes with s3fs, and requests do not share one thread. The settings
for s3fs apply here too. Buckets whose settings can't be translated, and keys that obstore can't name, are read with
fsspec.

Only S3 and stores with its API are read this way, because there both libraries report the same etag. For GCS, they
report different etags: an image would be embedded again if a package was installed or removed.

Reading raises what obstore raises; FileNotFoundError if the object does not exist.
"""

import io
import posixpath
import re
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import fsspec

from arkbeam.media.identity import MediumBlocks, MediumRead, storage_version

try:
    import botocore.config
    import botocore.session
    import obstore as _library
    from obstore.store import S3Store
except ImportError:  # without the extra `s3`, or with s3fs alone
    _library = None  # type: ignore[assignment]

obstore: Any = _library
_SCHEMES = ("s3", "s3a")
_CREDENTIALS_TTL = timedelta(minutes=10)
_TIMEOUTS = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=5)}
_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(minutes=2)}
_STORES_MAX = 256
_AWS_HOST = re.compile(r"s3(\.[a-z0-9-]+)?\.amazonaws\.com")
# Settings of s3fs: those that are translated here, and those that concern only caches and uploads.
_SESSION = {"profile"}
_CLIENT = {"endpoint_url", "use_ssl"}
_SECRETS = {"key": "aws_access_key_id", "secret": "aws_secret_access_key", "token": "aws_session_token"}
_SECRETS_ALSO = {"username": "aws_access_key_id", "password": "aws_secret_access_key"}
_WITHOUT_EFFECT = {
    "default_block_size", "default_fill_cache", "default_cache_type", "cache_regions", "max_concurrency",
    "fixed_upload_size", "use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache",
}  # fmt: skip
_CLIENT_KWARGS = {"endpoint_url", "region_name", "use_ssl", *_SECRETS.values()}

_BLOCK_BYTES = 1024 * 1024
_PAGE_KEYS = 1000  # the most keys that S3 lists in one request
# A page is listed only if at least so many of its keys are wanted: a listing takes as much time as 32 parallel requests
# for single objects, and costs as much as twelve of them.
WANTED_OF_PAGE_MIN = 32


@dataclass(frozen=True, slots=True)
class S3Object:
    """An object: its bucket, obstore's store of the bucket, and its key."""

    store: Any
    bucket: str
    key: str


def find_object(uri: str) -> S3Object | None:
    """Return the object of an `s3://` URI, or None if it must be read with fsspec."""
    scheme, separator, rest = uri.partition("://")
    if obstore is None or not separator or scheme.lower() not in _SCHEMES:
        return None
    bucket, _, key = rest.partition("/")
    if not bucket or not _is_plain(key):
        return None
    store = _stores.get(bucket)
    return None if store is None else S3Object(store, bucket, key)


def _is_plain(key: str) -> bool:
    """Return True if obstore reads exactly this key.

    obstore strips slashes at both ends, and refuses empty and dot segments.
    """
    if "?versionId=" in key or not key.isprintable():
        return False
    return not any(segment in ("", ".", "..") for segment in key.split("/"))


def read_object(target: S3Object, start: int, end: int) -> MediumRead:
    """Read the bytes from `start` to `end` (exclusive), fewer if the object ends before."""
    opened = open_object(target, start, end)
    if opened.expected <= _BLOCK_BYTES:
        return MediumRead(b"".join(opened.blocks), opened.size, opened.version)
    whole = io.BytesIO()  # returns its buffer without a copy
    for block in opened.blocks:
        whole.write(block)
    return MediumRead(whole.getvalue(), opened.size, opened.version)


def open_object(target: S3Object, start: int, end: int) -> MediumBlocks:
    """Start reading the bytes from `start` to `end`. Size and version are known at once; the bytes come in blocks."""
    try:
        answer = obstore.get(target.store, target.key, options={"range": (start, end)})
    except obstore.exceptions.BaseError:
        size, version = head_object(target)  # a range in an empty object is an error
        if start < size:
            raise
        return MediumBlocks(iter(()), 0, size, version)
    low, high = answer.range
    meta = answer.meta
    is_small = high - low <= _BLOCK_BYTES  # one call for all bytes takes less CPU time than a stream
    blocks = iter((answer.bytes(),)) if is_small else iter(answer.stream(min_chunk_size=_BLOCK_BYTES))
    return MediumBlocks(blocks, high - low, meta["size"], _version(meta))


def head_object(target: S3Object) -> tuple[int, str]:
    """Return the size and the version without reading the bytes."""
    meta = obstore.head(target.store, target.key)
    return meta["size"], _version(meta)


def list_versions(store: Any, wanted: Sequence[str]) -> dict[str, str]:
    """Return the versions of those `wanted` keys for which listing is cheap; the caller requests the others one by one.

    `wanted` is sorted, without duplicates. Each page starts at the next wanted key. Listing stops at the first page
    with too few wanted keys.
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
    """List one page of keys below a folder, from `first` on, with their versions."""
    before = first[:-1]  # the listing starts after this key
    for page in obstore.list(store, folder or None, offset=before or None, chunk_size=_PAGE_KEYS):
        return {meta["path"]: _version(meta) for meta in page}
    return {}


def _version(meta: Mapping[str, Any]) -> str:
    """Return the etag, in the form that s3fs reports; size and modification time if there is none."""
    tag = meta.get("e_tag")
    return storage_version(str(tag).strip('"')) if tag else f"{meta['size']}-{meta['last_modified']}"


class _Stores:
    """The stores of this process, one for each bucket, with the settings and the environment at its first use."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def get(self, bucket: str) -> Any:
        made = self._made.get(bucket, self)
        if made is not self:
            return made
        with self._lock:
            if bucket not in self._made:
                settings: dict[str, Any] = {}
                for scheme in _SCHEMES:
                    settings |= fsspec.config.conf.get(scheme, {})
                while len(self._made) >= _STORES_MAX:
                    self._made.pop(next(iter(self._made)))
                self._made[bucket] = _make_store(bucket, settings)
            return self._made[bucket]

    def clear(self) -> None:
        with self._lock:
            self._made.clear()


def forget_stores() -> None:
    """Drop all stores, so that changed settings apply."""
    _stores.clear()


def _make_store(bucket: str, settings: Mapping[str, Any]) -> Any:
    """Create the store of a bucket with the settings of s3fs; None if one of them can't be translated.

    botocore finds endpoint, region and credentials in the settings, the environment and its configuration files.
    """
    client = _make_client(settings)
    if client is None:
        return None
    credentials = client._request_signer._credentials
    anonymous = bool(settings.get("anon"))
    if credentials is None and not anonymous:
        return None
    options: dict[str, Any] = {
        "region": client.meta.region_name or "us-east-1",
        "request_payer": bool(settings.get("requester_pays")),
        "skip_signature": anonymous,
        "client_options": {**_TIMEOUTS, "allow_http": client.meta.endpoint_url.startswith("http://")},
        "retry_config": _RETRIES,
        "virtual_hosted_style_request": False,
        "endpoint": client.meta.endpoint_url,
    }
    if not anonymous:
        options["credential_provider"] = _Credentials(credentials)
    host = client.meta.endpoint_url.partition("://")[2]
    if _AWS_HOST.fullmatch(host):
        options["region"] = _find_region(client, bucket) or options["region"]
        options["endpoint"] = f"https://s3.{options['region']}.amazonaws.com"
    elif _addressing(settings) == "virtual":
        options["endpoint"] = client.meta.endpoint_url.replace(host, f"{bucket}.{host}")
        options["virtual_hosted_style_request"] = True
    return S3Store(bucket, **options)


def _make_client(settings: Mapping[str, Any]) -> Any:
    """Create botocore's client with the settings of s3fs; None if one of them can't be translated."""
    client_kwargs = dict(settings.get("client_kwargs") or {})
    config_kwargs = dict(settings.get("config_kwargs") or {})
    named = {"anon", "requester_pays", "client_kwargs", "config_kwargs", *_SESSION, *_CLIENT, *_SECRETS, *_SECRETS_ALSO}
    unknown = {name for name, value in settings.items() if value not in (None, False, {})} - named - _WITHOUT_EFFECT
    if unknown or set(client_kwargs) - _CLIENT_KWARGS or not _can_translate(config_kwargs):
        return None
    for name, argument in {**_SECRETS_ALSO, **_SECRETS, **{name: name for name in _CLIENT}}.items():
        if settings.get(name) is not None:
            client_kwargs.setdefault(argument, settings[name])
    session = botocore.session.Session(profile=settings.get("profile"))
    config = botocore.config.Config(**config_kwargs)
    if settings.get("anon"):
        config = config.merge(botocore.config.Config(signature_version=botocore.UNSIGNED))
    return session.create_client("s3", config=config, **client_kwargs)


def _can_translate(config_kwargs: Mapping[str, Any]) -> bool:
    """Return True if botocore's own settings can be translated.

    Those for pools, timeouts and retries may be ignored.
    """
    harmless = {"max_pool_connections", "connect_timeout", "read_timeout", "retries", "tcp_keepalive"}
    if set(config_kwargs) - harmless - {"s3", "signature_version", "region_name"}:
        return False
    return (
        set(config_kwargs.get("s3") or {}) <= {"addressing_style"}
        and config_kwargs.get("signature_version") in (None, "s3v4")
        and _addressing({"config_kwargs": config_kwargs}) in ("path", "virtual", "auto")
    )


def _addressing(settings: Mapping[str, Any]) -> str:
    config = settings.get("config_kwargs") or {}
    return str((config.get("s3") or {}).get("addressing_style") or "auto")


def _find_region(client: Any, bucket: str) -> str | None:
    """Ask AWS for the region of a bucket. The reply names it even if access is denied."""
    try:
        answer = client.head_bucket(Bucket=bucket)
    except botocore.exceptions.ClientError as error:
        answer = error.response
    except botocore.exceptions.BotoCoreError:
        return None
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region")
    return str(region) if region else None


class _Credentials:
    """botocore's credentials, which renew themselves, in the form that obstore needs."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials

    def __call__(self) -> dict[str, Any]:
        """Return the credentials that are valid now."""
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }


_stores = _Stores()
