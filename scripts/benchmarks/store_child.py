"""Fill a store, or measure its index, in a process of its own.

    python -m scripts.benchmarks.store_child fill STORE ROWS RUNS INDEX [differ]
    python -m scripts.benchmarks.store_child make STORE ENTRIES
    python -m scripts.benchmarks.store_child index STORE

`fill` writes the vectors of so many runs, and prints the number of segments and of index files; with INDEX `each`, every
run covers what it wrote, and merges index files as a run does. `make` writes index files with so many entries, and no
segments. `index` merges these, opens the result and looks fingerprints up in it; it prints the time and memory of each.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from arkbeam.base import schema
from arkbeam.base.files import Listed, list_versions
from arkbeam.base.records import ServiceKind
from arkbeam.emulator.replies import STAND_IN_SUFFIX
from arkbeam.store.entries import vector_entries
from arkbeam.store.index import ENTRIES_READ, Source, open_index_file, sort_entries, write_index
from arkbeam.store.index_merge import merge, tidy_index
from arkbeam.store.layout import index_folder, new_run_name, segment_ids, segment_name, uri_key
from arkbeam.store.lookup import StoreIndex, open_store_index
from arkbeam.store.lookup import match as match_listing
from arkbeam.store.model_record import ModelRecord, write_model
from arkbeam.store.own_index import OwnIndex

from scripts.benchmarks.owned import SEGMENT_ROWS, write_run
from scripts.benchmarks.runs import MODEL
from scripts.benchmarks.texts import make_texts

DIMENSIONS = 1024
_PIECES = 4  # files that are merged


def fill(store_uri: str, rows: int, runs: int, index: str, *, differ: bool = False) -> dict[str, int]:
    """Write the runs; return the number of segments and of index files."""
    texts, ids = iter(make_texts(rows * runs)), segment_ids()
    write_model(store_uri, ServiceKind.STAND_IN, ModelRecord(MODEL, MODEL + STAND_IN_SUFFIX))
    segments, opened = 0, StoreIndex()
    for number in range(runs):
        run = new_run_name(uri_key("s3://bucket/out"), time.time(), f"{number:08x}")
        own = OwnIndex(store_uri, run)
        for uri, table in write_run(store_uri, run, islice(texts, rows), DIMENSIONS, differ=differ):
            own.add(uri, vector_entries(table))
            segments += 1
        if index == "each":
            own.flush(ids)
            opened = open_store_index(store_uri, [covering.file for covering in opened.covering])
            tidy_index(store_uri, opened, next(ids))
    return {"segments": segments, "files": len(list_versions(index_folder(store_uri)))}


def make_index(store_uri: str, entries: int) -> dict[str, int]:
    """Write index files with random fingerprints."""
    rows = entries // _PIECES
    for piece in range(_PIECES):
        sources = [_source(piece, number, rows) for number, rows in enumerate(_cut(rows))]
        write_index(store_uri, piece, sources, [_table(piece, rows)])
    return {"entries": rows * _PIECES}


def measure_index(store_uri: str) -> dict[str, Any]:
    """Merge the index files, open the result, and look fingerprints up in it."""
    steps: dict[str, Any] = {}
    pieces = _match(list_versions(index_folder(store_uri)))
    merged = _step(steps, "merge", f"{_PIECES} files", lambda: merge(store_uri, pieces.covering, _PIECES))
    (listed,) = [one for one in list_versions(index_folder(store_uri)) if one.uri == merged]
    index = _step(steps, "open", "with the list of segments", lambda: _match([listed]))
    (covering,) = index.covering
    for name, share in (("look up few", 1e-5), ("look up many", 0.1)):
        end = int(share * 2**64)
        wanted = covering.file.read_between(0, end, covering.counts)["fingerprint"]
        if name == "look up few":  # spread over the whole index
            spread = np.random.default_rng(0).integers(0, 2**63, len(wanted)).astype(">u8").tobytes() * 2
            wanted = pa.Array.from_buffers(schema.FINGERPRINT, len(wanted), [None, pa.py_buffer(spread)])
        found = _step(steps, name, f"{len(wanted):,} fingerprints", partial(index.find, wanted)).index
        if name == "look up many" and found.num_rows != len(wanted):
            raise SystemExit(f"{found.num_rows} of {len(wanted)} fingerprints were found")
    return {"steps": steps, "bytes": listed.size}


def _match(listed: Sequence[Listed]) -> StoreIndex:
    """Open index files, as if all that they cover were in the store."""
    files = [file for one in listed if (file := open_index_file(one)) is not None]
    sources = [source for file in files for source in file.sources]
    return match_listing(files, {source.name: Listed(source.name, 0, source.version) for source in sources})


def _cut(rows: int) -> list[int]:
    return [min(SEGMENT_ROWS, rows - start) for start in range(0, rows, SEGMENT_ROWS)]


def _source(piece: int, number: int, rows: int) -> Source:
    return Source(f"segments/20250101T000000-0123abcd-{piece:08x}/{segment_name(number, f'{number:016x}')}", "v", rows)


def _table(piece: int, rows: int) -> pa.Table:
    """Return sorted entries with random fingerprints."""
    random = np.random.default_rng(piece)
    names = pa.Array.from_buffers(
        schema.FINGERPRINT, rows, [None, pa.py_buffer(random.bytes(rows * schema.FINGERPRINT_BYTES))]
    )
    numbers = np.arange(rows, dtype=np.uint32)
    models = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["doubao"]))
    nothing = pa.nulls(rows, pa.string())
    columns = [names, numbers // SEGMENT_ROWS, numbers % SEGMENT_ROWS, models, nothing, nothing]
    return sort_entries(pa.table(columns, schema=ENTRIES_READ))


def _step(steps: dict[str, Any], name: str, what: str, work: Callable[[], Any]) -> Any:
    before = _peak_bytes()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    steps[name] = {
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "more_bytes": _peak_bytes() - before,
        "what": what,
    }
    return result


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(what: str, store_uri: str, *rest: str) -> dict[str, Any]:
    """Do one of the three."""
    match what:
        case "fill":
            return fill(store_uri, int(rest[0]), int(rest[1]), rest[2], differ="differ" in rest)
        case "make":
            return make_index(store_uri, int(rest[0]))
        case _:
            return measure_index(store_uri)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
