"""Media: from the URI in a manifest to what goes on the wire.

`inspect` looks at a medium while manifests are read, `resolve` gives the sender its URL or data URI. Neither raises:
whatever is wrong with one medium, or with the storage that holds it, is a `Failure` for the rows that name it.
"""

from pipeline.media.checks import MediaInfo
from pipeline.media.fitting import Fit
from pipeline.media.inspection import inspect, inspect_many
from pipeline.media.locations import make_absolute
from pipeline.media.options import MediaOptions
from pipeline.media.resolution import resolve

__all__ = ["Fit", "MediaInfo", "MediaOptions", "inspect", "inspect_many", "make_absolute", "resolve"]
