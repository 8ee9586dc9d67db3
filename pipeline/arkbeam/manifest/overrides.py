"""What a row says for itself beside its parts: instructions, sparse, the sampling of its videos.

It says so in mapped columns or in the fields of its body. What belongs to the run (model, dimensions, encoding format,
vectors of tokens) a body may repeat, but not change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from arkbeam.ark.sampling import SAMPLING_RANGES, find_sampling_flaw, make_sampling
from arkbeam.ark.wire import ModelSpec, encode_multi
from arkbeam.base.capabilities import EncodingFormat
from arkbeam.base.records import VideoSampling
from arkbeam.manifest.batches import is_utf8
from arkbeam.manifest.options import ColumnMap
from arkbeam.manifest.refusal import refuse, refuse_unknown

BODY_FIELDS = (
    "model",
    "input",
    "encoding_format",
    "dimensions",
    "instructions",
    "sparse_embedding",
    "multi_embedding",
)
"""All that a body may hold: the API's own fields."""

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Overrides:
    """What one row asks for itself; None: as the run has it."""

    instructions: str | None = None
    sparse: bool | None = None
    sampling: VideoSampling | None = None


NOTHING = Overrides()


def read_columns(row: Mapping[str, Any], columns: ColumnMap) -> Overrides:
    """Read the mapped columns; an empty cell says nothing. Raises BadRow (`bad_field`, `bad_json`)."""
    instructions = sparse = sampling = None
    if columns.instructions is not None:
        instructions = _read_instructions(f"column {columns.instructions}", _cell(row, columns.instructions))
    if columns.sparse is not None:
        sparse = _read_boolean(f"column {columns.sparse}", _cell(row, columns.sparse))
    if columns.video_sampling is not None:
        where = f"column {columns.video_sampling}"
        value = decode_cell(_cell(row, columns.video_sampling), "{")
        if value is not None and type(value) is not dict:
            refuse("bad_field", f"{where} must hold an object of {', '.join(SAMPLING_RANGES)}")
        sampling = None if value is None else read_sampling("bad_field", where, value)
    if instructions is None and sparse is None and sampling is None:
        return NOTHING
    return Overrides(instructions, sparse, sampling)


def read_body_fields(body: Mapping[str, Any], columns: Overrides, model: ModelSpec) -> Overrides:
    """Check what a body says of the run and read what it says of its row, which counts before mapped columns.

    Raises BadRow (`bad_field`) that names the field.
    """
    refuse_unknown("bad_field", "body", body, BODY_FIELDS)
    _check_run_fields(body, model)
    instructions, sparse = columns.instructions, columns.sparse
    if "instructions" in body:
        instructions = _read_instructions("body.instructions", body["instructions"])
    if "sparse_embedding" in body:
        sparse = _read_sparse(body["sparse_embedding"])
    return Overrides(instructions, sparse, columns.sampling)


def read_sampling(code: str, where: str, given: Mapping[str, Any]) -> VideoSampling | None:
    """Read the sampling arguments of an object; a null is none. Raises BadRow with `code` that names the argument."""
    values = {name: value for name, value in given.items() if value is not None}
    flaw = find_sampling_flaw(values)
    if flaw is not None:
        refuse(code, f"{where}.{flaw}")
    return make_sampling(values)


def decode_cell(value: Any, bracket: str) -> Any:
    """Parse JSON in a text cell, which is how CSV holds lists and objects; anything else stays as it is."""
    if type(value) is str and value.lstrip().startswith(bracket):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            refuse("bad_json", f"a cell starts with {bracket} and is not JSON: {error}")
    return value if value != "" else None


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    return None if type(value) is str and (not value or value.isspace()) else value


def _read_instructions(where: str, value: Any) -> str | None:
    if value is None or (type(value) is str and is_utf8(value)):
        return value
    refuse("bad_field", f"{where} must be text")


def _read_boolean(where: str, value: Any) -> bool | None:
    if type(value) is str:
        value = _BOOLEANS.get(value.strip().lower(), value)
    if value is None or type(value) is bool:
        return value
    refuse("bad_field", f"{where} must be true or false, not {str(value)[:50]!r}")


def _read_sparse(value: Any) -> bool:
    if type(value) is dict and value.keys() == {"type"} and value["type"] in ("enabled", "disabled"):
        return bool(value["type"] == "enabled")
    refuse("bad_field", 'body.sparse_embedding must be {"type": "enabled"} or {"type": "disabled"}')


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
            refuse("bad_field", f"body.{name} is {str(body[name])[:100]!r}, the run's is {run}")


def _formats_meant(chosen: EncodingFormat) -> tuple[str, ...]:
    """What a body may say: the run's encoding format, or the API's default where the run leaves it to that."""
    return ("float",) if chosen in (EncodingFormat.NULL, EncodingFormat.ABSENT) else (chosen.value,)
