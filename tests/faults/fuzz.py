"""Thousands of hostile inputs. `fuzz` runs in its own process and measures the memory of that process.

Valid lines, files and replies are mutated, and the results are read as a run reads them.
"""

import base64
import collections
import datetime
import decimal
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from arkbeam.app import cli
from arkbeam.ark.client import _decompress
from arkbeam.ark.errors import error_from_status, error_from_unusable
from arkbeam.ark.models import ModelOptions
from arkbeam.ark.wire import ModelSpec, UnencodableRequest, UnusableReply, WireOptions, decode_reply, encode_request
from arkbeam.base.errors import ManifestError
from arkbeam.base.records import ServiceKind
from arkbeam.manifest.kept import cast_kept, merge_kinds, type_of_kept
from arkbeam.manifest.kinds import Kind
from arkbeam.manifest.options import ColumnMap, ManifestOptions, ReadContext
from arkbeam.manifest.read import read_shard
from arkbeam.manifest.shards import cut_shards, list_manifests
from arkbeam.manifest.staging import request_from_json
from arkbeam.media import MediaOptions
from arkbeam.store.run_files import PieceWriter

from tests.warm import run_arkbeam

MODEL = "doubao-embedding-vision-251215"
DIMENSIONS = 64
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR4nGNgYPhPIhrVMKph2GoAAAtO/wHhVVdtAAAAAElFTkSuQmCC"

GOOD_ROWS: list[Any] = [
    {"id": "a1", "text": "red silk shawl 黑釉茶碗 🙂", "title": "one", "price": 12.5},
    {"id": 17, "text": ["two", "texts"], "title": None, "price": 3},
    {"id": "p", "image": PIXEL, "text": "a pixel", "title": {"de": "Punkt", "tags": [1, 2]}},
    {"id": "u", "image": "https://user:pw@host.example/a.jpg?X-Amz-Signature=abc&id=1", "title": ["x"]},
    {"id": "f", "image": "no/such/file.png", "video": ["clip.mp4"], "title": True},
    {"id": "v", "input": [{"type": "video_url", "video_url": {"url": "https://h.example/v.mp4", "fps": 1.5}}]},
    {"custom_id": "b", "body": {"model": MODEL, "input": [{"type": "text", "text": "in a body"}], "dimensions": 1024}},
    {"custom_id": "c", "body": {"input": [{"type": "text", "text": "x"}], "sparse_embedding": {"type": "enabled"}}},
    {"id": "ask", "text": "own words", "instructions": "Query:", "sparse": "true", "sampling": {"fps": 2}},
]

TOKENS: list[bytes] = [
    b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\\ud800", b"\\udfff\\ud800", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\u0000",
    b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 400, b"-" + b"9" * 30, b"0.1e-99999", b"18446744073709551616",
    b"null", b"true", b"[]", b"{}", b'""', b'"', b"'", b"\\", b"\r", b"\r\n", b"\n", b"\t", b",", b";", b"=cmd|' /C calc'!A0",
    b"[" * 2000, b'{"a":' * 600, b"]" * 50, b'"id":"x",', b'"text":1,', b'"text":{"a":[1]},', b'"id":' + b'"' + b"k" * 5000 + b'",',
    b'"' + b"K" * 20000 + b'":1,', b"x" * 70000, b'"image":"file:///etc/passwd",', b'"image":"/dev/zero",', b'"image":"../../../../etc/passwd",',
    b'"image":"s3://b/x::file:///etc/passwd",', b'"image":"data:image/png;base64,AAAA",', b'"image":"' + b"http://" * 3000 + b'",',
    b'"image":"http://[::1",', b'"image":"\\u0000",', b'"video":"a\\nb",', b'"body":{},', b'"input":[],', b'"input":"[[[[",',
    b"?token=" + b"&" * 3000, b"data:image/png;base64," * 400, b"://" * 4000 + b"@", b"%3f%26" * 2000, b"\xe2\x80\xae", b"\xc2\x85", b"\xe2\x80\xa8",
]  # fmt: skip


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Change some bytes: flip, cut, repeat, insert hostile tokens, or join with another input."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice((1, 2, 8, 64, len(out)))]
        elif kind == 2:
            out[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice((1, 4, 64))] * rng.choice((1, 2, 50))
        elif kind == 4:
            other = rng.choice(others)
            out[at:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 5:
            out[at : at + rng.choice((1, 4))] = rng.randbytes(rng.choice((1, 4, 16)))
        elif kind == 6 and out:
            out[at % len(out)] = rng.choice(b'{}[]",:\\\x00\xff\n\r\t0-')
        else:
            token = rng.choice(TOKENS)
            out[at : at + len(token)] = token
    return bytes(out)


VALUES: list[Any] = [
    None, True, 0, -1, 2**53, 2**63, 2**64 - 1, 1e308, -0.0, "", " ", "x" * 9000, "\x00", "\u202e", [], {}, [[]], [None], {"": {}}, "http://",
    "file:///etc/passwd", "data:,", "s3://", "://@", "[1", "{", "true", {"type": "text"}, {"type": "enabled"}, {"url": 5}, [1, "a", {}], 10**30,
]  # fmt: skip


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Change one value or one key somewhere in a document."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {**value, rng.choice(("x", "", "url", "type", "text", "body", key * 500)): rng.choice(VALUES)}
        if rng.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_value(value[at], rng), *value[at + 1 :] * rng.choice((0, 1, 1, 1, 3))]
    value = rng.choice(VALUES)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 3, 300))):
        value = [value]
    return value


