"""Give up a row before anything is sent, with an exception that holds the failure to publish for it."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact


class BadRow(Exception):
    """A row, or a medium of one, that can't be sent.

    `RowParser.parse` and `media.files.guard` catch it and return its failure.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def fail_row(code: str, message: str) -> NoReturn:
    """Raise BadRow with this code; the message is redacted and bounded."""
    raise BadRow(Failure(code, redact(message)))


def fail_unknown_key(code: str, where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise BadRow if an object of a row has a field that is not in `known`.

    The message names the field and the known fields.
    """
    unknown = sorted(given.keys() - set(known))
    if unknown:
        fail_row(code, f"{where}.{unknown[0]} is not a known field; known are {', '.join(sorted(known))}")
