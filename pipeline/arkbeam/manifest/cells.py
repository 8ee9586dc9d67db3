"""Cells of Parquet columns as Python values. Bytes that are not text are wrapped, so that no message can quote them."""

import re
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from arkbeam.manifest.common_type import is_binary
from arkbeam.manifest.kept import to_python

_DIGEST_BYTES = 16
_URI = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://|data:")


class Binary:
    """Bytes of a cell: an image, a video, or anything that is not text. As text, it is their number and their hash."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def text(self) -> "str | Binary":
        """The bytes as text if they are UTF-8, else this object."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return self

    @property
    def uri(self) -> str | None:
        """The bytes as text if they are a URI, as in files whose writer did not mark texts; None otherwise."""
        text = self.text if _URI.match(self.data) else self
        return text if type(text) is str else None

    def __repr__(self) -> str:
        """Return what may be shown of the bytes. It is the same for the same bytes."""
        return f"<{len(self.data)} bytes, blake2b {blake2b(self.data, digest_size=_DIGEST_BYTES).hexdigest()}>"


def read_cells(column: "pa.Array[Any]", *, media: bool) -> list[Any]:
    """Return the cells of a column as Python values.

    Bytes become `Binary`. Bytes that are UTF-8 become text instead, except in a column of images or videos (`media`).
    """
    values = to_python(column)
    return [_wrap(value, media) for value in values] if _holds_bytes(column.type) else values


def _wrap(value: Any, media: bool) -> Any:
    kind = type(value)
    if kind is bytes:
        return Binary(value) if media else Binary(value).text
    if kind is list:
        return [_wrap(inner, media) for inner in value]
    if kind is tuple:  # an entry of a map
        return tuple(_wrap(inner, media) for inner in value)
    if kind is dict:
        return {name: _wrap(inner, media) for name, inner in value.items()}
    return value


def _holds_bytes(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):  # in a list view
        kind = kind.value_type
    if kind.num_fields:  # a list, a struct or a map
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return is_binary(kind)
