"""What media may be: sizes, places, and how many are looked at together."""

from dataclasses import dataclass, field
from typing import Literal

from arkbeam.base.errors import ConfigError
from arkbeam.media.access import AccessRules, check_rules

SIGN_LIFETIME_S_MAX = 604_800  # of S3's signature version 4, and of those made like it
SIGN_LIFETIME_S_MIN = 3_600  # a signed request may wait for the quota, and be tried again
RESIZE_PIXELS_MIN = 784  # one token's worth
SOURCE_PIXELS_MAX = 89_478_485  # above it Pillow takes a file for a decompression bomb


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What is done to images that are inlined, so that the API takes them. Nothing, unless it is asked for.

    A choice is made by a picture's header when manifests are read; it is part of the fingerprint of those pictures alone
    that it changes.
    """

    resize_max_pixels: int | None = None
    """Images of more pixels are scaled down to about so many, sides in proportion. 1,028,608 (1,312 tokens)
    loses nothing: the service scales what is larger down itself."""
    transcode: bool | Literal["jpeg", "png"] = False
    """Make JPEG, or PNG where there is transparency, of TIFF, SGI, ICNS, JPEG 2000, AVIF and HEIC (that one with the
    extra `heif`), of CMYK, of more than 8 bits a channel, of what is rotated by EXIF, and of the first picture of an
    animation; `jpeg` or `png`: always that."""
    source_bytes_max: int = 52_428_800
    """An image that is to be changed may have so many bytes before."""
    source_pixels_max: int = 80_000_000
    """And so many pixels: it is unpacked in memory, at most so many pixels of all images at once."""

    def __post_init__(self) -> None:
        """Refuse bounds within which nothing could be done."""
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
        """Whether anything may be changed at all."""
        return self.resize_max_pixels is not None or self.transcode is not False


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """The `media:` section of the config. Limits are the API's (vendor's guide to multimodal embeddings)."""

    access: AccessRules = field(default_factory=dict, hash=False)
    """What is done with media, by scheme, and by `image` and `video` below it: `pass`, `inline` or `sign`; see below."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that are read although they have a private address, by the name in the URL."""
    sign_lifetime_s: int = SIGN_LIFETIME_S_MAX
    """How long a signed URL holds; 7 days are the most that object stores take."""
    http_timeout_s: float = 30.0
    """Longest wait for an http(s) medium that is read here, redirects included."""
    allowed_roots: tuple[str, ...] = ()
    """Folders below which local files may be read, symbolic links resolved; none: the
    folders of the manifests."""
    schemes: tuple[str, ...] = ("memory", "s3", "s3a", "gs", "gcs", "tos", "oss", "abfs", "abfss", "az", "hdfs")
    """Object stores that a manifest may name, read with the credentials of the process."""
    image_bytes_max: int = 10_000_000
    """An image must be smaller than this; MB are read as the stricter ones."""
    video_bytes_max: int = 52_428_800
    """A video may be this large (50 MiB), not larger."""
    body_bytes_max: int = 64_000_000
    """Largest request body; an inlined medium must fit in it as base64, which is a third longer than the bytes."""
    side_px_min: int = 15
    """Smallest width and height of an image."""
    pixels_max: int = 36_000_000
    """Width times height of an image must be smaller than this."""
    url_chars_max: int = 8_192
    """Longest http(s) URL and longest path."""
    header_bytes: int = 64 * 1024
    """Bytes read from the start of a medium to tell what it is."""
    threads: int = 64
    """Media looked at together while manifests are read."""
    identity: Literal["uri_version", "content"] = "uri_version"
    """What makes two media that are read here the same: `uri_version`, name and etag (or size and time of change);
    `content`, their bytes, so that one picture under two names is bought once, and all bytes are read while planning."""
    fit: FitOptions = FitOptions()
    """What may be changed about images."""

    def __post_init__(self) -> None:
        """Refuse what can't be done for a scheme, and a lifetime that no store would sign for."""
        check_rules(self.access, self.schemes)
        if not SIGN_LIFETIME_S_MIN <= self.sign_lifetime_s <= SIGN_LIFETIME_S_MAX:
            raise ConfigError(
                f"media.sign_lifetime_s is {self.sign_lifetime_s};"
                f" it must be between {SIGN_LIFETIME_S_MIN} and {SIGN_LIFETIME_S_MAX}"
            )
        if not self.http_timeout_s > 0:
            raise ConfigError(f"media.http_timeout_s is {self.http_timeout_s}; it must be above 0")
