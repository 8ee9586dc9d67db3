"""How published files are encoded: the options of the Parquet writer, and how many rows a row group has.

`portable`: each encoding is one that all common readers have. Values have a dictionary, which is what makes vectors
small: values that come from bfloat16 or float16 are at most 65,536 different ones, and a vector is stored as indices of
11 or 12 bits. Where a dictionary becomes too large, because values are of full precision, the writer goes on without it.

`compact`: the encodings of the store, with `BYTE_STREAM_SPLIT`. Files are about 6 % smaller, but DuckDB before 2.0, Spark
before 4, ClickHouse 24 and fastparquet can't read them.
"""

from typing import Any, assert_never

import pyarrow as pa

from arkbeam.base import schema
from arkbeam.base.schema import Layout

ROW_GROUP_ROWS = 4096
"""Rows of a row group without vectors."""
VECTOR_BYTES = 16 * 2**20
"""About so many bytes of float32 vectors are in a row group."""
_VECTOR_ROWS_MIN, _VECTOR_ROWS_MAX = 256, 16_384
_DICTIONARY_BYTES_MAX = 65_536 * 4  # all values of bfloat16 or float16, as float32
_PAGE_BYTES = 64 * 1024  # what has to be read for a single row of a column


def vector_rows(dimensions: int) -> int:
    """Return the rows of a row group with one vector a row."""
    return min(max(VECTOR_BYTES // (4 * dimensions), _VECTOR_ROWS_MIN), _VECTOR_ROWS_MAX)


def writer_options(wanted: pa.Schema, layout: Layout) -> dict[str, Any]:
    """Return the options for pyarrow's Parquet writer of a published file. Both layouts have a page index."""
    options = schema.parquet_options(wanted) | {"write_page_index": True}
    match layout:
        case Layout.COMPACT:
            return options
        case Layout.PORTABLE:
            return options | {
                "use_dictionary": True,
                "column_encoding": None,
                "dictionary_pagesize_limit": _DICTIONARY_BYTES_MAX,
                "data_page_size": _PAGE_BYTES,
            }
        case _:
            assert_never(layout)
