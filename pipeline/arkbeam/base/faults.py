"""Named faults: places in the code where a test can make storage fail, or this process die.

Production code calls `faults.hit("store.flush")`, a function that does nothing. Only where the environment variable
`ARKBEAM_FAULTS` is set when this module is first imported is `arkbeam.base.fault_injection` loaded, which says how to write it.
"""

import os
from typing import Protocol

VARIABLE = "ARKBEAM_FAULTS"


class Hit(Protocol):
    """Says that a named point was reached; `path` is the file that it is about."""

    def __call__(self, point: str, path: str = "") -> None:
        """Do nothing, or what is wanted at this point."""


def do_nothing(point: str, path: str = "") -> None:
    """What a hit does in production."""


def _load() -> Hit:
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return do_nothing
    from arkbeam.base.fault_injection import Injector  # noqa: PLC0415 - not in production

    return Injector.parse(wanted).hit


hit: Hit = _load()
