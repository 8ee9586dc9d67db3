"""Media: from the URI in a manifest to what goes on the wire.

`inspect` looks at a medium while manifests are read, `resolve` gives the sender its URL or data URI. Neither raises:
whatever is wrong with one medium, or with the storage that holds it, is a `Failure` for the rows that name it.
"""

from pipeline.media.checks import MediaInfo
from pipeline.media.data_uris import encoded_length
from pipeline.media.fitting import Fit
from pipeline.media.identity import content_of
from pipeline.media.inspection import inspect
from pipeline.media.known import MediaMemory
from pipeline.media.locations import local_path, make_absolute, scheme_of
from pipeline.media.options import MediaOptions
from pipeline.media.resolution import fetch, resolve
from pipeline.media.survey import inspect_many

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
