"""Every error that this package raises on purpose.

    ArkbeamError
    ├── ConfigError      the config or the command line is wrong          exit 2
    ├── ManifestError    a manifest is missing, empty or unreadable       exit 2
    ├── OutputInUse      another run holds the output                     exit 6
    ├── StoreError       the store or the output can't be read or written exit 1
    └── ApiError         one call to the service failed (`ark.errors`); it never leaves the Embed stage:
                         it becomes another attempt, a failure row, or a stopped run

A message says what is wrong and what to do, holds no secret, and is the exception's only argument, so that every one of
them survives pickling.
"""


class ArkbeamError(Exception):
    """The root: whoever catches it has caught all that we raise on purpose."""

    exit_code = 1


class ConfigError(ArkbeamError):
    """The config or the command line asks for something that can't be."""

    exit_code = 2


class ManifestError(ArkbeamError):
    """A manifest as a whole can't be read. A single bad row is a failure row instead."""

    exit_code = 2


class OutputInUse(ArkbeamError):
    """Another run is writing to the same output."""

    exit_code = 6


class StoreError(ArkbeamError):
    """The store or the output can't be read or written."""
