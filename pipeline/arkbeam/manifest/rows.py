"""Turn the cells of a row into a request, or into the failure that says why there is none.

A row has one of three forms: cells in mapped columns; an `input` list as in the API's contract; or a `body` that holds
a whole request, as in files for the vendor's batch service.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, time
from decimal import Decimal
from itertools import combinations
from typing import Any, NoReturn
from uuid import UUID

import numpy as np

from arkbeam.ark.instructions import InstructionOptions, build_instructions
from arkbeam.ark.models import SAMPLING_RANGES, find_misfit, overlay_sampling
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.bad_rows import BadRow, fail_row, fail_unknown_key
from arkbeam.base.records import Failure, Modality, Part, Request
from arkbeam.manifest.batches import describe_type, is_utf8
from arkbeam.manifest.cells import Binary
from arkbeam.manifest.numbers import ExactNumber, restore_numbers
from arkbeam.manifest.options import ManifestOptions
from arkbeam.manifest.overrides import (
    NO_OVERRIDES,
    Overrides,
    decode_cell,
    read_body_fields,
    read_override_columns,
    read_sampling,
)
from arkbeam.media import detect_kind, make_absolute, make_data_uri

_ID_COLUMNS = ("id", "custom_id")
_ID_CHARS_MAX = 1_024
_EXACT_FLOAT = 2**53
_TEXT, _IMAGE, _VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO
_PART_FIELDS = {"text": _TEXT, "image_url": _IMAGE, "video_url": _VIDEO}

Kinds = frozenset[Modality]


class RowParser:
    """Parses the rows of one manifest. Relative paths of media are resolved against `folder`, the manifest's folder."""

    def __init__(self, options: ManifestOptions, model: ModelSpec, folder: str) -> None:
        columns = options.columns
        self._options = options
        self._model = model
        self._folder = folder
        self._ids = (columns.id,) if columns.id is not None else _ID_COLUMNS
        self._has_body = columns.is_default
        self._own = tuple(filter(None, (columns.instructions, columns.sparse, columns.video_sampling)))
        self._instructions = _instructions_by_kinds(model.options.instructions)
        text_instructions = self._instructions[frozenset({_TEXT})]
        self._text_instructions = None if isinstance(text_instructions, Failure) else text_instructions
        self._input = "input" if columns.is_default else columns.input
        if columns.is_default:
            self._mapped = [("text", _TEXT), ("image", _IMAGE), ("video", _VIDEO)]
        else:
            groups = ((columns.text, _TEXT), (columns.image, _IMAGE), (columns.video, _VIDEO))
            self._mapped = [(name, modality) for names, modality in groups for name in names]
        text = next((name for name, modality in self._mapped if modality is _TEXT), None)
        names = [name for name, _ in self._mapped]
        self._rest = self.inputs - {text, "body" if self._has_body else None}
        self._text = None if self._own or text == self._input or names.count(str(text)) != 1 else text

    @property
    def inputs(self) -> frozenset[str]:
        """The columns that a row's content may be read from."""
        names = {name for name, _ in self._mapped}
        return frozenset(names | ({self._input} if self._input else set()) | ({"body"} if self._has_body else set()))

    @property
    def columns(self) -> frozenset[str]:
        """All columns that a row's request or id may be read from."""
        return self.inputs.union(self._ids, self._own)

    @property
    def media_columns(self) -> frozenset[str]:
        """Those of `columns` that hold images or videos."""
        return frozenset(name for name, modality in self._mapped if modality is not _TEXT)

    def parse(self, row: Mapping[str, Any], line: Any = None) -> tuple[str | None, Request | Failure]:
        """Return a row's own id (None if it has none), and its request or the Failure that says why it has none.

        `line` is the row's JSON as bytes, if it was read from JSON: the digits of its id are taken from there.

        Codes: `bad_id`, `no_input`, `bad_text` (not a string, or not UTF-8), `bad_part`, `bad_field`, `too_many_parts`,
        `bad_json`, `line_too_long`, `no_wording`, and those of `ark.models.find_misfit`.
        """
        row_id: str | None = None
        try:
            row_id = self._read_id(row, line)
            return row_id, self._read_request(row)
        except BadRow as bad:
            return row_id, bad.failure

    def parse_text(self, row: Mapping[str, Any]) -> tuple[str | None, str] | None:
        """Return the id and the text of a row that has one text and no other input, as most rows of a run; else None.

        It is faster than `parse`, which would return the same id and the request that `text_request` returns.
        """
        text = None if self._text is None else row.get(self._text)
        if type(text) is not str or (self._has_body and type(row.get("body")) is dict):
            return None
        if not self._rest.isdisjoint(row) and any(row.get(name) is not None for name in self._rest):
            return None
        row_id = row.get(self._ids[0])
        if row_id is None:
            if any(row.get(name) is not None for name in self._ids[1:]):
                return None
        elif type(row_id) is not str or row_id.isspace() or not 0 < len(row_id) <= _ID_CHARS_MAX:
            return None
        if not text or text.isspace() or len(text) > self._options.line_bytes_max or not is_utf8(text):
            return None
        return row_id, text

    def text_request(self, text: str) -> Request:
        """Return the request of a row with one text and the settings of the run."""
        return Request((Part(_TEXT, text),), self._text_instructions, self._model.options.sparse)

    def _read_id(self, row: Mapping[str, Any], line: Any) -> str | None:
        for name in self._ids:
            value = row.get(name)
            if value is not None and not (type(value) is str and (not value or value.isspace())):
                break
        else:
            return None
        if type(value) is not str:
            value = _to_id(restore_numbers(name, [value], [line])[0])
        if len(value) > _ID_CHARS_MAX:
            fail_row("bad_id", f"the id has {len(value)} characters; at most {_ID_CHARS_MAX} are allowed")
        return value or None

    def _read_request(self, row: Mapping[str, Any]) -> Request:
        parts: list[Part] = []
        for name, modality in self._mapped:
            cell = row.get(name)
            if cell is not None:
                self._add_cell(parts, name, modality, cell)
        own = read_override_columns(row, self._options.columns) if self._own else NO_OVERRIDES
        given = None if self._input is None else decode_cell(f"column {self._input}", row.get(self._input), "[")
        body = row.get("body") if self._has_body else None
        if type(body) is str and not parts:
            body = decode_cell("column body", body, "{")
        if not isinstance(body, dict):
            body = None
        if given is None and body is None:
            if not parts:
                fail_row("no_input", f"the row has no input: it has no value in {', '.join(sorted(self.inputs))}")
            return self._finish(parts, own)
        if parts or (given is not None and body is not None):
            fail_row(
                "bad_field",
                "the row has more than one of: text, image or video cells; an input list; a body. Map one in manifest.columns",
            )
        if body is not None:
            body = {name: value for name, value in body.items() if value is not None}
            own = read_body_fields(body, own, self._model)
            given = body.get("input")
        return self._finish(self._read_input(given), own)

    def _add_cell(self, parts: list[Part], name: str, modality: Modality, cell: Any) -> None:
        for value in cell if type(cell) is list else (cell,):
            if value is None:
                continue
            found = value if type(value) is str else _read_other(name, modality, value)
            if isinstance(found, Binary):
                parts.append(Part(modality, make_data_uri(found.data, modality)))
            elif found and not found.isspace():
                parts.append(self._make_part(modality, found))

    def _make_part(self, modality: Modality, value: str) -> Part:
        if not is_utf8(value):
            fail_row(
                "bad_text",
                "the text holds a lone surrogate (\\ud800 to \\udfff without its pair), so it is not valid UTF-8",
            )
        if len(value) > self._options.line_bytes_max:
            limit = self._options.line_bytes_max
            fail_row(
                "line_too_long",
                f"a part has {len(value)} characters; at most {limit} are allowed: shorten it, or raise manifest.line_bytes_max",
            )
        return Part(modality, value if modality is _TEXT else make_absolute(value.strip(), self._folder))

    def _read_input(self, given: Any) -> list[Part]:
        """Read a list of parts in the form of the API's contract; their order is kept."""
        if type(given) is not list:
            fail_row("bad_field", f"input must be a list of parts; found {describe_type(given)}")
        if not given:
            fail_row("no_input", "the input list is empty")
        return [self._read_part(index, element) for index, element in enumerate(given)]

    def _read_part(self, index: int, element: Any) -> Part:
        where = f"input[{index}]"
        if type(element) is not dict:
            fail_row("bad_part", f"{where} must be an object; found {describe_type(element)}")
        # In Parquet, a struct has all fields in every element: those that an element lacks are null.
        element = {name: value for name, value in element.items() if value is not None}
        kind = element.get("type")
        if type(kind) is not str or kind not in _PART_FIELDS:
            found = "nothing" if kind is None else repr(str(kind)[:50])
            fail_row("bad_part", f"{where}.type must be text, image_url or video_url; found {found}")
        fail_unknown_key("bad_part", where, element, {"type", kind})
        value = element.get(kind)
        if kind == "text":
            return self._make_part(_TEXT, _require_text(f"{where}.text", value))
        where = f"{where}.{kind}"
        if type(value) is not dict:
            fail_row("bad_part", f"{where} must be an object with a url; found {describe_type(value)}")
        value = {name: inner for name, inner in value.items() if inner is not None}
        fail_unknown_key("bad_part", where, value, {"url", *SAMPLING_RANGES} if kind == "video_url" else {"url"})
        part = self._make_part(_PART_FIELDS[kind], _require_text(f"{where}.url", value.pop("url", None)))
        return replace(part, sampling=read_sampling("bad_part", where, value)) if value else part

    def _finish(self, parts: list[Part], own: Overrides) -> Request:
        if len(parts) > self._options.parts_max:
            limit = self._options.parts_max
            fail_row(
                "too_many_parts",
                f"the row has {len(parts)} parts; at most {limit} are allowed: split the row, or raise manifest.parts_max",
            )
        asked = self._model.options
        if own is NO_OVERRIDES and len(parts) == 1 and parts[0].modality is _TEXT:
            # The row has only settings of the run, which were checked against the model before.
            return Request(tuple(parts), self._text_instructions, asked.sparse)
        kinds = frozenset(part.modality for part in parts)
        instructions = self._instructions[kinds] if own.instructions is None else own.instructions
        if isinstance(instructions, Failure):
            raise BadRow(instructions)
        if _VIDEO in kinds:
            parts = [self._sample(part, own) for part in parts]
        # model.sparse applies to rows of text only; a row's own setting is checked against the rules of the API.
        sparse = asked.sparse and kinds == {_TEXT} if own.sparse is None else own.sparse
        request = Request(tuple(parts), instructions, sparse)
        misfit = find_misfit(request, self._model.capabilities)
        if misfit is not None:
            raise BadRow(misfit)
        return request

    def _sample(self, part: Part, own: Overrides) -> Part:
        """Merge the sampling arguments of a video: its own take precedence over the row's, and those over the run's."""
        if part.modality is not _VIDEO:
            return part
        return replace(part, sampling=overlay_sampling(self._model.options.video, own.sampling, part.sampling))


