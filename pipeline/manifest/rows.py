"""What a row asks for: from cells to a request, or the reason why not.

A row has one of three forms: cells in mapped columns; an `input` list as in the API's contract; or, as in files for the
vendor's batch service, a `body` that holds a whole request.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import orjson

from pipeline.ark.models import Capabilities, find_misfit
from pipeline.manifest.batches import is_utf8
from pipeline.manifest.context import ReadContext
from pipeline.manifest.options import ManifestOptions
from pipeline.media import make_absolute
from pipeline.records import Failure, Modality, Part, Request
from pipeline.redaction import redact

_ID_COLUMNS = ("id", "custom_id")
_ID_CHARS_MAX = 1_024
_EXACT_FLOAT = 2**53
_TEXT, _IMAGE, _VIDEO = Modality.TEXT, Modality.IMAGE, Modality.VIDEO
_PART_FIELDS = {"text": _TEXT, "image_url": _IMAGE, "video_url": _VIDEO}
_BODY_FIELDS = {"model", "input", "encoding_format", "dimensions", "instructions", "sparse_embedding"}
_ENCODING_FORMATS = (None, "float", "base64")


class _BadRow(Exception):
    """A row that asks for nothing that can be sent; `RowParser.parse` makes it a Failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def _refuse(code: str, message: str) -> NoReturn:
    raise _BadRow(Failure(code, redact(message)))


class RowParser:
    """Reads the rows of one manifest. Relative paths of media start at `folder`, the manifest's own."""

    def __init__(self, options: ManifestOptions, context: ReadContext, folder: str) -> None:
        columns = options.columns
        self._options = options
        self._context = context
        self._folder = folder
        self._ids = (columns.id,) if columns.id is not None else _ID_COLUMNS
        self._has_body = columns.is_default
        self._input = "input" if columns.is_default else columns.input
        if columns.is_default:
            self._mapped = [("text", _TEXT), ("image", _IMAGE), ("video", _VIDEO)]
        else:
            groups = ((columns.text, _TEXT), (columns.image, _IMAGE), (columns.video, _VIDEO))
            self._mapped = [(name, modality) for names, modality in groups for name in names]

    @property
    def columns(self) -> frozenset[str]:
        """All columns that can matter to a row's request or id."""
        names = {*self._ids, *(name for name, _ in self._mapped)}
        return frozenset(names | ({self._input} if self._input else set()) | ({"body"} if self._has_body else set()))

    def parse(self, row: Mapping[str, Any]) -> tuple[str | None, Request | Failure]:
        """Return a row's own id, None where it has none, and its request or why it has none.

        Codes: `bad_id`, `no_input`, `bad_text` (not a string, or not UTF-8), `bad_part`, `bad_field`, `too_many_parts`,
        `line_too_long`, and those of `ark.models.find_misfit`.
        """
        row_id: str | None = None
        try:
            row_id = self._read_id(row)
            return row_id, self._read_request(row)
        except _BadRow as bad:
            return row_id, bad.failure

    def _read_id(self, row: Mapping[str, Any]) -> str | None:
        for name in self._ids:
            value = row.get(name)
            if value is not None:
                break
        else:
            return None
        if type(value) is not str:
            value = _number_to_id(value)
        if len(value) > _ID_CHARS_MAX:
            _refuse("bad_id", f"the id has {len(value)} characters, {_ID_CHARS_MAX} are allowed")
        return value or None

    def _read_request(self, row: Mapping[str, Any]) -> Request:
        parts: list[Part] = []
        for name, modality in self._mapped:
            cell = row.get(name)
            if cell is not None:
                self._add_cell(parts, name, modality, cell)
        given = None if self._input is None else _decoded(row.get(self._input), "[")
        body = row.get("body") if self._has_body else None
        if type(body) is str and not parts:
            body = _decoded(body, "{")
        if not isinstance(body, dict):
            body = None
        if given is None and body is None:
            if not parts:
                _refuse("no_input", f"the row has nothing in {', '.join(sorted(self.columns - set(self._ids)))}")
            return self._finish(parts, self._context.instructions, self._context.sparse)
        if parts or (given is not None and body is not None):
            _refuse("bad_field", "the row has an input list or a body beside other inputs: map one of them")
        if body is not None:
            return self._read_body(body)
        return self._finish(self._read_input(given), self._context.instructions, self._context.sparse)

    def _add_cell(self, parts: list[Part], name: str, modality: Modality, cell: Any) -> None:
        for value in cell if type(cell) is list else (cell,):
            if value is None:
                continue
            if type(value) is not str:
                _refuse("bad_text", f"column {name} holds a {type(value).__name__}, not text")
            if value and not value.isspace():
                parts.append(self._make_part(modality, value))

    def _make_part(self, modality: Modality, value: str) -> Part:
        if not is_utf8(value):
            _refuse("bad_text", "the text is not valid UTF-8: it holds a lone surrogate")
        if len(value) > self._options.line_bytes_max:
            _refuse(
                "line_too_long", f"{len(value)} characters; manifest.line_bytes_max is {self._options.line_bytes_max}"
            )
        return Part(modality, value if modality is _TEXT else make_absolute(value.strip(), self._folder))

    def _read_input(self, given: Any) -> list[Part]:
        """Read a list as the contract has it; its order is kept."""
        if type(given) is not list:
            _refuse("bad_field", f"input must be a list of parts, not a {type(given).__name__}")
        if not given:
            _refuse("no_input", "the input list is empty")
        return [self._read_part(index, element) for index, element in enumerate(given)]

    def _read_part(self, index: int, element: Any) -> Part:
        where = f"input[{index}]"
        if type(element) is not dict:
            _refuse("bad_part", f"{where} must be an object")
        # Columns of Parquet hold null for what an element does not have.
        element = {name: value for name, value in element.items() if value is not None}
        kind = element.get("type")
        if type(kind) is not str or kind not in _PART_FIELDS:
            _refuse("bad_part", f"{where}.type must be text, image_url or video_url")
        _refuse_unknown("bad_part", where, element, {"type", kind})
        value = element.get(kind)
        if kind != "text":
            where = f"{where}.{kind}"
            if type(value) is not dict:
                _refuse("bad_part", f"{where} must be an object with a url")
            value = {name: inner for name, inner in value.items() if inner is not None}
            _refuse_unknown("bad_part", where, value, {"url"})
            value = value.get("url")
        if type(value) is not str or not value or value.isspace():
            _refuse("bad_part", f"{where} has no {'text' if kind == 'text' else 'url'}")
        return self._make_part(_PART_FIELDS[kind], value)

    def _read_body(self, body: Mapping[str, Any]) -> Request:
        """Read a whole request; what it says of the run must be what the run says."""
        body = {name: value for name, value in body.items() if value is not None}
        _refuse_unknown("bad_field", "body", body, _BODY_FIELDS)
        context = self._context
        if body.get("model", context.model) != context.model:
            _refuse("bad_field", f"body.model is {body['model']!r}, the run's is {context.model!r}")
        if "dimensions" in body and body["dimensions"] not in _dimensions_meant(context):
            _refuse("bad_field", f"body.dimensions is {body['dimensions']!r}, the run's is {context.dimensions}")
        if body.get("encoding_format") not in _ENCODING_FORMATS:
            _refuse("bad_field", f"body.encoding_format is {body['encoding_format']!r}, not float or base64")
        instructions = body.get("instructions", context.instructions)
        if instructions is not None and (type(instructions) is not str or not is_utf8(instructions)):
            _refuse("bad_field", "body.instructions must be text")
        sparse = _read_sparse(body["sparse_embedding"]) if "sparse_embedding" in body else context.sparse
        return self._finish(self._read_input(body.get("input")), instructions, sparse)

    def _finish(self, parts: list[Part], instructions: str | None, sparse: bool) -> Request:
        if len(parts) > self._options.parts_max:
            _refuse("too_many_parts", f"{len(parts)} parts; manifest.parts_max is {self._options.parts_max}")
        text_alone = len(parts) == 1 and parts[0].modality is _TEXT
        if sparse and not text_alone:
            sparse = all(part.modality is _TEXT for part in parts)
        request = Request(tuple(parts), instructions, sparse)
        # The config was checked against the model before: only what a row adds to it needs a look.
        if not text_alone or instructions is not self._context.instructions or sparse is not self._context.sparse:
            self._check(request, self._context.capabilities)
        return request

    def _check(self, request: Request, capabilities: Capabilities | None) -> None:
        misfit = None if capabilities is None else find_misfit(request, capabilities)
        if misfit is not None:
            raise _BadRow(misfit)


