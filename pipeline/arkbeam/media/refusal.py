"""The one exception of this room, and the border where storage's own exceptions end."""

from collections.abc import Callable
from typing import TypeVar

from arkbeam.base.records import Failure
from arkbeam.base.redaction import redact

Result = TypeVar("Result")


class Refusal(Exception):
    """A medium that can't be sent. It stays in this room: `guard` makes it a Failure."""

    def __init__(self, code: str, reason: str) -> None:
        """`code` is stable, for machines; `reason` says for people what was measured and what is allowed."""
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def guard(uri: str, work: Callable[[], Result]) -> Result | Failure:
    """Run `work` on a medium; a Refusal, and whatever storage raises, comes back as a Failure that names it."""
    try:
        return work()
    except Refusal as refusal:
        code, reason = refusal.code, refusal.reason
    except FileNotFoundError:
        code, reason = "media_missing", "there is no such file"
    except (IsADirectoryError, NotADirectoryError) as error:
        code, reason = "media_not_a_file", f"it is not a file: {error}"
    except Exception as error:  # noqa: BLE001 (each fsspec backend has errors of its own)
        code, reason = "media_unreadable", f"it can't be read: {type(error).__name__}: {error}"
    return Failure(code, f"{redact(uri, 200)}: {redact(reason, 250)}")
