"""The JSON Schema of a config, from the dataclasses of its sections: for editors, and for programs that write configs."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, get_type_hints

import orjson
from pydantic import TypeAdapter

from arkbeam.app.config import Config, section_of

SCHEMA_NAME = "arkbeam.schema.json"
"""The name of the file that `arkbeam init` writes beside a config."""


def config_schema() -> dict[str, Any]:
    """Return the schema. An editor shows the docstrings of the keys; a key that a section does not have is an error."""
    schema = TypeAdapter(Config).json_schema()
    definitions = schema["$defs"]
    described = [(schema, Config), *((definitions[kind.__name__], kind) for kind in _sections(Config))]
    for node, kind in described:
        docs = field_docs(kind)
        node["additionalProperties"] = False
        for name, described_field in node["properties"].items():
            described_field.pop("title", None)
            if name in docs:
                described_field["description"] = docs[name]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "arkbeam config"}


def schema_bytes() -> bytes:
    """Return the schema as the text of a file."""
    return orjson.dumps(config_schema(), option=orjson.OPT_INDENT_2) + b"\n"


@cache
def field_docs(section: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass, by name, each as one line."""
    (node,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(node, ast.ClassDef)
    docs = {}
    for statement, following in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _sections(section: type) -> Iterator[type]:
    """Yield the sections below a section."""
    for name, kind in get_type_hints(section).items():
        inner = section_of(kind)
        if inner is not None and any(field.name == name for field in dataclasses.fields(section)):
            yield inner
            yield from _sections(inner)
