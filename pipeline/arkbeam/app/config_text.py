"""The text of a new config, with comments that say why each value is as it is."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arkbeam.app.schema import SCHEMA_NAME
from arkbeam.ark.models import MODEL_FAMILY, VERSIONS
from arkbeam.base.redaction import redact

DIMENSIONS = 1024
_COMMENT_CHARS = 110
_PLAIN = re.compile(r"[A-Za-z]\w*", re.ASCII)
_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # YAML takes these for other values


@dataclass(frozen=True, slots=True)
class Settings:
    """The values of a new config: of the section `manifest`, and the few others that differ between configs."""

    uris: Sequence[str]
    columns: Mapping[str, str | Sequence[str]]
    keep: Sequence[str]
    output_uri: str
    store_uri: str
    written: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `manifest:`, also `csv.delimiter` and the like."""
    allowed_roots: Sequence[str] = ()
    transcode: bool = False
    sparse: bool = False


def make_config(settings: Settings, reasons: Mapping[str, str], doubts: Sequence[str]) -> str:
    """Return the YAML of a config. `reasons` are by key; `doubts` are what a person should check."""
    lines = [
        f"# yaml-language-server: $schema=./{SCHEMA_NAME}",
        "# Written by `arkbeam init`. Paths are relative to the working directory.",
        *(f"# Please check: {_comment(doubt)}" for doubt in doubts),
        "",
        "manifest:",
        f"  uris: {_yaml(list(settings.uris))}",
        *_write_columns(settings.columns, reasons),
        f"  keep: {_yaml(list(settings.keep))}  # copied to the output",
        *_write_written(settings.written, reasons),
        "",
        "model:",
        f"  name: {MODEL_FAMILY}-{max(VERSIONS)}",
        f"  dimensions: {DIMENSIONS}  # or 2048",
        f"  sparse: {_yaml(settings.sparse)}  # a sparse vector as well, for rows of text alone",
        "  instructions: {scenario: corpus}  # the vendor's instructions for samples that are searched",
        "",
        "api:",
        "  api_key_env: ARK_API_KEY  # the name of the environment variable with the key, never the key",
        "  # base_url: emulator  # a local server that costs nothing; its vectors are not those of the model",
        "",
        "quota: {}  # rpm and tpm: the account's limits a minute; not set: those that the vendor lists",
        "",
        "limits:",
        "  failures_allowed: 1%  # with more failed rows, the exit code is 3",
        "",
        *_write_media(settings),
        "store:",
        f"  uri: {_yaml(settings.store_uri)}  # keep it: it holds every vector that was paid for",
        "",
        "output:",
        f"  uri: {_yaml(settings.output_uri)}",
    ]
    return "\n".join(lines) + "\n"


def _write_columns(columns: Mapping[str, str | Sequence[str]], reasons: Mapping[str, str]) -> Iterator[str]:
    if not columns:
        yield f"  # columns: not set, {_comment(reasons.get('body') or reasons.get('input') or 'the names of the fields decide')}"
        return
    yield "  columns:  # arkbeam's name: the name in the manifest"
    for key, names in columns.items():
        value = names if isinstance(names, str) else list(names) if len(names) != 1 else names[0]
        yield f"    {key}: {_yaml(value)}{_why(key, reasons)}"
    if "id" not in columns and "id" in reasons:
        yield f"    # id: {_comment(reasons['id'])}"


def _write_written(written: Mapping[str, Any], reasons: Mapping[str, str]) -> Iterator[str]:
    for key, value in written.items():
        if not key.startswith("csv."):
            yield f"  {key}: {_yaml(value)}{_why(key, reasons)}"
    csv = [(key, value) for key, value in written.items() if key.startswith("csv.")]
    if csv:
        yield "  csv:"
    for key, value in csv:
        yield f"    {key[4:]}: {_yaml(value)}{_why(key, reasons)}"


def _write_media(settings: Settings) -> list[str]:
    lines = []
    if settings.allowed_roots:
        lines.append(
            f"  allowed_roots: {_yaml(list(settings.allowed_roots))}  # local files are read below these alone"
        )
    if settings.transcode:
        lines.append("  fit: {transcode: true, resize_max_pixels: 1028608}  # some images can't be sent as they are")
    return ["media:", *lines, ""] if lines else []


def _why(key: str, reasons: Mapping[str, str]) -> str:
    return f"  # {_comment(reasons[key])}" if key in reasons else ""


def _comment(text: str) -> str:
    """Return a text for a comment: one line of printable characters."""
    return redact("".join(char if char.isprintable() else " " for char in text), _COMMENT_CHARS)


def _yaml(value: Any) -> str:
    """Return a value in YAML's flow style: as JSON, with plain names without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=not _is_printable(value))


def _is_printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()