def _to_id(value: Any) -> str:
    """Return an id as text: numbers without a needless fraction (`1`, not `1.0`), dates and times as in ISO 8601."""
    if isinstance(value, np.floating):  # a half-precision float
        value = float(value)
    if type(value) is int:
        return str(value)
    if type(value) is ExactNumber:
        if value.whole is not None:
            return value.text
        value = float(value) if value.is_double else value
    if type(value) is float and abs(value) < _EXACT_FLOAT:  # a larger float may have lost digits
        return str(int(value)) if value.is_integer() else repr(value)
    if type(value) is Decimal and value.is_finite():
        return str(int(value)) if value == int(value) else f"{value:f}"
    if isinstance(value, date | time):
        return value.isoformat()
    if type(value) is UUID:
        return str(value)
    fail_row(
        "bad_id",
        "the id must be text, an integer, a decimal, a float below 2^53, a UUID, a date or a time; found"
        f" {describe_type(value)}: {str(value)[:100]}",
    )


def _read_other(name: str, modality: Modality, value: Any) -> str | Binary | None:
    """Read a medium that is not a string: bytes, or an object `{bytes, path}`, whose path counts if it has no bytes.

    Bytes that are a URI are returned as text. Raise BadRow (`bad_text`) for any other value.
    """
    if modality is _TEXT:
        _fail_text(name, value)
    if type(value) is Binary:
        return value.uri or value
    if type(value) is not dict:
        fail_row("bad_text", f"column {name} holds {describe_type(value)}; expected a string or a list of strings")
    if not value.keys() & {"bytes", "path"}:
        found = ", ".join(map(str, value)) or "none"
        fail_row(
            "bad_text",
            f"column {name} holds an object with the fields {found}; an object that holds a medium, as in Hugging Face"
            " data sets, has the fields bytes and path",
        )
    data, path = value.get("bytes"), value.get("path")
    if type(data) is Binary:
        return data
    if data is not None:
        fail_row("bad_text", f"column {name}.bytes holds {describe_type(data)}; expected bytes")
    path = path.text if type(path) is Binary else path
    if path is not None and type(path) is not str:
        fail_row("bad_text", f"column {name}.path holds {describe_type(path)}; expected a string")
    return path


def _fail_text(name: str, value: Any) -> NoReturn:
    """Fail a row whose text column holds something else; if these are images or videos, say how they are read."""
    data = value.get("bytes") if type(value) is dict else value
    kind = detect_kind(data.data) if type(data) is Binary else None
    advice = "" if kind is None else f". This is {kind.mime}: name the column in manifest.columns.{kind.modality.value}"
    fail_row("bad_text", f"column {name} holds {describe_type(value)}; expected a string or a list of strings{advice}")


def _instructions_by_kinds(
    instructions: str | InstructionOptions | None,
) -> dict[Kinds, str | Failure | None]:
    """Build the instructions for each set of modalities once."""
    mixes = [frozenset(mix) for count in (1, 2, 3) for mix in combinations(Modality, count)]
    if isinstance(instructions, InstructionOptions):
        return {kinds: build_instructions(instructions, kinds) for kinds in mixes}
    return dict.fromkeys(mixes, instructions)


def _require_text(where: str, value: Any) -> str:
    if type(value) is not str or not value or value.isspace():
        fail_row("bad_part", f"{where} must be a string that is not blank")
    return value
