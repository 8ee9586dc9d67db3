"""Open manifests, and turn the exceptions of storage backends and decoders into `ManifestError`."""

import io
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from arkbeam.base.errors import ArkbeamError, ManifestError
from arkbeam.base.files import find_version
from arkbeam.base.redaction import redact
from arkbeam.base.uris import find_filesystem, scheme_of
from arkbeam.manifest.compression import MAGIC_BYTES, Compression, Counted, find_compression, looks_plain, unpack
from arkbeam.manifest.options import Format, ManifestOptions

# A compressed file may always expand to this size, whatever the ratio: small files of similar rows compress very well.
_EXPAND_FREELY_BYTES = 64 * 1024 * 1024
_GROUP_ROWS_MAX = 2**31 - 1
_ENCRYPTED = re.compile(r"\b(encrypted|decrypt)", re.IGNORECASE)  # in what pyarrow raises for an encrypted Parquet file


@contextmanager
def manifest_errors(uri: str) -> Iterator[None]:
    """Turn any exception of storage, decompressor or file format into a ManifestError that names the manifest."""
    try:
        yield
    except ArkbeamError:
        raise
    except Exception as error:  # each fsspec backend and each decoder raises its own exceptions
        if is_absent(error, uri):
            raise ManifestError(f"manifest {redact(uri)} does not exist") from error
        cause = _cause_of(error, uri)
        raise ManifestError(f"manifest {redact(uri)} can't be read: {_explain(cause, uri)}") from cause


def is_absent(error: BaseException, uri: str) -> bool:
    """True if an exception of a storage backend says that there is no such file."""
    cause = _cause_of(error, uri)
    return isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (404, 410)


def _cause_of(error: BaseException, uri: str) -> BaseException:
    """Return what failed: for a URL, fsspec raises FileNotFoundError whatever it was."""
    return (error.__cause__ or error) if is_web(uri) and isinstance(error, FileNotFoundError) else error


def is_web(uri: str) -> bool:
    """True for an http(s) URL."""
    return scheme_of(uri) in ("http", "https")


def without_query(uri: str) -> str:
    """Cut off the query of a URL. In the name of a local file or an object, `?` is a character like any other."""
    return uri.partition("?")[0] if is_web(uri) else uri


def _explain(cause: BaseException, uri: str) -> str:
    """Return why a file can't be read; for a URL, what its server or the network said."""
    host = urlsplit(uri).netloc.rpartition("@")[2] if is_web(uri) else ""
    status = getattr(cause, "status", None)
    problem = getattr(cause, "os_error", cause)  # what is behind the HTTP client's "cannot connect"
    if host and isinstance(status, int):
        return f"{host} answered {status} {redact(str(getattr(cause, 'message', '')), 100)}".rstrip()
    if host and isinstance(problem, ssl.SSLError | ssl.CertificateError):
        return f"TLS with {host} failed: {redact(str(problem), 300)}"
    if host and isinstance(problem, socket.gaierror):
        return f"the name of the host {host} can't be resolved"
    if host and isinstance(problem, ConnectionRefusedError):
        return f"connection refused by {host}"
    if host and isinstance(cause, TimeoutError):
        return f"{host} did not answer in time"
    reason = f"{type(cause).__name__}: {redact(str(cause), 300)}"
    return f"it is encrypted, which is not supported: decrypt it ({reason})" if _ENCRYPTED.search(reason) else reason


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
        filesystem, path = find_filesystem(uri)
        filesystem.invalidate_cache()
        now = version_of(filesystem.info(path))
    if now != version:
        raise ManifestError(f"manifest {redact(uri)} has changed while it was read: run again")


