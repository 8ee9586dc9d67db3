"""Media: from the URI in a manifest to what is sent for it.

`inspect` and `inspect_many` look at media while manifests are read; `load_medium` gives the sender a URL or the bytes. They
do not raise: whatever is wrong with a medium, or with the storage that holds it, is a `Failure` of the rows that name it.
"""

from arkbeam.media.cache import MediaCache
from arkbeam.media.checks import MediaInfo
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import content_of
from arkbeam.media.inspection import inspect, inspect_many
from arkbeam.media.load import load_medium
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import encoded_length, is_below, local_path, make_absolute

__all__ = [
    "Fit",
    "MediaCache",
    "MediaInfo",
    "MediaOptions",
    "content_of",
    "encoded_length",
    "inspect",
    "inspect_many",
    "is_below",
    "load_medium",
    "local_path",
    "make_absolute",
]
