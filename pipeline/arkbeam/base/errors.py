"""The exceptions that can end a command, with its exit code, and their base class.

    ArkbeamError
    ├── ConfigError      the config or the command line is wrong          exit 2
    ├── ManifestError    a manifest is missing, empty or unreadable       exit 2
    ├── OutputInUse      another run holds the output                     exit 6
    ├── StoreError       the store or the output can't be read or written exit 1
    └── ApiError         one call to the service failed (`base.replies`). The Embed stage handles it: it tries again,
                         writes a failure row or stops the run

`BadRow` (`base.bad_rows`) is not here: it is always caught and becomes a failure row.

A message says what is wrong and what to do, and contains no secret. It is the exception's only argument, so that the
exceptions can be pickled. (ApiError has several fields and its own `__reduce__`.)
"""


class ArkbeamError(Exception):
    """Base class of the exceptions that can end a command. Raised itself if none of the others fits."""

    exit_code = 1


class ConfigError(ArkbeamError):
    """The config or the command line is wrong."""

    exit_code = 2


class ManifestError(ArkbeamError):
    """A whole manifest can't be read. A single bad row becomes a failure row instead."""

    exit_code = 2


class OutputInUse(ArkbeamError):
    """Another run is writing to the same output."""

    exit_code = 6


class StoreError(ArkbeamError):
    """The store or the output can't be read or written."""
