"""What media may be: sizes, places, and how many are looked at together."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """The `media:` section of the config. Limits are the API's (vendor's guide to multimodal embeddings)."""

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
    threads: int = 32
    """Media looked at together while manifests are read."""