def write_json(value: Any) -> bytes:
    """Return JSON, also for values that orjson does not accept."""
    return json.dumps(value).encode()


def count_rows(folder: Path, options: ManifestOptions, seen: collections.Counter[str]) -> None:
    """Read a manifest, stage its rows and read them back; check that every row is staged, failed or blank."""
    try:
        shards = cut_shards(list_manifests(options), options.shard_bytes_max)
        for shard in shards:
            kept: list[pa.StructArray] = []
            kinds: dict[str, Kind] = {}
            with PieceWriter(str(folder / "rows")) as staged, PieceWriter(str(folder / "unreadable")) as unreadable:
                for chunk in read_shard(shard, options, CONTEXT):
                    assert chunk.staged.num_rows + chunk.unreadable.num_rows <= chunk.rows
                    assert chunk.keys.num_rows == chunk.staged.num_rows
                    seen["rows"] += chunk.rows
                    seen["staged"] += chunk.staged.num_rows
                    staged.write(chunk.staged)
                    unreadable.write(chunk.unreadable)
                    for code in chunk.unreadable["code"].to_pylist():
                        seen[code] += 1
                    if "kept" in chunk.staged.column_names and chunk.staged.num_rows:
                        kept.append(chunk.staged["kept"].combine_chunks())
                        kinds = merge_kinds(kinds, chunk.kinds)
                    for data in chunk.staged["request"].to_pylist():
                        try:
                            encode_request(request_from_json(data).request, WIRE)
                        except UnencodableRequest:
                            seen["unencodable"] += 1
            for one in kept:
                cast_kept(one, type_of_kept(kinds)).validate(full=True)
    except ManifestError as error:
        assert len(str(error)) < 2000, error
        seen["ManifestError"] += 1


CONTEXT = ReadContext(
    ServiceKind.STAND_IN,
    ModelSpec.of(ModelOptions(MODEL, 1024, instructions="Instruction:", sparse=True)),
    media=MediaOptions(allowed_roots=("/nonexistent",)),
)
WIRE = WireOptions(MODEL, 1024)
_COLUMNS = ColumnMap(instructions="instructions", sparse="sparse", video_sampling="sampling")


def fuzz_jsonl(count: int, rng: random.Random, folder: Path) -> Iterator[str]:
    """Mutate lines of JSON, a thousand to a file, cut into shards of several sizes."""
    good = [orjson.dumps(row) for row in GOOD_ROWS]
    yield from _fuzz_lines(count, rng, folder, good, "rows.jsonl", b"")


