"""Refuse a row before anything is sent, with an exception that contains the failure that is published for the row."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact


class RowRefused(Exception):
    """A row, or a medium of one, that can't be sent.

    `RowParser.parse` and `media.files.guard` catch it and return its failure.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def refuse(code: str, message: str) -> NoReturn:
    """Raise RowRefused with this code; the message is redacted and bounded."""
    raise RowRefused(Failure(code, redact(message)))


def refuse_unknown(code: str, where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise RowRefused if an object of a row has a field that is not in `known`.

    The message names the field and the known fields.
    """
    unknown = sorted(given.keys() - set(known))
    if unknown:
        refuse(code, f"{where}.{unknown[0]} is not a known field; known are {', '.join(sorted(known))}")