def _number_to_id(value: Any) -> str:
    """Ids that are numbers become text, unless the file's format can't have kept their last digit."""
    if type(value) is int:
        return str(value)
    if type(value) is float and abs(value) < _EXACT_FLOAT:
        return repr(value)
    _refuse("bad_id", f"the id must be text or an exact number, not {type(value).__name__} {str(value)[:100]}")


def _decoded(value: Any, bracket: str) -> Any:
    """Parse JSON in a text cell, which is how CSV holds lists and objects; anything else stays as it is."""
    if type(value) is str and value.lstrip().startswith(bracket):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            _refuse("bad_json", f"a cell starts with {bracket} and is not JSON: {error}")
    return value if value != "" else None


def _dimensions_meant(context: ReadContext) -> tuple[int, ...]:
    """What a body may say: the run's dimensions, or the model's default where the run sends none."""
    if context.dimensions is not None:
        return (context.dimensions,)
    return () if context.capabilities is None else context.capabilities.dimensions[:1]


def _read_sparse(value: Any) -> bool:
    if type(value) is dict and value.keys() == {"type"} and value["type"] in ("enabled", "disabled"):
        return bool(value["type"] == "enabled")
    _refuse("bad_field", 'body.sparse_embedding must be {"type": "enabled"} or {"type": "disabled"}')


def _refuse_unknown(code: str, where: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(given.keys() - known)
    if unknown:
        _refuse(code, f"{where}.{unknown[0]} is not known; there may be {', '.join(sorted(known))}")
