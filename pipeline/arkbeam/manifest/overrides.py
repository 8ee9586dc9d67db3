"""The settings that a row may have in addition to its parts: instructions, sparse, and the sampling of its videos.

They come from mapped columns or from fields of the row's body. Settings of the run (model, dimensions, encoding format,
per-token vectors) may be repeated in a body, but not changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from arkbeam.ark.models import SAMPLING_RANGES, find_sampling_flaw, make_sampling
from arkbeam.ark.wire import ModelSpec, encode_multi
from arkbeam.base.bad_rows import fail_row, fail_unknown_key
from arkbeam.base.capabilities import EncodingFormat
from arkbeam.base.records import VideoSampling
from arkbeam.manifest.batches import describe_type, is_utf8
from arkbeam.manifest.options import ColumnMap

BODY_FIELDS = (
    "model",
    "input",
    "encoding_format",
    "dimensions",
    "instructions",
    "sparse_embedding",
    "multi_embedding",
)
"""The fields that a body may have: those of the API."""

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Overrides:
    """The settings of one row; None: the run's setting applies."""

    instructions: str | None = None
    sparse: bool | None = None
    sampling: VideoSampling | None = None


NO_OVERRIDES = Overrides()


def read_override_columns(row: Mapping[str, Any], columns: ColumnMap) -> Overrides:
    """Read the mapped columns; an empty cell sets nothing. Raise BadRow (`bad_field`, `bad_json`)."""
    instructions = sparse = sampling = None
    if columns.instructions is not None:
        instructions = _read_instructions(f"column {columns.instructions}", _cell(row, columns.instructions))
    if columns.sparse is not None:
        sparse = _read_boolean(f"column {columns.sparse}", _cell(row, columns.sparse))
    if columns.video_sampling is not None:
        where = f"column {columns.video_sampling}"
        value = decode_cell(where, _cell(row, columns.video_sampling), "{")
        if value is not None and type(value) is not dict:
            names = ", ".join(SAMPLING_RANGES)
            fail_row("bad_field", f"{where} must hold an object with any of {names}; found {describe_type(value)}")
        sampling = None if value is None else read_sampling("bad_field", where, value)
    if instructions is None and sparse is None and sampling is None:
        return NO_OVERRIDES
    return Overrides(instructions, sparse, sampling)


def read_body_fields(body: Mapping[str, Any], columns: Overrides, model: ModelSpec) -> Overrides:
    """Check the fields of a body that belong to the run, and read those that belong to the row.

    The body's own settings take precedence over `columns`. Raise BadRow (`bad_field`) that names the field.
    """
    fail_unknown_key("bad_field", "body", body, BODY_FIELDS)
    _check_run_fields(body, model)
    instructions, sparse = columns.instructions, columns.sparse
    if "instructions" in body:
        instructions = _read_instructions("body.instructions", body["instructions"])
    if "sparse_embedding" in body:
        sparse = _read_sparse(body["sparse_embedding"])
    return Overrides(instructions, sparse, columns.sampling)


def read_sampling(code: str, where: str, given: Mapping[str, Any]) -> VideoSampling | None:
    """Read the sampling arguments of an object; nulls are ignored. Raise BadRow with `code` that names the argument."""
    values = {name: value for name, value in given.items() if value is not None}
    flaw = find_sampling_flaw(values)
    if flaw is not None:
        fail_row(code, f"{where}.{flaw}")
    return make_sampling(values)


def decode_cell(where: str, value: Any, bracket: str) -> Any:
    """Parse JSON in a text cell, which is how CSV holds lists and objects; other values stay as they are.

    An empty string becomes None. Raise BadRow (`bad_json`) that names `where`.
    """
    if type(value) is str and value.lstrip().startswith(bracket):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            fail_row("bad_json", f"{where} starts with {bracket} but is not valid JSON: {error}")
    return value if value != "" else None


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    return None if type(value) is str and (not value or value.isspace()) else value


def _read_instructions(where: str, value: Any) -> str | None:
    if value is None or (type(value) is str and is_utf8(value)):
        return value
    fail_row("bad_field", f"{where} must be a string; found {describe_type(value)}")


def _read_boolean(where: str, value: Any) -> bool | None:
    if type(value) is str:
        value = _BOOLEANS.get(value.strip().lower(), value)
    if value is None or type(value) is bool:
        return value
    fail_row("bad_field", f"{where} must be true or false; found {str(value)[:50]!r}")


def _read_sparse(value: Any) -> bool:
    if type(value) is dict and value.keys() == {"type"} and value["type"] in ("enabled", "disabled"):
        return bool(value["type"] == "enabled")
    wanted = '{"type": "enabled"} or {"type": "disabled"}'
    fail_row("bad_field", f"body.sparse_embedding must be {wanted}; found {str(value)[:100]}")


def _check_run_fields(body: Mapping[str, Any], model: ModelSpec) -> None:
    wanted: dict[str, tuple[Any, ...]] = {
        "model": (model.name,),
        "dimensions": (model.dimensions_published,),
        "encoding_format": _formats_meant(model.wire.encoding_format),
        "multi_embedding": (encode_multi(model.wire.multi_embedding) or {"type": "disabled"},),
    }
    for name, meant in wanted.items():
        if name in body and not any(type(body[name]) is type(one) and body[name] == one for one in meant):
            run = " or ".join(repr(one) for one in meant)
            found = str(body[name])[:100]
            fail_row(
                "bad_field", f"body.{name} is {found!r}; this run has {run}: remove the field, or change the config"
            )


def _formats_meant(chosen: EncodingFormat) -> tuple[str, ...]:
    """Return what a body may repeat: the run's encoding format, or the API's default if the run sends none."""
    return ("float",) if chosen in (EncodingFormat.NULL, EncodingFormat.ABSENT) else (chosen.value,)
