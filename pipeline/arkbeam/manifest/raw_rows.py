"""Read a shard into its physical rows, as they are in the file, in batches that look the same for all formats."""

from collections.abc import Iterator
from dataclasses import dataclass

from arkbeam.base.errors import ManifestError
from arkbeam.base.redaction import redact
from arkbeam.manifest.batches import RowBatch
from arkbeam.manifest.columns import ColumnWatch
from arkbeam.manifest.csv_rows import read_csv
from arkbeam.manifest.failures import FailedRows
from arkbeam.manifest.json_array import check_lines, is_array, iter_elements
from arkbeam.manifest.jsonl_rows import read_jsonl
from arkbeam.manifest.lines import LongLine, ends_with_cr, iter_lines, iter_universal_lines
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.parquet_rows import read_parquet
from arkbeam.manifest.rows import RowParser
from arkbeam.manifest.shards import WHOLE, Shard
from arkbeam.manifest.storage import ManifestSource, open_manifest
from arkbeam.manifest.text import TextSource, find_wide_encoding, has_ascii, is_utf8_name


@dataclass(slots=True)
class ShardPlace:
    """How far reading has come in a shard of text: `bytes` of the file, as it is stored, are read."""

    bytes: int = 0


def read_batches(
    shard: Shard,
    options: ManifestOptions,
    parser: RowParser,
    context: ReadContext,
    watch: ColumnWatch,
    place: ShardPlace,
    failed: FailedRows | None,
) -> Iterator[RowBatch]:
    """Yield all physical rows of a shard in order.

    Of a Parquet file, only the kept columns and those that `parser` reads are read. With `failed`, rows that it does
    not name may be yielded as blank rows. Raise ManifestError if the file as a whole, or the header of a CSV file,
    can't be read.
    """
    if shard.format == "parquet":
        wanted, media_bytes_max = None if failed is None else failed.wants, context.media.body_bytes_max
        yield from read_parquet(
            shard, options, parser.columns, watch.note_header, parser.media_columns, media_bytes_max, wanted
        )
        return
    start = max(shard.start - 1, 0)
    with open_manifest(shard.manifest, shard.compression, shard.format, start, options) as raw:
        for batch in read_text(shard, raw, options, parser.columns.union(options.keep), watch, failed):
            place.bytes = raw.taken
            yield batch


def read_text(
    shard: Shard,
    raw: ManifestSource,
    options: ManifestOptions,
    used: frozenset[str],
    watch: ColumnWatch,
    failed: FailedRows | None,
) -> Iterator[RowBatch]:
    """Yield all physical rows of a shard of a text format in order; the file is open at the start of the shard.

    `used`: the columns that are needed. `watch` notes the names of a header. With `failed`, rows that it does not name
    may be yielded as blank rows. Raise ManifestError as `read_batches` does.
    """
    end = WHOLE if raw.is_packed else shard.end
    source = _open_text(shard, raw, options)
    head = source.peek() if shard.start == 0 else b""
    universal = ends_with_cr(head, shard.format)
    lines: Iterator[bytes | LongLine]
    if shard.format == "json" and is_array(head):
        lines = iter_elements(source, shard.manifest, options.line_bytes_max)
    elif universal:
        lines = iter_universal_lines(source, options.line_bytes_max)
    else:
        lines = iter_lines(source, shard.start, end, options.line_bytes_max)
    if shard.format in ("csv", "tsv"):
        line_end = "" if universal else "\n"
        yield from read_csv(lines, line_end, shard.manifest, shard.format, options, used, watch.note_header)
        return
    check_lines(shard.manifest, shard.format, head)
    yield from read_jsonl(lines, options, None if failed is None else frozenset(failed.rows.tolist()))


def _open_text(shard: Shard, raw: ManifestSource, options: ManifestOptions) -> TextSource:
    """Return the shard's bytes in UTF-8. Raise ManifestError if the file is in another encoding than the config says."""
    encoding, setting = options.encoding_of(shard.format)
    source = TextSource(raw.read, encoding)
    if shard.start > 0:
        return source
    head = source.peek()
    if is_utf8_name(encoding):
        found = find_wide_encoding(head)
        if found is not None:
            likely, sign = found
            raise ManifestError(f"manifest {redact(shard.manifest)} is not in UTF-8: {sign}; set {setting}: {likely}")
    elif head and not has_ascii(head):  # without this check, UTF-8 read as UTF-16 is a header without rows
        raise ManifestError(
            f"manifest {redact(shard.manifest)} is not in {encoding} ({setting}): it would have no comma, bracket or line end"
        )
    return source
