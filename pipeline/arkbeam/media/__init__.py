"""Media: from the URI in a manifest to what goes on the wire.

`inspect` looks at a medium while manifests are read, `resolve` gives the sender its URL or data URI. Neither raises:
whatever is wrong with one medium, or with the storage that holds it, is a `Failure` for the rows that name it.
"""

from arkbeam.media.cache import MediaMemory
from arkbeam.media.checks import MediaInfo
from arkbeam.media.data_uris import encoded_length
from arkbeam.media.fitting import Fit
from arkbeam.media.identity import content_of
from arkbeam.media.inspection import inspect
from arkbeam.media.load import fetch, resolve
from arkbeam.media.lookup import inspect_many
from arkbeam.media.options import MediaOptions
from arkbeam.media.uris import local_path, make_absolute, scheme_of

__all__ = [
    "Fit",
    "MediaInfo",
    "MediaMemory",
    "MediaOptions",
    "content_of",
    "encoded_length",
    "fetch",
    "inspect",
    "inspect_many",
    "local_path",
    "make_absolute",
    "resolve",
    "scheme_of",
]
