"""A small, fast server with the part of S3 that reading media needs. Clients are measured against it.

    python -m scripts.benchmarks.s3_stand_in FOLDER LATENCY_MS

Folders below FOLDER are buckets, the files in them are objects. The server supports HEAD, GET with a range, and listings
with and without a delimiter. It does not check signatures and does not support PUT. Each reply is sent after LATENCY_MS.
GET /?calls returns the number of calls by kind. With `?length=no` the reply to a GET is the whole object, with neither
its length nor a version. The server prints its address once it listens, and ends when its standard input is closed.
"""

import asyncio
import hashlib
import os
import re
import socket
import subprocess
import sys
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

import orjson
import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]
_RANGE = re.compile(rb"bytes=(\d*)-(\d*)")
_PAGE_KEYS = 1000
_BLOCK_BYTES = 1024 * 1024
_KEPT_BYTES = 1024 * 1024  # objects up to this size are held in memory


class Bucket:
    """The objects of one folder, listed once at the start: name, size, etag and time of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = (path for path in folder.rglob("*") if path.is_file())
        found = {path.relative_to(folder).as_posix(): path.stat() for path in files}
        self.keys = sorted(found)
        self.sizes = {key: status.st_size for key, status in found.items()}
        self.times = {key: status.st_mtime for key, status in found.items()}
        self.etags = {
            key: hashlib.md5(f"{key}{status.st_size}{status.st_mtime_ns}".encode(), usedforsecurity=False).hexdigest()
            for key, status in found.items()
        }
        self._kept: dict[str, bytes] = {}

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of an object from `start` to `end`, in blocks."""
        path = self._folder / key
        if self.sizes[key] <= _KEPT_BYTES:
            if key not in self._kept:
                self._kept[key] = path.read_bytes()
            yield self._kept[key][start:end]
            return
        with path.open("rb") as file:
            file.seek(start)
            while start < end and (block := file.read(min(_BLOCK_BYTES, end - start))):
                start += len(block)
                yield block


class StandIn:
    """The ASGI application."""

    def __init__(self, root: Path, latency_s: float) -> None:
        self._buckets = {folder.name: Bucket(folder) for folder in root.iterdir() if folder.is_dir()}
        self._latency_s = latency_s
        self.calls: Counter[str] = Counter()

    async def __call__(self, scope: dict[str, Any], _receive: object, send: Send) -> None:
        """Answer one request."""
        name, _, key = unquote(scope["raw_path"].decode()).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode(), True).items()}
        if not name and "calls" in query:
            await _answer(send, 200, orjson.dumps(self.calls))
            return
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        bucket = self._buckets.get(name)
        kind = "LIST" if not key else scope["method"]
        self.calls[kind] += 1
        if bucket is None:
            await _answer(send, 404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif kind == "LIST":
            await _answer(send, 200, _list(name, bucket, query))
        elif key not in bucket.sizes:
            await _answer(send, 404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            await _send_object(send, scope, bucket, key)


async def _send_object(send: Send, scope: dict[str, Any], bucket: Bucket, key: str) -> None:
    size = bucket.sizes[key]
    has_length = b"length=no" not in scope["query_string"]
    wanted = (
        None
        if not has_length
        else next((_RANGE.fullmatch(value) for name, value in scope["headers"] if name == b"range"), None)
    )
    start, end = 0, size
    if wanted is not None:
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        end = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
        if start >= size:
            await _answer(send, 416, b"<Error><Code>InvalidRange</Code></Error>")
            return
    headers = [
        (b"content-length", str(end - start).encode()),
        (b"etag", f'"{bucket.etags[key]}"'.encode()),
        (b"last-modified", formatdate(bucket.times[key], usegmt=True).encode()),
        (b"accept-ranges", b"bytes"),
    ]
    if wanted is not None:
        headers.append((b"content-range", f"bytes {start}-{end - 1}/{size}".encode()))
    headers = headers if has_length else []
    await send({"type": "http.response.start", "status": 206 if wanted is not None else 200, "headers": headers})
    if scope["method"] == "GET":
        for block in bucket.read(key, start, end):
            await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/xml"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _list(name: str, bucket: Bucket, query: dict[str, str]) -> bytes:
    """Answer ListObjectsV2."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = query.get("continuation-token") or query.get("start-after", "")
    count = min(int(query.get("max-keys", _PAGE_KEYS)), _PAGE_KEYS)
    entries: list[str] = []
    folders: dict[str, None] = {}
    last, cut = after, False
    for key in bucket.keys[bisect_right(bucket.keys, after) :]:
        if not key.startswith(prefix):
            if entries or folders or key > prefix:
                break
            continue
        if len(entries) + len(folders) >= count:
            cut = True
            break
        last = key
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
            continue
        time = bucket.times[key]
        entries.append(
            f"<Contents><Key>{escape(quote(key) if query.get('encoding-type') else key)}</Key>"
            f"<LastModified>{_iso(time)}</LastModified><ETag>&quot;{bucket.etags[key]}&quot;</ETag>"
            f"<Size>{bucket.sizes[key]}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if cut else ""
    common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{name}</Name><Prefix>{escape(prefix)}</Prefix>'
        f"<KeyCount>{len(entries) + len(folders)}</KeyCount><MaxKeys>{count}</MaxKeys>"
        f"<IsTruncated>{str(cut).lower()}</IsTruncated>{more}{''.join(entries)}{common}</ListBucketResult>"
    ).encode()


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@contextmanager
def start_stand_in(root: Path, latency_ms: float = 0.0) -> Iterator[str]:
    """Serve a folder from another process for the length of the block; yield the endpoint's URL."""
    command = [sys.executable, "-m", "scripts.benchmarks.s3_stand_in", str(root), str(latency_ms)]
    here = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": here}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()
            process.terminate()


def read_calls(endpoint: str) -> dict[str, int]:
    """Return how many calls of each kind a stand-in has answered."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{endpoint}/?calls", timeout=10) as answer:
        return dict(orjson.loads(answer.read()))


async def _serve(root: Path, latency_s: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(StandIn(root, latency_s), log_level="error", access_log=False, lifespan="off")
    server = uvicorn.Server(config)

    def end() -> None:
        if not os.read(0, 1):
            server.should_exit = True

    asyncio.get_running_loop().add_reader(0, end)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
