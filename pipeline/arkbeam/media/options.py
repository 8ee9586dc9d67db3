"""The `media:` section of the config: how media are read and sent, what may be read, and the limits of the API."""

from dataclasses import dataclass, field
from typing import Literal

from arkbeam.base.errors import ConfigError
from arkbeam.media.access import AccessRules, check_rules
from arkbeam.media.http_options import HttpOptions
from arkbeam.media.weburl import parse_allowed_hosts

SIGN_LIFETIME_S_MAX = 604_800  # the limit of S3's signature version 4, and of similar methods of other stores
SIGN_LIFETIME_S_MIN = 3_600  # a signed request may wait for the quota and be retried
RESIZE_PIXELS_MIN = 784  # the pixels of one token
SOURCE_PIXELS_MAX = 89_478_485  # above this, Pillow reports a decompression bomb


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How inlined images are changed so that the API accepts them. By default they are not changed.

    The change is chosen from an image's header while manifests are read. It is part of the fingerprint of the images
    that it changes, and of no others.
    """

    resize_max_pixels: int | None = None
    """Scale images with more pixels than this down to about this many, in proportion; unset: never. 1,028,608 (1,312
    tokens) loses nothing, because the service itself scales larger images down to that."""
    transcode: bool | Literal["jpeg", "png"] = False
    """Convert TIFF, SGI, ICNS, JPEG 2000, AVIF and HEIC (which needs the extra `heif`), CMYK, more than 8 bits a
    channel, images that EXIF rotates, and animations (their first image). `true`: to PNG if the image has transparency,
    else to JPEG; `jpeg` or `png`: always to that format; `false`: never."""
    source_bytes_max: int = 52_428_800
    """An image that will be scaled or converted must have fewer bytes than this."""
    source_pixels_max: int = 80_000_000
    """An image that will be scaled or converted may have at most this many pixels. It is decoded in memory; the images
    decoded at the same time in one process have at most 89,478,485 pixels together."""

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid limits."""
        if self.resize_max_pixels is not None and self.resize_max_pixels < RESIZE_PIXELS_MIN:
            raise ConfigError(
                f"media.fit.resize_max_pixels is {self.resize_max_pixels}; it must be {RESIZE_PIXELS_MIN} or more"
            )
        if not 1 <= self.source_pixels_max <= SOURCE_PIXELS_MAX:
            raise ConfigError(
                f"media.fit.source_pixels_max is {self.source_pixels_max}; it must be from 1 to {SOURCE_PIXELS_MAX}"
            )

    @property
    def is_set(self) -> bool:
        """True if any image may be changed."""
        return self.resize_max_pixels is not None or self.transcode is not False


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """The `media:` section of the config. Limits are the API's (vendor's guide to multimodal embeddings)."""

    access: AccessRules = field(default_factory=dict, hash=False)
    """How media get to the service, by scheme, or by `image` and `video` below a scheme. `pass`: the service fetches
    the URL; `inline`: the medium is read here and sent as base64; `sign`: the service fetches a signed URL. Default:
    `pass` for http and https, `sign` for tos, `inline` for everything else."""
    allowed_hosts: tuple[str, ...] = ()
    """What may be read even if its address is private: a host (every port of it), `host:port`, or a network
    (`10.0.0.0/8`: every host with an address in it). A host is a name, or the address that is written in the URLs."""
    sign_lifetime_s: int = SIGN_LIFETIME_S_MAX
    """Seconds until a signed URL expires, from 3,600 to 604,800 (7 days, the maximum of object stores)."""
    http_timeout_s: float = 30.0
    """Time limit for reading an http(s) medium here, in seconds, with all redirects and retries. Waiting for a turn, or
    as the server asks, does not count (`media.http`)."""
    http: HttpOptions = field(default_factory=HttpOptions)
    """How web servers are asked for media that are read here."""
    allowed_roots: tuple[str, ...] = ()
    """Folders below which local files may be read, after symbolic links are resolved. Default: the folders of the
    manifests."""
    schemes: tuple[str, ...] = ("memory", "s3", "s3a", "gs", "gcs", "tos", "oss", "abfs", "abfss", "az", "hdfs")
    """Schemes of the object stores that manifests may name. Objects are read with the credentials of the process."""
    image_bytes_max: int = 10_000_000
    """An image must have fewer bytes than this. (The API's limit is 10 MB; the stricter reading of MB is used.)"""
    video_bytes_max: int = 52_428_800
    """A video may have at most this many bytes (50 MiB)."""
    body_bytes_max: int = 64_000_000
    """A request body may have at most this many bytes. Inlined media count as base64, 4/3 of their bytes."""
    side_px_min: int = 15
    """An image must have at least this width and height in pixels."""
    pixels_max: int = 36_000_000
    """An image must have fewer pixels (width times height) than this."""
    url_chars_max: int = 8_192
    """An http(s) URL or a local path may have at most this many characters."""
    url_ignore_params: tuple[str, ...] = ()
    """Names of query parameters that sign your site's URLs and do not change what they point at. They are left out of
    the fingerprint, in addition to those of the known schemes, so that a URL that is signed again is not bought again;
    their values are masked. Two URLs that differ only in these parameters get one vector."""
    header_bytes: int = 64 * 1024
    """Number of bytes that are read from the start of a medium to find its format and size."""
    look_s: float = 5.0
    """Most seconds of CPU time to look at one medium: to read its header, or to decode it where only this tells if it is
    complete. To change an image (`fit`), a second more for every 2 million pixels. Above it, the row fails with
    `media_too_slow`."""
    threads: int = 64
    """Maximum number of media that are inspected at the same time while manifests are read."""
    identity: Literal["uri_version", "content"] = "uri_version"
    """Which media that are read here count as the same. `uri_version`: those with the same URI and etag (size and
    modification time if there is no etag). `content`: those with the same bytes, so that one image under two names is
    embedded once; all bytes are then read while planning."""
    fit: FitOptions = FitOptions()
    """How images are changed so that the API accepts them."""

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible access rules and invalid limits."""
        check_rules(self.access, self.schemes)
        parse_allowed_hosts(self.allowed_hosts)
        if not SIGN_LIFETIME_S_MIN <= self.sign_lifetime_s <= SIGN_LIFETIME_S_MAX:
            raise ConfigError(
                f"media.sign_lifetime_s is {self.sign_lifetime_s};"
                f" it must be between {SIGN_LIFETIME_S_MIN} and {SIGN_LIFETIME_S_MAX}"
            )
        for name in self.url_ignore_params:
            if not name or set(name) & set("?&#= "):
                raise ConfigError(f"media.url_ignore_params: {name!r} can't be the name of a query parameter")
        if not self.look_s > 0:
            raise ConfigError(f"media.look_s is {self.look_s}; it must be above 0")
        if not self.http_timeout_s > 0:
            raise ConfigError(f"media.http_timeout_s is {self.http_timeout_s}; it must be above 0")
