"""How a row is given up while it is read: an exception of this room that ends as a failure row."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact


class BadRow(Exception):
    """A row that asks for nothing that can be sent; `RowParser.parse` makes it a Failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def refuse(code: str, message: str) -> NoReturn:
    """Give the row up. The message is redacted and bounded. Raises BadRow."""
    raise BadRow(Failure(code, redact(message)))


def refuse_unknown(code: str, where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Give the row up if an object in it has a field that is not known; the message names both. Raises BadRow."""
    unknown = sorted(given.keys() - set(known))
    if unknown:
        refuse(code, f"{where}.{unknown[0]} is not known; there may be {', '.join(sorted(known))}")