@contextmanager
def open_manifest(
    uri: str, compression: Compression | None, format_: Format, start: int, options: ManifestOptions
) -> Iterator["ManifestSource"]:
    """Open a manifest at byte `start` for one pass, decompressed within the configured limits.

    At the start of a file, its first bytes decide if it is decompressed; `compression` is what its name says. Opening
    and reading raise ManifestError if the storage fails, if compressed data are damaged or cut off, or if they expand
    beyond the limits.
    """
    with manifest_errors(uri):
        filesystem, path = find_filesystem(uri)
        raw: IO[bytes] = filesystem.open(path, "rb")
    try:
        with manifest_errors(uri):
            head = b""
            if start:
                raw.seek(start)
            else:
                head = _read_head(raw)
            found = find_compression(head)
            if found is None and compression is not None and head and not looks_plain(head, format_):
                raise ManifestError(
                    f"manifest {redact(uri)} can't be read: by its name it is compressed with {compression}, but its first"
                    f" bytes are neither compressed nor {format_}"
                )
            source = ManifestSource(uri, Counted(head, raw), found, options)
        yield source
    finally:
        raw.close()


def _read_head(raw: IO[bytes], size: int = MAGIC_BYTES) -> bytes:
    head = b""
    while len(head) < size and (block := raw.read(size - len(head))):
        head += block
    return head


def read_start(uri: str, size: int) -> bytes:
    """Return the first bytes of a file, at most `size` of them, in one call."""
    with manifest_errors(uri):
        filesystem, path = find_filesystem(uri)
        if is_web(uri):  # a server may answer the request for a range with the whole file
            with filesystem.open(path, "rb") as raw:
                return _read_head(raw, size)
        return bytes(filesystem.cat_file(path, start=0, end=size))


def open_parquet_manifest(uri: str, stream: IO[bytes], options: ManifestOptions) -> pq.ParquetFile:
    """Open a Parquet file, and check the sizes that its row groups declare against the limits of `options`.

    Nothing else of the footer is read: if it is damaged, reading pyarrow's column metadata can crash the process. Raise
    ManifestError if a limit is exceeded, or if the row groups have fewer rows than the file; pyarrow's own exceptions
    pass through. Some writers leave the file's own number at 0.
    """
    packed = stream.seek(0, io.SEEK_END)
    file = pq.ParquetFile(stream, page_checksum_verification=True)
    rows = 0
    for group in (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)):
        if not 0 <= group.num_rows <= _GROUP_ROWS_MAX:
            raise ManifestError(f"manifest {redact(uri)} can't be read: a row group declares {group.num_rows} rows")
        _check_expansion(uri, group.total_byte_size, packed, options)
        rows += group.num_rows
    if rows < file.metadata.num_rows:
        raise ManifestError(
            f"manifest {redact(uri)} is damaged: the footer declares {file.metadata.num_rows} rows for the file, but only"
            f" {rows} for its row groups"
        )
    return file


def _check_expansion(uri: str, expanded: int, packed: int, options: ManifestOptions) -> None:
    by_ratio = max(_EXPAND_FREELY_BYTES, options.expand_ratio_max * packed)
    if expanded > min(options.expanded_bytes_max, by_ratio):
        raise ManifestError(
            f"manifest {redact(uri)} expands from {packed} to {expanded} bytes or more, which is above the limit:"
            " decompress it, or raise manifest.expanded_bytes_max and manifest.expand_ratio_max"
        )


class ManifestSource:
    """A manifest's bytes. `read` raises ManifestError if the storage fails or the bytes expand beyond the limits."""

    def __init__(self, uri: str, raw: Counted, compression: Compression | None, options: ManifestOptions) -> None:
        self._uri = uri
        self._raw = raw
        self._source = unpack(raw, compression)
        self._options = options
        self._expanded = 0
        self.is_packed = compression is not None
        """True if the bytes are decompressed, so that positions in them are not positions in the file."""

    @property
    def taken(self) -> int:
        """How many bytes of the file have been read, as they are stored."""
        return self._raw.count

    def read(self, size: int) -> bytes:
        """Return the next bytes; empty at the end."""
        with manifest_errors(self._uri):
            block = self._source.read(size)
            if self.is_packed:
                self._expanded += len(block)
                _check_expansion(self._uri, self._expanded, self._raw.count, self._options)
            return block
