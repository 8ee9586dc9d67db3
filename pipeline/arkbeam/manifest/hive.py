"""Columns in the names of folders, as Hive and Spark lay out partitions: `day=2024-01-01/part-0.parquet`."""

from collections.abc import Collection, Mapping
from urllib.parse import unquote

import pyarrow as pa

from arkbeam.manifest.storage import without_query

_NULL = "__HIVE_DEFAULT_PARTITION__"


def list_folder_values(uri: str, names: Collection[str]) -> dict[str, str | None]:
    """Return the values that the folders of a manifest's path give to columns in `names`, as text; the last one counts.

    `%XX` in name and value is decoded once, if that gives valid UTF-8.
    """
    values: dict[str, str | None] = {}
    for folder in without_query(uri).split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and (name := _decode(name)) in names:
            values[name] = None if value == _NULL else _decode(value)
    return values


def _decode(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def fill_missing(kept: pa.RecordBatch, values: Mapping[str, str | None]) -> pa.RecordBatch:
    """Put values into columns that the file does not have. Such columns have the type null."""
    for name, value in values.items():
        at = kept.schema.get_field_index(name)
        if pa.types.is_null(kept.schema.field(at).type):
            kept = kept.set_column(at, name, pa.repeat(pa.scalar(value, pa.string()), kept.num_rows))
    return kept
