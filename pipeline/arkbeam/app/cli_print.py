"""What commands print: results on stdout, notes on stderr; for people as lines, for programs as JSON."""

from typing import Any

import orjson
from rich.console import Console

out, err = Console(), Console(stderr=True)


def print_line(text: str) -> None:
    """Print one line of the result: no wrapping, no markup, no control characters."""
    _print(out, text)


def note(text: str) -> None:
    """Print one line to stderr, as `print_line` does."""
    _print(err, text)


def plain(text: str) -> str:
    """Replace control characters, which a terminal may take for a command."""
    return "".join(character if character.isprintable() else "�" for character in text)


def print_json(document: Any) -> None:
    """Print a document as JSON. Values that JSON lacks become strings."""
    print(orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode())


def _print(console: Console, text: str) -> None:
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)