def fuzz_csv(count: int, rng: random.Random, folder: Path) -> Iterator[str]:
    """Mutate records below a valid header, separated by commas or tabs."""
    good = [
        b'a,"red, silk",https://h.example/a.jpg,1.5,',
        'b,"""quoted"" 黑釉","x\ny",2,true'.encode(),
        b'c,text,"[{""type"": ""text""}]",,false',
        b"d,,no/such.png,0x10,",
    ]
    yield from _fuzz_lines(count // 2, rng, folder, good, "rows.csv", b"id,text,image,price,sparse\n")
    tabs = [line.replace(b",", b"\t") for line in good]
    yield from _fuzz_lines(count - count // 2, rng, folder, tabs, "rows.tsv", b"id\ttext\timage\tprice\tsparse\n")


def _fuzz_lines(
    count: int, rng: random.Random, folder: Path, good: list[bytes], name: str, header: bytes
) -> Iterator[str]:
    for start in range(0, count, 1000):
        lines = [_mutate_line(rng, good) for _ in range(min(1000, count - start))]
        path = folder / name
        path.write_bytes(header + b"\n".join(lines))
        options = ManifestOptions(
            str(path), _COLUMNS, keep=("title", "price"), line_bytes_max=rng.choice((2000, 10**5, 10**7)), shard_bytes_max=rng.choice((999, 10**5, 10**8))
        )  # fmt: skip
        seen: collections.Counter[str] = collections.Counter()
        count_rows(folder, options, seen)
        yield from seen.elements()


def _mutate_line(rng: random.Random, good: list[bytes]) -> bytes:
    line = rng.choice(good)
    if line.startswith(b"{") and rng.random() < 0.5:
        return write_json(mutate_value(orjson.loads(line), rng))
    return mutate(line, rng, good)


def fuzz_packed(count: int, rng: random.Random, folder: Path) -> Iterator[str]:
    """Mutate gzip and zstd files with several members or frames, some of which unpack to a large size."""
    plain = b"\n".join(orjson.dumps(row) for row in GOOD_ROWS * 30)
    zeros = b"\x00" * 30_000_000
    packers: dict[str, Callable[[bytes], bytes]] = {
        "rows.jsonl.gz": lambda data: gzip.compress(data, 6),
        "rows.jsonl.zst": lambda data: zstandard.ZstdCompressor(level=3).compress(data),
        "rows.csv.gz": lambda data: gzip.compress(b"id,text\n" + data, 1),
    }
    goods = {
        name: [pack(plain), pack(plain) + pack(b"\n" + plain), pack(plain) + pack(zeros), pack(b""), pack(zeros) * 4]
        for name, pack in packers.items()
    }
    for _ in range(count):
        name = rng.choice(list(goods))
        path = folder / name
        data = rng.choices(goods[name], (8, 6, 1, 1, 1))[0]
        path.write_bytes(data if rng.random() < 0.02 else mutate(data, rng, goods[name]))
        seen: collections.Counter[str] = collections.Counter()
        count_rows(folder, ManifestOptions(str(path), expand_ratio_max=50), seen)
        yield "file"
        yield from seen.elements()


def fuzz_parquet(count: int, rng: random.Random, folder: Path) -> Iterator[str]:
    """Mutate Parquet files, in their pages and in the footer."""
    now = datetime.datetime(2024, 1, 2, 3, 4, 5, 678900)  # noqa: DTZ001 - a manifest may have times without a zone
    columns = {
        "id": [f"id-{number}" for number in range(50)],
        "text": [f"text {number} 黑釉" for number in range(50)],
        "image": [["https://h.example/a.jpg", None]] * 50,
        "title": [{"a": now, "b": decimal.Decimal("1.5")}] * 50,
        "price": [now + datetime.timedelta(days=number) for number in range(50)],
    }
    goods = []
    for options in (
        {"compression": "none"},
        {"compression": "zstd", "row_group_size": 20},
        {"compression": "snappy", "use_dictionary": False},
        {"compression": "gzip", "data_page_version": "2.0", "write_statistics": False},
    ):
        for id_column in ("id", "price"):
            table = pa.table(columns | {"id": columns[id_column]})
            pq.write_table(table, folder / "good.parquet", **options)
            goods.append((folder / "good.parquet").read_bytes())
    for _ in range(count):
        path = folder / "rows.parquet"
        path.write_bytes(_mutate_parquet(rng.choice(goods), rng, goods))
        seen: collections.Counter[str] = collections.Counter()
        count_rows(folder, ManifestOptions(str(path), keep=("title", "price")), seen)
        yield "file"
        yield from seen.elements()


def _mutate_parquet(data: bytes, rng: random.Random, goods: list[bytes]) -> bytes:
    """Mutate a file; most mutations keep its length, so that the offsets in the footer stay valid."""
    if rng.random() < 0.3:
        return mutate(data, rng, goods)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        footer = int.from_bytes(out[-8:-4], "little")
        start = max(len(out) - 8 - footer, 0) if rng.random() < 0.6 else 4
        at = rng.randrange(min(start, len(out) - 9), len(out) - 8)
        if rng.random() < 0.5:
            out[at] ^= 1 << rng.randrange(8)
        else:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", rng.randbytes(4)))
    return bytes(out)


def good_replies() -> list[bytes]:
    """Return replies of every form: base64 and lists, sparse, per-token vectors packed and plain, errors."""
    dense = np.linspace(-1, 1, DIMENSIONS, dtype="<f4")
    multi = np.ones((3, DIMENSIONS), "<f2")
    packed = base64.b64encode(zstandard.compress(multi.tobytes())).decode()
    bomb = base64.b64encode(zstandard.compress(bytes(40_000_000))).decode()
    usage = {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_details": {"text_tokens": 7, "image_tokens": 0}}
    sparse = [{"index": 5, "value": 0.5}, {"index": 2, "value": 1.5}]
    base = {"id": "02x", "model": MODEL, "created": 1_700_000_000, "object": "list", "usage": usage}
    documents: list[Any] = []
    for embedding in (base64.b64encode(dense.tobytes()).decode(), dense.tolist()):
        for extra in ({}, {"sparse_embedding": sparse}, {"multi_embedding": packed}, {"multi_embedding": multi.tolist()}, {"multi_embedding": bomb}):  # fmt: skip
            documents.append({**base, "data": {"object": "embedding", "embedding": embedding, **extra}})
    documents.append({**base, "data": [documents[0]["data"]]})
    documents.append(
        {"error": {"code": "InvalidParameter", "message": "bad Request id: 0217", "param": "", "type": "x"}}
    )
    return [orjson.dumps(one) for one in documents]


def fuzz_replies(count: int, rng: random.Random, folder: Path) -> Iterator[str]:
    """Mutate replies, plain and in gzip, and decode them as successes and as errors, with hostile headers."""
    goods = good_replies()
    packed = [gzip.compress(one) for one in goods] + [gzip.compress(bytes(60_000_000)), gzip.compress(b"{") * 2000]
    for _ in range(count):
        zipped = rng.random() < 0.3
        source = packed if zipped else goods
        body = rng.choices(source, [20] * len(goods) + [2] * (len(source) - len(goods)))[0]
        if not zipped and rng.random() < 0.5:
            body = write_json(mutate_value(orjson.loads(body), rng))
        elif rng.random() < 0.9:
            body = mutate(body, rng, source)
        headers = {"content-encoding": "gzip"} if zipped else {}
        headers["retry-after"] = mutate(rng.choice((b"5", b"Wed, 21 Oct 2015 07:28:00 GMT")), rng, TOKENS).decode(
            "latin-1"
        )
        headers["retry-after-ms"] = mutate(b"1500", rng, TOKENS).decode("latin-1")
        try:
            content = _decompress(bytearray(body), headers, 16 * 2**20)
            reply = decode_reply(content, dimensions=DIMENSIONS, sparse=rng.random() < 0.5, multi=rng.random() < 0.5)
            assert np.isfinite(reply.dense).all()
            assert reply.norm > 0
            yield "usable"
        except UnusableReply as error:
            made = error_from_unusable(error, 200, None)
            assert made.paid
            assert len(made.message) <= 500
            yield made.code
        status = rng.choice((200, 302, 400, 401, 404, 418, 429, 500, 503, 599))
        made = error_from_status(status, body[:65_536], headers, 1_700_000_000.0)
        assert len(made.message) <= 1000
        assert made.retry_after_s is None or 0 <= made.retry_after_s <= 60
        orjson.dumps([made.message, made.code, made.request_id])


FUZZERS = {
    "jsonl": fuzz_jsonl,
    "csv": fuzz_csv,
    "packed": fuzz_packed,
    "parquet": fuzz_parquet,
    "replies": fuzz_replies,
}


def peak_mb() -> float:
    """Return the peak memory of this process, in MiB. `ru_maxrss` would include the process that it was forked from."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def fuzz(what: str, count: int, seed: int) -> None:
    """Run one of the fuzzers; print a JSON object with the outcomes and the growth of the peak memory."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = FUZZERS[what]
        collections.Counter(fuzzer(min(count, 20), random.Random(seed + 1), Path(folder)))
        before_mb, began_s = peak_mb(), time.perf_counter()
        outcomes = collections.Counter(fuzzer(count, rng, Path(folder)))
    took_s = time.perf_counter() - began_s
    note = {"what": what, "count": count, "seconds": round(took_s, 1), "before_mb": round(before_mb)}
    print(json.dumps({**note, "grown_mb": round(peak_mb() - before_mb), "outcomes": dict(outcomes.most_common())}))


def run_arkbeam_and_print_peak(*arguments: str) -> None:
    """Run `arkbeam`; before the process ends, print its peak memory in MB."""

    def leave(code: int) -> NoReturn:
        print("PEAK", round(peak_mb()), file=sys.stderr)
        raise SystemExit(code)

    cli._leave = leave
    run_arkbeam(*arguments)
