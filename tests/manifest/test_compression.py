"""Compressed manifests: recognised by name or by their bytes, read whole, and bounded in what they expand to."""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
import zstandard
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.compression import ByteSource, find_compression, unpack
from arkbeam.manifest.options import ManifestOptions, ReadContext
from arkbeam.manifest.read import ShardChunk, read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.s3 import S3
from tests.web import Web

CONTEXT = ReadContext(ServiceKind.ARK, ModelSpec.of(ModelOptions("doubao-embedding-vision-251215", 1024)))
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
every_format = pytest.mark.parametrize(("ending", "pack"), PACK.items(), ids=PACK)


def _chunks(uri: str | Path, shard_bytes: int = 2**30, **options: Any) -> list[ShardChunk]:
    chosen = ManifestOptions(str(uri), **options)
    shards = cut_shards(list_manifests(chosen), shard_bytes)
    return [chunk for shard in shards for chunk in read_shard(shard, chosen, CONTEXT)]


def _texts(uri: str | Path, *args: Any, **options: Any) -> list[str]:
    requests = [row for chunk in _chunks(uri, *args, **options) for row in chunk.staged["request"].to_pylist()]
    return [request_from_json(row).request.parts[0].value for row in requests]


def _rows(start: int, end: int) -> bytes:
    return b"".join(b'{"text": "%d"}\n' % number for number in range(start, end))


@every_format
def test_several_members_are_read(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """A file of two members, as `cat` or a parallel compressor makes it, has the rows of both."""
    path = tmp_path / f"m.jsonl.{ending}"
    path.write_bytes(pack(_rows(0, 5_000)) + pack(b"") + pack(_rows(5_000, 9_000)))
    assert _texts(path) == [str(number) for number in range(9_000)]


@every_format
def test_what_is_cut_off_or_damaged_stops_the_run(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Rows that can't be reached, or bytes after the last member, are an error."""
    packed = pack(json.dumps({"text": list(range(9_999))}).encode() + b"\n")
    path = tmp_path / f"m.jsonl.{ending}"
    for data in (packed[:-20], packed[:30] + b"\xff" * 30 + packed[60:], packed + b"rest", packed * 2 + packed[:9]):
        path.write_bytes(data)
        with pytest.raises(ManifestError, match=rf"m\.jsonl\.{ending}"):
            _chunks(path)


@every_format
def test_what_expands_without_end_stops_the_run(ending: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """The limits hold for every format, whatever the name says and however many members there are."""
    members = pack(b" " * 7_000_000) * 10
    for name in (f"m.jsonl.{ending}", "m.jsonl"):
        (tmp_path / name).write_bytes(members)
        with pytest.raises(ManifestError, match="expands"):
            _chunks(tmp_path / name, expand_ratio_max=10)
        with pytest.raises(ManifestError, match="expands"):
            _chunks(tmp_path / name, expanded_bytes_max=1_000_000, expand_ratio_max=10**9)


def test_the_memory_of_xz_is_bounded(tmp_path: Path) -> None:
    """A file may demand a window of 4 GiB; the strongest setting of the usual tools (64 MiB) is read."""
    path = tmp_path / "m.jsonl.xz"
    for size, fits in ((2**26, True), (2**28, False)):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}]
        path.write_bytes(lzma.compress(b'{"text": "a"}\n', filters=filters))
        if fits:
            assert _texts(path) == ["a"]
        else:
            with pytest.raises(ManifestError, match="Memory usage limit"):
                _chunks(path)


@every_format
@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "other"])
def test_compression_is_recognised_by_the_bytes(
    name: str, ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """The name need not show it, or shows another one; a compressed file is not cut into shards."""
    rows = b"text\na\nb\n" if name == "m.csv" else b'{"text": "a"}\n{"text": "b"}\n'
    format_ = {"format": "jsonl"} if name == "other" else {}
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        path.write_bytes(pack(rows))
        for shard_bytes in (2**20, 10):
            assert _texts(path, shard_bytes, **format_) == ["a", "b"]


@pytest.mark.parametrize("ending", PACK)
def test_a_file_that_was_decompressed_on_its_way_is_read(ending: str, tmp_path: Path) -> None:
    """Servers and tools decompress files and leave the name; what is neither compressed nor text is an error."""
    (tmp_path / f"m.jsonl.{ending}").write_bytes(b'\xef\xbb\xbf \n{"text": "a"}\n')
    (tmp_path / f"m.csv.{ending}").write_bytes(("text\n" + "天" * 99 + "\n").encode())
    assert _texts(tmp_path / f"m.jsonl.{ending}") == ["a"]
    assert _texts(tmp_path / f"m.csv.{ending}") == ["天" * 99]
    for name, data in (("m.jsonl", b"no such format"), ("m.csv", b"\x1f\x8c\x08\x00"), ("m.csv", b"PK\x03\x04\0\0")):
        (tmp_path / f"{name}.{ending}").write_bytes(data)
        with pytest.raises(ManifestError, match="neither compressed nor"):
            _chunks(tmp_path / f"{name}.{ending}")


def test_texts_are_not_taken_for_compressed() -> None:
    """A text that starts like a magic number is a text."""
    for text in (
        b"",
        b"BZ",
        b"BZh",
        b"BZh91AY&S",
        b"BZh9,text\n",
        b"(",
        "(µ".encode(),
        b"\xfd7zX",
        b"P*M",
        b"\x1f\x8b",
    ):
        assert find_compression(text) is None, text
    for pack in PACK.values():
        assert find_compression(pack(b"")[:64]) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=4), st.sampled_from(list(PACK)), st.integers(1, 400), st.binary())
def test_any_file_is_unpacked_or_refused(members: list[bytes], ending: str, size: int, noise: bytes) -> None:
    """All bytes of all members come back, in reads of any size; with anything else behind them, there is an error."""
    packed, whole = b"".join(map(PACK[ending], members)), b"".join(members)
    kind = find_compression(PACK[ending](b""))

    def read(data: bytes) -> bytes:
        source: ByteSource = unpack(io.BytesIO(data), kind)
        return b"".join(iter(lambda: source.read(size), b""))

    assert read(packed) == whole
    if noise.strip(b"\0"):
        with pytest.raises((OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)):
            read(packed + noise)


def test_planning_reads_no_file_that_is_not_cut(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first bytes of a file that is not cut are looked at when it is read, without a request of their own."""
    calls: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **rest: Any) -> Any:
        calls[method] += 1
        return await call(self, method, *args, **rest)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    for number in range(3):
        s3.put(f"in/{number}.jsonl", gzip.compress(_rows(0, 10)))
    s3.put("in/large.jsonl", _rows(0, 100))
    options = ManifestOptions(s3.uri("in/*.jsonl"))
    shards = cut_shards(list_manifests(options), 1_000)
    assert calls["get_object"] == 1  # of the large file
    assert calls["head_object"] <= 1  # is there a file called `*.jsonl`
    calls.clear()
    assert sum(chunk.rows for chunk in read_shard(shards[0], options, CONTEXT)) == 10
    assert calls["get_object"] == 1
    assert len(shards) == 3 + 2


def test_a_server_that_sends_only_whole_files_is_read_once(serve_web: Callable[[dict[str, bytes]], Web]) -> None:
    """Its stream can't go back to the start after the first bytes were looked at."""
    web = serve_web({"a.jsonl": _rows(0, 100), "b.jsonl": gzip.compress(_rows(0, 100))})
    for name in ("a.jsonl", "b.jsonl"):
        assert _texts(web.url(f"bare/{name}")) == [str(number) for number in range(100)]
