"""How a row is given up before anything is sent: an exception with the failure that is published for the row."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact


class RowRefused(Exception):
    """A row, or a medium of one, that can't be sent. `RowParser.parse` and `media.files.guard` return its failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def refuse(code: str, message: str) -> NoReturn:
    """Give the row up. The message is redacted and bounded. Raises RowRefused."""
    raise RowRefused(Failure(code, redact(message)))


def refuse_unknown(code: str, where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Give the row up if an object in it has an unknown field; the message names this field and the known ones.

    Raises RowRefused.
    """
    unknown = sorted(given.keys() - set(known))
    if unknown:
        refuse(code, f"{where}.{unknown[0]} is not known; there may be {', '.join(sorted(known))}")
