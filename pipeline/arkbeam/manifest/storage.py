"""Open manifests, and turn the exceptions of storage backends and decoders into `ManifestError`."""

import gzip
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol, cast

import fsspec
import pyarrow.parquet as pq
import zstandard

from arkbeam.base.errors import ArkbeamError, ManifestError
from arkbeam.base.files import find_version
from arkbeam.base.redaction import redact
from arkbeam.manifest.options import ManifestOptions

# A compressed file may always expand to this size, whatever the ratio: small files of similar rows compress very well.
_EXPAND_FREELY_BYTES = 64 * 1024 * 1024
# A zstd block of 128 kB takes 4 bytes if all its bytes are equal, so 1,024 bytes of input expand to 32 MB at most.
_ZSTD_FEED_BYTES = 1024
_ZSTD_WINDOW_BYTES_MAX = 2**27
_GROUP_ROWS_MAX = 2**31 - 1
_ENCRYPTED = re.compile(r"\b(encrypted|decrypt)", re.IGNORECASE)  # in what pyarrow raises for an encrypted Parquet file


class ByteSource(Protocol):
    """A source of bytes that is read once, from start to end."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, about `size` of them; empty at the end. A decompressor may return up to 32 MB."""


@contextmanager
def manifest_errors(uri: str) -> Iterator[None]:
    """Turn any exception of storage, decompressor or file format into a ManifestError that names the manifest."""
    try:
        yield
    except ArkbeamError:
        raise
    except FileNotFoundError as error:
        raise ManifestError(f"manifest {redact(uri)} does not exist") from error
    except Exception as error:  # each fsspec backend and each decoder raises its own exceptions
        reason = f"{type(error).__name__}: {redact(str(error), 300)}"
        if _ENCRYPTED.search(reason):
            reason = f"it is encrypted, which is not supported: decrypt it ({reason})"
        raise ManifestError(f"manifest {redact(uri)} can't be read: {reason}") from error


def version_of(info: Mapping[str, Any]) -> str:
    """Return what identifies the state of a manifest: etag, else size and modification time, else size; empty if unknown."""
    size = info.get("size")
    return find_version(info) or ("" if size is None else str(size))


def check_unchanged(uri: str, version: str) -> None:
    """Check that a manifest is still the same as when it was cut into shards. An empty version is not checked.

    Raise ManifestError if it has changed, since rows would be cut apart, doubled or lost.
    """
    if not version:
        return
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.invalidate_cache()
        now = version_of(filesystem.info(path))
    if now != version:
        raise ManifestError(f"manifest {redact(uri)} has changed while it was read: run again")


@contextmanager
def open_manifest(uri: str, compression: str | None, start: int, options: ManifestOptions) -> Iterator[ByteSource]:
    """Open a manifest at byte `start` for one pass, decompressed within the configured limits.

    Opening and reading raise ManifestError if the storage fails, if compressed data are damaged or cut off, or if they
    expand beyond the limits.
    """
    with manifest_errors(uri):
        filesystem, path = fsspec.core.url_to_fs(uri)
        raw: IO[bytes] = filesystem.open(path, "rb")
    try:
        with manifest_errors(uri):
            source: ByteSource = _unpack(raw, compression)
            if start:
                raw.seek(start)
        yield _Source(uri, source, raw if compression else None, options)
    finally:
        raw.close()


def _unpack(raw: IO[bytes], compression: str | None) -> ByteSource:
    if compression == "gzip":
        return cast(ByteSource, gzip.GzipFile(fileobj=raw))
    if compression == "zstd":
        return cast(ByteSource, _ZstdFrames(raw))
    return raw


class _ZstdFrames:
    """Decompresses a zstd stream of any number of frames. Unlike the library's reader, it detects a frame that is cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame: Any = None
        self._packed = b""

    def read(self, size: int) -> bytes:
        """Return some decompressed bytes, empty at the end; `size` is the number of compressed bytes read at a time."""
        while True:
            if not self._packed:
                self._packed = self._raw.read(size)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is cut off")
                return b""
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).decompressobj()
            out: bytes = self._frame.decompress(self._packed[:_ZSTD_FEED_BYTES])
            self._packed = self._packed[_ZSTD_FEED_BYTES:]
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data + self._packed, None
            if out:
                return out


def open_parquet_manifest(uri: str, stream: IO[bytes], options: ManifestOptions) -> pq.ParquetFile:
    """Open a Parquet file, and check the sizes that its row groups declare against the limits of `options`.

    Nothing else of the footer is read: if it is damaged, reading pyarrow's column metadata can crash the process. Raise
    ManifestError if a limit is exceeded, or if the numbers of rows do not add up; pyarrow's own exceptions pass through.
    """
    packed = stream.seek(0, io.SEEK_END)
    file = pq.ParquetFile(stream, page_checksum_verification=True)
    rows = 0
    for group in (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)):
        if not 0 <= group.num_rows <= _GROUP_ROWS_MAX:
            raise ManifestError(f"manifest {redact(uri)} can't be read: a row group declares {group.num_rows} rows")
        _check_expansion(uri, group.total_byte_size, packed, options)
        rows += group.num_rows
    if rows != file.metadata.num_rows:
        raise ManifestError(
            f"manifest {redact(uri)} is damaged: the footer declares {file.metadata.num_rows} rows for the file, but {rows}"
            " for its row groups"
        )
    return file


def _check_expansion(uri: str, expanded: int, packed: int, options: ManifestOptions) -> None:
    by_ratio = max(_EXPAND_FREELY_BYTES, options.expand_ratio_max * packed)
    if expanded > min(options.expanded_bytes_max, by_ratio):
        raise ManifestError(
            f"manifest {redact(uri)} expands from {packed} to {expanded} bytes or more, which is above the limit:"
            " decompress it, or raise manifest.expanded_bytes_max and manifest.expand_ratio_max"
        )


class _Source:
    """A manifest's bytes. `read` raises ManifestError if the storage fails or the bytes expand beyond the limits."""

    def __init__(self, uri: str, source: ByteSource, packed: IO[bytes] | None, options: ManifestOptions) -> None:
        self._uri = uri
        self._source = source
        self._packed = packed
        self._options = options
        self._expanded = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes; empty at the end."""
        with manifest_errors(self._uri):
            block = self._source.read(size)
            if self._packed is not None:
                self._expanded += len(block)
                _check_expansion(self._uri, self._expanded, self._packed.tell(), self._options)
            return block
