"""What the command line says on stderr: plain lines, JSON lines, or only warnings and errors."""

import logging
import sys
import time
import traceback
from dataclasses import dataclass
from enum import StrEnum
from typing import IO, Any, Literal

import orjson
from rich.console import Console

from arkbeam.base.redaction import redact

LOG_CHARS_MAX = 4_000
TEXT_FORMAT = "%(levelname)s %(name)s: %(message)s"


class LogForm(StrEnum):
    """The form of messages, warnings and progress on stderr."""

    TEXT = "text"
    JSON = "json"


Level = Literal["info", "note", "warning", "error"]


@dataclass(slots=True)
class Messages:
    """How this process talks; set once by the options of a command."""

    form: LogForm = LogForm.TEXT
    quiet: bool = False

    def say(self, console: Console, text: str, level: Level = "info", **fields: Any) -> None:
        """Print one line as it is, without wrapping and markup; without effect if it is no warning and `quiet` is set.

        `fields` are further fields of the line in JSON.
        """
        if self.quiet and level not in ("warning", "error"):
            return
        if self.form is LogForm.JSON:
            _write_json(console.file, level, text, fields)
            return
        shown = f"{level}: {text}" if level in ("note", "warning") else text
        console.print(shown, markup=False, highlight=False, soft_wrap=True)

    def set(self, form: LogForm, *, quiet: bool) -> None:
        """Set the form of all messages, also of those that the modules log."""
        self.form, self.quiet = form, quiet
        formatter = _JsonFormatter() if form is LogForm.JSON else logging.Formatter(TEXT_FORMAT)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                handler.setFormatter(formatter)


def write_event(file: IO[str], event: str, fields: dict[str, Any]) -> None:
    """Write one JSON line: the event, the time and the fields."""
    line = orjson.dumps({"event": event, "time": round(time.time(), 3), **fields})
    print(line.decode(), file=file, flush=True)


def redact_record(record: logging.LogRecord) -> bool:
    """Mask secrets in a record: libraries log URLs, and exceptions that quote URLs."""
    record.msg, record.args = redact(record.getMessage(), LOG_CHARS_MAX), ()
    if record.exc_info and not record.exc_text:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        record.exc_text = "\n".join(redact(line, LOG_CHARS_MAX) for line in text.splitlines())
    return True


def _write_json(file: IO[str], level: str, text: str, fields: dict[str, Any]) -> None:
    write_event(file, "message", {"level": level, "message": text, **fields})


class _JsonFormatter(logging.Formatter):
    """Formats a record as a JSON line. `redact_record` has masked its texts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document = {
            "event": "log",
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_text:
            document["traceback"] = record.exc_text
        return orjson.dumps(document).decode()
