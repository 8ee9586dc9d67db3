"""Write results as a segment, with their per-token vectors beside it."""

from collections.abc import Sequence

import pyarrow as pa

from arkbeam.store.multi import multi_table, write_multi
from arkbeam.store.segments import Bought, segment_table, write_segment


def write_results(
    store_uri: str, run: str, segment: int, bought: Sequence[Bought], dimensions: int, *, multi: bool
) -> tuple[str, pa.Table]:
    """Write a segment, and with `multi` its per-token vectors first; return the segment's URI and its table.

    Raise StoreError if the store can't be written.
    """
    table = segment_table(bought, dimensions)
    if multi:
        metadata = write_multi(store_uri, run, segment, multi_table(bought, dimensions))
        table = table.replace_schema_metadata(metadata)
    return write_segment(store_uri, run, segment, table), table
