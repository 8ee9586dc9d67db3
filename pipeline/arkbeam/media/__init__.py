"""Turn the URI of an image or a video in a manifest into what is sent for it.

`inspect` and `inspect_many` check media while manifests are read; `load_medium` returns the URL or the bytes to send.
They do not raise for a medium that can't be used or read: they return a `Failure` for the rows that name it.
"""

from arkbeam.media.cache import MediaCache
from arkbeam.media.checks import MediaInfo
from arkbeam.media.data_uri import make_data_uri
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import content_of
from arkbeam.media.inspection import inspect, inspect_many
from arkbeam.media.kinds import detect_kind
from arkbeam.media.load import load_medium
from arkbeam.media.memory import reading
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import encoded_length, is_below, local_path, make_absolute

__all__ = [
    "Fit",
    "MediaCache",
    "MediaInfo",
    "MediaOptions",
    "content_of",
    "detect_kind",
    "encoded_length",
    "inspect",
    "inspect_many",
    "is_below",
    "load_medium",
    "local_path",
    "make_absolute",
    "make_data_uri",
    "reading",
]
